"""Interventions against Hugging Face's own modules edited by hand, against scipy, statsmodels and autograd.

Tolerances: a float32 model computed in two exact ways differs by 5e-7 relative in its norms and 1e-5 absolute in its
logits, so effects (differences of losses, of log norms; divergences) are compared to 2e-5 absolute. Float64 models:
1e-9. What no path can change is compared to the bit. A central difference of step 1e-3 in log scale misses the
derivative by step^2 times its third derivative: 1e-5. Least squares in two ways: 1e-8 relative.
"""

import functools
import itertools
import re

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from mechreg.charts.cause_maps import plot_cause_maps
from mechreg.charts.interventions import plot_dose_response
from mechreg.charts.save import chart_spec
from mechreg.forward import NextTokens, Window, padded, token_windows
from mechreg.interventions import (
    Ablate,
    Rotate,
    Scale,
    SetNorm,
    intervene,
    regression_vs_cause,
    surprise_edits,
)
from mechreg.interventions.cause_agreement import agreement
from mechreg.interventions.clean import CleanRun
from mechreg.interventions.document_means import DocumentMeans
from mechreg.interventions.edits import moved_at_random, rotated
from mechreg.interventions.pairs import pair_coefficients, pair_moments
from mechreg.interventions.passes import Edited, Passes, Site
from mechreg.interventions.plans import Targets, plan_of
from mechreg.interventions.positions import chosen, offsets
from mechreg.interventions.regression_vs_cause import elasticities
from mechreg.interventions.seeding import directions
from mechreg.models import WHOLE_HOOKS, hook_name, load_model, load_reference
from mechreg.norms import extract_norms, window_norms
from mechreg.schema import InputError, ModelError, NumericalError, SchemaError

pytestmark = pytest.mark.models

LENGTHS = [5, 12, 9, 20, 12]
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
run = functools.partial(intervene, progress=False)


@pytest.fixture(scope="session")
def load(tiny):
    """A function that loads the tiny model once for each backend and dtype; tests leave it as it is."""
    return functools.cache(lambda backend, dtype="float32": load_model(tiny, backend=backend, dtype=dtype))


@pytest.fixture
def model(backend, load):
    return load(backend)


@pytest.fixture
def tokens(make_windows):
    return make_windows(LENGTHS)


def hf_run(hf, ids, edits, hook="attn_out"):
    """Return logits and attn_out vectors of one document in a Hugging Face GPT-2, some outputs edited by hand.

    ``edits`` maps a layer to a function of the vectors, "pos d_model"; a layer's own vectors are those before it.
    """
    kept, handles = {}, []

    def after(layer, edit, result):
        value = result[0] if isinstance(result, tuple) else result
        new = value if edit is None else edit(value[0])[None]
        return (new, *result[1:]) if isinstance(result, tuple) else new

    for layer, block in enumerate(hf.transformer.h):
        handles.append(
            block.attn.register_forward_hook(lambda m, a, out, layer=layer: kept.update({layer: out[0][0]}))
        )
        edit = edits.get(layer)
        if edit is None:
            continue
        if hook == "resid_pre":
            handles.append(block.register_forward_pre_hook(lambda m, a, f=edit: (f(a[0][0])[None], *a[1:])))
        else:
            module = {"attn_out": block.attn, "mlp_out": block.mlp, "resid_post": block}[hook]
            handles.append(module.register_forward_hook(lambda m, a, out, f=edit: after(None, f, out)))
    with torch.no_grad():
        logits = hf(torch.tensor([ids])).logits[0]
    for handle in handles:
        handle.remove()
    return logits.double(), torch.stack([kept[layer] for layer in range(len(hf.transformer.h))]).double()


def by_hand(hf, tokens, layers, edit, is_edited, *, hook="attn_out"):
    """Return every token's effects, a row a token: doc, position, offset, loss, kl, top1, norm of each layer."""
    rows = []
    for (doc, _), window in tokens.groupby(["doc", "window"], observed=True, sort=False):
        ids = window["token_id"].tolist()
        where = [position for position in range(len(ids)) if is_edited(position)]

        def change(vectors, where=where):
            vectors = vectors.clone()
            vectors[where] = edit(vectors[where])
            return vectors

        clean, old = hf_run(hf, ids, {})
        edited, new = hf_run(hf, ids, dict.fromkeys(layers, change), hook)
        for position in range(len(ids)):
            before = [place for place in where if place <= position]
            if not before:
                continue
            row = {"doc": doc, "position": position, "offset": position - before[-1]}
            row |= {
                f"norm{layer}": float(torch.log(new[layer, position].norm() / old[layer, position].norm()))
                for layer in range(len(old))
            }
            if position + 1 < len(ids):
                p, q = (torch.softmax(logits[position], 0).numpy() for logits in (clean, edited))
                target = ids[position + 1]
                row |= {"loss": np.log(p[target] / q[target]), "kl": special.rel_entr(p, q).sum()}
                row |= {"top1": float(p.argmax() != q.argmax()), "clean": -np.log(p[target])}
            rows.append(row)
    return pd.DataFrame(rows)


def in_two_windows(tokens):
    """Return a token frame in which document d2 is the second window of d1."""
    second = tokens["doc"] == "d2"
    docs = tokens["doc"].astype("str").mask(second, "d1").astype("category")
    return tokens.assign(doc=docs, window=second.astype("int32"))


def document_average(values, column):
    """Return the mean of documents' means, the standard error, and the number of tokens."""
    means = values.dropna(subset=[column]).groupby("doc")[column].mean()
    return means.mean(), means.sem(), values[column].notna().sum()


def assert_equals_by_hand(effects, expected, *, atol=2e-5):
    assert set(effects["measure"]) == {"loss", "kl", "top1", "norms"}
    for row in effects.itertuples():
        column = f"norm{row.measured_layer}" if row.measure == "norms" else row.measure
        part = expected if row.offset == -1 else expected[expected["offset"] == row.offset]
        estimate, error, n = document_average(part, column)
        said = f"{row.measure} {row.measured_layer} {row.offset}"
        assert row.estimate == pytest.approx(estimate, abs=atol), said
        assert row.std_error == pytest.approx(error, abs=atol, nan_ok=True), said
        assert row.n == n, said


@pytest.mark.parametrize("positions", ["all", 3, "first"])
def test_every_measure_equals_hugging_face_edited_by_hand(model, tokens, positions):
    tokens = in_two_windows(tokens)
    effects = run(model, tokens, Scale(0.3), layers=[1], positions=positions, max_offset=4, batch_tokens=40)
    wanted = {"all": lambda p: True, 3: lambda p: p > 0 and p % 3 == 0, "first": lambda p: p == 0}[positions]
    expected = by_hand(load_reference(model), tokens, [1], lambda vectors: vectors * 0.3, wanted)
    assert_equals_by_hand(effects, expected)
    assert set(effects.query("measure == 'norms'")["measured_layer"]) == {2}
    assert set(effects["offset"]) == {-1, *range(1 if positions == "all" else 3 if positions == 3 else 5)}
    assert effects["n_edited"].eq(sum(wanted(p) for p in tokens["position"])).all()
    # The effects are there: a test of zeros would pass whatever was edited.
    assert effects.query("measure == 'kl' and offset == -1")["estimate"].item() > 1e-4


