"""Robustness and lag order against fits that other libraries make, one by one, and against simulated panels.

Tolerances: sums of products against statsmodels' and linearmodels' fits to the rows, 1e-9 relative (both lose at most
half of double precision's 16 digits on such columns); AIC and BIC the same. Simulated coefficients are averages over
so many rows that their Monte Carlo error is below .005; the biases looked for are .03 and more.
"""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from linearmodels import PanelOLS
from scipy import stats

from mechreg.lags import add_lags
from mechreg.regression import fit_lagged, mean_group
from mechreg.robustness import SPECIFICATIONS, lag_order, specification_curve
from mechreg.robustness.held_out import in_folds
from mechreg.schema import InputError, NumericalError, SchemaError

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def make_norms(lengths=(40, 35, 50, 28, 61, 33), *, layers=2, seed=0, model="m", windows=1) -> pd.DataFrame:
    """Return documents of unlike lengths and levels, with sinks, words and a serial dependence."""
    rng = np.random.default_rng(seed)
    parts = []
    for doc, length in enumerate(lengths):
        words = rng.integers(0, 15, length)
        for layer in range(layers):
            level, y = rng.normal(2, 0.5), np.zeros(length)
            for t in range(length):
                y[t] = 0.4 * (y[t - 1] if t else 0) + 0.02 * words[t] + rng.normal(0, 0.3)
            place = np.arange(length)
            cut = -(-length // windows)
            part = {"model": model, "hook": "attn_out", "layer": layer, "depth": (layer + 0.5) / layers}
            part |= {"doc": f"d{doc}", "window": place // cut, "position": place % cut, "token_id": words}
            parts.append(pd.DataFrame({**part, "norm": np.exp(y + level + 3 * (place % cut == 0))}))
    return pd.concat(parts, ignore_index=True)


def simulate(docs, tokens, *, b=(0.4, 0.2), level=0.0, seed=0) -> pd.DataFrame:
    """Return AR(2) log norms after a burn-in, around levels that differ between documents."""
    rng = np.random.default_rng(seed)
    y = np.zeros((docs, 100 + tokens))
    for t in range(2, y.shape[1]):
        y[:, t] = b[0] * y[:, t - 1] + b[1] * y[:, t - 2] + rng.normal(size=docs)
    y = y[:, 100:] + level * rng.normal(size=docs)[:, None]
    rows = {
        "model": "m",
        "hook": "attn_out",
        "layer": 0,
        "doc": np.repeat(np.arange(docs), tokens),
        "window": 0,
    }
    rows |= {"position": np.tile(np.arange(tokens), docs), "token_id": 0, "norm": np.exp(y.ravel())}
    return pd.DataFrame(rows)


def of(table, specification, layer=0):
    """Return the rows of one specification and layer, by term."""
    return table[(table["specification"] == specification) & (table["layer"] == layer)].set_index("term")


def complete(lagged, layer, columns=("log_norm", "lag1", "lag2")):
    rows = lagged[lagged["layer"] == layer].dropna(subset=list(columns))
    return rows.sort_values(["doc", "window", "position"], ignore_index=True)


def assert_as_fitted(part, fits, layer):
    """Compare with fit_lagged's rows, which are statsmodels'."""
    other = fits.coefficients.query(f"layer == {layer} and term != 'Intercept'").set_index("term")
    assert list(part.index) == list(other.index)
    for column in (
        "estimate",
        "std_error",
        "df",
        "p_value",
        "conf_low",
        "conf_high",
        "n",
        "n_docs",
        "r_squared",
    ):
        np.testing.assert_allclose(part[column], other[column], rtol=1e-8, atol=1e-300, err_msg=column)
    assert set(part["cov_type"]) == {"crv3"}


# Specifications that are least squares on other rows or with other columns


def test_least_squares_specifications_are_what_fit_lagged_gives_on_columns_made_by_hand():
    norms = make_norms(windows=2)
    lagged = add_lags(norms)
    table = specification_curve(lagged, folds=3)
    assert list(dict.fromkeys(table["specification"])) == list(SPECIFICATIONS)
    # Words counted in plain Python: one layer's tokens are the corpus.
    tokens = norms[norms["layer"] == 0]
    frequency = {word: np.log((tokens["token_id"] == word).mean()) for word in tokens["token_id"]}
    seen, repeats = set(), {}
    for row in tokens.itertuples():
        repeats[row.doc, row.window, row.position] = float((row.doc, row.token_id) in seen)
        seen.add((row.doc, row.token_id))
    by_hand = lagged.assign(
        log_frequency=lagged["token_id"].map(frequency),
        is_repeat=[
            repeats[key] for key in zip(lagged["doc"], lagged["window"], lagged["position"], strict=True)
        ],
    )
    base, curve = "log_norm ~ lag1 + lag2", "position + np.log(position + 1)"
    expected = {
        "baseline": fit_lagged(lagged),
        "more_lags": fit_lagged(add_lags(norms, lags=(1, 2, 3, 4)), f"{base} + lag3 + lag4"),
        "position": fit_lagged(lagged, f"{base} + {curve}"),
        "log_frequency": fit_lagged(by_hand, f"{base} + log_frequency"),
        "is_repeat": fit_lagged(by_hand, f"{base} + is_repeat"),
        "covariates": fit_lagged(by_hand, f"{base} + {curve} + log_frequency + is_repeat"),
        "first_tokens_kept": fit_lagged(add_lags(norms, skip=0)),
    }
    for name, fits in expected.items():
        for layer in (0, 1):
            assert_as_fitted(of(table, name, layer), fits, layer)


def test_words_that_the_frame_brings_are_taken():
    lagged = add_lags(make_norms())
    own = lagged.assign(log_frequency=np.sin(lagged["token_id"]))
    table = specification_curve(own, specifications=["log_frequency"], folds=3)
    assert_as_fitted(of(table, "log_frequency"), fit_lagged(own, "log_norm ~ lag1 + lag2 + log_frequency"), 0)


def test_a_formula_may_have_the_layer_below_where_lags_are_not_made_anew():
    norms = make_norms()
    norms = norms[norms["layer"] == 1].assign(layer=1)
    norms = pd.concat(
        [norms.assign(layer=0, norm=norms["norm"] * np.exp(np.sin(np.arange(len(norms))))), norms]
    )
    lagged = add_lags(norms, lags=(1,), layer_below=(1,)).query("layer == 1")
    with pytest.raises(InputError, match="adjacent layers"):  # one layer alone has none below
        specification_curve(
            lagged, "log_norm ~ lag1 + layer_below_lag1", specifications=["more_lags"], folds=3
        )
    whole = add_lags(norms, lags=(1,), layer_below=(1,))
    with pytest.raises(InputError, match="complete rows; in model m, hook attn_out, layer 0 none"):
        specification_curve(
            whole, "log_norm ~ lag1 + layer_below_lag1", specifications=["more_lags"], folds=3
        )
    fits = fit_lagged(lagged, "log_norm ~ lag1 + layer_below_lag1")
    table = specification_curve(
        lagged, "log_norm ~ lag1 + layer_below_lag1", specifications=["baseline", "document_effects"], folds=3
    )
    assert_as_fitted(of(table, "baseline", 1), fits, 1)
    assert list(of(table, "document_effects", 1).index) == ["lag1", "layer_below_lag1"]


# Document effects and the half-panel jackknife


def dummies(rows, **options):
    """Return the lags' coefficients of statsmodels' fit with a dummy for every document."""
    return (
        smf.ols("log_norm ~ lag1 + lag2 + C(doc)", rows, **options).fit().params[["lag1", "lag2"]].to_numpy()
    )


@pytest.mark.parametrize("windows", [1, 2])
def test_document_effects_are_statsmodels_with_dummies_and_refits_without_each_document(windows):
    lagged = add_lags(make_norms(windows=windows))
    table = specification_curve(lagged, specifications=["document_effects"], folds=3, conf_level=0.9)
    for layer in (0, 1):
        rows, part = complete(lagged, layer), of(table, "document_effects", layer)
        estimate = dummies(rows)
        np.testing.assert_allclose(part["estimate"], estimate, **CLOSE)
        docs = sorted(set(rows["doc"]))
        moved = np.array([dummies(rows[rows["doc"] != doc]) for doc in docs]) - estimate
        error = np.sqrt((len(docs) - 1) / len(docs) * (moved**2).sum(axis=0))
        np.testing.assert_allclose(part["std_error"], error, rtol=1e-7)
        half = stats.t.ppf(0.95, part["df"]) * error
        np.testing.assert_allclose(part["conf_high"] - part["conf_low"], 2 * half, rtol=1e-7)
        assert set(part["n"]) == {len(rows)}
        assert set(part["n_docs"]) == {len(docs)}


@pytest.mark.parametrize("name", ["document_position_effects", "mean_group"])
def test_other_effects_and_mean_groups_are_those_of_regression(name):
    lagged = add_lags(make_norms())
    part = specification_curve(lagged, specifications=[name], folds=2)
    if name == "mean_group":
        expected = mean_group(lagged)
        assert part[["r_squared", "held_out_r_squared"]].isna().all(axis=None)
    else:
        expected = fit_lagged(lagged, effects=("doc", "position")).coefficients
        np.testing.assert_allclose(part["r_squared"], expected["r_squared"], **CLOSE)
    for column in ("estimate", "std_error", "conf_low", "n"):
        np.testing.assert_allclose(part[column], expected[column], **CLOSE)


def test_document_effects_agree_with_linearmodels():
    rows = complete(lagged := add_lags(make_norms()), 0)
    part = of(specification_curve(lagged, specifications=["document_effects"], folds=2), "document_effects")
    panel = rows.assign(time=rows.groupby("doc").cumcount()).set_index(["doc", "time"])
    fit = PanelOLS(panel["log_norm"], panel[["lag1", "lag2"]], entity_effects=True).fit()
    np.testing.assert_allclose(part["estimate"], fit.params, **CLOSE)
    np.testing.assert_allclose(part["r_squared"], fit.rsquared_within, **CLOSE)


def test_document_effects_bias_short_documents_down_and_the_mean_group_repairs_it():
    """At 94 tokens -.03 in b1 + b2 (Nickell): facts that were simulated before; 1,000 documents' error is .004."""
    lagged = add_lags(simulate(1000, 94, level=1.0), skip=0)
    table = specification_curve(lagged, specifications=["document_effects", "mean_group"])
    bias = {name: of(table, name)["estimate"].sum() - 0.6 for name in ("document_effects", "mean_group")}
    assert -0.042 < bias["document_effects"] < -0.018
    assert abs(bias["mean_group"]) < 0.015


@pytest.mark.slow
def test_the_biases_that_were_measured_come_out_again():
    """Pooled .4/.2 become about .50/.30 with document effects; fixed effects -.29 at 12 tokens, -.01 at 300."""
    pooled = specification_curve(add_lags(simulate(4000, 94, level=1.0), skip=0), specifications=["baseline"])
    assert np.allclose(of(pooled, "baseline")["estimate"], [0.50, 0.30], atol=0.02)
    for docs, tokens, bias in ((8000, 12, -0.29), (1500, 300, -0.01)):
        lagged = add_lags(simulate(docs, tokens, level=1.0), skip=0)
        table = specification_curve(lagged, specifications=["document_effects"])
        assert abs(of(table, "document_effects")["estimate"].sum() - 0.6 - bias) < 0.02


@pytest.mark.slow
def test_mean_group_intervals_cover():
    """95% intervals over 300 panels of 40 documents; .95 +- 3 binomial errors, with .02 for what bias is left."""
    covered = []
    for seed in range(300):
        part = mean_group(add_lags(simulate(40, 150, level=1.0, seed=seed), skip=0))
        covered.append((part["conf_low"] < [0.4, 0.2]) & (part["conf_high"] > [0.4, 0.2]))
    assert (np.abs(np.mean(covered, axis=0) - 0.95) < 0.04 + 0.02).all()


# Held-out documents


def held_out(rows, formula, fold):
    """Return 1 - squared error / squared deviation from the training mean, by statsmodels' predictions."""
    error = total = 0.0
    for left_out in sorted(set(fold)):
        test = rows["doc"].map(fold) == left_out
        fit = smf.ols(formula, rows[~test]).fit()
        outcome = rows.loc[test, "log_norm"]
        error += ((outcome - fit.predict(rows[test])) ** 2).sum()
        total += ((outcome - rows.loc[~test, "log_norm"].mean()) ** 2).sum()
    return 1 - error / total


def test_held_out_r_squared_is_that_of_statsmodels_predictions():
    lagged = add_lags(make_norms())
    table = specification_curve(lagged, specifications=["baseline", "position"], folds=3, seed=5)
    fold = in_folds(lagged["doc"], folds=3, seed=5)
    for name, formula in (
        ("baseline", "log_norm ~ lag1 + lag2"),
        ("position", "log_norm ~ lag1 + lag2 + position + np.log(position + 1)"),
    ):
        for layer in (0, 1):
            expected = held_out(complete(lagged, layer), formula, fold)
            np.testing.assert_allclose(of(table, name, layer)["held_out_r_squared"], expected, **CLOSE)


def test_held_out_r_squared_within_documents_is_that_of_the_other_documents_coefficients():
    lagged = add_lags(make_norms())
    table = specification_curve(lagged, specifications=["document_effects"], folds=3, seed=5)
    fold = in_folds(lagged["doc"], folds=3, seed=5)
    rows = complete(lagged, 0)
    columns = ["log_norm", "lag1", "lag2"]
    within = rows[columns] - rows.groupby("doc")[columns].transform("mean")
    error = 0.0
    for left_out in range(3):
        test = (rows["doc"].map(fold) == left_out).to_numpy()
        b = dummies(rows[~test])
        error += ((within.loc[test, "log_norm"] - within.loc[test, ["lag1", "lag2"]] @ b) ** 2).sum()
    expected = 1 - error / (within["log_norm"] ** 2).sum()
    np.testing.assert_allclose(of(table, "document_effects")["held_out_r_squared"], expected, **CLOSE)


def test_folds_are_of_equal_size_and_the_same_for_the_same_seed():
    docs = pd.Series([f"d{i}" for i in range(23)])
    fold = in_folds(docs, folds=5, seed=1)
    assert sorted(fold.value_counts()) == [4, 4, 5, 5, 5]
    assert fold.equals(in_folds(docs, folds=5, seed=1))
    assert not fold.equals(in_folds(docs, folds=5, seed=2))


# Lag order


@pytest.mark.parametrize("windows", [1, 2])
def test_lag_orders_have_statsmodels_criteria_on_the_rows_of_the_longest(windows):
    norms = make_norms(windows=windows)
    table = lag_order(norms, max_lag=4, folds=3, seed=2)
    lagged = add_lags(norms, lags=range(1, 5))
    fold = in_folds(norms["doc"], folds=3, seed=2)
    for layer in (0, 1):
        rows = complete(lagged, layer, ["log_norm", "lag1", "lag2", "lag3", "lag4"])
        part = table[table["layer"] == layer].set_index("order")
        assert list(part.index) == [0, 1, 2, 3, 4]
        for order, row in part.iterrows():
            formula = "log_norm ~ " + (" + ".join(f"lag{lag}" for lag in range(1, order + 1)) or "1")
            fit = smf.ols(formula, rows).fit()
            np.testing.assert_allclose([row["aic"], row["bic"]], [fit.aic, fit.bic], **CLOSE)
            expected = held_out(rows, formula, fold)
            np.testing.assert_allclose(row["held_out_r_squared"], expected, rtol=1e-9, atol=1e-12)
            assert row["n"] == len(rows)
        for pick, criterion, best in (
            ("aic_pick", "aic", min), ("bic_pick", "bic", min), ("held_out_pick", "held_out_r_squared", max),
        ):  # fmt: skip
            assert part.loc[part[pick], criterion].tolist() == [best(part[criterion])]


def test_bic_finds_the_order_of_an_autoregression():
    norms = simulate(60, 200, b=(0.4, 0.3))
    table = lag_order(norms, max_lag=5, skip=0)
    assert table.loc[table["bic_pick"], "order"].tolist() == [2]
    assert table.loc[table["held_out_pick"], "order"].item() >= 2


def test_a_lagged_frame_gives_the_same_orders_as_its_norm_frame_with_its_own_skip():
    norms = make_norms()
    expected = lag_order(norms, max_lag=3, folds=3, skip=2)
    pd.testing.assert_frame_equal(lag_order(add_lags(norms, skip=2), max_lag=3, folds=3), expected)
    assert not lag_order(norms, max_lag=3, folds=3).equals(expected)


# Properties


@settings(max_examples=4, deadline=None)
@given(st.floats(-5, 5), st.integers(0, 2**31), st.integers(0, 2**31))
def test_scales_levels_of_documents_and_the_order_of_rows(log_scale, seed, order):
    norms = make_norms((14, 18, 16, 15), layers=1, seed=seed % 100)
    names = ["baseline", "document_effects", "mean_group"]
    table = specification_curve(add_lags(norms), specifications=names, folds=2)
    before = norms.copy()
    scaled = norms.assign(norm=norms["norm"] * np.exp(log_scale))
    again = specification_curve(add_lags(scaled), specifications=names, folds=2)
    numbers = ["estimate", "std_error", "r_squared", "held_out_r_squared"]
    np.testing.assert_allclose(again[numbers], table[numbers], rtol=1e-6, atol=1e-9)
    mixed = add_lags(norms).sample(frac=1, random_state=order)
    np.testing.assert_allclose(
        specification_curve(mixed, specifications=names, folds=2)[numbers],
        table[numbers],
        rtol=1e-9,
        atol=1e-12,
    )
    levels = norms["doc"].map({"d0": 0.1, "d1": 3.0, "d2": 10.0, "d3": 1.0})
    moved = specification_curve(
        add_lags(norms.assign(norm=norms["norm"] * levels)), specifications=names, folds=2
    )
    within = table["specification"] != "baseline"
    np.testing.assert_allclose(moved.loc[within, numbers], table.loc[within, numbers], rtol=1e-6, atol=1e-9)
    assert not np.allclose(moved.loc[~within, numbers], table.loc[~within, numbers], rtol=1e-3)
    pd.testing.assert_frame_equal(norms, before)


def test_every_head_has_rows_of_its_own():
    norms = make_norms(layers=1)
    heads = pd.concat(
        [norms.assign(head=0), norms.assign(head=1, norm=norms["norm"] ** 2)], ignore_index=True
    )
    table = specification_curve(add_lags(heads), specifications=["baseline", "mean_group"], folds=3)
    alone = specification_curve(add_lags(norms), specifications=["baseline", "mean_group"], folds=3)
    for head in (0, 1):  # a power of the norm is a factor of its logarithm
        part = table[table["head"] == head].reset_index(drop=True)
        np.testing.assert_allclose(part["estimate"], alone["estimate"], rtol=1e-9)
    assert lag_order(heads, max_lag=2, folds=3).groupby("head").size().tolist() == [3, 3]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"specifications": ["fixed_effects"]},
            "specifications( must be one of 'baseline', 'document_effects'|')",
        ),
        ({"specifications": []}, "specifications must name at least 1"),
        ({"extra_lags": 0}, "extra_lags must be a whole number from 1 to 256; got 0"),
        ({"folds": 7}, "the frame has 6 documents. Use folds=2 to 6"),
        ({"folds": 1}, "folds must be a whole number, 2 or more; got 1"),
        ({"conf_level": 95.0}, "conf_level must be a number between 0 and 1"),
        (
            {"extra_lags": 70, "specifications": ["more_lags"]},
            "specification 'more_lags': .* needs complete rows",
        ),
    ],
)
def test_bad_options_are_refused(options, message):
    # TypeError: where the tests run under jaxtyping's checks, these see a wrong Literal first.
    with pytest.raises((InputError, TypeError), match=message):
        specification_curve(add_lags(make_norms()), **({"folds": 3} | options))


