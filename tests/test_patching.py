"""Edits of heads and directions, patches, and direct effects, against Hugging Face's own modules edited by hand.

The model is mini-s in float64: two exact ways of computing differ by 1e-9, and the tests ask for 1e-6.
"""

import functools

import numpy as np
import pandas as pd
import pytest
import torch

import mechreg as mr
from mechreg.interventions import measuring
from mechreg.models import load_reference
from mechreg.schema import InputError

pytestmark = pytest.mark.models

MEASURES = ("loss", "target_loss", "logit_difference", "norms", "difference")
TARGET, FOIL = " house", " water"
CORRUPTED = ["The night was long and the house was cold.", "He had no money."]
SOURCE = ["The day was long and the water was cold.", "He had his money."]
run = functools.partial(mr.intervene, progress=False, measures=MEASURES, target=TARGET, foil=FOIL)


@pytest.fixture(scope="module")
def load():
    return functools.cache(lambda backend: mr.load_model("mini-s", backend=backend, dtype="float64"))


@pytest.fixture
def model(backend, load):
    return load(backend)


def hf_pass(hf, ids, edits=(), still=None):
    """Return logits and what attention added in each layer; ``edits`` are (module, before or after it, function).

    ``still`` are layers whose attention adds given vectors.
    """
    added, handles = {}, []
    for module, when, change in edits:
        if when == "before":
            handles.append(
                module.register_forward_pre_hook(lambda m, a, f=change: (f(a[0][0])[None], *a[1:]))
            )
        else:
            handles.append(
                module.register_forward_hook(lambda m, a, out, f=change: (f(out[0][0])[None], *out[1:]))
            )
    for layer, block in enumerate(hf.transformer.h):

        def look(module, inputs, out, layer=layer):
            added[layer] = out[0][0]
            return (still[layer][None], *out[1:]) if still and layer in still else None

        handles.insert(0, block.attn.register_forward_hook(look, prepend=True))
    with torch.no_grad():
        logits = hf(torch.tensor([ids])).logits[0]
    for handle in handles:
        handle.remove()
    return logits, torch.stack([added[layer] for layer in range(len(added))])


def documents(model, texts):
    return [mr.tokenize(model, [text])["token_id"].tolist() for text in texts]


def by_hand(model, edits_of, layer):
    """Return total and direct effects, means over documents of means over tokens, by measure and layer."""
    hf = load_reference(model)
    target, foil = (documents(model, [token])[0][0] for token in (TARGET, FOIL))
    rows = []
    for own, source in zip(documents(model, CORRUPTED), documents(model, SOURCE), strict=True):
        old, was = hf_pass(hf, own)
        for control in ("none", "direct"):
            still = {i: was[i] for i in range(layer + 1, len(was))} if control == "direct" else None
            new, now = hf_pass(hf, own, edits_of(hf, source), still)
            loss, then = (-torch.log_softmax(logits, dim=1) for logits in (new, old))
            each = torch.arange(len(own) - 1), torch.tensor(own[1:])
            row = {"control": control, ("loss", -1): (loss[each] - then[each]).mean()}
            row["target_loss", -1] = (loss[:, target] - then[:, target]).mean()
            row["logit_difference", -1] = (new - old)[:, target].mean() - (new - old)[:, foil].mean()
            for later in range(layer, len(was)):
                row["norms", later] = (now[later].norm(dim=1) / was[later].norm(dim=1)).log().mean()
                row["difference", later] = (now[later] - was[later]).norm(dim=1).mean()
            rows.append({key: value if key == "control" else float(value) for key, value in row.items()})
    return pd.DataFrame(rows).groupby("control").mean()


def head_slice(head, change):
    def edit(z):
        z = z.clone()
        z[:, 16 * head : 16 * (head + 1)] = change(z[:, 16 * head : 16 * (head + 1)])
        return z

    return edit


DIRECTION = np.random.default_rng(0).normal(size=64)
UNIT = torch.from_numpy(DIRECTION / np.linalg.norm(DIRECTION))


def without_unit(vectors):
    return vectors - 0.75 * (vectors @ UNIT)[:, None] * UNIT


def towards_unit(vectors):
    rows = []
    for vector in vectors:
        flat = UNIT - (UNIT @ vector) / (vector @ vector) * vector
        rows.append(np.cos(np.pi / 6) * vector + np.sin(np.pi / 6) * vector.norm() * flat / flat.norm())
    return torch.stack(rows)


