"""Fits against plain statsmodels calls and loops, and properties that no data set may break.

Certified and published numbers are in test_acceptance.py. Tolerances: the same sum in another order (plain statsmodels
calls, numpy, loops) 1e-9 relative; simulated coefficients four standard errors.
"""

import warnings
from typing import get_args

import numpy as np
import pandas as pd
import patsy
import pytest
import statsmodels
import statsmodels.api as sm
import statsmodels.formula.api as smf
from frames import autoregressive, make_norms
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import bell_mccaffrey, by_statsmodels, with_covariance
from scipy import stats
from statsmodels.stats.diagnostic import acorr_breusch_godfrey, het_breuschpagan
from statsmodels.stats.stattools import durbin_watson, jarque_bera

from mechreg.lags import add_lags
from mechreg.regression import LaggedFits, fit_lagged, formula_columns, linear_combination, lstsq_check
from mechreg.schema import (
    COEFFICIENT_COLUMNS,
    STATISTICS_COLUMNS,
    Cov,
    InputError,
    NumericalError,
    SchemaError,
)
from mechreg.spec import Spec

quick = settings(max_examples=12, deadline=None)
ONE_GROUP = {"model": "m", "hook": "attn_out", "layer": 0}
NUMBERS = [name for name, kind in COEFFICIENT_COLUMNS.items() if kind == "float64" and name != "depth"]


def by_term(fits, column="estimate") -> dict:
    assert fits.coefficients["layer"].nunique() == 1
    return dict(zip(fits.coefficients["term"], fits.coefficients[column], strict=True))


def documents_of(lagged) -> pd.DataFrame:
    return lagged.dropna(subset=["log_norm", "lag1", "lag2"]).reset_index(drop=True)


# ---------------------------------------------------------------- the same sums in another way


@pytest.fixture(scope="module")
def lagged() -> pd.DataFrame:
    return autoregressive(
        0.4, lengths=[[40, 9], [25], [4, 30, 12], [33], [18]], layers=(0, 3), models=("b", "a")
    )


@pytest.mark.parametrize("cov", ["nonrobust", "hc0", "hc1", "hc2", "hc3"])
def test_equals_plain_statsmodels_calls(lagged, cov):
    fits = fit_lagged(lagged, cov=cov)
    for (model, layer), rows in lagged.groupby(["model", "layer"], observed=True, sort=False):
        plain = smf.ols("log_norm ~ lag1 + lag2", rows).fit(
            cov_type=cov if cov == "nonrobust" else cov.upper(), use_t=True
        )
        ours = fits.coefficients.query(f"model == '{model}' and layer == {layer}")
        np.testing.assert_allclose(ours["estimate"], plain.params, rtol=1e-9)
        np.testing.assert_allclose(ours["std_error"], plain.bse, rtol=1e-9)
        np.testing.assert_allclose(ours["statistic"], plain.tvalues, rtol=1e-9)
        np.testing.assert_allclose(ours["p_value"], plain.pvalues, rtol=1e-9)
        np.testing.assert_allclose(ours[["conf_low", "conf_high"]], plain.conf_int(), rtol=1e-9)
        assert (ours["df"] == plain.nobs - 3).all()
        assert (ours["cov_type"] == cov).all()


def test_crv3_is_the_jackknife_over_documents_and_crv1_the_sum_of_their_scores(lagged):
    complete = documents_of(lagged).query("model == 'a' and layer == 3")
    x, y = patsy.dmatrix("lag1 + lag2", complete), complete["log_norm"].to_numpy()
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    docs, n = complete["doc"].astype(str).to_numpy(), len(complete)
    names = sorted(set(docs))
    without = np.array([np.linalg.lstsq(x[docs != g], y[docs != g], rcond=None)[0] for g in names])
    crv3 = (len(names) - 1) / len(names) * (without - beta).T @ (without - beta)
    scores = np.array([x[docs == g].T @ (y - x @ beta)[docs == g] for g in names])
    bread = np.linalg.inv(x.T @ x)
    crv1 = bread @ scores.T @ scores @ bread * len(names) / (len(names) - 1) * (n - 1) / (n - 3)
    for cov, matrix in (("crv3", crv3), ("auto", crv3), ("crv1", crv1)):
        table = fit_lagged(lagged, cov=cov).coefficients.query("model == 'a' and layer == 3")
        error = np.sqrt(np.diag(matrix))
        np.testing.assert_allclose(table["std_error"], error, rtol=1e-9)
        df = np.full(3, len(names) - 1.0)
        if cov != "crv1":
            df = bell_mccaffrey(np.asarray(x), pd.factorize(docs)[0])
        np.testing.assert_allclose(table["df"], df, rtol=1e-9)
        np.testing.assert_allclose(table["p_value"], 2 * stats.t.sf(np.abs(beta / error), df), rtol=1e-8)
        half = stats.t.ppf(0.975, df) * error
        np.testing.assert_allclose(table["conf_low"], beta - half, rtol=1e-9)
        np.testing.assert_allclose(table["conf_high"], beta + half, rtol=1e-9)
        assert (table["cov_type"] == ("crv1" if cov == "crv1" else "crv3")).all()


def test_crv2_has_the_roots_of_one_minus_the_projections_and_their_degrees_of_freedom(lagged):
    complete = documents_of(lagged).query("model == 'a' and layer == 3")
    x, y = np.asarray(patsy.dmatrix("lag1 + lag2", complete)), complete["log_norm"].to_numpy()
    cluster, bread = pd.factorize(complete["doc"])[0], np.linalg.inv(x.T @ x)
    moved = []
    for own in (cluster == g for g in range(cluster.max() + 1)):
        values, vectors = np.linalg.eigh(np.eye(own.sum()) - x[own] @ bread @ x[own].T)
        residual = (y - x @ (bread @ (x.T @ y)))[own]
        moved.append(bread @ x[own].T @ (vectors / np.sqrt(values)) @ vectors.T @ residual)
    table = fit_lagged(lagged, cov="crv2").coefficients.query("model == 'a' and layer == 3")
    np.testing.assert_allclose(table["std_error"], np.linalg.norm(moved, axis=0), rtol=1e-9)
    np.testing.assert_allclose(table["df"], bell_mccaffrey(x, cluster, power=-0.5), rtol=1e-9)


