"""Every finding against raw Hugging Face: hidden states, attentions, losses, a model with a block taken out.

Tolerances: both sides run the same float32 weights in other shapes and orders, so norms, activations and losses agree
to rounding, 1e-5 relative where trained heads cancel (check_model says why); sums over a window are in float64. The
folded weights of norm_growth are rounded once more: 1e-5 of a growth factor. A share of heads or of likeliest tokens
changes by whole heads or tokens, so it is equal, or off by the few whose attention or logits are within rounding:
none here. The edit of one activation moves losses by 1e-4 nats, known to 1e-5.
"""

import copy
import dataclasses
import math

import numpy as np
import oracle
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import mechreg as mr
from mechreg.cli import main
from mechreg.findings import FINDINGS, Claim, Settings, list_findings, measures, replicate
from mechreg.findings import replication as replication_module
from mechreg.findings.finding import claimed, published_name
from mechreg.forward import Forward
from mechreg.models import load_reference
from mechreg.schema import InputError, ModelError

quick = settings(max_examples=50, deadline=None)
QUIET = Settings(batch_tokens=200, progress=False)
TEXTS = [
    "The cat sat on the mat and looked at the moon. " * 8,
    "It rained all day, and the old man did not leave his house.",
    "In the beginning there was a band from Hungary; it played rock music in the capital. " * 5,
    "Once upon a time a ship sailed to the north and never came back, so they say.",
]


@pytest.fixture(scope="module")
def model():
    return mr.load_model("mini-s")


@pytest.fixture(scope="module")
def reference(model):
    hf_model = load_reference(model)
    hf_model.set_attn_implementation("eager")
    return hf_model


def measured(finding, model, texts=TEXTS, run=QUIET) -> dict[str, float]:
    finding = FINDINGS[finding]
    tokens = mr.tokenize(model, texts, prepend_bos=finding.prepend_bos, n_ctx=finding.n_ctx)
    return dict(finding.measure(model, tokens, run))


def id_rows(model, *, bos, cut=None) -> list[torch.Tensor]:
    """Return each text's ids, one row a text, made without the package."""
    first = [model.tokenizer.bos_token_id] if bos else []
    return [torch.tensor([(first + model.tokenizer(text)["input_ids"])[:cut]]) for text in TEXTS]