def test_zero_and_mean_ablation_equal_hugging_face_by_hand(model, tokens):
    hf = load_reference(model)
    vectors = [
        hf_run(hf, window["token_id"].tolist(), {})[1] for _, window in tokens.groupby("doc", observed=True)
    ]
    mean = torch.cat(vectors, dim=1).mean(dim=1)[1].float()
    effects = run(model, tokens, [Ablate("zero"), Ablate("mean")], layers=[1])
    for name, value in (("ablate_zero", torch.zeros(32)), ("ablate_mean", mean)):
        expected = by_hand(hf, tokens, [1], lambda v, value=value: value.expand_as(v), lambda p: True)
        part = effects[effects["edit"] == name]
        assert part["dose"].isna().all()
        assert_equals_by_hand(part, expected)


@pytest.mark.parametrize("hook", ["resid_pre", "mlp_out", "resid_post"])
def test_other_hook_points_equal_hugging_face_by_hand(model, tokens, hook):
    options = {"hook": hook, "layers": [0], "positions": 4, "measures": ("loss", "kl", "top1")}
    effects = run(model, tokens, Scale(0.5), **options)
    hf = load_reference(model)
    expected = by_hand(hf, tokens, [0], lambda v: v * 0.5, lambda p: p > 0 and p % 4 == 0, hook=hook)
    for row in effects.query("offset == -1").itertuples():
        assert row.estimate == pytest.approx(document_average(expected, row.measure)[0], abs=2e-5)


def test_all_layers_together_equal_hugging_face_by_hand(model, tokens):
    effects = run(model, tokens, Scale(0.5), layers=[0, 2], together=True)
    assert set(effects["layer"]) == {-1}
    assert effects["depth"].isna().all()
    assert set(effects.query("measure == 'norms'")["measured_layer"]) == {1, 2}
    assert_equals_by_hand(
        effects, by_hand(load_reference(model), tokens, [0, 2], lambda v: v * 0.5, lambda p: True)
    )


def test_the_clean_loss_is_hugging_faces_own(model, tokens):
    effects = run(model, tokens, Scale(0.5), layers=[0], measures="loss")
    hf = load_reference(model)
    losses = []
    for _, window in tokens.groupby("doc", observed=True):
        ids = torch.tensor([window["token_id"].tolist()])
        with torch.no_grad():
            losses.append(float(hf(ids, labels=ids).loss))
    assert effects["clean"].iloc[0] == pytest.approx(np.mean(losses), abs=2e-6)


def activations(model, ids, forward):
    """Return what every hook point of every block gave in one forward pass, by plain hooks of torch."""
    kept, handles = {}, []
    for layer, hook in itertools.product(range(model.cfg.n_layers), WHOLE_HOOKS):
        point = model.hook_dict[hook_name(hook, layer)]
        handles.append(
            point.register_forward_hook(lambda m, a, out, key=(layer, hook): kept.update({key: out.clone()}))
        )
    outcome = forward()
    for handle in handles:
        handle.remove()
    return kept, outcome


SOME_EDITS = (Scale(0.0), Scale(3.0), Rotate(90.0), Ablate("mean"), Ablate("resample"))


@quick
@given(
    layer=st.integers(0, 2),
    edit=st.sampled_from(SOME_EDITS),
    places=st.lists(st.integers(1, 11), min_size=1, max_size=3, unique=True),
    hook=st.sampled_from(["attn_out", "mlp_out", "resid_pre"]),
    restart=st.booleans(),
)
def test_an_edit_changes_nothing_below_or_before_to_the_bit(
    model, tokens, layer, edit, places, hook, restart
):
    windows = token_windows(model, tokens)
    ids, rows, real = padded(model, tokens, windows)
    clean_run = CleanRun(model, tokens, hook, [Site(layer)], 64, 0)
    apply = edit.bind(clean_run).apply
    passes = Passes(model, hook=hook, norm_hook=hook)
    before, clean = activations(model, ids, lambda: passes.run(ids, restart_at=[layer] if restart else []))
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[:, places] = True
    mask &= torch.from_numpy(real)
    edited = {Site(layer): Edited(mask, lambda vectors: apply(vectors, rows[mask.numpy()], Site(layer)))}
    after, outcome = activations(model, ids, lambda: passes.run(ids, edited, clean))
    for row, window in enumerate(windows):
        changed = [place for place in places if place < window.length]
        first = min(changed, default=window.length)
        for key, values in after.items():
            assert torch.equal(values[row, :first], before[key][row, :first]), key
            if key[0] < layer or key == (layer, "resid_pre"):
                assert torch.equal(values[row], before[key][row]), key
            if (
                key[0] == layer and hook != "resid_pre"
            ):  # at the layer itself the tokens between are as they were
                still = [place for place in range(window.length) if place not in changed]
                assert torch.equal(values[row, still], before[key][row, still]), key
        assert torch.equal(outcome.hidden[row, :first], clean.hidden[row, :first])
        np.testing.assert_array_equal(outcome.norms[: layer + 1, row], clean.norms[: layer + 1, row])
        if changed:
            assert not torch.equal(outcome.hidden[row], clean.hidden[row])
    if restart and passes.can_restart:
        assert min(key[0] for key in after) == layer  # nothing below ran again


@pytest.mark.parametrize("together", [False, True])
def test_scale_by_one_and_rotate_by_nothing_change_nothing_to_the_bit(model, tokens, together):
    effects = run(
        model, tokens, [Scale(1), Rotate(0)], together=together, controls=("random_direction", "other_position"),
        positions=2,
    )  # fmt: skip
    assert (effects["estimate"] == 0).all()
    windows = token_windows(model, tokens)
    ids, rows, real = padded(model, tokens, windows)
    passes = Passes(model, hook="attn_out", norm_hook="attn_out")
    clean = passes.run(ids)
    for edit in (Scale(1), Rotate(0)):
        apply = edit.bind(CleanRun(model, tokens, "attn_out", [Site(1)], 64, 0)).apply
        after = passes.run(
            ids,
            {Site(1): Edited(torch.from_numpy(real), lambda v, f=apply: f(v, rows[real], Site(1)))},
            clean,
        )
        assert torch.equal(after.hidden, clean.hidden)
        np.testing.assert_array_equal(after.norms, clean.norms)


@pytest.mark.parametrize(("times", "said"), [(0, "fired not at all"), (2, "fired 2 times")])
def test_an_edit_that_fires_a_wrong_number_of_times_is_an_error(tiny, backend, tokens, times, said):
    model = load_model(tiny, backend=backend)
    point = model.hook_dict["blocks.1.hook_mlp_out"]
    once = type(point).__call__

    def call(self, value):
        for _ in range(times):
            value = once(self, value)
        return value

    point.__class__ = type("Odd", (type(point),), {"__call__": call})
    with pytest.raises(ModelError, match=rf"'blocks\.1\.hook_mlp_out' {said} in one forward pass"):
        run(model, tokens, Scale(0.5), hook="mlp_out", norm_hook="attn_out", layers=[1])
    with pytest.raises(ModelError, match=rf"'blocks\.1\.hook_mlp_out' {said} in one forward pass"):
        run(model, tokens, Scale(0.5), norm_hook="mlp_out", layers=[0])


vectors_of = st.integers(0, 10_000).map(
    lambda seed: torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 6)))
)


