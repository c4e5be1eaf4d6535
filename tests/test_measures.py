"""Measures beside the norm against the vectors of plain Hugging Face hooks, in float64 numpy; vectors and heads.

Tolerances: a float32 vector computed in two exact ways differs by 5e-7 of its length, so that a cosine does by about
as much, and a projection by that of the length; 1e-5 is the promise.
"""

import gc
import weakref

import numpy as np
import pandas as pd
import pytest
import torch

from mechreg import add_lags, extract_norms, extract_vectors, fit_lagged, open_run, run_spec
from mechreg.check.yardstick import hugging_face_vectors
from mechreg.models import load_model
from mechreg.norms import MEASURES, measures, window_norms
from mechreg.run import run_moments
from mechreg.schema import InputError, NumericalError
from mechreg.spec import Spec

pytestmark = pytest.mark.models

DIRECTION = np.linspace(-1, 2, 32)
RESID = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def length(vectors):
    return np.linalg.norm(vectors, axis=-1)


def cosine(a, b):
    return (a * b).sum(axis=-1) / (length(a) * length(b))


def expected(vectors, hook, *, is_parallel):
    """Return by measure, "layer pos", what the vectors of one window give."""
    own = vectors[hook]
    stream = vectors["resid_pre"] + (0 if hook == "attn_out" or is_parallel else vectors["attn_out"])
    previous, below = (np.full(own.shape[:2], np.nan) for _ in range(2))
    previous[:, 1:], below[1:] = cosine(own[:, 1:], own[:, :-1]), cosine(own[1:], own[:-1])
    return {
        "norm": length(own),
        "relative": length(own) / length(stream),
        "cos_resid": cosine(own, stream),
        "cos_previous": previous,
        "cos_layer_below": below,
        "cos_mlp": cosine(vectors["attn_out"], vectors["mlp_out"]),
        "step": length(vectors["resid_post"] - vectors["resid_pre"]),
        "projection": own @ DIRECTION / length(DIRECTION),
    }


# Attention before the MLP, beside it, and with a norm between attention and stream.
@pytest.mark.parametrize("family", ["GPT2", "GPTNeoX", "Gemma2"])
def test_every_measure_is_what_hugging_faces_vectors_give(make_gpt2, make_model, make_windows, family):
    hf_model = make_gpt2() if family == "GPT2" else make_model(family)
    model, tokens = load_model(hf_model, name=family), make_windows([9, 2, 30, 1])
    hooks = ("attn_out", "mlp_out")
    ours = window_norms(model, tokens, hooks=hooks, measures=MEASURES, direction=DIRECTION, batch_tokens=40)
    parts = list(hugging_face_vectors(hf_model, tokens, RESID))
    for hook in hooks:
        wanted = [expected(part, hook, is_parallel=family == "GPTNeoX") for part in parts]
        for measure in MEASURES:
            right = np.concatenate([part[measure] for part in wanted], axis=1)
            found = ours[hook if measure == "norm" else f"{hook}.{measure}"]
            atol = 1e-5 * (right.max() if measure == "projection" else 1)
            np.testing.assert_allclose(found, right, rtol=1e-5, atol=atol, err_msg=f"{hook} {measure}")


def test_measures_of_heads_are_of_what_each_adds(make_gpt2, make_windows):
    hf_model = make_gpt2()
    model, tokens = load_model(hf_model, name="heads"), make_windows([9, 4])
    ours = window_norms(
        model, tokens, hooks="result", measures=["relative", "cos_resid", "cos_mlp", "cos_previous"]
    )
    hooks = ("result", "resid_pre", "mlp_out")
    first, _ = hugging_face_vectors(hf_model, tokens, hooks)
    heads, stream, mlp = first["result"], first["resid_pre"][:, None], first["mlp_out"][:, None]
    right = {"relative": length(heads) / length(stream), "cos_resid": cosine(heads, stream)}
    right |= {"cos_mlp": cosine(heads, mlp)}
    for measure, value in right.items():
        np.testing.assert_allclose(ours[f"result.{measure}"][..., :9], value, rtol=1e-5, atol=1e-5)
    previous = ours["result.cos_previous"][..., 1:9]
    np.testing.assert_allclose(previous, cosine(heads[:, :, 1:], heads[:, :, :-1]), rtol=1e-5, atol=1e-5)