@pytest.mark.parametrize("cov", ["crv2", "crv3"])
def test_with_equal_documents_a_mean_has_one_degree_of_freedom_less_than_documents(lagged, cov):
    rng = np.random.default_rng(0)
    place = {"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(range(7), 5)}
    frame = pd.DataFrame(place | {"y": rng.normal(size=35)})
    assert fit_lagged(frame, "y ~ 1", cov=cov).coefficients["df"].item() == pytest.approx(6)
    # One document with most of the rows: there is little to learn the variance from.
    uneven = frame.assign(doc=np.minimum(np.arange(35), 6))
    assert fit_lagged(uneven, "y ~ 1", cov=cov).coefficients["df"].item() < 3


@pytest.mark.parametrize("lags", [None, 0, 2, 60])
def test_newey_west_never_crosses_a_window(lagged, lags):
    complete = documents_of(lagged).query("model == 'b' and layer == 0")
    longest = complete.groupby(["doc", "window"], observed=True).size().max()
    used = min(int(4 * (longest / 100) ** (2 / 9)), longest - 1) if lags is None else lags
    x, y = np.asarray(patsy.dmatrix("lag1 + lag2", complete)), complete["log_norm"].to_numpy()
    scores = x * (y - x @ np.linalg.lstsq(x, y, rcond=None)[0])[:, None]
    window = list(zip(complete["doc"], complete["window"], strict=True))
    position, n = complete["position"].to_numpy(), len(complete)
    middle = np.zeros((3, 3))
    for i in range(n):
        for j in range(n):
            apart = abs(position[i] - position[j])
            if window[i] == window[j] and apart <= used:
                middle += (1 - apart / (used + 1)) * np.outer(scores[i], scores[j])
    bread = np.linalg.inv(x.T @ x)
    error = np.sqrt(np.diag(bread @ middle @ bread) * n / (n - 3))
    table = fit_lagged(lagged, cov="hac", hac_lags=lags).coefficients.query("model == 'b' and layer == 0")
    np.testing.assert_allclose(table["std_error"], error, rtol=1e-9)
    assert (table["cov_type"] == f"hac({used})").all()
    assert (table["df"] == n - 3).all()


def test_statistics_equal_statsmodels_where_there_is_one_window():
    lagged = autoregressive(0.6, lengths=[[80]], seed=4)
    plain = smf.ols("log_norm ~ lag1", lagged).fit()
    row = fit_lagged(lagged, "log_norm ~ lag1", cov="nonrobust").statistics.iloc[0]
    godfrey, godfrey_p, *_ = acorr_breusch_godfrey(plain, nlags=1, result_object=False)
    pagan, pagan_p, *_ = het_breuschpagan(plain.resid, plain.model.exog)
    normality, normality_p, *_ = jarque_bera(plain.resid)
    expected = {
        "n": 78, "n_docs": 1, "n_sinks": 0, "r_squared": plain.rsquared, "adj_r_squared": plain.rsquared_adj,
        "f_statistic": plain.fvalue, "f_p_value": plain.f_pvalue, "aic": plain.aic, "bic": plain.bic,
        "residual_sd": np.sqrt(plain.scale), "durbin_watson": durbin_watson(plain.resid),
        "breusch_godfrey": godfrey, "breusch_godfrey_p": godfrey_p, "breusch_pagan": pagan,
        "breusch_pagan_p": pagan_p, "jarque_bera": normality, "jarque_bera_p": normality_p,
    }  # fmt: skip
    assert set(expected) == set(STATISTICS_COLUMNS) - {"model", "hook", "layer", "depth"}
    for name, value in expected.items():
        np.testing.assert_allclose(row[name], value, rtol=1e-9, err_msg=name)


def test_breusch_godfrey_without_an_intercept_equals_statsmodels():
    lagged = autoregressive(0.6, lengths=[[60]], seed=5)
    plain = smf.ols("log_norm ~ 0 + lag1", lagged).fit()
    row = fit_lagged(lagged, "log_norm ~ 0 + lag1", cov="nonrobust").statistics.iloc[0]
    np.testing.assert_allclose(
        row["breusch_godfrey"], acorr_breusch_godfrey(plain, nlags=1, result_object=False)[0], rtol=1e-9
    )
    assert np.isnan(row["breusch_pagan"])


def test_residuals_of_one_window_are_no_lag_of_another(lagged):
    # Reversing the order of the documents changes which window comes before which, and nothing else.
    other = lagged.assign(doc=lagged["doc"].astype(str).map({f"d{i}": f"e{9 - i}" for i in range(5)}))
    columns = ["breusch_godfrey", "durbin_watson"]
    ours, theirs = fit_lagged(lagged).statistics[columns], fit_lagged(other).statistics[columns]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    complete = documents_of(lagged).query("model == 'b' and layer == 0")
    x, y = patsy.dmatrix("lag1 + lag2", complete), complete["log_norm"].to_numpy()
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    residual = pd.Series(residual, index=complete.index)
    before = residual.groupby([complete["doc"], complete["window"]], observed=True).shift()
    watson = ((residual - before) ** 2).sum() / (residual**2).sum()
    auxiliary = sm.OLS(residual, np.c_[x, before.fillna(0)]).fit()
    np.testing.assert_allclose(ours.iloc[0], [auxiliary.rsquared * len(y), watson], rtol=1e-9)


@pytest.mark.parametrize("adjust", ["bh", "bonferroni", "holm", "none"])
def test_p_is_adjusted_over_the_lags_and_layers_of_each_model(adjust):
    lagged = autoregressive(0.1, lengths=[[20], [15], [18]], layers=(0, 1, 2, 3), models=("a", "b"), seed=8)
    table = fit_lagged(lagged, adjust=adjust).coefficients
    assert table.loc[table["term"] == "Intercept", "p_adjusted"].isna().all()
    for _, family in table[table["term"] != "Intercept"].groupby("model"):
        p = family["p_value"].to_numpy()
        m = len(p)
        assert m == 8
        expected = []
        for value in p:  # each rule written down as its definition
            larger = np.sort(p)[np.sort(p) >= value]
            if adjust == "bh":
                expected.append(min(min(q * m / np.sum(p <= q) for q in larger), 1))
            elif adjust == "holm":
                expected.append(min(max(q * (m - np.sum(p < q)) for q in p if q <= value), 1))
            else:
                expected.append(min(value * (m if adjust == "bonferroni" else 1), 1))
        np.testing.assert_allclose(family["p_adjusted"], expected, rtol=1e-12)


@pytest.mark.parametrize("phi", [0, 0.3, 0.9])
def test_recovers_a_known_autoregression(phi):
    lagged = autoregressive(phi, lengths=[[300, 150]] * 30, seed=3)
    fits = fit_lagged(lagged)
    table = fits.coefficients.set_index("term")
    assert table.loc["lag1", "std_error"] < 0.02  # so that the next line can fail
    assert abs(table.loc["lag1", "estimate"] - phi) < 4 * table.loc["lag1", "std_error"]
    assert abs(table.loc["lag2", "estimate"]) < 4 * table.loc["lag2", "std_error"]
    assert abs(fits.statistics["residual_sd"].item() - 0.3) < 4 * 0.3 / np.sqrt(2 * len(lagged))
    assert abs(fits.statistics["durbin_watson"].item() - 2) < 0.1
    wrong = fit_lagged(lagged, "log_norm ~ 1").statistics
    assert phi == 0 or wrong["breusch_godfrey_p"].item() < 1e-6  # serial correlation that is there is seen


# ---------------------------------------------------------------- tables


def test_the_seeds_rows_and_the_columns_of_the_tables():
    lagged = add_lags(make_norms([[95]], layers=(0, 1)), lags=(1, 2), skip=1)
    fits = fit_lagged(lagged)
    table = fits.coefficients
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == COEFFICIENT_COLUMNS
    assert {name: str(dtype) for name, dtype in fits.statistics.dtypes.items()} == STATISTICS_COLUMNS
    assert list(table) == list(COEFFICIENT_COLUMNS)
    assert list(fits.statistics) == list(STATISTICS_COLUMNS)
    assert table["term"].tolist() == ["Intercept", "lag1", "lag2"] * 2
    assert (table[["n", "n_docs", "n_dropped"]] == [92, 1, 3]).all(axis=None)
    assert (table["cov_type"] == "nonrobust (single document)").all()
    assert (table["df"] == 89).all()
    assert table["depth"].tolist() == [0.125] * 3 + [0.375] * 3


def test_groups_come_in_the_frames_order_and_layers_ascend(lagged):
    upside_down = pd.concat([lagged[lagged["layer"] == 3], lagged[lagged["layer"] == 0]])
    places = fit_lagged(upside_down).statistics[["model", "layer"]]
    assert places.to_numpy().tolist() == [["b", 0], ["b", 3], ["a", 0], ["a", 3]]


def test_heads_have_a_fit_each():
    lagged = autoregressive(0.5, lengths=[[30], [20], [25]], layers=(0, 1), heads=(0, 1, 2))
    fits = fit_lagged(lagged)
    assert list(fits.coefficients)[2:4] == ["layer", "head"]
    assert list(fits.statistics)[2:4] == ["layer", "head"]
    assert fits.statistics[["layer", "head"]].to_numpy().tolist() == [
        [i, j] for i in (0, 1) for j in (0, 1, 2)
    ]
    one = lagged[(lagged["layer"] == 1) & (lagged["head"] == 2)].drop(columns="head")
    ours = fits.coefficients.query("layer == 1 and head == 2")["estimate"]
    np.testing.assert_array_equal(ours, fit_lagged(one).coefficients["estimate"])
    assert "lag1" in fits.summary(layer=1, head=2)


def test_rows_are_dropped_by_the_formulas_columns_only(lagged):
    spoiled = lagged.assign(surprisal=np.nan, note=None)
    pd.testing.assert_frame_equal(fit_lagged(spoiled).coefficients, fit_lagged(lagged).coefficients)
    rows = spoiled["position"] % 5 != 0
    thinner = fit_lagged(
        lagged.assign(surprisal=np.where(rows, lagged["lag2"], np.nan)), "log_norm ~ lag1 + surprisal"
    )
    expected = fit_lagged(lagged[rows], "log_norm ~ lag1 + lag2").coefficients
    for column in ("estimate", "std_error", "n", "df"):  # clusters are trimmed with the rows
        np.testing.assert_allclose(thinner.coefficients[column], expected[column], rtol=1e-12)
    per_group = lagged.groupby(["model", "layer"], observed=True).size().iloc[0]
    assert (thinner.coefficients["n_dropped"] == per_group - thinner.coefficients["n"]).all()


@pytest.mark.parametrize("names", [[-7, 3, -2, 10**12, 0], ["a", 1, "b", 2, "c"], list("vwxyz")])
def test_the_names_of_clusters_do_not_matter(lagged, names):
    column = lagged["doc"].map(dict(zip([f"d{i}" for i in range(5)], names, strict=True)))
    for renamed in (column, column.astype("category")):
        table = fit_lagged(lagged.assign(doc=renamed)).coefficients
        columns = ["estimate", "std_error", "p_value", "df"]
        np.testing.assert_allclose(table[columns], fit_lagged(lagged).coefficients[columns], rtol=1e-9)


def test_the_outside_frame_needs_only_its_columns():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({**ONE_GROUP, "y": rng.normal(size=30), "x": rng.normal(size=30)})
    fits = fit_lagged(frame, "y ~ x", cov="hc3")
    assert fits.coefficients["depth"].isna().all()
    assert (fits.coefficients["n_docs"] == 0).all()
    assert fits.statistics[["durbin_watson", "breusch_godfrey"]].isna().all(axis=None)
    assert fits.statistics["jarque_bera"].notna().all()


# ---------------------------------------------------------------- formulas

annotations = [
    "1",
    "np.log(surprisal)",
    "C(source)",
    "lag1 * source",
    "C(position > 9)",
    "Q('a name')",
    "I(position**2) + position",
    "bs(position, df=4)",
    "cr(position, df=3, constraints='center') + surprisal",
    "center(lag1):C(source, Sum)",
    "is_repeat + lag1:lag2",
    "0 + C(source) + lag1",
    "np.abs(lag1) + abs(lag2)",
]


def annotated(lagged) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return lagged.assign(
        source=rng.choice(["news", "recipe", "dialogue"], len(lagged)),
        is_repeat=rng.random(len(lagged)) < 0.3,
        surprisal=rng.exponential(size=len(lagged)),
        **{"a name": rng.normal(size=len(lagged))},
    )


@pytest.mark.parametrize("terms", annotations)
def test_formulas_give_what_patsy_and_numpy_give(lagged, terms):
    formula = f"log_norm ~ {terms}"
    frame = annotated(lagged)
    fits = fit_lagged(frame, formula, cov="crv1")
    for (model, layer), rows in frame.groupby(["model", "layer"], observed=True, sort=False):
        complete = rows.dropna(subset=list(formula_columns(formula)))
        y, x = patsy.dmatrices(formula, complete)
        beta = np.linalg.lstsq(x, y[:, 0], rcond=None)[0]
        ours = fits.coefficients.query(f"model == '{model}' and layer == {layer}")
        assert ours["term"].tolist() == x.design_info.column_names
        np.testing.assert_allclose(ours["estimate"], beta, rtol=1e-7, atol=1e-9)
    assert lstsq_check(fits, frame)["difference"].abs().max() < 1e-9


@pytest.mark.parametrize(
    ("formula", "columns"),
    [
        ("y ~ x", ("y", "x")),
        ("np.log(y) ~ lag1:lag2 + C(pos, Treatment('NOUN'))", ("y", "lag1", "lag2", "pos")),
        ("y ~ Q('odd name') + scale(scale)", ("y", "odd name", "scale")),
        ("y ~ layer_below_lag1 + bs(x, df=4):position", ("y", "layer_below_lag1", "x", "position")),
    ],
)
def test_the_columns_of_a_formula(formula, columns):
    assert formula_columns(formula) == columns


def test_formulas_see_no_variable_of_the_program(lagged):
    lag9 = lagged["lag1"]  # patsy would find it in the frame that calls
    assert len(lag9)
    with pytest.raises(SchemaError, match="'lag9'"):
        fit_lagged(lagged, "log_norm ~ lag9")


def test_dtypes_that_patsy_would_take_for_something_else(lagged):
    frame = annotated(lagged)
    plain = fit_lagged(
        frame, "log_norm ~ lag1 + is_repeat + position + I(position**3)", cov="hc1"
    ).coefficients
    for dtypes in (
        {"lag1": "Float64", "position": "Int64", "is_repeat": "boolean"},
        {"lag1": object, "is_repeat": object, "model": object},
        {"position": "int16"},  # whose cube overflows
    ):
        other = fit_lagged(
            frame.astype(dtypes), "log_norm ~ lag1 + is_repeat + position + I(position**3)", cov="hc1"
        )
        pd.testing.assert_frame_equal(other.coefficients, plain)
    # The logarithm of a float32 is rounded to seven digits; of the same number in float64 it is not.
    half = frame.astype({"norm": "float32"})
    ours = fit_lagged(half, "np.log(norm) ~ lag1").coefficients["estimate"]
    theirs = fit_lagged(half.astype({"norm": "float64"}), "np.log(norm) ~ lag1").coefficients["estimate"]
    np.testing.assert_array_equal(ours, theirs)


def test_a_category_that_only_dropped_rows_have_is_no_column_of_zeros(lagged):
    pos = pd.Categorical(
        np.where(lagged["position"] == 0, "BOS", np.where(lagged["position"] % 2, "NOUN", "VERB"))
    )
    fits = fit_lagged(lagged.assign(pos=pos), "log_norm ~ lag1 + pos")
    assert fits.coefficients["term"].unique().tolist() == ["Intercept", "pos[T.VERB]", "lag1"]


# ---------------------------------------------------------------- properties

places_of_rows = st.integers(0, 2**31)


@quick
@given(places_of_rows, st.sampled_from(["crv3", "crv1", "hac", "hc3"]), st.booleans())
def test_row_order_does_not_matter(seed, cov, ids_are_numbers):
    lagged = autoregressive(0.4, lengths=[[12], [9, 7], [11]], layers=(0, 1))
    if ids_are_numbers:
        lagged = lagged.assign(doc=lagged["doc"].map({"d0": 2, "d1": 10, "d2": 1}).astype(int))
    shuffled = lagged.sample(frac=1, random_state=np.random.default_rng(seed))
    before, after = fit_lagged(lagged, cov=cov), fit_lagged(shuffled, cov=cov)
    pd.testing.assert_frame_equal(before.coefficients, after.coefficients, check_exact=True)
    pd.testing.assert_frame_equal(before.statistics, after.statistics, check_exact=True)


@quick
@given(st.floats(1e-3, 1e3), st.sampled_from(["auto", "nonrobust", "hac"]))
def test_scaling_all_norms_leaves_the_lags_coefficients_alone(c, cov):
    norms = make_norms([[14], [12], [15]], layers=(0,)).astype({"norm": "float64"})
    before = fit_lagged(add_lags(norms), cov=cov)
    after = fit_lagged(add_lags(norms.assign(norm=norms["norm"] * c)), cov=cov)
    lags = before.coefficients["term"] != "Intercept"
    np.testing.assert_allclose(
        after.coefficients[lags][NUMBERS], before.coefficients[lags][NUMBERS], rtol=1e-6
    )
    # y = b0 + b1 lag1 + b2 lag2, all three shifted by log c
    slopes = before.coefficients.loc[lags, "estimate"].sum()
    shift = after.coefficients["estimate"].iloc[0] - before.coefficients["estimate"].iloc[0]
    np.testing.assert_allclose(shift, np.log(c) * (1 - slopes), atol=1e-8)


@quick
@given(st.integers(0, 99), st.sampled_from(["auto", "hac", "hc2"]))
def test_an_unrelated_model_changes_nothing_and_a_group_is_what_it_is_alone(seed, cov):
    lagged = autoregressive(0.4, lengths=[[12], [9, 7], [11]], layers=(0, 1), seed=seed)
    other = autoregressive(-0.2, lengths=[[10], [13]], layers=(5,), models=("z",), seed=seed)
    alone, together = fit_lagged(lagged, cov=cov), fit_lagged(pd.concat([other, lagged]), cov=cov)
    ours = together.coefficients.query("model == 'm'").reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, alone.coefficients, check_exact=True)
    one = fit_lagged(lagged[lagged["layer"] == 1], cov=cov)
    expected = alone.coefficients.query("layer == 1").drop(columns="p_adjusted").reset_index(drop=True)
    pd.testing.assert_frame_equal(one.coefficients.drop(columns="p_adjusted"), expected, check_exact=True)
    pd.testing.assert_frame_equal(one.statistics, alone.statistics.query("layer == 1").reset_index(drop=True))