@quick
@given(vectors=vectors_of, drawn=vectors_of, angle=st.floats(-360, 360))
def test_a_rotation_has_exactly_its_angle_and_keeps_the_norm(vectors, drawn, angle):
    drawn = drawn + 0.5  # never the vectors themselves
    turned = rotated(vectors, drawn, angle)
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), norms, rtol=1e-12)
    cosine = (turned * vectors).sum(dim=1).numpy() / norms**2
    np.testing.assert_allclose(cosine, np.cos(np.deg2rad(angle)), atol=1e-12)
    for rows in zip(turned, vectors, drawn, strict=True):  # in the plane of the two
        assert np.linalg.svd(np.stack(rows))[1][2] < 1e-8


def test_a_vector_of_zeros_cannot_be_turned():
    assert (rotated(torch.zeros(1, 3).double(), torch.ones(1, 3).double(), 45.0) == 0).all()


def test_rotations_belong_to_seed_document_position_and_layer(make_windows):
    tokens = make_windows([5, 9])
    rows = np.arange(len(tokens))
    options = {"seed": 0, "purpose": "rotate", "site": 1}
    drawn = directions(tokens, rows, 8, **options)
    for some in ([3], [1, 7], [13, 2]):
        np.testing.assert_array_equal(directions(tokens, np.array(some), 8, **options), drawn[some])
    alone = tokens[tokens["doc"] == "d1"].reset_index(drop=True)
    np.testing.assert_array_equal(directions(alone, np.arange(9), 8, **options), drawn[5:])
    windows = in_two_windows(make_windows([3, 9, 9]))
    first, second = (
        directions(windows, np.flatnonzero(windows["window"] == w)[-9:], 8, **options) for w in (0, 1)
    )
    assert not (first == second).any()
    different = [directions(tokens, rows, 8, **(options | change)) for change in ({"seed": 1}, {"site": 2})]
    different.append(directions(tokens, rows, 8, seed=0, purpose="random_direction", site=1))
    for other in (*different, drawn[::-1]):
        assert not (other == drawn).any()


def test_a_control_moves_as_far_in_another_direction():
    rng = np.random.default_rng(0)
    vectors, edited, drawn = (torch.from_numpy(rng.normal(size=(50, 16))) for _ in range(3))
    moved = moved_at_random(vectors, edited, drawn)
    np.testing.assert_allclose((moved - vectors).norm(dim=1), (edited - vectors).norm(dim=1), rtol=1e-12)
    cosines = torch.cosine_similarity(moved - vectors, edited - vectors).numpy()
    assert abs(cosines.mean()) < 4 / np.sqrt(50 * 16)


def bound(model, tokens, edit, layer=1, hook="attn_out"):
    """Return an edit's function of the layer's clean vectors, all tokens' vectors, and the result."""
    kept = {}
    clean = CleanRun(model, tokens, hook, [Site(layer)], 64, 0)
    clean.visit(lambda at, rows, vectors: kept.update(zip(rows.tolist(), vectors.clone(), strict=True)))
    vectors = torch.stack([kept[row] for row in range(len(tokens))])
    apply = edit.bind(clean).apply
    return vectors, apply(vectors, np.arange(len(tokens)), Site(layer))


def test_set_norm_sets_it_and_keeps_the_direction(model, tokens):
    wanted = np.random.default_rng(0).uniform(0.1, 9.0, len(tokens))
    frame = tokens[["doc", "window", "position"]].assign(layer=1, norm=wanted)
    array = np.full((3, len(tokens)), np.nan)
    array[1] = wanted
    results = []
    for values in (frame.sample(frac=1.0, random_state=0), array, lambda clean: wanted):
        vectors, new = bound(model, tokens, SetNorm(values))
        np.testing.assert_allclose(new.norm(dim=1), wanted, rtol=1e-12)
        np.testing.assert_allclose(torch.cosine_similarity(new, vectors), 1.0, rtol=1e-12)
        results.append(run(model, tokens, SetNorm(values), layers=[1])["estimate"])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_set_norm_at_the_clean_norms_is_a_scaling_by_one(model, tokens):
    double = SetNorm(lambda clean: 2 * clean["norm"], dose=2.0)
    options = {"layers": [0, 1], "positions": lambda tokens: tokens["position"] > 0}
    columns = ["estimate", "std_error"]
    found, expected = (run(model, tokens, edit, **options)[columns] for edit in (double, Scale(2)))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_set_norm_leaves_tokens_without_a_value(model, tokens):
    frame = tokens[["doc", "window", "position"]].assign(layer=1, norm=3.0)
    third = frame["position"].isin([3, 6]) & (frame["doc"] != "d0")
    some = run(model, tokens, SetNorm(frame[third]), layers=[1])
    holes = run(model, tokens, SetNorm(frame.assign(norm=frame["norm"].where(third))), layers=[1])
    pd.testing.assert_frame_equal(some, holes)
    assert (some["n_edited"] == third.sum()).all()
    assert some["n_docs"].max() == 4


def test_resampled_vectors_are_other_documents_own(model, tokens):
    vectors, new = bound(model, tokens, Ablate("resample"))
    docs = tokens["doc"].to_numpy()
    for doc, vector in zip(docs, new, strict=True):
        (donors,) = np.nonzero((vectors == vector).all(dim=1).numpy())
        assert len(donors) >= 1
        assert (docs[donors] != doc).all()
    drawn = {int((vectors == vector).all(dim=1).nonzero()[0]) for vector in new}
    assert len(drawn) > len(tokens) / 3  # of 58 draws from 58 tokens 37 are distinct on average


def test_draws_depend_on_the_seed_and_not_on_batches(model, tokens):
    edits = [Ablate("resample"), Rotate(60, seed=3)]
    options = {
        "controls": ("random_direction", "other_position", "other_layer"),
        "positions": 3,
        "layers": [1],
    }
    one, other = (run(model, tokens, edits, batch_tokens=size, seed=1, **options) for size in (1, 2048))
    pd.testing.assert_frame_equal(one, other, rtol=0, atol=2e-5)
    pd.testing.assert_frame_equal(other, run(model, tokens, edits, batch_tokens=2048, seed=1, **options))
    another, itself = (
        run(model, tokens, edits, seed=2, **(options | {"controls": ()})),
        other["control"] == "none",
    )
    differs = (another["estimate"] - other[itself].reset_index(drop=True)["estimate"]).abs() > 1e-7
    kl = (another["edit"] == "ablate_resample") & (another["measure"] == "kl") & (another["offset"] == -1)
    assert differs[kl].all()
    assert not differs[another["edit"] == "rotate"].any()  # it has a seed of its own


def test_both_backends_agree(hooked, load, tokens):
    edits = [
        Scale(0.5),
        Rotate(45),
        Ablate("mean"),
        Ablate("resample"),
        SetNorm(lambda clean: clean["norm"] + 1),
    ]
    options = {
        "positions": 2,
        "layers": [0, 1],
        "controls": ("random_direction", "other_layer", "other_position"),
    }
    frames = [run(load(backend), tokens, edits, **options) for backend in ("hooked", "bridge")]
    pd.testing.assert_frame_equal(*frames, rtol=0, atol=2e-5)