def first_component(hf, model, layer):
    everything = torch.cat([hf_pass(hf, ids)[1][layer] for ids in documents(model, CORRUPTED)])
    return torch.from_numpy(np.linalg.svd((everything - everything.mean(dim=0)).numpy())[2][0])


def after_attention(layer, change):
    return lambda hf, source: [(hf.transformer.h[layer].attn, "after", change)]


def of_head(layer, head, change):
    return lambda hf, source: [(hf.transformer.h[layer].attn.c_proj, "before", head_slice(head, change))]


def patched(share):
    def edits(hf, source):
        other = hf_pass(hf, source)[1][1]
        return [(hf.transformer.h[1].attn, "after", lambda own: own + share * (other - own))]

    return edits


def head_patched(hf, source):
    seen = []
    hf_pass(hf, source, [(hf.transformer.h[1].attn.c_proj, "before", lambda z: seen.append(z.clone()) or z)])
    return [
        (hf.transformer.h[1].attn.c_proj, "before", lambda z: head_slice(2, lambda own: seen[0][:, 32:48])(z))
    ]


@pytest.mark.parametrize(
    ("edit", "options", "edits_of"),
    [
        (mr.Scale(0.3), {"hook": "z", "heads": 2}, of_head(1, 2, lambda z: 0.3 * z)),
        (mr.Ablate(), {"hook": "result", "heads": 3}, of_head(1, 3, torch.zeros_like)),
        (mr.Patch(SOURCE), {"hook": "z", "heads": 2}, head_patched),
        (mr.Project(DIRECTION, 0.25), {}, after_attention(1, without_unit)),
        (mr.Rotate(30, towards=torch.from_numpy(DIRECTION)), {}, after_attention(1, towards_unit)),
        (mr.Patch(SOURCE), {}, patched(1.0)),
        (mr.Patch(SOURCE, share=0.4), {"batch_tokens": 12}, patched(0.4)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_total_and_direct_effects_equal_hugging_face_by_hand(model, edit, options, edits_of):
    effects = run(model, CORRUPTED, edit, layers=1, controls="direct", norm_hook="attn_out", **options)
    effects = effects[effects["offset"] == -1]
    expected = by_hand(model, edits_of, 1)
    assert len(effects) == 2 * (
        3 + 2 * (3 if "hook" in options else 2)
    )  # after its heads, a layer's own update
    for row in effects.itertuples():
        if row.control == "direct" and row.measure in ("norms", "difference") and row.measured_layer == 3:
            assert row.estimate != 0  # what it would add were it not frozen
        found = expected.loc[row.control][row.measure, row.measured_layer]
        assert row.estimate == pytest.approx(found, abs=1e-6), (
            f"{row.measure} {row.measured_layer} {row.control}"
        )
    total, direct = (
        effects.query("measure == 'difference' and control == @name and measured_layer == 3")[
            "estimate"
        ].item()
        for name in ("none", "direct")
    )
    assert total > 1e-3
    assert abs(total - direct) > 1e-4


def test_a_principal_component_is_taken_out(model):
    unit = first_component(load_reference(model), model, 1)
    expected = by_hand(model, after_attention(1, lambda own: own - (own @ unit)[:, None] * unit), 1).loc[
        "none"
    ]
    effects = run(model, CORRUPTED, mr.Project(1), layers=1).query("offset == -1")
    for row in effects.itertuples():
        assert row.estimate == pytest.approx(expected[row.measure, row.measured_layer], abs=1e-6)


@pytest.mark.parametrize("hook", ["attn_out", "z", "mlp_out", "resid_pre"])
def test_in_the_last_layer_all_of_an_effect_is_direct(model, hook):
    options = {"measures": ("loss", "logit_difference"), "hook": hook, "controls": ("direct",)}
    effects = run(model, CORRUPTED, mr.Scale(0.0), layers=3, **options)
    total, direct = (effects[effects["control"] == name]["estimate"] for name in ("none", "direct"))
    # Before the last attention there is a path through it.
    assert (total.to_numpy() == direct.to_numpy()).all() == (hook != "resid_pre")


def test_heads_together_are_the_layer(model):
    options = {"layers": 1, "measures": ("loss", "difference"), "norm_hook": "resid_post"}
    heads = run(model, CORRUPTED, mr.Ablate(), hook="z", together=True, **options)
    bias = load_reference(model).transformer.h[1].attn.c_proj.bias.detach().numpy()
    frame = mr.extract_vectors(model, CORRUPTED, hook="attn_out", layers=1)
    assert np.abs(frame.values[0] - bias).max() > 1.0  # without its heads the layer adds its bias
    only_bias = mr.Patch(CORRUPTED, share=1.0)
    assert set(heads["head"]) == {-1}
    one = run(model, CORRUPTED, mr.Ablate(), hook="result", together=True, **options)
    pd.testing.assert_frame_equal(heads.drop(columns="hook"), one.drop(columns="hook"), atol=1e-9)
    assert only_bias.dose == 1.0


def test_a_principal_component_points_where_its_largest_entry_is_positive(model):
    vectors = mr.extract_vectors(model, CORRUPTED, layers=2).values[0]
    component = np.linalg.svd(vectors - vectors.mean(axis=0))[2][0]
    component *= np.sign(component[np.abs(component).argmax()])
    for one, other in ((1, component), (1, torch.tensor(component).bfloat16().requires_grad_())):
        turned, by_hand = (run(model, CORRUPTED, mr.Rotate(40, towards=d), layers=2) for d in (one, other))
        rtol = 1e-6 if isinstance(other, np.ndarray) else 0.1
        np.testing.assert_allclose(turned["estimate"], by_hand["estimate"], rtol=rtol, atol=rtol)


def test_the_other_layer_edited_directly_keeps_its_own_heads(model):
    options = {"hook": "z", "heads": 1, "measures": ("difference",), "layers": 0}
    effects = run(model, CORRUPTED, mr.Scale(0.0), controls=("other_layer", "direct"), **options)
    assert np.isfinite(effects["estimate"]).all()
    assert set(effects["control"]) == {"none", "other_layer", "direct"}


def test_a_patch_of_the_same_text_changes_nothing_and_of_another_length_is_aligned(model):
    same = run(model, CORRUPTED, mr.Patch(CORRUPTED))
    np.testing.assert_allclose(same["estimate"], 0.0, atol=1e-9)
    longer = ["In the end " + text for text in SOURCE]
    with pytest.raises(InputError, match=r"has .* tokens where its source has .*align='start' or 'end'"):
        run(model, CORRUPTED, mr.Patch(longer))
    with pytest.raises(InputError, match=r"the documents have \[1, 1\] windows and the source has \[1\]"):
        run(model, CORRUPTED, mr.Patch(SOURCE[:1]))
    long = " ".join(CORRUPTED * 20)  # two windows; as many in all, but of other documents
    for documents_, source in (([long, *SOURCE], [*SOURCE, long]), (SOURCE, ["", *CORRUPTED])):
        with pytest.raises(InputError, match=r"in the same order|order of the documents"):
            run(model, documents_, mr.Patch(source, align="start"))
    n = [len(ids) for ids in documents(model, CORRUPTED)]
    shorter = run(model, longer, mr.Patch(CORRUPTED, align="end"), layers=1)
    assert (shorter["n_edited"] == sum(n)).all()
    (ends,) = shorter.query("measure == 'target_loss' and offset == -1")["n"]
    assert ends == sum(n)  # the first tokens are before all edited ones


def test_patch_map_equals_hugging_face_patched_by_hand(model):
    found = mr.patch_map(
        model,
        CORRUPTED[0],
        SOURCE[0],
        target=TARGET,
        foil=FOIL,
        hook="attn_out",
        batch_tokens=40,
        progress=False,
    )
    hf = load_reference(model)
    (own,), (other,) = (documents(model, texts[:1]) for texts in (CORRUPTED, SOURCE))
    target, foil = (documents(model, [token])[0][0] for token in (TARGET, FOIL))
    (low, _), (high, theirs) = (hf_pass(hf, ids) for ids in (own, other))
    low, high = (float(logits[-1, target] - logits[-1, foil]) for logits in (low, high))
    assert found["corrupted"].iloc[0] == pytest.approx(low, abs=1e-6)
    assert found["clean"].iloc[0] == pytest.approx(high, abs=1e-6)
    for row in found.itertuples():

        def put(vectors, row=row):
            vectors = vectors.clone()
            vectors[row.position] = theirs[row.layer, row.position]
            return vectors

        logits = hf_pass(hf, own, [(hf.transformer.h[row.layer].attn, "after", put)])[0][-1]
        assert row.logit_difference == pytest.approx(float(logits[target] - logits[foil]), abs=1e-6)
        assert row.restored == pytest.approx((row.logit_difference - low) / (high - low))
    assert found["restored"].abs().max() > 0.1


def test_patch_map_of_the_whole_stream_restores_what_has_not_moved_on(model):
    found = mr.patch_map(
        model, CORRUPTED[0], SOURCE[0], target=TARGET, foil=FOIL, hook="resid_post", progress=False
    )
    last = found[found["layer"] == 3].set_index("position")["restored"]
    assert last.iloc[-1] == pytest.approx(
        1.0, abs=1e-6
    )  # after all layers the last token has the whole answer
    np.testing.assert_allclose(last.iloc[:-1], 0.0, atol=1e-9)
    with pytest.raises(InputError, match="need as many tokens"):
        mr.patch_map(model, CORRUPTED[0], SOURCE[1])
    with pytest.raises(InputError, match="at most 256 tokens, one window"):
        mr.patch_map(model, CORRUPTED[0] * 60, CORRUPTED[0] * 60)
    with pytest.raises(InputError, match="Give target= and foil="):
        mr.patch_map(model, CORRUPTED[0], CORRUPTED[0])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda: mr.Project(np.ones(3)), r"a direction of shape \(64,\) or \(4, 64\); got \(3,\)"),
        (lambda: mr.Project(np.zeros(64)), "not zero; layer 0 has none"),
        (lambda: mr.Project(65), "the principal component must be a whole number from 1 to 64"),
        (lambda: mr.Project(64), "component 64 needs 65 tokens or more; the documents have"),
        (lambda: mr.Project(None), "got NoneType"),
        (lambda: mr.Rotate(30, towards="up"), "Rotate's towards= needs a principal component .* got str"),
        (lambda: mr.Patch(SOURCE, align="middle"), "align"),
    ],
)
def test_directions_and_patches_that_cannot_be_meant_are_refused(load, edit, said):
    with pytest.raises((InputError, TypeError), match=said):
        run(load("bridge"), CORRUPTED, edit())


