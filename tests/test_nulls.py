"""Nulls: what each leaves as it was and what it takes away, and the excess against refits on resampled documents.

Tolerances: coefficients and clustered errors against statsmodels' fits to the rows, 1e-8 relative (weights, sums and
two solves lose a few digits more than one fit). Simulated excesses are compared with 0, or with what was put in, within
4 of their own standard errors; sizes of 5% tests over 300 samples within 3 binomial errors, .012 each.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import AutoConfig, AutoModelForCausalLM

from mechreg.lags import add_lags
from mechreg.models import load_model, record_of, weight_hash
from mechreg.norms import extract_norms
from mechreg.nulls import (
    NULLS,
    compare_to_nulls,
    null_norms,
    random_weights,
    shuffle_norms,
    shuffle_tokens,
    token_means,
)
from mechreg.nulls.comparison import excess_over
from mechreg.regression import LagSums, fit_lagged
from mechreg.regression.drawn import document_weights, refit_drawn
from mechreg.schema import InputError, ModelError, NumericalError, SchemaError

KEYS = ["doc", "window", "position"]


def make_norms(docs=12, tokens=40, *, seed=0, layers=1, level=0.5, b=0.0, ids=9, windows=1) -> pd.DataFrame:
    """Return log norms that are an AR(1) around levels of documents; token ids are random."""
    rng = np.random.default_rng(seed)
    place = np.tile(np.arange(tokens), docs)
    frames = []
    for layer in range(layers):
        y = rng.normal(size=(docs, tokens))
        for t in range(1, tokens):
            y[:, t] += b * y[:, t - 1]
        y += level * rng.normal(size=(docs, 1))
        cut = -(-tokens // windows)
        rows = {"model": "m", "hook": "attn_out", "layer": layer, "depth": (layer + 0.5) / layers}
        rows |= {"doc": np.repeat([f"d{doc:02}" for doc in range(docs)], tokens)}
        rows |= {"window": place // cut, "position": place % cut, "norm": np.exp(y.ravel())}
        frames.append(pd.DataFrame(rows))
    ids = np.random.default_rng(seed + 1).integers(0, ids, docs * tokens)
    return pd.concat(frames, ignore_index=True).assign(token_id=np.tile(ids, layers))


def fitted(norms):
    return fit_lagged(add_lags(norms))


def make_tokens(lengths=(7, 12, 9), *, windows=1, bos=None, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for doc, length in enumerate(lengths):
        for window in range(windows):
            ids = rng.integers(10, 300, length)
            if bos is not None:
                ids[0] = bos
            rows = {"doc": f"d{doc}", "window": window, "position": np.arange(length), "token_id": ids}
            parts.append(pd.DataFrame({**rows, "token": [f"<{i}>" for i in ids]}))
    return pd.concat(parts, ignore_index=True).astype({"doc": "category", "token_id": "int32"})


# (a) the order of tokens


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 2**31))
def test_shuffled_tokens_are_the_same_tokens_of_the_same_documents(lengths, windows, seed):
    tokens = make_tokens(lengths, windows=windows, seed=seed)
    before = tokens.copy()
    shuffled = shuffle_tokens(tokens, seed=seed)
    pd.testing.assert_frame_equal(tokens, before)
    pd.testing.assert_frame_equal(shuffled[KEYS], tokens[KEYS])
    assert (shuffled.dtypes == tokens.dtypes).all()
    assert (shuffled["token"] == "<" + shuffled["token_id"].astype(str) + ">").all()
    for doc, part in tokens.groupby("doc", observed=True):
        assert sorted(shuffled.loc[shuffled["doc"] == doc, "token_id"]) == sorted(part["token_id"])
    mixed = tokens.sample(frac=1, random_state=seed % 1000)
    pd.testing.assert_frame_equal(shuffle_tokens(mixed, seed=seed).sort_index(), shuffled)


def test_shuffled_tokens_move_between_windows_and_bos_stays():
    tokens = make_tokens((30,), windows=2)
    moved = shuffle_tokens(tokens, seed=1)
    assert set(moved.loc[moved["window"] == 0, "token_id"]) != set(
        tokens.loc[tokens["window"] == 0, "token_id"]
    )
    assert not moved["token_id"].equals(shuffle_tokens(tokens, seed=2)["token_id"])
    assert moved["token_id"].equals(shuffle_tokens(tokens, seed=1)["token_id"])
    with_bos = shuffle_tokens(make_tokens(windows=2, bos=0))
    assert (with_bos.loc[with_bos["position"] == 0, "token_id"] == 0).all()
    assert (with_bos.loc[with_bos["position"] > 0, "token_id"] != 0).all()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    shuffle_tokens(tokens)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_every_order_is_as_likely():
    orders = list(itertools.permutations([5, 6, 7]))
    docs = 900
    tokens = pd.DataFrame({"doc": np.repeat(np.arange(docs), 3), "window": 0, "position": [0, 1, 2] * docs})
    # Another document begins otherwise, or 5 would be taken for a BOS.
    tokens = pd.concat([tokens.assign(token_id=[5, 6, 7] * docs), make_tokens((3,))], ignore_index=True)
    drawn = list(map(tuple, shuffle_tokens(tokens)["token_id"].to_numpy()[: 3 * docs].reshape(docs, 3)))
    assert stats.chisquare([drawn.count(order) for order in orders]).pvalue > 0.001


# (b) the order of norms


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 3), st.integers(1, 3))
def test_shuffled_norms_stay_in_their_window_and_move_alike_in_all_layers(seed, skip, windows):
    norms = make_norms(3, 12, layers=1, windows=windows, seed=seed % 100)
    norms = pd.concat([norms, norms.assign(layer=1, norm=norms["norm"] * 7)], ignore_index=True)
    before = norms.copy()
    shuffled = shuffle_norms(norms, skip=skip, seed=seed)
    pd.testing.assert_frame_equal(norms, before)
    pd.testing.assert_frame_equal(shuffled.drop(columns="norm"), norms.drop(columns="norm"))
    first = norms["position"] < skip
    assert shuffled.loc[first, "norm"].equals(norms.loc[first, "norm"])
    for key, part in norms.groupby(["layer", "doc", "window"]):
        other = shuffled.set_index(["layer", "doc", "window"]).loc[key, "norm"]
        assert sorted(other) == sorted(part["norm"])
    upper, lower = (shuffled.loc[shuffled["layer"] == layer, "norm"].to_numpy() for layer in (1, 0))
    assert (upper == lower * 7).all()
    mixed = norms.sample(frac=1, random_state=seed % 1000)
    pd.testing.assert_frame_equal(shuffle_norms(mixed, skip=skip, seed=seed).sort_index(), shuffled)


def after_shuffling(r):
    """Return the coefficient of each of two lags when all pairs in a window correlate by r."""
    return r / (1 + r)


def test_shuffled_norms_leave_what_the_levels_of_windows_have_in_common():
    """All pairs then correlate alike: by the share of the levels, true ones or the drift of dependent norms."""
    # An AR(1)'s mean over T tokens varies by (1 + b) / (1 - b) - 2 b / (T (1 - b)^2) times that of independent ones.
    drift = ((1 + 0.6) / (1 - 0.6) - 2 * 0.6 / (39 * (1 - 0.6) ** 2) - 1) / 38
    for b, level, r in ((0.0, 0.0, 0.0), (0.0, 1.0, 0.5), (0.6, 0.0, drift)):
        fits = fit_lagged(add_lags(shuffle_norms(make_norms(300, 40, b=b, level=level))))
        found = fits.coefficients.query("term != 'Intercept'")["estimate"]
        assert (np.abs(found - after_shuffling(r)) < 0.04).all()  # 4 errors of 1 / sqrt(300 x 37)


# (d) what a token usually has


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2), st.integers(1, 60))
def test_token_means_are_those_of_a_plain_loop(seed, skip, ids):
    norms = make_norms(4, 9, layers=2, seed=seed % 1000, ids=ids)
    before = norms.copy()
    found = token_means(norms, skip=skip)
    pd.testing.assert_frame_equal(norms, before)
    pd.testing.assert_frame_equal(found.drop(columns="norm"), norms.drop(columns="norm"))
    for at, row in enumerate(norms.itertuples()):
        if row.position < skip:
            assert found["norm"].iloc[at] == row.norm
            continue
        other = norms.query("layer == @row.layer and doc != @row.doc and position >= @skip")
        same = other[other["token_id"] == row.token_id]
        expected = np.log((same if len(same) else other)["norm"]).mean()
        np.testing.assert_allclose(np.log(found["norm"].iloc[at]), expected, rtol=1e-9, atol=1e-12)


def test_without_leaving_the_document_out_rare_words_would_repeat_the_coefficient():
    """Every id once or twice: a mean with the token's own norm in it is mostly that norm, context and all."""
    norms = make_norms(60, 60, b=0.6, level=0.0, ids=3000)
    own_in_it = norms.assign(norm=np.exp(np.log(norms["norm"]).groupby(norms["token_id"]).transform("mean")))
    beta = {}
    for name, frame in (("norms", norms), ("own", own_in_it), ("others", token_means(norms))):
        beta[name] = fit_lagged(add_lags(frame), "log_norm ~ lag1").coefficients["estimate"].iloc[1]
    assert beta["norms"] > 0.55
    assert beta["own"] > 0.15
    assert abs(beta["others"]) < 0.06