def test_norms_can_be_measured_at_another_hook_point(model, tokens):
    effects = run(
        model, tokens, Scale(0.5), layers=[1], norm_hook="resid_post", measures="norms", max_offset=0
    )
    assert set(effects["measured_layer"]) == {
        1,
        2,
    }  # the stream after the layer itself is later than its update
    assert set(effects["norm_hook"]) == {"resid_post"}
    hf = load_reference(model)
    changes = []
    for _, window in tokens.groupby("doc", observed=True):
        ids = torch.tensor([window["token_id"].tolist()])
        norms = []
        for factor in (1.0, 0.5):
            handle = hf.transformer.h[1].attn.register_forward_hook(
                lambda m, a, out, f=factor: (out[0] * f, *out[1:])
            )
            with torch.no_grad():
                norms.append(hf.transformer(ids, output_hidden_states=True).hidden_states[2][0].norm(dim=-1))
            handle.remove()
        changes.append(float((norms[1] / norms[0]).log().mean()))
    found = effects.query("measured_layer == 1 and offset == -1")["estimate"].item()
    assert found == pytest.approx(np.mean(changes), abs=2e-5)
    assert abs(found) > 1e-4


def changes(clean, edited, ids, at, head=None):
    seen = NextTokens(head, ids, at, ["loss", "kl", "top1"])
    seen.clean(clean)
    return seen.changes(edited, np.ones(int(at.sum()), bool))


logits_of = st.integers(0, 10_000).map(
    lambda seed: torch.from_numpy(np.random.default_rng(seed).normal(scale=4.0, size=(1, 3, 11))).float()
)


@quick
@given(clean=logits_of, other=logits_of, size=st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 300.0]))
def test_divergences_equal_scipys_and_are_never_negative(clean, other, size):
    edited = clean + size * other
    ids = torch.tensor([[0, 4, 7]])
    loss, kl, flip = changes(clean, edited, ids, torch.tensor([[True, True, False]]))
    p, q = (special.softmax(part[0, :2].double().numpy(), axis=1) for part in (clean, edited))
    # scipy's sum cancels, so its error is absolute.
    with np.errstate(divide="ignore"):
        expected = special.rel_entr(p, q).sum(axis=1)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(kl[finite], expected[finite], rtol=1e-9, atol=1e-14)
    assert np.isfinite(kl).all()
    assert (kl >= 0).all()
    log_p, log_q = (special.log_softmax(part[0, :2].double().numpy(), axis=1) for part in (clean, edited))
    np.testing.assert_allclose(loss, [log_p[0, 4] - log_q[0, 4], log_p[1, 7] - log_q[1, 7]], atol=1e-10)
    np.testing.assert_array_equal(flip, clean[0, :2].argmax(dim=1) != edited[0, :2].argmax(dim=1))
    if size == 0:
        assert (kl == 0).all()
        assert (loss == 0).all()


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")  # scipy, of means that are nearly equal
@quick
@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=4), min_size=2, max_size=6),
    st.floats(0.5, 0.99),
    st.integers(0, 6),
)
def test_intervals_are_students_over_documents_means_in_however_many_parts_they_come(values, conf_level, cut):
    sums, counts = np.array([sum(line) for line in values]), np.array([len(line) for line in values])
    found = DocumentMeans()
    found.add(np.append(sums[:cut], 0.0), np.append(counts[:cut], 0))
    found.add(sums[cut:], counts[cut:])
    table = found.table(conf_level=conf_level)
    means = sums / counts
    assert table["estimate"] == pytest.approx(means.mean(), abs=1e-12)
    interval = stats.ttest_1samp(means, 0.0).confidence_interval(conf_level)
    if means.std() > 1e-9:
        np.testing.assert_allclose([table["conf_low"], table["conf_high"]], interval, rtol=1e-9, atol=1e-9)
    assert table["n_docs"] == len(values)
    assert table["n"] == counts.sum()


def test_one_document_has_no_interval(model, make_windows):
    effects = run(model, make_windows([8]), Scale(0.5))
    assert effects["estimate"].notna().all()
    assert effects[["std_error", "df", "conf_low", "conf_high"]].isna().all(axis=None)


@quick
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=4))
def test_offsets_equal_a_loop(windows):
    expected = []
    for window in windows:
        last = None
        for position, is_edited in enumerate(window):
            last = position if is_edited else last
            expected.append(-1 if last is None else position - last)
    for window in windows:
        found = offsets(np.array([window]))[0].tolist()
        assert found == expected[: len(window)]
        expected = expected[len(window) :]


def test_positions_are_chosen_by_number_column_or_function(make_windows):
    tokens = make_windows([7, 4])
    tokens = tokens.assign(pos=["NOUN", "VERB"] * 5 + ["NOUN"], rare=tokens["token_id"] > 100)
    assert chosen(tokens, "all").all()
    assert tokens["position"][chosen(tokens, "first")].tolist() == [0, 0]
    assert tokens["position"][chosen(tokens, 3)].tolist() == [3, 6, 3]
    assert tokens["position"][chosen(tokens, 1)].tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3]
    np.testing.assert_array_equal(chosen(tokens, "rare"), tokens["token_id"] > 100)
    nullable = tokens.assign(rare=tokens["rare"].astype("boolean"))
    np.testing.assert_array_equal(chosen(nullable, "rare"), tokens["rare"])
    np.testing.assert_array_equal(
        chosen(tokens, lambda frame: frame["pos"] == "NOUN"), tokens["pos"] == "NOUN"
    )


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        ("rara", "or one of its columns .*got 'rara'. Did you mean 'rare'"),
        ("token_id", "The column 'token_id' must give True or False"),
        ("holes", "The column 'holes' must give True or False"),
        (0, "every k-th token, 1 or more; got 0"),
        (50, "positions=50 chooses no token"),
        (lambda tokens: tokens["position"], "The function given as positions= must give True or False"),
        (lambda tokens: [True], "for each of the 11 tokens; got bool of shape"),
    ],
)
def test_positions_that_cannot_be_meant_are_refused(make_windows, positions, said):
    tokens = make_windows([7, 4]).assign(
        rare=True, holes=pd.array([True, None] * 5 + [True], dtype="boolean")
    )
    with pytest.raises(InputError, match=said):
        chosen(tokens, positions)


def test_columns_of_the_token_frame_choose_positions(model, tokens):
    marked = tokens.assign(noun=tokens["position"] % 5 == 2)
    found = run(model, marked, Scale(0.0), positions="noun", layers=[0])
    same = run(model, tokens, Scale(0.0), positions=lambda frame: frame["position"] % 5 == 2, layers=[0])
    pd.testing.assert_frame_equal(found, same)
    assert set(found["offset"]) == {-1, 0, 1, 2, 3, 4}


def test_controls_change_as_many_other_tokens_or_another_layer(model, tokens):
    edited = chosen(tokens, lambda frame: frame["position"].isin([2, 3]))
    clean = CleanRun(model, tokens, "attn_out", [Site(0), Site(1), Site(2)], 64, 5)
    edit, targets = Scale(0.5), Targets(clean, token_windows(model, tokens), edited, 3)
    plan = {
        name: plan_of(targets, (Site(1),), edit, edit.bind(clean), name)
        for name in ("none", "other_position", "other_layer", "random_direction")
    }
    (elsewhere,) = plan["other_position"].masks().values()
    assert not (elsewhere & edited).any()
    assert not elsewhere[tokens["position"] == 0].any()
    per_window = pd.Series(elsewhere).groupby(tokens["doc"].to_numpy()).sum()
    assert (per_window == 2).all()
    layers = plan["other_layer"].masks()
    assert set(layers) == {Site(0), Site(2)}
    np.testing.assert_array_equal(layers[Site(0)] ^ layers[Site(2)], edited)
    for mask in layers.values():  # a window is edited in one layer
        assert set(pd.Series(mask)[edited].groupby(tokens["doc"].to_numpy()[edited]).nunique()) == {1}
    np.testing.assert_array_equal(plan["random_direction"].masks()[Site(1)], edited)