def test_the_sums_that_are_open_do_not_grow_with_the_documents(load, make_windows, monkeypatch):
    model, sizes = load("bridge"), []

    class Counted(measuring.Tally):
        def __init__(self, n_docs, *shape):
            super().__init__(n_docs, *shape)
            sizes.append((n_docs, self.effects.nbytes + self.cleans.nbytes))

    monkeypatch.setattr(measuring, "Tally", Counted)
    for n_docs in (20, 100):
        options = {"layers": 0, "measures": "norms", "batch_tokens": 20, "max_offset": 2, "progress": False}
        mr.intervene(model, make_windows([4] * n_docs), mr.Scale(0.0), **options)
    assert {n_docs for n_docs, _ in sizes} == {20}  # 4 batches of 20 tokens
    assert len(sizes) == 1 + 5
    assert {size for _, size in sizes} == {20 * 4 * 4 * 8 * 2}  # documents, layers, offsets, bytes, both sums


def test_a_target_may_be_tensors_or_arrays(model):
    target, foil = (ids[0] for ids in documents(model, [TARGET, FOIL]))
    effects = run(model, CORRUPTED, mr.Scale(0.5), layers=[0, 1])
    for kind in (torch.tensor, np.array):
        options = {"layers": [0, 1], "target": kind(target), "foil": kind([foil, foil])}
        pd.testing.assert_frame_equal(run(model, CORRUPTED, mr.Scale(0.5), **options), effects)
    found = mr.patch_map(
        model, CORRUPTED[0], SOURCE[0], target=torch.tensor([target]), foil=np.array(foil), progress=False
    )
    assert found["doc"].unique().tolist() == ["house against water"]


def test_a_dose_response_goes_through_the_dose_that_changes_nothing(model):
    effects = run(model, CORRUPTED, [mr.Scale(0.5), mr.Scale(2.0)], layers=[0])
    spec = mr.plot_dose_response(effects).to_dict()
    rows = [row for data in spec["datasets"].values() for row in data if "kind" in row]
    assert sorted({row["dose"] for row in rows}) == [0.5, 1.0, 2.0]
    assert {row["estimate"] for row in rows if row["dose"] == 1.0} == {0.0}
    kept = mr.plot_dose_response(run(model, CORRUPTED, [mr.Scale(2.0), mr.Scale(3.0)], layers=[0])).to_dict()
    assert not [row for data in kept["datasets"].values() for row in data if row.get("dose") == 1.0]


def test_a_function_gives_set_norm_its_norms_anew_for_every_dose(model):
    calls = []

    def wanted(frame):
        calls.append(len(frame))
        return frame["norm"]

    run(model, CORRUPTED, [mr.SetNorm(wanted, dose=1.0), mr.SetNorm(wanted, dose=2.0)], layers=[0])
    assert len(calls) == 2