@quick
@given(st.floats(-5, 5), st.floats(0.1, 10))
def test_moving_and_stretching_a_regressor_moves_only_its_own_numbers(shift, stretch):
    lagged = autoregressive(0.4, lengths=[[20], [17], [22], [9]])
    before = by_term(fit_lagged(lagged), "statistic")
    after = by_term(fit_lagged(lagged.assign(lag2=lagged["lag2"] * stretch + shift)), "statistic")
    np.testing.assert_allclose([after["lag1"], after["lag2"]], [before["lag1"], before["lag2"]], rtol=1e-6)


def test_the_frame_that_came_is_left_alone_and_later_changes_do_not_reach_the_fits():
    lagged = autoregressive(0.4, lengths=[[20], [17]])
    copy = lagged.copy(deep=True)
    fits = fit_lagged(lagged)
    before = fits.summary()
    pd.testing.assert_frame_equal(lagged, copy)
    ours, theirs = fits._frame["lag1"].to_numpy(), lagged["lag1"].to_numpy()
    assert np.shares_memory(ours, theirs)  # a reference until somebody writes, not a copy of the data
    lagged["log_norm"] = 0.0
    lagged.loc[3:, "lag1"] = 1.0
    assert without_clock(fits.summary()) == without_clock(before)


# ---------------------------------------------------------------- results in hand