def streams(hf_model, ids) -> list[torch.Tensor]:
    """Return the residual stream before every block and after the last, which hidden_states give behind ln_f."""
    last = []
    handle = hf_model.transformer.h[-1].register_forward_hook(
        lambda module, inputs, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.inference_mode():
        hidden = hf_model(ids, output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    return [state[0].double() for state in (*hidden[:-1], last[0])]


def losses(hf_model, rows) -> tuple[float, int]:
    """Return the sum of Hugging Face's own losses over texts, and the tokens predicted."""
    with torch.inference_mode():
        found = [float(hf_model(ids, labels=ids, use_cache=False).loss) * (ids.shape[1] - 1) for ids in rows]
    return sum(found), sum(ids.shape[1] - 1 for ids in rows)


def test_lagged_norms_against_least_squares_on_hugging_face_hooks(model, reference):
    caught = []
    for layer in reference.transformer.h:
        layer.attn.register_forward_hook(lambda module, inputs, output: caught.append(output[0][0].double()))
    rows = []
    for doc, ids in enumerate(id_rows(model, bos=False)):
        caught.clear()
        with torch.inference_mode():
            reference(ids, use_cache=False)
        for layer, update in enumerate(caught):
            logs = update.norm(dim=1).log().numpy()
            rows += [(layer, doc, logs[t], logs[t - 1], logs[t - 2]) for t in range(3, len(logs))]
    for layer in reference.transformer.h:
        layer.attn._forward_hooks.clear()
    frame = pd.DataFrame(rows, columns=["layer", "doc", "now", "lag1", "lag2"])
    betas, p_values = [], []
    for _, part in frame.groupby("layer"):
        x = np.column_stack([np.ones(len(part)), part["lag1"], part["lag2"]])
        betas.append(np.linalg.lstsq(x, part["now"], rcond=None)[0][1:])
        fit = smf.ols("now ~ lag1 + lag2", part).fit(
            cov_type="cluster-crv3", cov_kwds={"groups": part["doc"]}, use_t=True
        )
        df = oracle.bell_mccaffrey(x, part["doc"].to_numpy())[1:]
        p_values.append(2 * stats.t.sf(np.abs(fit.tvalues[["lag1", "lag2"]]), df))
    found = measured("lagged_norms", model)
    for at, term in enumerate(("lag1", "lag2")):
        assert found[f"{term}_median_beta"] == pytest.approx(np.median(np.array(betas)[:, at]), abs=1e-5)
        assert found[f"{term}_layers"] == np.mean(np.array(p_values)[:, at] < 0.05)


def test_norm_growth_against_centred_hidden_states(reference):
    # Processing centres all that writes to the stream, so its stream is Hugging Face's less its own mean.
    folded = mr.load_model("mini-s", processing="folded")
    norms = [[] for _ in range(4)]
    for ids in id_rows(folded, bos=True):
        for layer, stream in enumerate(streams(reference, ids)[:4]):
            norms[layer].append((stream - stream.mean(dim=1, keepdim=True)).norm(dim=1)[1:])
    means = [float(torch.cat(layer).mean()) for layer in norms]
    found = measured("norm_growth", folded)
    assert found["growth_per_block"] == pytest.approx((means[3] / means[1]) ** 0.5, rel=1e-5)
    assert found["growth_late_minus_early"] == pytest.approx(
        means[3] / means[2] - means[2] / means[1], abs=3e-5
    )


@pytest.mark.parametrize(("n_layers", "first", "last"), [(48, 5, 41), (12, 1, 10), (4, 1, 3), (3, 1, 2)])
def test_the_blocks_of_growth_are_those_of_gpt2_xl_or_as_deep(n_layers, first, last):
    assert measures.growth_blocks(n_layers) == (first, last)


def test_too_few_blocks_are_refused(save_gpt2):
    folder = save_gpt2("flat", n_layer=2)
    for finding in ("norm_growth", "layer_drop"):
        with pytest.raises(InputError, match="at least three blocks; this one has 2"):
            replicate(finding, models=folder, documents=TEXTS, progress=False)


def test_the_first_position_against_hidden_states(model, reference):
    rows = [streams(reference, ids)[1:] for ids in id_rows(model, bos=False)]
    found = measures.first_position(model, mr.tokenize(model, TEXTS), QUIET)
    for layer in range(4):
        first = torch.stack([row[layer][0] for row in rows])
        elsewhere = torch.cat([row[layer][1:] for row in rows]).abs().amax(dim=0)
        median = np.mean([float(row[layer].float().abs().median()) for row in rows])
        np.testing.assert_allclose(found.mean[layer], first.mean(dim=0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.magnitude[layer], first.abs().mean(dim=0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.elsewhere[layer], elsewhere, rtol=1e-5, atol=1e-5)
        assert found.median[layer] == pytest.approx(median, rel=1e-5)
    largest = measured("first_token_outlier", model)
    means = torch.stack(
        [torch.stack([row[layer][0] for row in rows]).mean(dim=0) for layer in range(4)]
    ).abs()
    assert largest["dimension"] == int(means.amax(dim=0).argmax())
    assert largest["size"] == pytest.approx(float(means.max()), rel=1e-5)


def planted(make_gpt2, *, dimension, size):
    """Return a GPT-2 whose position 0 has one enormous activation from the second of three blocks on."""
    hf_model = make_gpt2()
    with torch.no_grad():
        # The position embedding lights a neuron of that block at position 0 only, and the neuron writes the outlier.
        hf_model.transformer.wpe.weight[:, 7] = 0.0
        hf_model.transformer.wpe.weight[0, 7] = 50.0
        mlp = hf_model.transformer.h[1].mlp
        mlp.c_fc.weight[:, 0] = 0.0
        mlp.c_fc.weight[7, 0] = 10.0
        mlp.c_fc.bias[0] = -25.0
        hf_model.transformer.h[1].ln_2.weight[7] = 1.0
        mlp.c_proj.weight[0] = 0.0
        mlp.c_proj.weight[0, dimension] = size
        probe = streams(hf_model, torch.arange(8)[None])[2][:, dimension].abs()
        mlp.c_proj.weight[0, dimension] *= size / probe[0]
    return hf_model


def test_a_planted_outlier_is_found_where_it_was_planted(make_gpt2, tokenizer):
    model = mr.load_model(planted(make_gpt2, dimension=11, size=3000.0), tokenizer=tokenizer)
    found = measured("first_token_outlier", model, ["the cat sat", "moon and mat"])
    assert (found["dimension"], found["first_block"]) == (11, 1)
    assert found["size"] == pytest.approx(
        3000.0, rel=0.02
    )  # other tokens than the probe's, a later block's update
    assert found["size_elsewhere"] < 30
    stats = measures.first_position(model, mr.tokenize(model, ["the cat sat"]), QUIET)
    assert measures.massive_dimensions(stats) == [11]


@pytest.mark.parametrize("plant", [False, True])
def test_massive_activations_against_a_hook_on_the_hugging_face_block(
    plant, model, reference, make_gpt2, tokenizer
):
    if plant:
        reference = planted(make_gpt2, dimension=11, size=3000.0)
        model = mr.load_model(reference, tokenizer=tokenizer)
    texts = [text[:60] for text in TEXTS]
    rows = [torch.tensor([model.tokenizer(text)["input_ids"]]) for text in texts]
    found = measured("massive_activations", model, texts)
    assert found["massive"] == plant
    block = int(found["block"])
    first = torch.stack([streams(reference, ids)[block + 1][0] for ids in rows]).mean(dim=0)
    dimension = 11 if plant else int(measured("first_token_outlier", model, texts)["dimension"])

    def loss_with(value):
        def edit(module, inputs, output):
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            stream[:, 0, dimension] = value
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        handle = reference.transformer.h[block].register_forward_hook(edit)
        total, n = losses(reference, rows)
        handle.remove()
        return total / n

    total, n = losses(reference, rows)
    assert found["loss"] == pytest.approx(total / n, abs=1e-5)
    assert found["loss_change_zero"] == pytest.approx(loss_with(0.0) - total / n, abs=2e-5)
    assert found["loss_change_mean"] == pytest.approx(
        loss_with(float(first[dimension])) - total / n, abs=2e-5
    )
    assert abs(found["loss_change_zero"]) > 1e-4  # else the comparison says nothing


def test_the_sink_rate_against_output_attentions(model, reference):
    rows = [ids for ids in id_rows(model, bos=False, cut=64) if ids.shape[1] == 64]
    drawn = measures.random_tokens(model, seed=0)
    rows_drawn = list(torch.tensor(drawn["token_id"].to_numpy().reshape(100, 64)).split(1))
    found = measured("sink_rate", model)
    assert found["texts"] == len(rows) == 2
    scores = {}
    for name, some in (("text", rows), ("random", rows_drawn)):
        with torch.inference_mode():
            attentions = [reference(ids, output_attentions=True, use_cache=False).attentions for ids in some]
        # The source's own way: importance of key 0 is its column's sum over the 64 - 0 queries that can see it.
        scores[name] = np.array(
            [[layer[0, :, :, 0].double().sum(dim=1) / 64 for layer in one] for one in attentions]
        )
        assert found[f"sink_rate_{name}"] == (scores[name] > 0.3).mean()
    np.testing.assert_allclose(
        measures.first_token_attention(model, drawn, QUIET),
        scores["random"].swapaxes(0, 1),
        rtol=1e-4,
        atol=1e-6,
    )


def test_attention_to_the_first_token_of_ragged_windows_is_what_each_gives_alone(model):
    tokens = mr.tokenize(model, TEXTS)
    docs = tokens.groupby("doc", observed=True)
    by_length = sorted((doc for _, doc in docs), key=lambda doc: -len(doc))
    together = measures.first_token_attention(model, tokens, Settings(batch_tokens=10_000, progress=False))
    for at, doc in enumerate(by_length):
        alone = measures.first_token_attention(model, doc.reset_index(drop=True), QUIET)
        np.testing.assert_allclose(together[:, at], alone[:, 0], rtol=1e-4, atol=1e-6)


def test_the_loss_is_hugging_faces(model, reference):
    found = measured("baseline_ce", model)
    total, n = losses(reference, id_rows(model, bos=True))
    assert found["loss"] == pytest.approx(total / n, rel=1e-5)
    hello = torch.tensor([[model.tokenizer.bos_token_id, *model.tokenizer("Hello world!")["input_ids"]]])
    assert found["loss_hello_world"] == pytest.approx(
        losses(reference, [hello])[0] / (hello.shape[1] - 1), rel=1e-5
    )


def test_a_layer_dropped_is_a_hugging_face_model_without_that_block(model, reference):
    rows = id_rows(model, bos=True)

    def top1(hf_model):
        with torch.inference_mode():
            return torch.cat([hf_model(ids, use_cache=False).logits[0, 1:].argmax(dim=1) for ids in rows])

    whole = top1(reference)
    expected = []
    for layer in range(4):
        shorter = copy.deepcopy(reference)
        del shorter.transformer.h[layer]
        shorter.config.n_layer = 3
        expected.append(float((top1(shorter) == whole).double().mean()))
    kept = measures.top1_kept(model, mr.tokenize(model, TEXTS, prepend_bos=True), QUIET)
    np.testing.assert_allclose(kept, expected, atol=1e-12)
    found = measured("layer_drop", model)
    assert found["kept_middle"] == pytest.approx((expected[1] + expected[2]) / 2)
    assert found["kept_last_minus_middle"] == pytest.approx(expected[3] - found["kept_middle"])
    assert len(set(expected)) == 4


@pytest.mark.parametrize("finding", list(FINDINGS))
def test_every_finding_gives_the_same_on_hooked_and_bridge_of_a_random_model(finding, tiny, hooked):
    both = [
        replicate(finding, models=tiny, documents=TEXTS, backend=backend, batch_tokens=99, progress=False)
        for backend in ("hooked", "bridge")
    ]
    assert both[0]["agrees"].isna().all()
    assert both[0]["published"].isna().all()
    assert np.isfinite(both[0]["obtained"]).all()
    np.testing.assert_allclose(both[0]["obtained"], both[1]["obtained"], rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("finding", list(FINDINGS))
def test_every_finding_goes_through_with_the_shape_of_gpt2(finding, full_size):
    table = replicate(finding, models=full_size, documents=TEXTS, progress=False)
    assert np.isfinite(table["obtained"]).all()
    assert table["agrees"].isna().all()


@pytest.fixture(scope="module")
def full_size(save_gpt2):
    shape = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
    return save_gpt2("full-size", **shape)


def test_the_batch_size_changes_nothing_but_rounding(model):
    for finding in ("massive_activations", "baseline_ce", "layer_drop"):
        one = measured(finding, model, run=Settings(batch_tokens=1, progress=False))
        many = measured(finding, model, run=Settings(batch_tokens=5000, progress=False))
        assert one == pytest.approx(many, abs=1e-5)


# Claims.

numbers = st.floats(-1e6, 1e6)


@quick
@given(numbers, st.floats(0, 1e6), numbers)
def test_a_published_number_agrees_within_its_tolerance(value, tolerance, number):
    claim = Claim(quantity="q", models=("m",), value=value, tolerance=tolerance, because="")
    assert claim.agrees(number) == (value - tolerance <= number <= value + tolerance)
    assert not claim.agrees(math.nan)


@quick
@given(numbers, numbers)
def test_a_direction_is_not_met_by_its_bound(bound, number):
    above = Claim(quantity="q", models=("m",), low=bound, because="")
    below = Claim(quantity="q", models=("m",), high=bound, because="")
    assert (above.agrees(number), below.agrees(number)) == (number > bound, number < bound)


def test_claims_in_words():
    assert claimed(1.045, 0.01, 1.035, 1.055) == "1.045 +- 0.01"
    assert claimed(447.0, 0.0, 447.0, 447.0) == "447"
    assert claimed(math.nan, math.nan, 0.72, 0.95) == "0.72 to 0.95"
    assert claimed(math.nan, math.nan, -math.inf, 0.5) == "< 0.5"
    assert claimed(math.nan, math.nan, math.nan, math.nan) == "none"


def test_a_number_of_one_text_is_not_claimed_of_another():
    claim = next(c for c in FINDINGS["baseline_ce"].claims if c.corpus)
    assert claim.holds_for("gpt2", "datasets:Skylion007/openwebtext::train[:500]")
    assert not claim.holds_for("gpt2", None)
    assert not claim.holds_for("gpt2", TEXTS)
    assert not claim.holds_for("mini-s", "datasets:Skylion007/openwebtext")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("gpt2", "gpt2"),
        ("gpt2-xl[folded]", "gpt2-xl"),
        ("openai-community/gpt2", "gpt2"),
        ("gpt2-small", "gpt2"),
    ],
)
def test_a_model_is_found_by_what_the_literature_calls_it(label, name):
    assert published_name(label) == name


def test_the_gallery_has_what_was_asked_for_each_with_its_source():
    asked = {"lagged_norms", "norm_growth", "first_token_outlier", "massive_activations", "sink_rate"}
    assert set(FINDINGS) == asked | {"baseline_ce", "layer_drop"}
    table = list_findings()
    assert set(table["finding"]) == set(FINDINGS)
    for finding in FINDINGS.values():
        assert any(
            place in finding.source for place in ("arxiv.org/abs/", "thepalindrome.org", "lesswrong.com")
        )
        assert finding.measured
        assert all(claim.because for claim in finding.claims)
        claimed_of = {name for claim in finding.claims for name in claim.models}
        assert set(finding.models) <= claimed_of
        assert claimed_of & {"mini-s", "mini-m", "mini-l"} == set()


# The command, and what it refuses.


def test_the_list_shows_every_finding_with_what_was_published_and_where(capsys):
    assert main(["replicate", "--list"]) == 0
    out = capsys.readouterr().out
    for finding in FINDINGS:
        assert f"{finding}: " in out
    for word in (
        "growth_per_block 1.045 +- 0.01 in gpt2-xl",
        "dimension 447 in gpt2",
        "arxiv.org/abs/2402.17762",
    ):
        assert word in out


def test_the_miniatures_run_without_a_published_value_and_exit_with_0(capsys, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(TEXTS))
    arguments = [
        "replicate",
        "baseline_ce",
        "--models",
        "mini-s,mini-m",
        "--corpus",
        str(tmp_path / "*.txt"),
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("none") == 4
    assert "source:" in out


def test_a_model_that_agrees_exits_with_0_and_one_that_does_not_with_1(
    capsys, make_gpt2, tokenizer, tmp_path, reference, model, monkeypatch
):
    folder = tmp_path / "gpt2"  # called like the one that something was published of
    planted(make_gpt2, dimension=11, size=3000.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    options = ["--models", str(folder), "--corpus", str(tmp_path / "text.txt")]
    assert main(["replicate", "first_token_outlier", *options]) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("gpt2 ")]
    assert [(row[1], row[-1]) for row in rows] == [
        ("dimension", "NO"), ("size", "yes"), ("first_block", "yes"), ("size_elsewhere", "-"),
    ]  # fmt: skip
    finding = FINDINGS["first_token_outlier"]
    here = dataclasses.replace(finding.claims[0], value=11.0)
    monkeypatch.setitem(
        FINDINGS, finding.name, dataclasses.replace(finding, claims=(here, *finding.claims[1:]))
    )
    assert main(["replicate", "first_token_outlier", *options]) == 0
    assert "NO" not in capsys.readouterr().out


def test_weights_that_are_not_there_are_named_before_any_model_runs(monkeypatch, capsys):
    def loaded(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(replication_module, "load_model", loaded)
    with pytest.raises(
        ModelError, match=r"norm_growth needs the weights of gpt2-xl: .*--models mini-s,mini-m"
    ):
        replicate("norm_growth")
    with pytest.raises(ModelError, match="needs the weights of gpt2-xl"):
        replicate("norm_growth", models=["mini-s", "gpt2-xl"])
    assert main(["replicate", "norm_growth"]) == 2
    assert capsys.readouterr().err.startswith("mechreg: norm_growth needs the weights of gpt2-xl")


def test_what_cannot_be_used_is_refused(model, capsys):
    with pytest.raises(
        InputError, match=r"name must be one of 'lagged_norms', .* Did you mean 'norm_growth'"
    ):
        replicate("norm_grow")
    with pytest.raises(
        InputError, match="measured with processing='folded', and mini-s was loaded with 'raw'"
    ):
        replicate("norm_growth", models=model)
    with pytest.raises(InputError, match="no text has so many"):
        replicate("sink_rate", models="mini-s", documents=["Too short."], progress=False)
    with pytest.raises(InputError, match="at least one model"):
        replicate("layer_drop", models=[])
    with pytest.raises(InputError, match="batch_tokens must be a whole number, 1 or more"):
        replicate("layer_drop", models="mini-s", batch_tokens=0)
    with pytest.raises(InputError, match="at least two tokens"):
        measures.mean_loss(model, mr.tokenize(model, ["A"]), {}, QUIET)
    assert main(["replicate"]) == 2
    assert "replicate needs a finding: lagged_norms" in capsys.readouterr().err


def test_a_hook_that_is_not_there_or_does_not_fire_is_an_error(model):
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ModelError, match=r"no hook point 'blocks\.0\.hook_atn_out'"):
        Forward(model, [("blocks.0.hook_atn_out", torch.zeros_like)])
    # Listed by TransformerLens and gated off.
    gated = Forward(model, [("blocks.0.hook_attn_in", torch.zeros_like)])
    with gated as run, pytest.raises(ModelError, match="fired not at all"):
        run(ids)
    with Forward(model, end="logits") as run:
        clean = run(ids)
    assert torch.equal(clean, model(ids))  # no hook is left behind


def test_a_model_in_training_mode_is_refused(tiny):
    model = mr.load_model(tiny, backend="bridge")
    model.train()
    with pytest.raises(ModelError, match="training mode"):
        Forward(model)


def test_massive_activations_are_edited_where_the_massive_dimension_emerges(model, monkeypatch):
    # Dimension 0 has the largest mean in the end, dimension 1 is massive at once: its sign differs between texts.
    mean = np.array([[0.0, 5.0], [0.0, 5.0], [900.0, 5.0]])
    magnitude = np.array([[0.0, 3000.0], [0.0, 2990.0], [900.0, 2000.0]])
    found = measures.FirstPosition(mean, magnitude, magnitude * 0, np.ones(3))
    edited = []
    monkeypatch.setattr(measures, "first_position", lambda *args: found)
    monkeypatch.setattr(measures, "mean_loss", lambda m, t, acts, s: edited.extend(acts) or 0.0)
    assert measured("massive_activations", model)["block"] == 0
    assert edited == ["blocks.0.hook_resid_post"] * 2


def test_replicate_takes_the_bos_setting_and_says_what_it_means(model, monkeypatch):
    options = {"models": model, "documents": TEXTS, "progress": False}
    assert set(replicate("first_token_outlier", **options)["note"]) == {""}
    (said,) = set(replicate("first_token_outlier", prepend_bos=True, **options)["note"])
    assert "The source measured without BOS" in said
    monkeypatch.setattr(model.cfg, "tokenizer_prepends_bos", True)
    (said,) = set(replicate("first_token_outlier", **options)["note"])
    assert "without one say little of it; compare prepend_bos=True" in said