def test_frames_that_cannot_be_used_are_refused():
    norms = make_norms()
    lagged = add_lags(norms)
    with pytest.raises(SchemaError, match="specification_curve needs the column 'log_norm'"):
        specification_curve(norms)
    with pytest.raises(SchemaError, match="specification_curve needs the column 'token_id'"):
        specification_curve(lagged.drop(columns="token_id"), folds=3)
    with pytest.raises(InputError, match="a frame as add_lags returns it"):
        specification_curve(
            lagged.assign(log_norm=lagged["log_norm"].where(lagged["position"] != 9)), folds=3
        )
    with pytest.raises(InputError, match="Add lags before you filter rows"):
        specification_curve(lagged.dropna(), specifications=["more_lags"], folds=3)
    kind = lagged["doc"].map(dict(zip([f"d{i}" for i in range(6)], "aabbab", strict=True)))
    names = ["document_effects"]
    with pytest.raises(NumericalError, match=r"take off all of 'kind\[T.b\]'"):
        specification_curve(lagged.assign(kind=kind), "log_norm ~ lag1 + kind", specifications=names, folds=3)
    with pytest.raises(InputError, match="max_lag must be a whole number from 1 to 256; got 0"):
        lag_order(norms, max_lag=0)
    with pytest.raises(InputError, match="folds=10 leaves out documents in 10 parts; the frame has 6"):
        lag_order(norms)


def test_a_fold_without_which_a_term_cannot_be_told_is_refused():
    lagged = add_lags(make_norms())
    only = (lagged["doc"] == "d3").astype(float) * np.sin(lagged["position"])
    names = ["baseline"]
    with pytest.raises(NumericalError, match=r"without d|Without a fold"):
        specification_curve(lagged.assign(only=only), "log_norm ~ lag1 + only", specifications=names, folds=3)