def test_token_identity_explains_a_process_of_tokens():
    """Norms that only the token decides, in texts where tokens repeat: excess over this null is 0, not over order."""
    rng = np.random.default_rng(3)
    norms = make_norms(60, 100)
    ids = np.zeros((60, 100), np.int64)
    for t in range(100):  # a token stays with probability .5
        ids[:, t] = np.where((rng.random(60) < 0.5) & (t > 0), ids[:, t - 1], rng.integers(0, 10, 60))
    norms = norms.assign(token_id=ids.ravel())
    norms["norm"] = np.exp(norms["token_id"] / 5 + 0.1 * rng.normal(size=len(norms)))
    names = ["norm_order", "token_identity"]
    fits = fit_lagged(add_lags(norms), "log_norm ~ lag1")
    table = compare_to_nulls(fits, null_norms(norms, nulls=names), draws=199)
    table = table.set_index("null")
    assert table.loc["norm_order", "excess"] > 0.4
    # What is left is noise that dilutes the coefficient: 1% of the token's variance of .33.
    assert abs(table.loc["token_identity", "excess"]) < 0.03
    assert table.loc["token_identity", "repeats"] == 1


# (c) random weights


def test_random_weights_are_hugging_faces_own_for_the_seed(tiny, backend):
    model = load_model(tiny, backend=backend)
    torch.manual_seed(7)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fresh = random_weights(model, seed=3)
    assert (torch.get_rng_state() == state).all()
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    torch.manual_seed(3)
    expected = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny), dtype=torch.float32).eval()
    ids = torch.arange(1, 20)[None]
    with torch.inference_mode():
        assert torch.allclose(fresh(ids), expected(ids).logits, atol=1e-5)
        assert not torch.allclose(fresh(ids), model(ids), atol=1e-2)
    assert record_of(fresh).name == "tiny[random 3]"
    assert record_of(fresh).backend == backend
    assert (fresh.cfg.n_layers, fresh.cfg.d_model) == (model.cfg.n_layers, model.cfg.d_model)
    assert weight_hash(fresh) == weight_hash(random_weights(model, seed=3))
    assert weight_hash(fresh) != weight_hash(random_weights(model, seed=4))
    assert not fresh.training
    assert fresh.tokenizer.get_vocab() == model.tokenizer.get_vocab()