def without_clock(text) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(("Date:", "Time:"))]


@pytest.mark.parametrize("cov", ["nonrobust", "hc3", "hac", "crv1", "auto"])
def test_the_summary_is_statsmodels_text_of_the_numbers_in_the_table(lagged, cov):
    fits = fit_lagged(lagged, cov=cov, conf_level=0.9)
    text = fits.summary(model="a", layer=3)
    row = fits.coefficients.query("model == 'a' and layer == 3 and term == 'lag1'").iloc[0]
    line = next(line for line in text.splitlines() if line.startswith("lag1")).split()[1:]
    columns = ["estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high"]
    np.testing.assert_allclose([float(word) for word in line], row[columns].astype(float), atol=6e-4)
    assert "OLS Regression Results" in text
    assert (
        repr(fits.result(model="a", layer=3)) == "<statsmodels' results of log_norm on Intercept, lag1, lag2>"
    )
    assert "[0.05       0.95]" in text
    if cov == "nonrobust":
        rows = documents_of(lagged).query("model == 'a' and layer == 3")
        plain = smf.ols("log_norm ~ lag1 + lag2", rows).fit().summary(alpha=0.1).as_text()
        assert without_clock(text) == without_clock(plain)


@pytest.mark.parametrize("cov", [cov for cov in get_args(Cov) if cov != "crv2"])
def test_the_result_is_statsmodels_own_with_the_covariance_of_the_table(lagged, cov):
    fits = fit_lagged(lagged, cov=cov)
    result = fits.result(model="a", layer=3)
    table = fits.coefficients.query("model == 'a' and layer == 3")
    for name, ours in (("params", "estimate"), ("bse", "std_error"), ("pvalues", "p_value")):
        np.testing.assert_allclose(getattr(result, name), table[ours], rtol=1e-12)
    np.testing.assert_allclose(result.conf_int(), table[["conf_low", "conf_high"]], rtol=1e-12)
    complete = documents_of(lagged).query("model == 'a' and layer == 3").reset_index(drop=True)
    plain, _ = with_covariance(smf.ols("log_norm ~ lag1 + lag2", complete), complete, cov, "doc", None)
    for hypothesis in ("lag1 = lag2", "lag1 + lag2 = 0.5"):
        ours, theirs = result.t_test(hypothesis), plain.t_test(hypothesis)
        np.testing.assert_allclose(ours.effect, theirs.effect, rtol=1e-9)
        np.testing.assert_allclose(ours.sd, theirs.sd, rtol=1e-9)
        p = 2 * stats.t.sf(np.abs(theirs.statistic), table["df"].min())
        np.testing.assert_allclose(ours.pvalue, p, rtol=1e-8)
    together = [each.wald_test(np.eye(3)[1:], scalar=True) for each in (result, plain)]
    np.testing.assert_allclose(together[0].statistic, together[1].statistic, rtol=1e-9)
    influence = [each.get_influence() for each in (result, plain)]
    np.testing.assert_allclose(influence[0].hat_matrix_diag, influence[1].hat_matrix_diag, rtol=1e-9)
    np.testing.assert_allclose(influence[0].cooks_distance[0], influence[1].cooks_distance[0], rtol=1e-8)
    np.testing.assert_allclose(result.predict(complete), plain.fittedvalues, rtol=1e-10)