def test_heads_add_up_to_the_attentions_output_without_its_bias(backend, make_gpt2, make_windows):
    hf_model = make_gpt2()
    biases = np.stack([block.attn.c_proj.bias.detach().double().numpy() for block in hf_model.transformer.h])
    model, tokens = load_model(hf_model, backend=backend, name="heads"), make_windows([9, 4])
    heads, whole = (extract_vectors(model, tokens, hook=hook).values for hook in ("result", "attn_out"))
    total = heads.astype("float64").sum(axis=1) + biases[:, None]
    np.testing.assert_allclose(total, whole, rtol=1e-5, atol=1e-5)
    assert np.abs(biases).max() > 0.1  # they are not left out idly


def test_vectors_come_with_their_tokens_in_the_frames_order(tiny, make_windows):
    model, tokens = load_model(tiny), make_windows([3, 20, 1])
    norms = window_norms(model, tokens)["attn_out"]
    vectors = extract_vectors(model, tokens, layers=[2, 0], batch_tokens=20)
    assert vectors.values.shape == (2, 24, 32)
    np.testing.assert_allclose(length(vectors.values), norms[[2, 0]], rtol=1e-6)
    pd.testing.assert_frame_equal(vectors.tokens, tokens)
    of_text = extract_vectors(model, ["Hello there, world."], hook="z", layers=1)
    assert of_text.values.shape == (1, 4, len(of_text.tokens), 8)
    with pytest.raises(InputError, match=r"24 tokens in 3 layers take 9,216 bytes, and most_bytes is 9,000"):
        extract_vectors(model, tokens, most_bytes=9000)
    with pytest.raises(InputError, match="layers must be a whole number from 0 to 2; got 3"):
        extract_vectors(model, tokens, layers=3)


def test_no_vector_outlives_its_layer(tiny, make_windows, monkeypatch):
    kept, alive, heads = [], [], measures._heads

    def spy(vectors):
        alive.append(sum(reference() is not None for reference in kept))
        made = heads(vectors)
        kept.append(weakref.ref(made))
        return made

    monkeypatch.setattr(measures, "_heads", spy)
    window_norms(load_model(tiny), make_windows([30] * 6), measures=["relative", "step"], batch_tokens=64)
    gc.collect()
    assert len(kept) == 3 * 3 * 3  # batches, layers, places
    assert max(alive) == 2  # of the same layer
    assert not any(reference() is not None for reference in kept)


def test_measures_are_columns_and_one_that_is_not_asked_for_changes_nothing(tiny, make_windows):
    model, tokens = load_model(tiny), make_windows([9, 2])
    hooks = ("attn_out", "mlp_out")
    plain = extract_norms(model, tokens, hooks=hooks)
    frame = extract_norms(model, tokens, hooks=hooks, measures=["cos_resid", "norm", "step"])
    assert frame.columns.tolist() == [*plain.columns, "cos_resid", "step"]
    pd.testing.assert_frame_equal(frame[plain.columns], plain)
    assert frame["step"].dtype == "float32"
    steps = [part["step"].to_numpy() for _, part in frame.groupby("hook", observed=True)]
    np.testing.assert_array_equal(*steps)  # of the block, whichever the hook