def test_random_weights_keep_how_the_model_was_loaded(tiny, hooked):
    folded = random_weights(load_model(tiny, processing="folded", dtype="float64"), seed=1)
    assert record_of(folded).name == "tiny[random 1][folded]"
    assert (record_of(folded).processing, record_of(folded).dtype) == ("folded", "float64")
    assert next(folded.parameters()).dtype == torch.float64


def test_random_weights_of_a_name_an_object_and_another_architecture(tiny, save_llama, make_gpt2, hooked):
    by_name = random_weights(str(tiny), seed=3)
    assert weight_hash(by_name) == weight_hash(random_weights(load_model(tiny), seed=3))
    original = make_gpt2(n_layer=2)
    of_object = random_weights(load_model(original, name="mine"), seed=0)
    assert (record_of(of_object).name, of_object.cfg.n_layers) == ("mine[random 0]", 2)
    llama = random_weights(load_model(save_llama()), seed=0)
    assert (record_of(llama).backend, llama.cfg.n_layers) == ("bridge", 3)


def test_random_weights_of_a_model_whose_config_is_gone_are_refused(make_gpt2, hooked):
    model = load_model(make_gpt2(), name="mine")
    with pytest.raises(ModelError, match="that mine was made from is gone from memory"):
        random_weights(model)
    with pytest.raises(InputError, match="A TransformerLens model is needed; got float"):
        random_weights(0.5)