def test_other_layer_is_the_edit_of_the_drawn_layers(model, make_windows):
    # One document a layer: the control's document means are those of the drawn layer's own edit.
    tokens = make_windows([9])
    effects = run(model, tokens, Scale(0.0), controls=("other_layer",), measures=("loss", "kl"), max_offset=0)
    own = effects.query("control == 'none' and measure == 'kl' and offset == -1").set_index("layer")[
        "estimate"
    ]
    other = effects.query("control == 'other_layer' and measure == 'kl' and offset == -1").set_index("layer")
    for layer, value in other["estimate"].items():
        assert value in own.drop(layer).tolist()


def elasticities_by_autograd(hf, ids, at):
    """Return d log norm (l, at) / d log scale (k, at - 1) of attn_out in a float64 Hugging Face GPT-2."""
    n_layers = hf.config.n_layer

    def log_norms(log_scales):
        kept, handles = {}, []

        def scaled(module, inputs, out, layer):
            kept[layer] = out[0][0, at]
            factor = torch.ones(out[0].shape[1], 1, dtype=torch.float64)
            factor = factor.index_put((torch.tensor([at - 1]),), log_scales[layer].exp().reshape(1, 1))
            return (out[0] * factor, *out[1:])

        for layer, block in enumerate(hf.transformer.h):
            handles.append(block.attn.register_forward_hook(functools.partial(scaled, layer=layer)))
        hf.transformer(torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        return torch.stack([kept[layer].norm().log() for layer in range(n_layers)])

    return torch.autograd.functional.jacobian(log_norms, torch.zeros(n_layers, dtype=torch.float64)).T.numpy()


def test_elasticities_equal_autograds_derivatives(backend, load, make_windows):
    model = load(backend, "float64")
    tokens = make_windows([9, 14])
    hf = load_reference(model)
    passes = Passes(model, hook="attn_out", norm_hook="attn_out", logits=False)
    batch = padded(model, tokens, [Window(0, 9), Window(9, 6), Window(9, 2)])
    found = elasticities(passes, batch, step=1e-3)
    ids = tokens["token_id"].tolist()
    for row, (start, length) in enumerate([(0, 9), (9, 6), (9, 2)]):
        expected = elasticities_by_autograd(hf, ids[start : start + length], length - 1)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
        assert np.abs(expected[np.triu_indices(3, 1)]).max() > 1e-3
    # Within a layer and below it the effect is 0 to the bit.
    assert (found[:, *np.tril_indices(3)] == 0).all()


def lagged_table(model, tokens, k, l, skip=1):
    """Return log norm of layer l at t, of layer k and l at t-1, document by document."""
    norms = np.log(window_norms(model, tokens)["attn_out"].astype("float64"))
    parts = []
    for doc, rows in tokens.groupby("doc", observed=True).indices.items():
        now, before = rows[skip + 1 :], rows[skip:-1]
        parts.append(
            pd.DataFrame({"doc": doc, "y": norms[l, now], "x": norms[k, before], "own": norms[l, before]})
        )
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("own_lag", [True, False])
def test_cross_layer_coefficients_equal_statsmodels(model, make_windows, own_lag):
    tokens = make_windows([20, 31, 14, 40, 25])
    maps = regression_vs_cause(
        model, tokens, effects=(), own_lag=own_lag, per_window=2, draws=20, progress=False
    )
    pairs = maps.pairs.set_index(["layer", "later_layer"])
    assert len(pairs) == 9
    for (k, l), row in pairs.iterrows():
        table = lagged_table(model, tokens, k, l)
        columns = ["x"] if not own_lag or k == l else ["x", "own"]
        weights = 1 / table.groupby("doc")["y"].transform("size")  # every document counts the same
        design = sm.add_constant(table[columns])
        fit = sm.WLS(table["y"], design, weights=weights).fit()
        without = [
            sm.WLS(table["y"][other], design[other], weights=weights[other]).fit().params["x"]
            for other in (table["doc"] != doc for doc in table["doc"].unique())
        ]
        error = np.sqrt(4 / 5 * ((np.array(without) - fit.params["x"]) ** 2).sum())
        assert row["coefficient"] == pytest.approx(fit.params["x"], rel=1e-8)
        assert row["coefficient_std_error"] == pytest.approx(error, rel=1e-7)
        half = stats.t.ppf(0.975, 4) * error
        assert row["coefficient_high"] - row["coefficient"] == pytest.approx(half, rel=1e-6)
        assert row["n"] == len(table)


def test_document_effects_are_dummies_and_positions_are_those_of_t(model, make_windows):
    tokens = make_windows([20, 31, 14, 40, 25])
    table = lagged_table(model, tokens, 0, 2)
    weights = 1 / table.groupby("doc")["y"].transform("size")
    position = table.groupby("doc").cumcount().to_numpy()
    doc = pd.factorize(table["doc"])[0]
    dummies = np.column_stack([doc[:, None] == np.arange(5), position[:, None] == np.arange(38)])
    for effects, columns in ((["doc"], slice(0, 5)), (["doc", "position"], slice(0, 43))):
        levels = dummies[:, columns].astype(float)
        left = (
            table[["y", "x", "own"]]
            - levels @ np.linalg.lstsq(levels, table[["y", "x", "own"]], rcond=None)[0]
        )
        expected = sm.WLS(left["y"], left[["x", "own"]], weights=weights).fit().params["x"]
        maps = regression_vs_cause(model, tokens, effects=effects, per_window=1, draws=9, progress=False)
        row = maps.pairs.query("layer == 0 and later_layer == 2").iloc[0]
        assert row["coefficient"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("noise", "layers", "verdict"),
    [(0.1, 9, "alike"), (30.0, 9, "cannot be told"), (0.0, 3, "cannot be told")],
)
def test_causes_are_called_alike_only_where_the_pairs_could_show_it(noise, layers, verdict):
    # Made-up maps: the coefficients are the true effects, each document's effects have noise of their own.
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(layers, layers))
    found = agreement(
        lambda weights: np.broadcast_to(truth, (len(weights), layers, layers)),
        truth + noise * rng.normal(size=(40, layers, layers)),
        conf_level=0.95,
        draws=99,
        seed=0,
    )
    assert found["verdict"] == verdict
    assert found["n_pairs"] == layers * (layers - 1) / 2
    if noise == 0.1:
        assert found["effect_reliability"] > 0.99
        # 36 pairs: 80% power for Fisher's z of 2.8 standard errors sqrt(1.06 / 33).
        assert found["detectable"] == pytest.approx(np.tanh(2.8016 * np.sqrt(1.06 / 33)), abs=0.01)