@pytest.mark.parametrize("effects", [(), ("doc",), ("doc", "position")])
@pytest.mark.parametrize("cov", ["crv3", "crv2", "crv1", "hac", "nonrobust"])
def test_a_sum_of_lags_is_what_it_is_as_a_coefficient_of_another_formula(lagged, cov, effects):
    if effects and cov == "crv2":
        effects = ("doc",)
    fits = fit_lagged(lagged, cov=cov, effects=effects)
    ours = linear_combination(fits, "lag1 + lag2")
    change = lagged.assign(change=lagged["lag2"] - lagged["lag1"])
    same = fit_lagged(change, "log_norm ~ lag1 + change", cov=cov, effects=effects)
    theirs = same.coefficients.query("term == 'lag1'").reset_index(drop=True)
    columns = [name for name in NUMBERS if name != "p_adjusted"]
    np.testing.assert_allclose(ours[columns], theirs[columns], rtol=1e-8)
    if cov == "crv3":
        sums = (
            linear_combination(fits.sums, "lag1 + lag2", cov=cov) if effects != ("doc", "position") else ours
        )
        np.testing.assert_allclose(sums[columns], ours[columns], rtol=1e-9)


@pytest.mark.parametrize("wrong", ["lag1 + lag3", "lag1 = 1", "lag1, lag2", "lag1 +", ""])
def test_a_combination_of_other_terms_is_refused(lagged, wrong):
    with pytest.raises(InputError, match="combination"):
        linear_combination(fit_lagged(lagged), wrong)