# The frames of the nulls


@pytest.fixture(scope="module")
def read(tiny):
    """A small model, what it reads, and its norms at two hook points."""
    model = load_model(tiny)
    tokens = make_tokens((20, 31, 25, 22))
    return model, tokens, extract_norms(model, tokens, hooks=("attn_out", "z"), progress=False)


def test_the_frames_of_every_null_have_the_rows_of_the_norm_frame(read):
    model, tokens, norms = read
    keys = ["model", "hook", "layer", "head", *KEYS]
    expected = norms.astype({"model": str, "hook": str, "doc": str}).sort_values(keys, ignore_index=True)
    frames = {null: list(made) for null, made in null_norms(norms, model, repeats=2).items()}
    assert tuple(frames) == NULLS
    assert {null: len(made) for null, made in frames.items()} == {
        "token_order": 2, "norm_order": 2, "random_weights": 2, "token_identity": 1,
    }  # fmt: skip
    for null, made in frames.items():
        for frame in made:
            frame = frame.astype({"model": str, "hook": str, "doc": str}).sort_values(keys, ignore_index=True)
            assert frame[keys].equals(expected[keys])
            assert not np.allclose(frame["norm"], expected["norm"], rtol=1e-3)
            of_a_document = [
                frame.groupby("doc")["token_id"].apply(sorted),
                expected.groupby("doc")["token_id"],
            ]
            assert of_a_document[0].equals(of_a_document[1].apply(sorted))
        if len(made) > 1:
            assert not np.allclose(made[0]["norm"], made[1]["norm"], rtol=1e-3), null
    # What the model reads is what it gives when asked directly.
    seed = int(np.random.SeedSequence(0).generate_state(2)[0])
    order = extract_norms(model, shuffle_tokens(tokens, seed=seed), hooks=("attn_out", "z"), progress=False)
    np.testing.assert_array_equal(frames["token_order"][0]["norm"], order["norm"])
    fresh = extract_norms(random_weights(model, seed=seed), tokens, hooks=("attn_out", "z"), progress=False)
    np.testing.assert_array_equal(frames["random_weights"][0]["norm"], fresh["norm"])