def test_a_direction_may_be_a_layers_own(tiny, make_windows):
    model, tokens = load_model(tiny), make_windows([9])
    options = {"hooks": "resid_post", "measures": "projection"}
    whole = extract_norms(model, tokens, direction=torch.tensor(DIRECTION), **options)["projection"]
    own = extract_norms(model, tokens, direction={2: list(7 * DIRECTION)}, **options)["projection"]
    np.testing.assert_allclose(own[18:], whole[18:], rtol=1e-6)
    assert own[:18].isna().all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"measures": "cosine"}, "measures must be one of 'norm', 'relative'"),
        (
            {"measures": "relative", "hooks": "resid_pre"},
            "'relative' exists for the hooks result, attn_out, mlp_out; got",
        ),
        ({"measures": "cos_layer_below", "hooks": "z"}, "'cos_layer_below' exists for the hooks resid_pre"),
        ({"measures": "projection"}, "'projection' and direction= belong together"),
        ({"direction": DIRECTION}, "'projection' and direction= belong together"),
        (
            {"measures": "projection", "direction": [1.0]},
            r"must be 32 numbers for tiny.*got \(1,\) for layer 0",
        ),
        ({"measures": "projection", "direction": {3: DIRECTION}}, r"0 to 2; got \(32,\) for layer 3"),
        ({"measures": "projection", "direction": 0 * DIRECTION}, "not all 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny, make_windows, options, says):
    with pytest.raises(InputError, match=says):
        extract_norms(load_model(tiny, name="tiny"), make_windows([3]), **options)


def test_a_stream_that_is_not_finite_is_an_error_and_one_of_length_0_has_no_direction(
    make_gpt2, make_windows
):
    model, tokens = load_model(make_gpt2(), backend="bridge", name="bad"), make_windows([3])
    place = "blocks.1.hook_resid_pre"
    with (
        model.hooks(fwd_hooks=[(place, lambda stream, hook: stream * float("inf"))]),
        pytest.raises(NumericalError),
    ):
        window_norms(model, tokens, measures=["relative"])
    held = measures._heads(torch.zeros(1, 2, 4))
    assert measures._cosine(held, held + 1).isnan().all()
    assert measures._over(torch.ones(1, 1, 2), torch.full((1, 1, 2), torch.inf)).isinf().all()


def test_any_measure_can_be_lagged_and_regressed_by_head():
    rng = np.random.default_rng(0)
    phi = {0: 0.2, 1: 0.7}
    frames = []
    for head, slope in phi.items():
        series = np.zeros((40, 60))
        for t in range(1, 60):
            series[:, t] = slope * series[:, t - 1] + rng.normal(size=40)
        place = {"model": "m", "hook": "result", "layer": 0, "head": head, "window": 0, "norm": 1.0}
        where = {"doc": np.repeat(np.arange(40), 60), "position": np.tile(np.arange(60), 40)}
        frames.append(pd.DataFrame(place | where | {"cos_resid": series.ravel()}))
    norms = pd.concat(frames, ignore_index=True)
    norms.loc[norms["position"] == 0, "cos_resid"] = np.nan
    lagged = add_lags(norms, column="cos_resid", lags=1)
    assert "log_norm" not in lagged
    assert lagged["lag1"].isna().sum() == 2 * 40 * 2
    table = fit_lagged(lagged, "cos_resid ~ lag1").coefficients.query("term == 'lag1'")
    np.testing.assert_allclose(table.set_index("head")["estimate"], [0.2, 0.7], atol=0.06)
    for wrong in ("position", "lag1"):
        with pytest.raises(InputError, match="column= of add_lags must be a measure"):
            add_lags(lagged, column=wrong)
    with pytest.raises(InputError, match="add_lags needs numbers as 'word'"):
        add_lags(norms.assign(word="a"), column="word")


@pytest.mark.parametrize("keep", ["norms", "moments"])
def test_a_run_stores_measures_and_regresses_them(tmp_path, without_pictures, keep):
    texts = tmp_path / "texts.csv"
    rows = {"doc": list("abcd"), "text": [f"{word} sat on the mat and looked at me. " * 3 for word in "ABCD"]}
    pd.DataFrame(rows).to_csv(texts, index=False)
    wanted = ("relative", "cos_resid")
    formula = "np.log(relative) ~ np.log(lag1) + cos_resid"
    spec = Spec(models="mini-s", corpus=texts, measures=wanted, formula=formula, keep=keep, top_tokens=7)
    run = open_run(run_spec(spec, out=tmp_path / "run", shard_tokens=40, progress=False))
    assert len(run.shards("top", "mini-s")) > 1
    norms = extract_norms("mini-s", texts, measures=wanted, progress=False)
    kept = run.norms().sort_values("layer", kind="stable")
    for column in ("norm", *wanted):
        np.testing.assert_array_equal(kept[column], norms[column])
    place = ["doc", "window", "position", "token_id"]
    for (layer, measure), top in run.top_tokens.groupby(["layer", "measure"]):
        of_layer = norms[norms["layer"] == layer].astype({"doc": "str"})
        largest = of_layer.sort_values(measure, ascending=False, kind="stable")[:7]
        assert top["rank"].tolist() == [1, 2, 3, 4, 5, 6, 7]
        np.testing.assert_array_equal(top["value"], largest[measure])
        assert top[place].to_numpy().tolist() == largest[place].to_numpy().tolist()
    assert len(run.top_tokens) == 7 * 4 * 3
    fits = fit_lagged(add_lags(norms, column="relative", lags=1), formula).coefficients
    np.testing.assert_allclose(run.coefficients["estimate"], fits["estimate"], rtol=1e-8)
    if keep == "norms":
        again = run_moments(run.path, "cos_resid ~ lag1").coefficients()
        other = fit_lagged(add_lags(norms, column="cos_resid", lags=1), "cos_resid ~ lag1").coefficients
        np.testing.assert_allclose(again["estimate"], other["estimate"], rtol=1e-8)
    with pytest.raises(InputError, match=r"every entry of measures must be one of .*got 'projection'"):
        Spec(models="mini-s", corpus="demo", measures="projection")