def test_maps_that_have_nothing_in_common_are_not_told_from_0():
    rng = np.random.default_rng(1)
    truth, other = rng.normal(size=(2, 12, 12))
    other -= truth * (other * truth).sum() / (truth**2).sum()
    found = agreement(
        lambda weights: np.broadcast_to(truth, (len(weights), 12, 12)),
        other + 0.1 * rng.normal(size=(40, 12, 12)),
        conf_level=0.95,
        draws=99,
        seed=0,
    )
    assert re.fullmatch(r"not told from 0: 0\.\d\d would have been seen", found["verdict"])


def test_effects_are_means_over_documents_of_the_elasticities(load, backend, make_windows):
    model, tokens = load(backend, "float64"), make_windows([6, 9, 4])
    maps = regression_vs_cause(
        model, tokens, per_window=99, step=1e-3, batch_tokens=30, draws=50, progress=False
    )
    hf, ids = load_reference(model), tokens["token_id"].tolist()
    means = []
    for window in token_windows(model, tokens):
        line = ids[window.rows]
        ends = range(2, window.length)  # t - 1 from 1 on: skip is 1
        means.append(np.mean([elasticities_by_autograd(hf, line[: t + 1], t) for t in ends], axis=0))
    effect = maps.pairs["effect"].to_numpy().reshape(3, 3)
    np.testing.assert_allclose(effect, np.mean(means, axis=0), atol=1e-5)
    interval = stats.ttest_1samp(np.array(means)[:, 0, 2], 0.0).confidence_interval(0.95)
    row = maps.pairs.query("layer == 0 and later_layer == 2").iloc[0]
    np.testing.assert_allclose([row["effect_low"], row["effect_high"]], interval, atol=1e-4)
    assert maps.pairs["n_edits"].iloc[0] == 4 + 7 + 2
    assert (maps.pairs.query("later_layer <= layer")["effect"] == 0).all()

    above = maps.pairs.query("later_layer > layer")
    row = maps.agreement.iloc[0]
    assert row["spearman"] == pytest.approx(stats.spearmanr(above["coefficient"], above["effect"])[0])
    assert row["n_pairs"] == 3
    assert row["conf_low"] <= row["conf_high"]


def test_the_same_seed_draws_the_same_tokens_and_documents(model, make_windows):
    tokens = make_windows([30, 22, 26])
    one, other = (regression_vs_cause(model, tokens, per_window=3, seed=4, progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(one.pairs, other.pairs)
    pd.testing.assert_frame_equal(one.agreement, other.agreement)
    another = regression_vs_cause(model, tokens, per_window=3, seed=5, progress=False)
    assert (one.pairs["coefficient"] == another.pairs["coefficient"]).all()
    assert (one.pairs["effect"] != another.pairs["effect"])[
        one.pairs["later_layer"] > one.pairs["layer"]
    ].all()


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (lambda y: 2 * y + 1, [[False, True], [True, False]]),
        (lambda y: 0 * y + 3, [[False, True], [True, True]]),
    ],
)
def test_regressors_without_a_slope_of_their_own_have_none(second, said):
    first = np.random.default_rng(0).normal(size=30)
    moments, _ = pair_moments(np.stack([first, second(first)]), [Window(0, 18), Window(18, 12)], [0, 1], 1)
    slopes = pair_coefficients(moments, np.ones((1, 2)), own_lag=True)[0]
    assert np.isnan(slopes).tolist() == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"own_lag": "own"}, "own_lag must be one of True, False"),
        ({"effects": "layer"}, "effects must"),
        ({"step": 0.0}, "step must be a number between 0 and 1"),
        ({"per_window": 0}, "per_window must be a whole number, 1 or more"),
        ({"draws": 0}, "draws must be a whole number"),
        ({"skip": 40}, "a window of at least 42 tokens"),
        ({"hook": "z"}, "hook must be one of 'resid_pre', 'attn_out'"),
    ],
)
def test_bad_options_of_causes_are_refused(model, tokens, options, said):
    with pytest.raises((InputError, TypeError), match=said if "own_lag" not in options else "own_lag"):
        regression_vs_cause(model, tokens, progress=False, **options)


def augmented_frame(model, tokens):
    """Return the columns that fits.augment gives, of a fit made here: log norm on its lag, by layer."""
    norms = extract_norms(model, tokens, progress=False)
    frame = norms.assign(log_norm=np.log(norms["norm"].astype("float64")))
    frame["lag1"] = frame.groupby(["layer", "doc"], observed=True)["log_norm"].shift()
    frame.loc[frame["position"] < 2, "lag1"] = np.nan
    predicted = pd.Series(np.nan, frame.index)
    for _, part in frame.dropna(subset=["lag1"]).groupby("layer"):
        predicted[part.index] = np.polyval(np.polyfit(part["lag1"], part["log_norm"], 1), part["lag1"])
    return frame.assign(predicted=predicted, residual=frame["log_norm"] - predicted)


def test_surprise_sets_norms_k_residual_sd_from_the_prediction(model, tokens):
    frame = augmented_frame(model, tokens)
    edits = surprise_edits(frame, k=(-1, 0, 2.5))
    assert [(edit.name, edit.dose) for edit in edits] == [
        ("surprise", -1.0),
        ("surprise", 0.0),
        ("surprise", 2.5),
    ]
    part = frame[frame["layer"] == 1].reset_index(drop=True)
    known = part["predicted"].notna().to_numpy()
    sd = part["residual"].std()
    for edit in edits:
        vectors = bound(model, tokens, edit)[1].norm(dim=1).numpy()
        expected = np.exp(part["predicted"] + edit.dose * sd)
        np.testing.assert_allclose(vectors[known], expected[known], rtol=1e-9)
    effects = run(model, tokens, edits)
    assert (effects["n_edited"] == known.sum()).all()
    assert known.sum() == sum(length - 2 for length in LENGTHS)


def test_a_prediction_that_comes_true_costs_nothing(model, tokens):
    frame = augmented_frame(model, tokens).dropna(subset=["predicted"])
    effects = run(
        model, tokens, surprise_edits(frame.assign(predicted=frame["log_norm"], residual=0.0), k=(0, 1))
    )
    np.testing.assert_allclose(effects["estimate"], 0.0, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="residual"), "surprise_edits needs the column 'residual'"),
        (lambda f: pd.concat([f, f.assign(model="other")]), "the rows of one model; the frame has 2"),
        (lambda f: f.assign(predicted=f["predicted"] * 2), "a fit of log_norm itself"),
        (lambda f: f[f["position"] < 2], "at least two predictions in every layer"),
    ],
)
def test_frames_that_are_no_prediction_of_log_norms_are_refused(load, backend, make_windows, change, said):
    frame = augmented_frame(load(backend), make_windows([6, 7])).astype({"model": "str"})
    with pytest.raises(InputError, match=said):
        surprise_edits(change(frame))