def test_two_models_are_read_by_their_names_and_none_may_lack(read, save_gpt2):
    model, tokens, norms = read
    other = load_model(save_gpt2("other", seed=5))
    both = extract_norms([model, other], tokens, progress=False)
    (frame,) = null_norms(both, [other, model], nulls=["token_order"], repeats=1)["token_order"]
    assert frame.groupby("model").size().to_dict() == {"tiny": len(both) // 2, "other": len(both) // 2}
    with pytest.raises(InputError, match=r"'other' was not given \(got \['tiny'\]\)"):
        null_norms(both, model)
    with pytest.raises(InputError, match=r"'tiny' was not given \(got \[\]\)"):
        null_norms(norms, nulls=["random_weights"])


def test_what_a_fit_leaves_out_stays_in_its_place_in_every_null(read):
    model, _, norms = read
    often = norms["token_id"].mode()[0]
    rules = (f"token_id={often}", "position=4")
    fits = fit_lagged(add_lags(norms, drop_sinks=rules), "log_norm ~ lag1")
    options = {"repeats": 2, "drop_sinks": rules}
    keys = ["model", "hook", "layer", "head", *KEYS]
    places = add_lags(norms, skip=0, drop_sinks=rules)["is_sink"]
    before = norms.set_index(keys)[(places & (norms["position"] > 0)).to_numpy()]
    for null, frames in null_norms(norms, model, **options).items():
        for frame in frames:
            after = frame.set_index(keys)
            assert (after["token_id"].loc[before.index] == before["token_id"]).all(), null
            if null in ("norm_order", "token_identity"):
                np.testing.assert_array_equal(after["norm"].loc[before.index], before["norm"])
    table = compare_to_nulls(fits, null_norms(norms, model, **options), drop_sinks=rules, draws=99)
    assert tuple(table["null"].unique()) == NULLS
    (own,) = fits.coefficients.query("term == 'lag1' and layer == 0 and hook == 'attn_out'")["n"]
    assert (table.query("layer == 0 and hook == 'attn_out'")["n"] == own).all()
    with pytest.raises(InputError, match="Use the skip= and drop_sinks= of the lags"):
        compare_to_nulls(fits, null_norms(norms, nulls="norm_order", **options), draws=99)


# Excess


def statsmodels_of(norms, weights=None):
    """Return statsmodels' fit clustered by document, a document counted as often as its weight says."""
    rows = add_lags(norms).dropna(subset=["log_norm", "lag1", "lag2"])
    if weights is not None:
        docs = sorted(set(rows["doc"]))
        copies = [
            rows[rows["doc"] == doc].assign(copy=f"{doc} {copy}")
            for doc, weight in zip(docs, weights.astype(int), strict=True)
            for copy in range(weight)
        ]
        rows = pd.concat(copies)
    else:
        rows = rows.assign(copy=rows["doc"])
    groups = pd.factorize(rows["copy"])[0]
    options = {"groups": groups, "df_correction": True, "use_correction": False}
    return smf.ols("log_norm ~ lag1 + lag2", rows).fit(cov_type="cluster", cov_kwds=options)


def test_a_draw_is_statsmodels_fit_to_the_documents_drawn():
    norms = make_norms(8, 30, b=0.4)
    lagged = add_lags(norms)
    (sums,) = LagSums.from_frame(lagged, "log_norm ~ lag1 + lag2", max_lag=None).document_sums()
    weights = np.vstack([np.ones((1, 8)), document_weights(np.random.default_rng(1), 8, 4)])
    drawn = refit_drawn(sums, weights, who="this test")
    for w, estimate, influence in zip(weights, drawn.estimate, drawn.influence, strict=True):
        fit = statsmodels_of(norms, w)
        np.testing.assert_allclose(estimate, fit.params, rtol=1e-8)
        variance = (w[:, None] * influence**2).sum(axis=0)
        np.testing.assert_allclose(np.sqrt(variance), fit.bse, rtol=1e-8)


def test_the_excess_is_the_difference_of_fits_and_its_interval_a_studentised_bootstrap():
    norms = make_norms(14, 30, b=0.4, layers=2)
    frames = [shuffle_norms(norms, seed=seed) for seed in range(3)]
    table = compare_to_nulls(fitted(norms), {"order": iter(frames)}, draws=399, conf_level=0.9, seed=4)
    assert table[["layer", "term"]].values.tolist() == [[0, "lag1"], [0, "lag2"], [1, "lag1"], [1, "lag2"]]
    fits = [
        fit_lagged(add_lags(frame)).coefficients.query("term != 'Intercept'") for frame in (norms, *frames)
    ]
    np.testing.assert_allclose(table["estimate"], fits[0]["estimate"], rtol=1e-9)
    null = np.mean([fit["estimate"] for fit in fits[1:]], axis=0)
    np.testing.assert_allclose(table["null_estimate"], null, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table["excess"], fits[0]["estimate"] - null, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose((table["conf_low"] + table["conf_high"]) / 2, table["excess"], rtol=1e-9)
    # The same draws by refits to copied documents; the error by leaving nothing to algebra: stacked regressions.
    weights = np.random.default_rng(4).multinomial(14, np.full(14, 1 / 14), size=399).astype(float)
    layer = [frame[frame["layer"] == 0] for frame in (norms, *frames)]
    some = [0, 5, 398]
    refit = np.array([[statsmodels_of(frame, weights[at]).params[1:] for frame in layer] for at in some])
    drawn = refit[:, 0] - refit[:, 1:].mean(axis=1)
    sums = [LagSums.from_frame(add_lags(f), max_lag=None).document_sums()[0] for f in layer]
    found = excess_over(sums[0], {"order": sums[1:]}, weights)["order"]
    np.testing.assert_allclose(found.excess[some, 1:], drawn, rtol=1e-7, atol=1e-12)
    low, high = np.quantile(found.each[..., 1:], [0.05, 0.95], axis=(0, 1))
    np.testing.assert_allclose(table.query("layer == 0")[["null_low", "null_high"]], np.array([low, high]).T)
    excess, error = table.query("layer == 0")[["excess", "std_error"]].to_numpy().T
    t = np.abs(found.excess[:, 1:] - excess) / found.error[:, 1:]
    half = np.sort(t, axis=0)[int(np.ceil(0.9 * 398))] * error
    np.testing.assert_allclose(table.query("layer == 0")["conf_high"] - excess, half, rtol=1e-8)
    p = (1 + (t >= np.abs(excess) / error).sum(axis=0)) / 400
    np.testing.assert_allclose(table.query("layer == 0")["p_value"], p)


def test_chunks_of_draws_change_nothing(monkeypatch):
    norms = make_norms(14, 30, b=0.4)
    table = compare_to_nulls(fitted(norms), null_norms(norms, nulls=["norm_order"]), draws=99)
    monkeypatch.setattr("mechreg.nulls.comparison.CHUNK_NUMBERS", 14 * 3 * 10)
    again = compare_to_nulls(fitted(norms), null_norms(norms, nulls=["norm_order"]), draws=99)
    numbers = table.select_dtypes("number").columns
    np.testing.assert_allclose(again[numbers], table[numbers], rtol=1e-10, atol=1e-13)


def test_nulls_may_be_frames_fits_or_sums_and_the_layer_below_is_fitted_in_all():
    norms = make_norms(14, 30, b=0.4, layers=2)
    null = shuffle_norms(norms, skip=2)
    lagged, of_null = (
        add_lags(frame, layer_below=(0,), skip=2).query("layer > 0") for frame in (norms, null)
    )
    formula = "log_norm ~ lag1 + layer_below"
    fits = fit_lagged(lagged, formula)
    table = compare_to_nulls(fits, {"order": [null]}, skip=2, draws=99)
    assert table["layer"].tolist() == [1, 1]
    for same in (fit_lagged(of_null, formula), LagSums.from_frame(of_null, formula)):
        pd.testing.assert_frame_equal(compare_to_nulls(fits.sums, {"order": [same]}, draws=99), table)


@pytest.mark.parametrize(
    ("effects", "by"), [(("doc", "position"), ()), ("position", "source"), ("doc", "source")]
)
def test_nulls_are_fitted_with_the_effects_and_groups_of_the_fits(effects, by):
    norms = make_norms(14, 30, b=0.4, layers=2)
    norms = norms.assign(source=np.where(norms["doc"] < "d07", "web", "books"))
    null = shuffle_norms(norms)
    options = {"effects": effects, "by": by}
    fits, of_null = (fit_lagged(add_lags(frame), **options) for frame in (norms, null))
    table = compare_to_nulls(fits, {"order": [null]}, draws=99)
    keys = ["layer", *([by] if by else []), "term"]
    for column, expected in {"estimate": fits, "null_estimate": of_null}.items():
        found = expected.coefficients.set_index(keys)["estimate"]
        assert len(found) == len(table)
        np.testing.assert_allclose(
            table.set_index(keys)[column], found[table.set_index(keys).index], rtol=1e-9
        )
    pd.testing.assert_frame_equal(compare_to_nulls(fits, {"order": [of_null]}, draws=99), table)


def test_a_null_that_repeats_the_frame_leaves_no_excess():
    norms = make_norms(14, 30, b=0.4)
    table = compare_to_nulls(fitted(norms), {"itself": [norms] * 3}, draws=99)
    assert (table["excess"].abs() < 1e-14).all()
    assert (table["p_value"] == 1).all()
    assert (table[["conf_low", "conf_high"]].abs() < 1e-12).all(axis=None)


def test_exchangeable_norms_have_no_excess_and_dependent_ones_have_what_was_put_in():
    table = []
    for seed in range(8):
        norms = make_norms(30, 40, seed=seed, level=0.7)
        table.append(
            compare_to_nulls(fitted(norms), null_norms(norms, nulls=["norm_order"], seed=seed), draws=99)
        )
    table = pd.concat(table)
    for _, part in table.groupby("term"):
        assert part["estimate"].mean() > 0.2  # the levels of documents alone
        assert abs(part["excess"].mean()) < 4 * part["excess"].std() / np.sqrt(8)
        assert (part["p_value"] < 0.05).sum() <= 2
    norms = make_norms(60, 100, b=0.5, level=0.0)
    found = compare_to_nulls(fitted(norms), null_norms(norms, nulls=["norm_order"]), draws=199).set_index(
        "term"
    )
    # Windows drift, which shuffling leaves: see above.
    drift = ((1 + 0.5) / (1 - 0.5) - 2 * 0.5 / (99 * (1 - 0.5) ** 2) - 1) / 98
    for term, put_in in (("lag1", 0.5), ("lag2", 0.0)):
        row = found.loc[term]
        assert abs(row["excess"] - put_in + after_shuffling(drift)) < 4 * row["std_error"]
    assert found.loc["lag1", "p_value"] == 1 / 200


@pytest.mark.slow
@pytest.mark.parametrize("docs", [10, 30])
def test_five_per_cent_tests_reject_five_per_cent_of_exchangeable_norms(docs):
    p = []
    for seed in range(300):
        norms = make_norms(docs, 60, seed=seed)
        nulls = null_norms(norms, nulls=["norm_order"], repeats=3, seed=seed)
        p.append(compare_to_nulls(fitted(norms), nulls, draws=199, seed=seed)["p_value"])
    assert (np.abs((np.array(p) <= 0.05).mean(axis=0) - 0.05) < 0.038).all()


def test_the_original_question_on_a_trained_model_runs_through_all_four_nulls():
    model = load_model("mini-s")
    texts = [f"The {animal} sat on the mat and looked at the moon, and then it slept." for animal in
             ("cat", "dog", "old man", "child", "bird", "queen")]  # fmt: skip
    norms = extract_norms(model, texts, progress=False)
    table = compare_to_nulls(
        fit_lagged(add_lags(norms), "log_norm ~ lag1"), null_norms(norms, model, repeats=2)
    )
    assert len(table) == 4 * 4
    assert np.isfinite(table.select_dtypes("number")).all(axis=None)
    assert table["repeats"].tolist() == [2, 2, 2, 1] * 4
    assert (table["draws"] == 999).all()


# Refusals


def test_what_cannot_be_compared_is_refused():
    norms = make_norms()
    made = null_norms(norms, nulls=["norm_order"])
    compare_to_nulls(fitted(norms), made, draws=99)
    with pytest.raises(InputError, match=r"'norm_order'; there is none\. Iterators"):
        compare_to_nulls(fitted(norms), made)
    fewer = norms[norms["doc"] != "d03"]
    with pytest.raises(
        InputError, match="the same documents in the fits and their nulls; 'mine' has others in model"
    ):
        compare_to_nulls(fitted(norms), {"mine": [fewer]})
    with pytest.raises(
        InputError, match="finds no rows of model m, hook attn_out, layer 0 in the null 'mine'"
    ):
        compare_to_nulls(fitted(norms), {"mine": [norms.assign(layer=4)]})
    one = norms[norms["doc"] == "d03"]
    with pytest.raises(InputError, match="needs two documents or more; the corpus has 1"):
        compare_to_nulls(fit_lagged(add_lags(one), cov="nonrobust"), {"mine": [one]})
    with pytest.raises(InputError, match="draws must be a whole number from 99 to 1000000; got 9"):
        compare_to_nulls(fitted(norms), {"mine": [norms]}, draws=9)
    with pytest.raises(InputError, match="conf_level must be a number between 0 and 1"):
        compare_to_nulls(fitted(norms), {"mine": [norms]}, conf_level=95.0)
    with pytest.raises(InputError, match="needs a mapping of null names"):
        compare_to_nulls(fitted(norms), {})
    with pytest.raises(SchemaError, match="null 'mine', needs the column 'norm'"):
        compare_to_nulls(fitted(norms), {"mine": [norms.drop(columns="norm")]})
    with pytest.raises(
        InputError,
        match=r"'mine' has 444 in model m, .* which has 432\. Use the skip= and drop_sinks= of the lags",
    ):
        compare_to_nulls(fit_lagged(add_lags(norms, skip=2)), {"mine": [norms]})
    with pytest.raises(
        (InputError, TypeError), match=r"what fit_lagged gives, or LagSums; got DataFrame|fits"
    ):
        compare_to_nulls(norms, {"mine": [norms]})
    with pytest.raises(
        InputError, match=r"needs the effects of the fits, \('doc',\); it has \(\)\. Fit it with"
    ):
        compare_to_nulls(fit_lagged(add_lags(norms), effects="doc"), {"mine": [fitted(norms)]})
    few = norms[norms["doc"].isin(["d00", "d01"])]
    only = few.assign(only=(few["doc"] == "d01") * np.sin(few["position"]))
    with pytest.raises(NumericalError, match="a draw makes the terms collinear"):
        compare_to_nulls(
            fit_lagged(add_lags(only), "log_norm ~ lag1 + only", cov="nonrobust"), {"mine": [only]}
        )


def test_frames_that_no_null_can_be_made_of_are_refused():
    norms = make_norms()
    with pytest.raises(SchemaError, match="shuffle_tokens needs the column 'token_id'"):
        shuffle_tokens(norms.drop(columns="token_id"))
    with pytest.raises(InputError, match="skip must be a whole number, 0 or more"):
        shuffle_norms(norms, skip=-1)
    with pytest.raises(InputError, match="token_means needs two documents or more"):
        token_means(norms[norms["doc"] == "d00"])
    with pytest.raises(NumericalError, match="token_means needs the logarithm of every norm"):
        token_means(norms.assign(norm=0.0))
    with pytest.raises((InputError, TypeError), match=r"nulls( must be one of 'token_order'|')"):
        null_norms(norms, nulls=["shuffled"])
    with pytest.raises(InputError, match="repeats must be a whole number from 1 to 10000; got 0"):
        null_norms(norms, nulls=["norm_order"], repeats=0)