def test_levels_that_no_two_rows_share_are_named(lagged):
    one = lagged[lagged["doc"] == lagged["doc"].iloc[0]]
    one = one[one["window"] == one["window"].iloc[0]]
    with pytest.raises(
        InputError, match=r"complete rows, two or more of each doc and each position; .* none of 40 is"
    ):
        fit_lagged(one, effects=("doc", "position"))


def test_the_result_of_one_value_of_by_is_chosen_by_its_column(lagged):
    frame = lagged.assign(half=np.where(lagged["position"] % 2, "odd", "even"))
    fits = fit_lagged(frame, by="half")
    assert (
        fits.result(model="a", layer=0, half="odd").nobs
        == fits.statistics.query("model == 'a' and layer == 0 and half == 'odd'")["n"].item()
    )
    with pytest.raises(InputError, match=r"not by 'source'; they are by \['half'\]"):
        fits.result(source="news")


@pytest.mark.parametrize("cov", ["crv3", "hac", "hc3"])
def test_designs_that_defeat_statsmodels_are_answered(cov):
    lagged = autoregressive(0.4, lengths=[[300], [250], [280]])
    cubic = "log_norm ~ lag1 + position + I(position**2) + I(position**3)"
    scaled = "log_norm ~ lag1 + u + I(u**2) + I(u**3)"
    high = lagged.assign(**{name: lagged[name] + 1e4 for name in ("log_norm", "lag1", "lag2")})
    for fits, right in (
        (
            fit_lagged(lagged, cubic, cov=cov),
            by_statsmodels(lagged.assign(u=lagged["position"] / 150 - 1), scaled, cov=cov),
        ),
        (fit_lagged(high, cov=cov), by_statsmodels(lagged, cov=cov)),
    ):
        ours, theirs = (table.coefficients.query("term == 'lag1'") for table in (fits, right))
        np.testing.assert_allclose(ours["std_error"], theirs["std_error"], rtol=1e-8)
        np.testing.assert_allclose(fits.result().bse["lag1"], theirs["std_error"].item(), rtol=1e-8)