VALUES = {"doc": "d0", "window": 0, "position": [2, 3], "layer": 1, "norm": 2.0}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda: Scale(float("nan")),
            "The factor of Scale must be a finite number, for example 0.5; got nan",
        ),
        (lambda: Rotate(float("inf")), "The angle of Rotate, in degrees, must be a finite number"),
        (lambda: Rotate(10, seed=-1), "seed must be a whole number, 0 or more"),
        (lambda: SetNorm(pd.DataFrame(VALUES).drop(columns="norm")), "SetNorm needs the column 'norm'"),
        (lambda: SetNorm(np.ones(3)), "an array of layer x token"),
        (lambda: SetNorm(pd.DataFrame(VALUES | {"position": [2, 2]})), "two for one token in layer 1"),
        (lambda: SetNorm(pd.DataFrame(VALUES | {"norm": -1.0})), "norms of 0 or more, all finite; got -1"),
        (
            lambda: SetNorm(pd.DataFrame(VALUES | {"doc": "other"})),
            "no norm for any of these documents' tokens",
        ),
        (
            lambda: SetNorm(pd.DataFrame(VALUES | {"model": "gpt2"})),
            r"no rows of the model 'tiny'; it has \['gpt2'\]",
        ),
        (lambda: SetNorm(pd.DataFrame(VALUES | {"token_id": -5})), "other token ids at these places"),
        (lambda: SetNorm(np.ones((2, 2))), r"an array of layer x token, \(3, 58\)"),
        (lambda: SetNorm(lambda clean: [1.0]), "one norm for each of 58 tokens"),
        (
            lambda: SetNorm(pd.DataFrame(VALUES | {"position": [1, 2]})),
            "changes no token: no chosen position has",
        ),
    ],
)
def test_edits_that_cannot_be_meant_are_refused(model, tokens, edit, said):
    with pytest.raises(InputError, match=said):
        run(model, tokens, edit(), layers=[1], positions=3)


def test_an_unknown_replacement_is_refused():
    with pytest.raises((InputError, TypeError), match="replacement"):
        Ablate("noise")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hook": "attn_aut"}, "hook must be one of 'resid_pre', .*Did you mean 'attn_out'"),
        ({"heads": [0]}, "heads= needs hook='z' or hook='result'"),
        ({"hook": "z", "heads": [4]}, "heads must be a whole number from 0 to 3; got 4"),
        ({"measures": "target_loss"}, "'target_loss' needs target="),
        ({"measures": "logit_difference", "target": 3}, "'logit_difference' needs foil="),
        ({"target": [1, 2]}, "one for each of 5 documents; got 2"),
        ({"target": "The cat"}, "target= must be one token; 'The cat' is"),
        ({"measured_at": "lost"}, "measured_at must be 'all'"),
        ({"controls": ("direct",), "together": True}, "'direct' need a layer that is not edited"),
        ({"norm_hook": "result"}, "norm_hook must be one of"),
        ({"layers": [3]}, "layers must be a whole number from 0 to 2; got 3"),
        ({"layers": []}, "layers must be distinct whole numbers, at least 1 of them"),
        ({"layers": [1, 1]}, "layers must be distinct"),
        ({"edit": []}, "at least one edit"),
        ({"edit": [Scale(1), Scale(1.0)]}, r"Two edits have the same name and dose \(scale, dose 1\)"),
        ({"measures": ()}, "measures must name at least 1 of 'loss', 'kl', 'top1', 'norms'"),
        ({"batch_tokens": 0}, "batch_tokens must be a whole number, 1 or more"),
        ({"max_offset": -1}, "max_offset must be a whole number, 0 or more"),
        ({"conf_level": 1.5}, "conf_level must be a number between 0 and 1"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"controls": ("other_position",)}, "'other_position' needs tokens that are not edited"),
        ({"controls": ("other_layer",), "together": True}, "need a layer that is not edited"),
        ({"layers": [2], "measures": "norms"}, "reaches nothing that is measured"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(model, tokens, options, said):
    options = {"edit": Scale(0.5)} | options
    with pytest.raises(InputError, match=said):
        run(model, tokens, options.pop("edit"), **options)


@pytest.mark.parametrize("options", [{"measures": "los"}, {"controls": ("other",)}, {"edit": 0.5}])
def test_names_that_are_none_are_refused(model, tokens, options):
    options = {"edit": Scale(0.5)} | options
    with pytest.raises((InputError, TypeError), match=r"measures|controls|edit|intervene needs"):
        run(model, tokens, options.pop("edit"), **options)


def test_one_document_cannot_be_resampled(model, make_windows):
    with pytest.raises(InputError, match=r"none for 'd0'; give more documents"):
        run(model, make_windows([6]), Ablate("resample"))


def test_a_document_without_any_other_token_after_the_edit_is_refused(model, make_windows):
    with pytest.raises(InputError, match="reaches nothing that is measured"):
        run(model, make_windows([1, 1]), Scale(0.5), measures="loss")


def test_a_bridge_refuses_resid_mid_which_is_an_alias_there(load, tokens):
    with pytest.raises(InputError, match="only what the second layer norm reads"):
        run(load("bridge"), tokens, Scale(0.5), hook="resid_mid")


def test_resid_mid_is_the_stream_itself_on_a_hooked_transformer(hooked, load, tokens):
    # Half of resid_mid is resid_mid less half of itself: the same change made at attn_out.
    model = load("hooked")
    found = run(model, tokens, Scale(0.0), hook="resid_mid", layers=[1], measures="kl")["estimate"].iloc[0]
    ids, rows, real = padded(model, tokens, token_windows(model, tokens))
    kept, _ = activations(model, ids, lambda: model(ids))
    passes = Passes(model, hook="attn_out", norm_hook="attn_out")
    clean = passes.run(ids)
    real = torch.from_numpy(real)
    away = passes.run(ids, {Site(1): Edited(real, lambda v: v - kept[1, "resid_mid"][real].double())}, clean)
    at = real.clone()
    at[:, :-1] &= real[:, 1:]
    at[:, -1] = False
    kl = changes(clean.hidden, away.hidden, ids, at, passes.head)[1]
    docs = pd.factorize(tokens["doc"])[0][rows[at.numpy()]]
    assert found == pytest.approx(pd.Series(kl).groupby(docs).mean().mean(), abs=1e-4)


def test_an_effect_that_is_not_finite_is_placed(model, tokens):
    # Squares of 1e30 overflow float32 within the layer norm.
    edit = SetNorm(pd.DataFrame({"doc": "d2", "window": 0, "position": [4], "layer": 0, "norm": 1e30}))
    with pytest.raises(NumericalError, match=r"layer 0; document 'd2', window 0, position 4\)"):
        run(model, tokens, edit, layers=[0])


def test_a_zero_vector_has_no_norm_to_be_set(tiny, backend, tokens):
    model = load_model(tiny, backend=backend)
    apply = (
        SetNorm(lambda clean: clean["norm"]).bind(CleanRun(model, tokens, "attn_out", [Site(0)], 64, 0)).apply
    )
    with pytest.raises(NumericalError, match="layer 0, document 'd1', window 0, position 2 is zero"):
        apply(torch.zeros(1, 32).double(), np.array([7]), Site(0))


def test_dropout_that_is_on_is_an_error(make_gpt2, tokens):
    model = load_model(make_gpt2(), backend="bridge", name="trained-on")
    model.train()
    with pytest.raises(ModelError, match=r"trained-on is in training mode"):
        run(model, tokens, Scale(0.5))


def test_a_model_without_the_hook_point_is_an_error(make_neox, tokens):
    model = load_model(make_neox(), name="parallel")  # attention and MLP side by side: nothing in between
    with pytest.raises(ModelError, match=r"parallel has no hook point 'blocks\.0\.hook_resid_mid'"):
        run(model, tokens, Scale(0.5), norm_hook="resid_mid")


def test_another_architecture_goes_the_same_way(save_llama, make_windows):
    model, tokens = load_model(save_llama()), make_windows([9, 14])
    effects = run(model, tokens, [Scale(0.5), Scale(1.0)], positions=4)
    assert (effects.query("dose == 1")["estimate"] == 0).all()
    assert (effects.query("dose == 0.5 and measure == 'kl' and offset == -1")["estimate"] > 0).all()


def test_models_and_frames_are_left_alone_and_nothing_is_printed(tiny, backend, tokens, capfd):
    model = load_model(tiny, backend=backend)
    copy, expected = tokens.copy(deep=True), model(torch.tensor([[5, 6, 7]]))
    torch.manual_seed(3)
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(model, tokens, [Rotate(20), Ablate("resample")], controls=("random_direction",), positions=2)
    regression_vs_cause(model, tokens, per_window=1, draws=9, progress=True)
    with pytest.raises(NumericalError, match="Use a smaller dose"):
        run(model, tokens, Scale(1e38), layers=[0])
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    pd.testing.assert_frame_equal(tokens, copy)
    assert torch.equal(model(torch.tensor([[5, 6, 7]])), expected)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "tok" not in captured.err  # no progress bar where there is no terminal


def test_texts_and_a_name_are_enough(tiny):
    effects = run(str(tiny), ["The cat sat on the mat.", "The moon looked."], Scale(0.5), layers=[0])
    assert set(effects["n_docs"]) <= {1, 2}
    assert set(effects["model"]) == {tiny.name}


@pytest.mark.slow
def test_a_model_of_gpt2s_size_goes_through(backend, make_gpt2):
    sizes = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
    model = load_model(make_gpt2(**sizes), backend=backend, name="random-gpt2")
    ids = pd.DataFrame({"doc": ["a", "b"], "token_ids": [list(range(100, 148)), list(range(900, 932))]})
    from mechreg.corpus import tokenize

    tokens = tokenize(model, ids)
    options = {"layers": [0, 6, 11], "controls": ("random_direction",)}
    effects = run(model, tokens, [Scale(0.0), Scale(1.0), Rotate(30)], **options)
    assert (effects.query("dose == 1")["estimate"] == 0).all()
    assert np.isfinite(effects["estimate"]).all()
    maps = regression_vs_cause(model, tokens, per_window=2, draws=50, progress=False)
    assert len(maps.pairs) == 144
    assert (maps.pairs.query("later_layer <= layer")["effect"] == 0).all()
    assert (maps.pairs.query("later_layer > layer")["effect"] != 0).all()
    chart_spec(plot_dose_response(effects, edit="scale"))
    chart_spec(plot_cause_maps(maps.pairs, agreement=maps.agreement))


@pytest.fixture(scope="session")
def dose_effects(load, make_windows):
    edits = [Scale(0.0), Scale(0.5), Scale(1.0), Rotate(20), Rotate(40)]
    return run(load("bridge"), make_windows(LENGTHS), edits, controls=("random_direction", "other_layer"))


def leaves(spec, kind):
    """Return every part of a chart's specification that has a key."""
    if isinstance(spec, list):
        return [found for part in spec for found in leaves(part, kind)]
    if not isinstance(spec, dict):
        return []
    return ([spec] if kind in spec else []) + [
        found for part in spec.values() for found in leaves(part, kind)
    ]


def test_the_dose_response_chart_draws_every_layer_and_dose(dose_effects):
    spec = chart_spec(plot_dose_response(dose_effects, edit="scale", control="random_direction"))
    rows = pd.DataFrame([row for data in spec["datasets"].values() for row in data if "kind" in row])
    shown = rows[rows["kind"] == "the edit"]
    assert set(shown["measure"]) == {"loss", "kl", "top1", "norms"}
    expected = dose_effects.query(
        "edit == 'scale' and control == 'none' and offset == -1 and measure == 'kl'"
    )
    found = shown[shown["measure"] == "kl"].sort_values(["layer", "dose"])
    np.testing.assert_allclose(found["estimate"], expected.sort_values(["layer", "dose"])["estimate"])
    assert set(rows["kind"]) == {"the edit", "control: random direction"}
    assert spec["description"].startswith("Effects of attn_out scaled")


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda f: f, {}, "one edit at a time"),
        (lambda f: f, {"edit": "scala"}, "no rows of the edit 'scala'.*Did you mean 'scale'"),
        (lambda f: f, {"edit": "scale"}, "one control at a time"),
        (lambda f: f[f["dose"] == 0], {"edit": "scale", "control": "other_layer"}, "at least two doses"),
        (lambda f: pd.concat([f, f]), {"edit": "scale", "control": "other_layer"}, "one row for each mark"),
        (lambda f: f.drop(columns="dose"), {}, "needs the column 'dose'"),
        (lambda f: f[f["layer"] > 5], {}, "the frame is empty"),
        (
            lambda f: f.assign(estimate=np.nan), {"edit": "scale", "control": "other_layer"}, "finite numbers",
        ),
        (
            lambda f: f, {"edit": "scale", "control": "other_layer", "measures": ["los"]}, "measures must be one of",
        ),
    ],
)  # fmt: skip
def test_effects_that_cannot_be_drawn_are_refused(dose_effects, change, options, said):
    with pytest.raises((InputError, NumericalError, SchemaError), match=said):
        plot_dose_response(change(dose_effects), **options)