def test_the_summary_says_where_its_f_is_not_of_all_terms():
    """statsmodels warns, or prints an F of -6.9e12 without a word (3 terms, 3 clusters, crv1)."""
    few_documents = autoregressive(0.4, lengths=[[60], [50], [70]])
    frame = few_documents.assign(lag3=few_documents["lag2"] ** 2, lag4=few_documents["lag1"] ** 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few = fit_lagged(frame, "log_norm ~ lag1 + lag2 + lag3 + lag4", cov="crv1").summary()
        three = fit_lagged(frame, "log_norm ~ lag1 + lag2 + lag3", cov="crv1").summary()
        enough = fit_lagged(frame, "log_norm ~ lag1 + lag2", cov="crv1").summary()
        without = fit_lagged(frame, "log_norm ~ 0 + lag1 + lag2", cov="crv1").summary()
    assert "The F-statistic is no test of all 4 terms at once: 3 clusters allow 2" in few
    assert "no test of all 3 terms" in three
    assert "[mechreg]" not in enough + without


def test_the_summary_of_an_unknown_fit_is_refused(lagged):
    fits = fit_lagged(lagged)
    with pytest.raises(InputError, match=r"Give model=, one of \['b', 'a'\]; none was given"):
        fits.summary(layer=0)
    with pytest.raises(InputError, match=r"Give layer=, one of \[0, 3\]; got 7"):
        fits.summary(model="a", layer=7)
    with pytest.raises(InputError, match="Give head="):
        fits.summary(model="a", layer=3, head=0)


def test_the_fits_show_themselves_in_short(lagged):
    fits = fit_lagged(lagged.assign(model=lagged["model"].astype(str) + "<script>"))
    assert isinstance(fits, LaggedFits)
    assert fits.formula == "log_norm ~ lag1 + lag2"
    assert repr(fits) == "LaggedFits('log_norm ~ lag1 + lag2': 4 fits of b<script>, a<script>; crv3)"
    one = fit_lagged(lagged.query("model == 'b' and layer == 0"))
    assert repr(one).startswith("LaggedFits('log_norm ~ lag1 + lag2': 1 fit of b;")
    page = fits._repr_html_()
    assert "<script>" not in page
    assert "std_error" in page
    assert len(page) < 10_000


def test_least_squares_of_numpy_gives_the_same_betas(lagged):
    fits = fit_lagged(lagged)
    check = lstsq_check(fits, lagged.sample(frac=1, random_state=0))
    assert list(check) == ["model", "hook", "layer", "term", "estimate", "lstsq", "difference"]
    assert len(check) == 12
    assert check["difference"].abs().max() < 1e-12
    changed = lagged.assign(log_norm=lagged["log_norm"] + lagged["position"])
    assert lstsq_check(fits, changed)["difference"].abs().max() > 0.1  # so the check can fail
    with pytest.raises(InputError, match="needs the frame that was fitted"):
        lstsq_check(fits, lagged[lagged["position"] < 9])
    with pytest.raises(InputError, match="model z, hook attn_out, layer 0 was not"):
        lstsq_check(fits, lagged.assign(model="z"))


def test_predictions_and_residuals_stand_beside_their_tokens(lagged):
    fits = fit_lagged(lagged, "log_norm ~ lag1 + bs(position, df=4)")
    shuffled = lagged.sample(frac=1, random_state=2)
    wide = fits.augment(shuffled)
    pd.testing.assert_frame_equal(wide[lagged.columns], shuffled)
    complete = wide["lag1"].notna()
    assert (wide["predicted"].notna() == complete).all()
    np.testing.assert_allclose(
        wide.loc[complete, "log_norm"],
        wide.loc[complete, "predicted"] + wide.loc[complete, "residual"],
        rtol=1e-12,
    )
    for (model, layer), rows in wide[complete].groupby(["model", "layer"], observed=True):
        plain = smf.ols("log_norm ~ lag1 + bs(position, df=4)", rows).fit()
        np.testing.assert_allclose(rows["residual"], plain.resid, atol=1e-10, err_msg=f"{model} {layer}")


def test_held_out_documents_are_predicted_with_the_splines_of_the_first(lagged):
    held_out = (lagged["doc"] == "d1") & (lagged["position"] < 20)
    formula = "log_norm ~ lag1 + center(lag2) + bs(position, df=4)"
    wide = fit_lagged(lagged[~held_out], formula).augment(lagged[held_out])
    for (model, layer), rows in wide.groupby(["model", "layer"], observed=True):
        train = lagged[~held_out & (lagged["model"] == model) & (lagged["layer"] == layer)]
        plain = smf.ols(formula, train.dropna()).fit()
        complete = rows["lag2"].notna()
        assert 0 < complete.sum() < len(rows)
        assert (rows["predicted"].notna() == complete).all()
        np.testing.assert_allclose(rows["predicted"][complete], plain.predict(rows[complete]), rtol=1e-9)
    beyond = lagged[held_out].assign(position=lagged["position"] + 500)
    with pytest.raises(
        InputError, match="fails in model b, hook attn_out, layer 0: some data points fall outside"
    ):
        fit_lagged(lagged[~held_out], formula).augment(beyond)
    with pytest.raises(InputError, match=r"augment needs groups that were fitted; .*layer 3 was not"):
        fit_lagged(lagged[lagged["layer"] == 0]).augment(lagged)


@pytest.mark.parametrize(
    ("formula", "factor"),
    [
        ("log_norm ~ lag1", 1.0),
        ("center(log_norm) ~ lag1", 1.0),
        ("standardize(log_norm) ~ center(lag1)", "sd"),
        ("log_norm ~ 0 + te(cr(position, df=3), cr(u, df=3))", 1.0),
        ("log_norm ~ bs(u, df=4) + C(source, Sum)", 1.0),
    ],
)
@pytest.mark.parametrize("some", [slice(None), slice(5, 6)])
def test_what_a_formula_learned_of_the_outcome_is_kept(lagged, formula, factor, some):
    rng = np.random.default_rng(0)
    frame = lagged.query("model == 'a' and layer == 0").dropna()
    frame = frame.assign(u=rng.normal(size=len(frame)), source=rng.choice(["x", "y", "z"], len(frame)))
    fits = fit_lagged(frame, formula, cov="nonrobust")
    before, shifted = (
        fits.augment(f.iloc[some]) for f in (frame, frame.assign(log_norm=frame["log_norm"] + 3))
    )
    scale = frame["log_norm"].std(ddof=0) if factor == "sd" else factor
    np.testing.assert_allclose(shifted["residual"] - before["residual"], 3 / scale, rtol=1e-9)
    np.testing.assert_allclose(shifted["predicted"], before["predicted"], rtol=1e-9)


def test_what_depends_on_the_other_rows_is_not_taken_to_new_ones(lagged):
    frame = lagged.query("model == 'a' and layer == 0")
    for formula in ("I(log_norm - log_norm.mean()) ~ lag1", "log_norm ~ I(lag1 / np.std(lag1))"):
        fits = fit_lagged(frame, formula, cov="nonrobust")
        assert abs(fits.augment(frame)["residual"].mean()) < 1e-9
        with pytest.raises(InputError, match=r"depends on which rows are there; write center\(x\)"):
            fits.augment(frame[frame["doc"] == "d1"])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("formula", "error", "message"),
    [
        ("log_norm ~ lag_1", SchemaError, r"needs the column 'lag_1'.*Did you mean 'lag1'"),
        ("log_norm ~ lag1 + Q('lag 2')", SchemaError, "needs the column 'lag 2'"),
        ("log_norms ~ lag1", SchemaError, "Did you mean 'log_norm'"),
        ("log_norm ~ lag1 +", InputError, "cannot be read: expected a noun"),
        ("log_norm ~ (lag1", InputError, "cannot be read"),
        ("log_norm ~ lag1 lag2", InputError, "cannot be read"),
        ("log_norm", InputError, "one outcome and at least one term"),
        ("~ lag1", InputError, "one outcome"),
        ("log_norm + lag2 ~ lag1", InputError, "one outcome"),
        ("log_norm ~ 0", InputError, "at least one term"),
        ("", InputError, "one outcome"),
        ("log_norm ~ log(norm)", InputError, r"calls 'log', which is not known; write np\.log"),
        (
            "log_norm ~ np.logg(norm)",
            InputError,
            "uses 'np.logg', which is not among what a formula may hold",
        ),
        ("log_norm ~ bs(position, df=1)", InputError, "fails in .*df=1 is too small"),
        ("log_norm ~ lag1.shift(1)", InputError, "lags are columns, made by add_lags"),
        ("log_norm ~ np.log(lag1 - 100)", InputError, "fails in .*missing values"),
        ("doc ~ lag1", InputError, "fails in model m, hook attn_out, layer 0"),
        ("log_norm ~ 1 / (3 - position)", InputError, "cannot be read: numbers besides"),
        (
            "log_norm ~ np.log(position - 1)",
            NumericalError,
            r"'np\.log\(position - 1\)' has infinite values in model m",
        ),
    ],
)
def test_formulas_that_cannot_be_fitted_are_refused(formula, error, message):
    lagged = autoregressive(0.4, lengths=[[20], [17]])
    with pytest.raises(error, match=message):
        fit_lagged(lagged, formula)


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (lambda f: f.iloc[:0], {}, InputError, "at least one row"),
        (lambda f: f.drop(columns="hook"), {}, SchemaError, "needs the column 'hook'"),
        (lambda f: f.drop(columns="doc"), {}, SchemaError, "needs the column 'doc'"),
        (lambda f: f.drop(columns="window"), {"cov": "hac"}, SchemaError, "needs the column 'window'"),
        (lambda f: f, {"cluster": "dok"}, SchemaError, "'dok'.*Did you mean 'doc'"),
        (lambda f: f.assign(model=None), {}, InputError, "a value of 'model' in every row"),
        (lambda f: f.assign(layer=0.5), {}, InputError, "whole numbers as 'layer'"),
        (lambda f: f.assign(position=f["position"] + 0.5), {}, InputError, "whole numbers as 'position'"),
        (lambda f: f.assign(doc=f["doc"].astype(object).where(f["position"] != 7)), {}, InputError, "value of 'doc'"),
        (lambda f: pd.concat([f, f]), {}, InputError, "every token once in a group; model m, .*twice"),
        (lambda f: f[f["position"] < 3], {}, InputError, "layer 1 none of"),
        (lambda f: f[f["position"] < 5], {}, InputError, r"at least 5 complete rows for 3 terms; .* has 4 \(6 dropped"),
        (lambda f: f.assign(log_norm=2.5), {}, InputError, "'log_norm' is constant in model m, hook attn_out, layer 1"),
        (lambda f: f.assign(lag2=0.1), {}, InputError, "'lag2' is constant"),
        (lambda f: f.assign(lag2=1e9 + 1e-9 * f["lag2"]), {}, InputError, "'lag2' is constant"),
        (lambda f: f.assign(lag2=2 * f["lag1"] - 1), {}, NumericalError, "collinear"),
        (lambda f: f.assign(lag2=f["lag1"] + 1e-9 * f["lag2"]), {}, NumericalError, "collinear"),
        (lambda f: f.assign(lag2=f["lag2"].replace(f["lag2"].max(), np.inf)), {}, NumericalError,
         "'lag2' has infinite values in model m, hook attn_out, layer 1"),
        (lambda f: f.assign(log_norm=f["log_norm"].replace(f["log_norm"].max(), -np.inf)), {}, NumericalError,
         "'log_norm' has infinite"),
        (lambda f: f[f["doc"] == "d0"], {"cov": "crv3"}, InputError, "='doc' needs two clusters or more; .* has 1"),
        (lambda f: f[f["doc"] == "d0"], {"cov": "crv1"}, InputError, "needs two clusters or more"),
        (lambda f: f.assign(lag2=(f["doc"] == "d1") * 1.0), {}, NumericalError, "collinear without doc d1"),
        (lambda f: f.assign(lag2=(f["doc"] == "d1") * (f["position"] == 9) * 1.0), {"cov": "hc3"}, NumericalError,
         "1 - leverage"),
        (lambda f: f[f["position"] != 9], {"cov": "hac"}, InputError, "without gaps"),
        (lambda f: f.assign(window=f["position"]), {"cov": "hac"}, InputError, "two complete rows or more"),
        (lambda f: pd.concat([f, f.assign(model="m[folded]")]), {}, InputError, "'raw' .* and 'folded'"),
    ],
)  # fmt: skip
def test_frames_that_would_give_wrong_numbers_are_refused(spoil, options, error, message):
    good = autoregressive(0.4, lengths=[[20], [17], [15]], layers=(0,), models=("fine",))
    lagged = spoil(autoregressive(0.4, lengths=[[20], [17]], layers=(1,)).astype({"model": str, "doc": str}))
    with pytest.raises(error, match=message):
        fit_lagged(lagged, **options)
    if len(lagged) and set(good.columns) <= set(lagged.columns):  # also when the first group is fine
        with pytest.raises(error, match=message):
            fit_lagged(
                pd.concat([good.astype({"model": str, "doc": str}), lagged], ignore_index=True), **options
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cov": "crv4"}, "cov"),
        ({"adjust": "fdr"}, "adjust"),
        ({"conf_level": 95.0}, "conf_level must be a number between 0 and 1"),
        ({"conf_level": 0.0}, "conf_level must be a number between 0 and 1"),
        (
            {"hac_lags": 3},
            "hac_lags=3 needs cov='hac'; got cov='auto'",
        ),
        ({"hac_lags": -1, "cov": "hac"}, "hac_lags must be"),
    ],
)
def test_bad_options_are_refused(lagged, options, message):
    # TypeError: where the tests run under jaxtyping's checks, these see a wrong Literal first.
    with pytest.raises((InputError, TypeError), match=message):
        fit_lagged(lagged, **options)


def test_another_formula_engine_is_refused(lagged, monkeypatch):
    monkeypatch.setattr(statsmodels.formula.options, "_formula_engine", "formulaic")
    with pytest.raises(InputError, match="patsy"):
        fit_lagged(lagged).result(model="a", layer=0)


@pytest.mark.parametrize("cov", get_args(Cov))
def test_every_covariance_that_a_spec_may_name_is_there(cov):
    lagged = autoregressive(0.4, lengths=[[20], [17], [15]])
    found = fit_lagged(lagged, cov=cov).coefficients
    assert Spec(models=("mini-s",), corpus="demo", cov=cov).cov == cov
    assert set(found["cov_type"]) == {{"auto": "crv3", "hac": "hac(2)"}.get(cov, cov)}
    assert (found["std_error"] > 0).all()


def test_the_fits_carry_the_sums_that_their_tables_were_made_of(lagged):
    fits = fit_lagged(lagged)
    assert fits.sums is fits.sums
    pd.testing.assert_frame_equal(fits.sums.coefficients(), fits.coefficients)
    for cov in ("nonrobust", "hc3"):
        pd.testing.assert_frame_equal(fit_lagged(lagged, cov=cov).sums.coefficients(), fits.coefficients)