@pytest.fixture(scope="session")
def cause_maps(load, make_windows):
    return regression_vs_cause(
        load("bridge"), make_windows([20, 31, 14]), per_window=2, draws=20, progress=False
    )


def test_the_cause_maps_draw_every_pair_twice(cause_maps):
    spec = chart_spec(plot_cause_maps(cause_maps.pairs, agreement=cause_maps.agreement))
    (cells,) = [data for data in spec["datasets"].values() if data and "later_layer" in data[0]]
    drawn = pd.DataFrame(cells)
    for name in ("layer", "later_layer", "coefficient", "effect"):
        np.testing.assert_allclose(drawn[name], cause_maps.pairs[name])
    assert drawn["no_path"].sum() == 6
    colours = {
        part["encoding"]["color"].get("field")
        for part in leaves(spec, "encoding")
        if "color" in part["encoding"]
    }
    assert {"coefficient", "effect"} <= colours
    title = str(leaves(spec, "subtitle"))
    told = f"{cause_maps.agreement['spearman'].iloc[0]:.2f}".replace("-", "−")
    assert f"over 3 pairs k < l: {told}" in title


def test_the_cause_maps_show_themselves_in_a_notebook(cause_maps):
    assert repr(cause_maps).endswith(": 9 pairs of layers)")
    page = cause_maps._repr_html_()
    assert "later_layer" in page
    assert "spearman" in page
    assert len(page) < 10_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: pd.concat([f, f]), "one row for each mark"),
        (lambda f: f.assign(effect=np.nan), "finite numbers as coefficient, effect"),
        (lambda f: f.drop(columns="effect"), "needs the column 'effect'"),
    ],
)
def test_pairs_that_cannot_be_drawn_are_refused(cause_maps, change, said):
    with pytest.raises((InputError, NumericalError, SchemaError), match=said):
        plot_cause_maps(change(cause_maps.pairs))
