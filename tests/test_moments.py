"""Sums of products against statsmodels, 50-digit arithmetic and plain loops, and properties of updates and merges.

Tolerances. Tables against the statsmodels engine: 1e-9 relative (measured: 1e-11), for what is a difference also 1e-12
absolute. Parts against the whole: 1e-10 relative (measured: 1e-12; the sums are in another order and in other
coordinates). Against mpmath with 50 digits: 1e-11 relative at a mean of 1e4 and a spread of 1e-3, where the columns
themselves hold 9 digits of their spread. Max-T against a loop with the same weights: exactly, as counts are compared.
Family-wise error: 400 simulated families, so the 99.9% range about .05 is .014 to .09; the raw one is far beyond.
"""

import functools

import mpmath
import numpy as np
import pandas as pd
import patsy
import pytest
import statsmodels.formula.api as smf
from frames import autoregressive
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import by_statsmodels

from mechreg.lags import add_lags
from mechreg.regression import LagSums, fit_lagged, within_documents
from mechreg.regression import max_t as max_t_module
from mechreg.regression.clusters import Clusters, left_out
from mechreg.regression.max_t import influence, max_t
from mechreg.schema import COEFFICIENT_COLUMNS, STATISTICS_COLUMNS, InputError, NumericalError, SchemaError

quick = settings(max_examples=5, deadline=None)
KEYS = ["model", "hook", "layer", "term"]


def assert_tables_equal(ours, theirs, rtol=1e-9):
    assert list(ours.columns) == list(theirs.columns)
    assert (ours.dtypes == theirs.dtypes).all()
    for column in ours:
        if ours[column].dtype == "float64":
            np.testing.assert_allclose(
                ours[column], theirs[column], rtol=rtol, atol=1e-12, err_msg=column, equal_nan=True
            )
        else:
            assert ours[column].tolist() == theirs[column].tolist(), column


def assert_same(ours, theirs, rtol=1e-10, **options):
    keys = [key for key in KEYS if key != "term"]
    assert_tables_equal(
        ours.coefficients(**options).sort_values(KEYS, ignore_index=True),
        theirs.coefficients(**options).sort_values(KEYS, ignore_index=True),
        rtol,
    )
    assert_tables_equal(
        ours.statistics().sort_values(keys, ignore_index=True),
        theirs.statistics().sort_values(keys, ignore_index=True),
        rtol,
    )


def streamed(parts, formula="log_norm ~ lag1 + lag2", **options) -> LagSums:
    moments = LagSums(formula, **options)
    for part in parts:
        moments.update(part)
    return moments


def by_document(lagged) -> list[pd.DataFrame]:
    return [rows for _, rows in lagged.groupby("doc", observed=True, sort=False)]


def with_parts_of_speech(lagged, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return lagged.assign(
        pos=rng.choice(["NOUN", "VERB", "ADJ"], len(lagged)),
        repeated=rng.random(len(lagged)) < 0.3,
        surprisal=rng.exponential(3, len(lagged)) + 0.1,
    )


@pytest.fixture(scope="module")
def lagged() -> pd.DataFrame:
    frame = autoregressive(
        0.4, lengths=[[40, 9], [25], [4, 30, 12], [33], [18], [27]], layers=(0, 3), models=("b", "a")
    )
    return with_parts_of_speech(frame)


def test_documents_levels_are_taken_off_the_sums_without_a_look_at_the_rows(lagged):
    sums = within_documents(streamed(by_document(lagged)))
    assert_tables_equal(
        sums.coefficients(),
        fit_lagged(lagged, effects="doc").coefficients.assign(n_dropped=sums.coefficients()["n_dropped"]),
    )
    for formula in ("log_norm ~ lag1 + C(pos)", "log_norm ~ 0 + lag1"):
        with pytest.raises(InputError, match="within_documents needs"):
            within_documents(LagSums.from_frame(lagged, formula))


# ---------------------------------------------------------------- the tables are statsmodels'

FORMULAS = [
    "log_norm ~ lag1 + lag2",
    "log_norm ~ 1",
    "log_norm ~ 0 + lag1 + lag2",
    "log_norm ~ (lag1 + lag2) * C(pos)",
    "log_norm ~ 0 + C(pos) + lag1:C(pos)",
    "log_norm ~ lag1 * repeated + C(pos, Sum) * lag2",
    "log_norm ~ lag1 * lag2 + np.log(surprisal) + I(lag1**2)",
    "log_norm ~ bs(position, df=4) + center(lag1) * pos",
    "log_norm ~ lag1 + I(lag2 > lag2.mean())",
]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("cov", ["nonrobust", "hc0", "hac", "crv1", "crv3", "jackknife"])
def test_equal_to_statsmodels(lagged, formula, cov):
    frame = lagged[lagged["model"] == "a"]
    theirs = by_statsmodels(frame, formula, cov=cov)
    ours = fit_lagged(frame, formula, cov=cov)
    assert_tables_equal(ours.coefficients, theirs.coefficients)
    assert_tables_equal(ours.statistics, theirs.statistics)
    assert list(ours.coefficients) == list(COEFFICIENT_COLUMNS)
    assert list(ours.statistics) == list(STATISTICS_COLUMNS)


@pytest.mark.parametrize("lags", [0, 1, 3, 12, 60])
def test_newey_west_with_lags_up_to_beyond_the_longest_window(lagged, lags):
    theirs, ours = (
        engine(lagged, "log_norm ~ lag1 * pos", cov="hac", hac_lags=lags)
        for engine in (by_statsmodels, fit_lagged)
    )
    assert_tables_equal(ours.coefficients, theirs.coefficients)


def test_per_head_hooks_and_frames_without_documents(lagged):
    heads = autoregressive(0.3, lengths=[[20], [17], [15]], heads=(0, 5))
    plain = lagged[["model", "hook", "layer", "log_norm", "lag1"]]
    for frame, options in ((heads, {}), (plain, {"formula": "log_norm ~ lag1", "cov": "hc1"})):
        theirs, ours = (engine(frame, **options) for engine in (by_statsmodels, fit_lagged))
        assert_tables_equal(ours.coefficients, theirs.coefficients)
        assert_tables_equal(ours.statistics, theirs.statistics)
    assert ours.statistics["durbin_watson"].isna().all()  # nothing says what comes before what


@quick
@given(st.integers(0, 99), st.sampled_from(["crv3", "hac"]))
def test_rows_in_any_order_and_groups_in_pieces(seed, cov):
    frame = with_parts_of_speech(autoregressive(0.4, lengths=[[12], [9, 7], [11]], layers=(0, 1)))
    shuffled = frame.sample(frac=1, random_state=seed)
    theirs = by_statsmodels(frame, "log_norm ~ lag1 * pos", cov=cov)
    ours = fit_lagged(shuffled, "log_norm ~ lag1 * pos", cov=cov)
    assert_tables_equal(ours.coefficients, theirs.coefficients)
    assert_tables_equal(ours.statistics, theirs.statistics)


def test_windows_with_gaps_are_not_bridged(lagged):
    frame = lagged[lagged["position"] != 7]
    theirs, ours = (engine(frame).statistics for engine in (by_statsmodels, fit_lagged))
    assert_tables_equal(ours, theirs)
    with pytest.raises(InputError, match="without gaps"):
        fit_lagged(frame, cov="hac")


def test_more_columns_than_sums_over_runs_are_good_for(lagged):
    # Beyond a hundred products, and without lagged ones, blocks come from matrix products.
    rng = np.random.default_rng(0)
    frame = lagged.assign(**{f"x{i}": rng.normal(size=len(lagged)) for i in range(14)})
    formula = "log_norm ~ lag1 + " + " + ".join(f"x{i}" for i in range(14))
    theirs = by_statsmodels(frame, formula).coefficients
    ours = LagSums.from_frame(frame, formula, max_lag=None).coefficients()
    assert_tables_equal(ours, theirs)


def test_many_rows_are_summed_in_chunks_that_see_the_rows_before():
    # Chunks of a few thousand rows: neighbours and documents lie across their edges.
    frame = with_parts_of_speech(autoregressive(0.5, lengths=[[5000, 3000], [9000], [200]]))
    for formula in ("log_norm ~ lag1 + lag2", "log_norm ~ lag1 * pos"):
        for cov, lags in (("crv3", None), ("hac", 5)):
            theirs, ours = (
                engine(frame, formula, cov=cov, hac_lags=lags) for engine in (by_statsmodels, fit_lagged)
            )
            assert_tables_equal(ours.coefficients, theirs.coefficients)
            assert_tables_equal(ours.statistics, theirs.statistics)


def test_cr0_and_jackknife_by_their_definitions(lagged):
    complete = lagged.query("model == 'a' and layer == 3").dropna(subset=["log_norm", "lag1", "lag2"])
    x, y = np.asarray(patsy.dmatrix("lag1 + lag2", complete)), complete["log_norm"].to_numpy()
    docs = complete["doc"].to_numpy()
    names = sorted(set(docs))
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    bread = np.linalg.inv(x.T @ x)
    scores = np.array([x[docs == g].T @ (y - x @ beta)[docs == g] for g in names])
    without = np.array([np.linalg.lstsq(x[docs != g], y[docs != g], rcond=None)[0] for g in names])
    around = without - without.mean(axis=0)
    moments = LagSums.from_frame(lagged)
    for cov, matrix in (
        ("cr0", bread @ scores.T @ scores @ bread),
        ("jackknife", (len(names) - 1) / len(names) * around.T @ around),
    ):
        table = moments.coefficients(cov=cov).query("model == 'a' and layer == 3")
        np.testing.assert_allclose(table["std_error"], np.sqrt(np.diag(matrix)), rtol=1e-9)


# ---------------------------------------------------------------- digits


def exact_crv3(frame) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates and CRV3 standard errors of log_norm ~ lag1 + lag2 with 50 digits."""
    complete = frame.dropna(subset=["log_norm", "lag1", "lag2"])
    with mpmath.workdps(50):
        parts = []
        for _, rows in complete.groupby("doc", observed=True):
            x = mpmath.matrix([[1.0, *row] for row in rows[["lag1", "lag2"]].to_numpy().tolist()])
            y = mpmath.matrix([[value] for value in rows["log_norm"].tolist()])
            parts.append((x.T * x, x.T * y))
        xx, xy = (functools.reduce(lambda a, b: a + b, sums) for sums in zip(*parts, strict=True))
        beta = mpmath.lu_solve(xx, xy)
        moved = [mpmath.lu_solve(xx - a, xy - b) - beta for a, b in parts]
        factor = mpmath.mpf(len(parts) - 1) / len(parts)
        errors = [mpmath.sqrt(factor * sum(d[j] ** 2 for d in moved)) for j in range(3)]
        return np.array([float(b) for b in beta]), np.array([float(e) for e in errors])


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([0.0, 1e2, -1e4, 1e4]), st.sampled_from([1e-3, 0.3, 30.0]), st.booleans())
def test_a_high_level_loses_nothing(level, spread, in_parts):
    frame = autoregressive(0.4, lengths=[[30]] * 12)
    columns = ["log_norm", "lag1", "lag2"]
    frame = frame.assign(**{name: level + spread * (frame[name] - 1.7) for name in columns})
    moments = streamed(by_document(frame)) if in_parts else LagSums.from_frame(frame)
    table = moments.coefficients()
    estimates, errors = exact_crv3(frame)
    np.testing.assert_allclose(table["estimate"], estimates, rtol=1e-11)
    np.testing.assert_allclose(table["std_error"], errors, rtol=1e-11)


@quick
@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(1e-2, 1e2))
def test_moving_and_stretching_columns_changes_what_it_must_and_nothing_else(up, along, stretch):
    frame = autoregressive(0.4, lengths=[[30], [25], [28], [21]])
    moved = frame.assign(log_norm=frame["log_norm"] + up, lag1=stretch * frame["lag1"] + along)
    before, after = (LagSums.from_frame(f).coefficients().set_index("term") for f in (frame, moved))
    # A number near `up` or `along` is rounded at 1e-12 before we see it.
    np.testing.assert_allclose(
        after.loc["lag1", ["statistic", "p_value"]].astype(float),
        before.loc["lag1", ["statistic", "p_value"]].astype(float),
        rtol=1e-7,
    )
    np.testing.assert_allclose(
        after.loc["lag1", "estimate"] * stretch, before.loc["lag1", "estimate"], rtol=1e-7
    )
    np.testing.assert_allclose(after.loc["lag2", "std_error"], before.loc["lag2", "std_error"], rtol=1e-7)
    np.testing.assert_allclose(after["r_squared"], before["r_squared"], rtol=1e-7)


@pytest.mark.parametrize("degree", [3, 5])
def test_a_polynomial_of_positions_keeps_its_digits_in_a_stream(degree):
    frame = autoregressive(0.4, lengths=[[200]] * 6)
    formula = "log_norm ~ lag1 + " + " + ".join(f"I(position**{k})" for k in range(1, degree + 1))
    parts = streamed(by_document(frame), formula).coefficients()
    # The same space, well conditioned: the lag's numbers do not depend on how the polynomial is written.
    scaled = " + ".join(f"I((position / 100 - 1)**{k})" for k in range(1, degree + 1))
    whole = by_statsmodels(frame, f"log_norm ~ lag1 + {scaled}").coefficients
    for column in ("estimate", "std_error", "p_value"):
        np.testing.assert_allclose(
            parts.query("term == 'lag1'")[column], whole.query("term == 'lag1'")[column], rtol=1e-9
        )


# ---------------------------------------------------------------- parts and wholes


@quick
@given(st.integers(0, 2**31), st.integers(1, 4), st.booleans())
def test_any_partition_and_any_order_of_documents_give_the_same_tables(seed, pieces, by_category):
    rng = np.random.default_rng(seed)
    lengths = [[int(n) for n in rng.integers(5, 25, rng.integers(1, 3))] for _ in range(7)]
    frame = with_parts_of_speech(autoregressive(0.4, lengths=lengths, layers=(0, 2), seed=seed % 1000))
    formula = "log_norm ~ lag1 * pos" if by_category else "log_norm ~ lag1 + lag2"
    documents = by_document(frame)
    order = rng.permutation(len(documents))
    groups = [part for part in np.array_split(order, pieces) if len(part)]
    parts = [pd.concat([documents[i] for i in part]) for part in groups]
    whole = LagSums.from_frame(frame, formula, max_lag=2)
    updated = streamed(parts, formula, max_lag=2)
    merged = functools.reduce(LagSums.merge, [streamed([part], formula, max_lag=2) for part in parts])
    for cov in ("crv3", "hc1", "nonrobust"):
        assert_same(updated, whole, cov=cov)
        assert_same(merged, whole, cov=cov)
    assert_same(merged, whole, cov="hac", hac_lags=2)


@quick
@given(st.integers(0, 2**31), st.floats(-1e4, 1e4))
def test_merging_is_associative_and_commutative_whatever_the_coordinates(seed, level):
    # Each part chose its own: their levels and spreads differ by far.
    rng = np.random.default_rng(seed)
    parts = []
    for number, length in enumerate((60, 90, 75)):
        frame = autoregressive(0.4, lengths=[[length], [length // 2]], seed=seed % 1000 + number)
        jump = rng.normal(size=3) + level
        parts.append(
            frame.assign(
                doc=frame["doc"].astype(str) + f"-{number}",
                **{
                    c: frame[c] * 3.0**number + j
                    for c, j in zip(("log_norm", "lag1", "lag2"), jump, strict=True)
                },
            )
        )
    a, b, c = (streamed([part]) for part in parts)
    whole = LagSums.from_frame(pd.concat(parts))
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a, b), b.merge(c, a)):
        # The intercept is a difference of numbers of the size of `level`: 1e-8 of it, 1e-10 of all else.
        ours, theirs = merged.coefficients(), whole.coefficients()
        slopes = ours["term"] != "Intercept"
        np.testing.assert_allclose(
            ours["estimate"][slopes], theirs["estimate"][slopes], rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(ours["std_error"][slopes], theirs["std_error"][slopes], rtol=1e-10)
        np.testing.assert_allclose(ours["std_error"], theirs["std_error"], rtol=1e-8)
        assert_tables_equal(merged.statistics(), whole.statistics(), 1e-8)


def test_a_merge_leaves_its_parts_alone(lagged):
    first, second = (streamed([part]) for part in by_document(lagged)[:2])
    before = first.coefficients(), second.statistics()
    first.merge(second)
    pd.testing.assert_frame_equal(first.coefficients(), before[0])
    pd.testing.assert_frame_equal(second.statistics(), before[1])


def test_groups_that_only_one_part_has(lagged):
    parts = [rows for _, rows in lagged.groupby(["model", "layer"], observed=True)]
    merged = LagSums().merge(*(streamed([part]) for part in parts))
    assert len(merged) == 4
    assert_same(merged, LagSums.from_frame(lagged))


def test_a_category_that_turns_up_late_needs_no_second_look(lagged):
    documents = by_document(lagged)
    rare = [documents[0].assign(pos="NOUN"), *documents[1:-1], documents[-1].assign(pos="X")]
    late = streamed([part.astype({"pos": "category"}) for part in rare], "log_norm ~ lag1 * C(pos)")
    whole = by_statsmodels(pd.concat(rare), "log_norm ~ lag1 * C(pos)", cov="crv1")
    assert_tables_equal(late.coefficients(cov="crv1"), whole.coefficients)


def test_clusters_that_cross_documents_and_updates(lagged):
    frame = lagged.assign(
        source=np.where(lagged["doc"].isin(["d0", "d3"]), "news", lagged["doc"].astype(str))
    )
    theirs = by_statsmodels(frame, cluster="source").coefficients
    ours = streamed(by_document(frame), cluster="source").coefficients()
    assert_tables_equal(ours, theirs)
    assert ours["cov_type"].eq("crv3 (source)").all()
    assert ours["n_docs"].eq(6).all()


def test_what_is_kept_does_not_grow_with_the_rows():
    sizes = []
    for length in (50, 500):
        blocks = next(
            iter(LagSums.from_frame(autoregressive(0.4, lengths=[[length]] * 4))._groups.values())
        ).blocks
        sizes.append((blocks.gram.nbytes, blocks.lagged.nbytes))
    assert sizes[0] == sizes[1] == (4 * 10 * 8, 2 * 10 * 10 * 8)


def test_arrays_and_single_values_will_do(lagged):
    one = lagged.query("model == 'a' and layer == 3")
    columns = ("doc", "window", "position", "log_norm", "lag1", "lag2")
    arrays = {name: one[name].to_numpy() for name in columns}
    moments = LagSums()
    moments.update({"model": "a", "hook": "attn_out", "layer": 3, "depth": 3.5 / 4, **arrays})
    assert_same(moments, LagSums.from_frame(one))


@pytest.mark.parametrize("formula", ["log_norm ~ lag1 + lag2", "log_norm ~ lag1 * C(pos) + repeated"])
@pytest.mark.parametrize("numbered", [False, True])
def test_what_was_saved_comes_back_and_goes_on(lagged, formula, numbered, tmp_path):
    frame = lagged.assign(doc=lagged["doc"].astype(str).str[1:].astype(int)) if numbered else lagged
    parts = by_document(frame)
    path = streamed(parts[:3], formula, max_lag=2).save(tmp_path / "moments.bin")
    assert path == tmp_path / "moments.bin"
    loaded = LagSums.load(path)
    assert_same(loaded, streamed(parts[:3], formula, max_lag=2), rtol=0)
    for part in parts[3:]:
        loaded.update(part)
    assert_same(loaded, streamed(parts, formula, max_lag=2), rtol=0)
    with pytest.raises(InputError, match=r"document .* came before"):
        loaded.update(parts[0])


def test_a_group_without_complete_rows_waits_for_some(lagged):
    short = lagged[lagged["position"] < 2]
    rest = by_document(lagged[lagged["doc"] != "d0"])
    moments = streamed([short[short["doc"] == "d0"], *rest])
    assert moments.coefficients()["n_docs"].eq(5).all()
    assert moments.coefficients()["n_dropped"].eq(4 + 3 * 7).all()
    with pytest.raises(
        InputError, match="needs complete rows; in model b, hook attn_out, layer 0 none of 4 is"
    ):
        streamed([short[short["doc"] == "d0"]]).coefficients()


def test_without_lagged_products_the_tests_that_need_them_are_missing(lagged):
    moments = LagSums.from_frame(lagged, max_lag=None)
    whole = LagSums.from_frame(lagged)
    assert_tables_equal(moments.coefficients(), whole.coefficients(), 1e-12)
    missing = moments.statistics().loc[:, "breusch_godfrey":]
    assert missing.isna().all(axis=None)
    for cov in ("hc0", "hc1"):
        with pytest.raises(InputError, match=rf"cov='{cov}' needs .* max_lag=, 0 or more"):
            moments.coefficients(cov=cov)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("cov", ["hc2", "hc3"])
def test_leverage_needs_the_rows(lagged, cov):
    message = rf"cov='{cov}' needs a second look at the rows; use fit_lagged on one frame, or cov='crv3'"
    with pytest.raises(InputError, match=message):
        LagSums.from_frame(lagged).coefficients(cov=cov)
    assert_tables_equal(
        fit_lagged(lagged, cov=cov).coefficients, by_statsmodels(lagged, cov=cov).coefficients
    )


@pytest.mark.parametrize(
    ("formula", "culprit"),
    [
        ("log_norm ~ bs(position, df=4)", r"bs\(position, df=4\)"),
        ("log_norm ~ center(lag1)", r"center\(lag1\)"),
        ("log_norm ~ I(lag1 - lag1.mean())", r"I\(lag1 - lag1.mean\(\)\)"),
        ("log_norm ~ np.cumsum(lag1)", r"np.cumsum\(lag1\)"),
        ("log_norm ~ C(position > np.median(position))", r"C\(position > np.median\(position\)\)"),
        ("I(log_norm - max(log_norm)) ~ lag1", r"I\(log_norm - max\(log_norm\)\)"),
    ],
)
def test_functions_of_all_rows_are_refused_in_a_stream_and_not_in_a_frame(lagged, formula, culprit):
    with pytest.raises(InputError, match=rf"{culprit} needs all rows at once.*LagSums.from_frame"):
        LagSums(formula).update(lagged)
    theirs = by_statsmodels(lagged, formula).coefficients
    assert_tables_equal(LagSums.from_frame(lagged, formula).coefficients(), theirs)


@pytest.mark.parametrize("spoil", [np.inf, -np.inf])
def test_a_refused_update_adds_nothing(lagged, spoil):
    documents = by_document(lagged)
    moments, good = streamed(documents[:3]), streamed(documents[:3])
    bad = documents[3].copy()
    last = (bad["layer"] == 3) & (bad["model"] == "a") & (bad["position"] == 20)
    bad.loc[last, "lag2"] = spoil
    with pytest.raises(NumericalError, match="'lag2' has infinite values in model a, hook attn_out, layer 3"):
        moments.update(bad)
    assert_same(moments, good, rtol=0)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda f: streamed([f, f]), InputError, "whole and once; document d0 of model b, .* layer 0 came before"),
        (lambda f: streamed([f]).merge(streamed([f])), InputError, "whole and once"),
        (lambda f: streamed([f]).merge(LagSums("log_norm ~ lag1")), InputError, "merge needs the same formula"),
        (lambda f: streamed([f]).merge(LagSums(max_lag=3)), InputError, "merge needs the same max_lag"),
        (lambda f: LagSums(max_lag=-1), InputError, "max_lag must be a whole number"),
        (lambda f: LagSums("lag1 +"), InputError, "cannot be read"),
        (lambda f: LagSums().coefficients(), InputError, "has no rows yet; call update"),
        (lambda f: streamed([f.drop(columns="window")]), SchemaError, "the column 'window'"),
        (lambda f: streamed([f.drop(columns="lag2")]), SchemaError, "the column 'lag2'"),
        (lambda f: streamed([f], cluster="dok"), SchemaError, "'dok'.*Did you mean 'doc'"),
        (lambda f: streamed([pd.concat([f, f])]), InputError, "every token once in a group"),
        (lambda f: streamed([f.assign(lag2=2 * f["lag1"])]).coefficients(), NumericalError, "collinear"),
        (lambda f: streamed([f.assign(lag2=0.1)]).coefficients(), InputError, "'lag2' is constant"),
        (lambda f: streamed([f.assign(log_norm=2.0)]).statistics(), InputError, "'log_norm' is constant"),
        (lambda f: streamed([f[f["doc"] == "d0"]]).coefficients(cov="crv3"), InputError, "needs two clusters or more"),
        (lambda f: streamed([f.assign(lag2=f["doc"] == "d1")], "log_norm ~ lag1 + I(1.0 * lag2)").coefficients(),
         NumericalError, "collinear without doc d"),
        (lambda f: streamed([f]).coefficients(cov="hac", hac_lags=4), InputError, "kept to lag 1. .*max_lag=4"),
        (lambda f: streamed([f[f["doc"] == "d1"].assign(window=f["position"])]).coefficients(cov="hac"), InputError,
         "two complete rows"),
        (lambda f: streamed([f]).coefficients(cov="crv4"), (InputError, TypeError), "cov"),
        (lambda f: streamed([f]).coefficients(conf_level=95.0), InputError, "between 0 and 1"),
        (lambda f: streamed([f]).coefficients(cov="hc1", adjust="max-t"), InputError, "resamples clusters"),
        (lambda f: streamed([f[f["doc"] == "d0"]]).coefficients(adjust="max-t"), InputError, "resamples clusters"),
        (lambda f: fit_lagged(f, adjust="max-t", cov="hc3"), InputError, "resamples clusters"),
        (lambda f: streamed([f.astype({"model": str}), f.assign(model="c[folded]")[f["model"] == "a"]]), InputError,
         "'raw' .* and 'folded'"),
    ],
)  # fmt: skip
def test_what_would_give_wrong_numbers_is_refused(lagged, act, error, message):
    with pytest.raises(error, match=message):
        act(lagged)


def test_few_first_rows_that_say_nothing_of_the_rest_are_refused_or_right():
    # The first document knows no curve and too few rows to orthogonalise; the rest has a condition of 1e5.
    frame = autoregressive(0.4, lengths=[[14]] + [[300]] * 4)
    formula = "log_norm ~ lag1 + " + " + ".join(f"I(position**{k})" for k in range(1, 8))
    moments = streamed(by_document(frame), formula)
    scaled = " + ".join(f"I((position / 150 - 1)**{k})" for k in range(1, 8))
    right = by_statsmodels(frame, f"log_norm ~ lag1 + {scaled}").coefficients
    np.testing.assert_allclose(
        moments.coefficients().query("term == 'lag1'")["std_error"],
        right.query("term == 'lag1'")["std_error"],
        rtol=1e-9,
    )
    # With short documents only, no update ever has the rows: this is said, not answered.
    short = autoregressive(0.4, lengths=[[24]] * 40)
    with pytest.raises(
        NumericalError, match=r"would lose too many digits .* an update of more documents|collinear"
    ):
        streamed(by_document(short), formula).coefficients()


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_another_file_is_refused(content, tmp_path):
    path = tmp_path / "moments.npz"
    np.savez(path, x=np.ones(3)) if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"'moments\.npz' is not a file that LagSums.save wrote"):
        LagSums.load(path)


def test_what_was_learned_from_one_frame_can_be_neither_saved_nor_added_to(lagged, tmp_path):
    moments = LagSums.from_frame(lagged, "log_norm ~ lag1 * I(lag2 > lag2.mean())")
    with pytest.raises(InputError, match="write the tables"):
        moments.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="learned from one frame"):
        moments.merge(moments)


# ---------------------------------------------------------------- max-t


def design(clusters, seed, terms=3):
    """Return scores and products of clusters in an orthonormal basis, and a map to the terms."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(clusters, terms))
    rows = rng.normal(size=(clusters, 8, terms))
    products = np.swapaxes(rows, 1, 2) @ rows
    root = np.linalg.inv(np.linalg.cholesky(products.sum(axis=0)))
    return (score - score.mean(axis=0)) @ root.T, root @ products @ root.T, rng.normal(size=(terms, terms))


def naive_max_t(groups, weights, *, jackknife, factor) -> list[float]:
    """Return step-down p values, draw by draw, cluster by cluster, coefficient by coefficient."""
    observed = [abs(t) for _, _, _, statistic in groups for t in statistic]
    drawn = []
    for w in weights:
        ts = []
        for score, products, to_terms, _ in groups:
            one = np.eye(len(to_terms))
            left = [np.linalg.inv(one - a) if jackknife else one for a in products]
            # The score at the estimate without the cluster itself: s + A inverse(1 - A) s.
            start = [s + a @ m @ s if jackknife else s for s, a, m in zip(score, products, left, strict=True)]
            moved = sum(wg * s for wg, s in zip(w, start, strict=True))
            variance = np.zeros((len(to_terms),) * 2)
            for wg, s, a, m in zip(w, start, products, left, strict=True):
                change = m @ (wg * s - a @ moved)
                variance += factor * np.outer(change, change)
            errors = np.sqrt(np.diag(to_terms @ variance @ to_terms.T))
            ts += (np.abs(to_terms @ moved) / errors)[1:].tolist()
        drawn.append(ts)
    order = sorted(range(len(observed)), key=lambda i: -observed[i])
    p, running = [0.0] * len(observed), 0.0
    for rank, i in enumerate(order):
        rest = order[rank:]
        larger = sum(max(ts[j] for j in rest) >= observed[i] for ts in drawn)
        running = max(running, (1 + larger) / (1 + len(drawn)))
        p[i] = running
    return p


@pytest.mark.parametrize("clusters", [5, 12, 13, 40])
@pytest.mark.parametrize("jackknife", [True, False])
def test_max_t_equals_the_loop_with_the_same_weights(clusters, jackknife):
    factor = (clusters - 1) / clusters
    groups = []
    for seed in range(3):
        groups.append((*design(clusters, seed), np.random.default_rng(seed).normal(size=2) * 2))
    shares = []
    for score, products, to_terms, statistic in groups:
        own = Clusters(score, products, pd.RangeIndex(clusters))
        without = left_out(own, cov="crv3", where="", cluster="doc") if jackknife else None
        shares.append(influence(statistic, to_terms[1:], own, without, factor=factor))
    weights = max_t_module.wild_weights(np.random.default_rng(7), 99, clusters)
    values = np.unique(np.abs(weights))
    np.testing.assert_allclose(values, [1.0] if clusters > 12 else np.sqrt([0.5, 1, 1.5]))
    found = max_t(shares, seed=7, draws=99)
    np.testing.assert_array_equal(found, naive_max_t(groups, weights, jackknife=jackknife, factor=factor))


def test_the_bootstraps_own_standard_error_is_crv3s():
    # Weighted by one everywhere but for a sign, the variance of one cluster's draw is the jackknife's sum.
    score, products, to_terms = design(30, 1)
    moved = np.linalg.solve(np.eye(3) - products, score[..., None])[..., 0]
    clusters = Clusters(score, products, pd.RangeIndex(30))
    without = left_out(clusters, cov="crv3", where="", cluster="doc")
    share = influence(np.zeros(2), to_terms[1:], clusters, without, factor=29 / 30)
    weights = max_t_module.wild_weights(np.random.default_rng(0), 20_000, 30)
    spread = (weights @ share.moved @ to_terms[1:].T).std(axis=0)
    expected = np.sqrt(((moved @ to_terms[1:].T) ** 2).sum(axis=0))
    np.testing.assert_allclose(spread, expected, rtol=0.02)  # four standard errors of 20,000 draws


def null_norms(rng, *, documents, layers=12, tokens=30, alike=0.8) -> pd.DataFrame:
    """Return a lagged frame without any dependence on the past, of documents of different spread, in layers alike."""
    lengths = rng.integers(tokens // 2, 2 * tokens, documents)
    spread = np.repeat(np.exp(0.5 * rng.normal(size=documents)), lengths)
    shared, own = rng.normal(size=len(spread)), rng.normal(size=(layers, len(spread)))
    values = spread * (np.sqrt(alike) * shared + np.sqrt(1 - alike) * own)
    rows = pd.DataFrame(
        {
            "doc": np.repeat(np.arange(documents), lengths),
            "window": 0,
            "position": np.concatenate([np.arange(n) for n in lengths]),
        }
    )
    frame = pd.concat([rows] * layers, ignore_index=True)
    return add_lags(
        frame.assign(
            model="m",
            hook="attn_out",
            layer=np.repeat(np.arange(layers), len(rows)),
            norm=np.exp(values.ravel()),
        )
    )


def test_max_t_by_family(lagged):
    ours = fit_lagged(lagged, adjust="max-t", seed=3).coefficients
    again = fit_lagged(lagged, adjust="max-t", seed=3).coefficients
    pd.testing.assert_frame_equal(again, ours)
    assert not np.array_equal(
        fit_lagged(lagged, adjust="max-t", seed=4).coefficients["p_adjusted"].dropna(),
        ours["p_adjusted"].dropna(),
    )
    assert ours["p_adjusted"].isna().equals(ours["term"] == "Intercept")
    # A family is a model's: the other model changes nothing, and the largest statistic has the smallest p.
    alone = fit_lagged(lagged[lagged["model"] == "a"], adjust="max-t", seed=3).coefficients
    np.testing.assert_array_equal(ours.query("model == 'a'")["p_adjusted"], alone["p_adjusted"])
    for _, family in ours.dropna().groupby("model"):
        by_size = family.iloc[family["statistic"].abs().argsort()[::-1]]
        assert by_size["p_adjusted"].is_monotonic_increasing


def test_max_t_does_not_depend_on_the_order_of_documents(lagged):
    parts = by_document(lagged)
    first, second = (streamed(order).coefficients(adjust="max-t") for order in (parts, parts[::-1]))
    np.testing.assert_allclose(
        first.sort_values(KEYS)["p_adjusted"], second.sort_values(KEYS)["p_adjusted"], atol=2e-4
    )


def test_max_t_is_gentler_than_bonferroni_when_layers_are_alike():
    frame = null_norms(np.random.default_rng(5), documents=40, alike=0.98)
    max_t_p, bonferroni = (
        fit_lagged(frame, adjust=adjust).coefficients["p_adjusted"].min()
        for adjust in ("max-t", "bonferroni")
    )
    assert max_t_p < bonferroni


def family_wise_errors(documents, families, *, seed) -> dict[str, float]:
    """Return how often anything is called significant at 5% where nothing is."""
    rng = np.random.default_rng(seed)
    errors = dict.fromkeys(("raw", "bonferroni", "max-t"), 0)
    for family in range(families):
        moments = LagSums.from_frame(null_norms(rng, documents=documents), max_lag=None)
        table = moments.coefficients(adjust="max-t", seed=family)
        tested = table[table["term"] != "Intercept"]
        errors["raw"] += bool((tested["p_value"] < 0.05).any())
        errors["bonferroni"] += bool((tested["p_value"] * len(tested) < 0.05).any())
        errors["max-t"] += bool((tested["p_adjusted"] <= 0.05).any())
    return {name: count / families for name, count in errors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("documents", [10, 30, 100])
def test_family_wise_error_over_twelve_layers_that_are_alike(documents):
    errors = family_wise_errors(documents, 400, seed=documents)
    print(documents, "documents:", errors)
    assert 0.014 < errors["max-t"] < 0.09
    assert errors["raw"] > 0.3


@pytest.mark.slow
def test_family_wise_error_is_near_the_promise_in_a_short_run():
    # 6 or more of 25 have a chance of 1e-3 at .05; raw tests err in most.
    errors = family_wise_errors(30, 25, seed=1)
    assert errors["max-t"] < 6 / 25 < errors["raw"]


# ---------------------------------------------------------------- statsmodels


def test_what_needs_the_rows_reads_them_again(lagged):
    fits = fit_lagged(lagged)
    assert "OLS Regression Results" in fits.summary(model="a", layer=3)
    residual = fits.augment(lagged)["residual"]
    assert residual.notna().sum() == fits.statistics["n"].sum()
    assert repr(fits).startswith("LaggedFits('log_norm ~ lag1 + lag2': 4 fits of b, a; crv3")


@pytest.mark.parametrize("adjust", ["bh", "max-t"])
def test_a_design_of_too_many_products_is_left_to_statsmodels(lagged, adjust, monkeypatch):
    right = fit_lagged(lagged, adjust=adjust)
    monkeypatch.setattr("mechreg.regression.fits.MOST_PRODUCTS", 100)  # two lags of 15 products need 450
    found = fit_lagged(lagged, adjust=adjust)
    assert_tables_equal(found.coefficients, right.coefficients)
    assert_tables_equal(found.statistics, right.statistics)


@pytest.mark.parametrize("cov", ["crv3", "jackknife"])
def test_the_clusters_without_squares_are_statsmodels_own(lagged, cov):
    group = lagged.query("model == 'a' and layer == 3").dropna(subset=["log_norm", "lag1", "lag2"])
    name = {"crv3": "cluster-crv3", "jackknife": "cluster-jk"}[cov]
    own = smf.ols("log_norm ~ lag1 + lag2", group).fit(
        cov_type=name, cov_kwds={"groups": pd.factorize(group["doc"])[0]}, use_t=True
    )
    fits = fit_lagged(lagged, cov=cov)
    for found in (fits, by_statsmodels(lagged, cov=cov)):
        table = found.coefficients.query("model == 'a' and layer == 3")
        np.testing.assert_allclose(table["std_error"], own.bse, rtol=1e-11)
    # Degrees of freedom are ours.
    others = ("Date", "Time", "Prob (F", "Intercept ", "lag1 ", "lag2 ")
    same = [line for line in str(own.summary()).splitlines() if not any(map(line.__contains__, others))]
    summary = fits.summary(model="a", layer=3)
    assert [line for line in same if line not in summary] == []


def test_moments_answer_where_the_level_defeats_statsmodels(lagged):
    high = lagged.assign(**{c: lagged[c] + 1e6 for c in ("log_norm", "lag1", "lag2")})
    with pytest.raises(ValueError, match="rank-deficient"):
        by_statsmodels(high)
    slopes, right = (
        fit_lagged(frame).coefficients.query("term != 'Intercept'")["std_error"] for frame in (high, lagged)
    )
    np.testing.assert_allclose(slopes, right, rtol=1e-6)  # the data hold ten digits of their spread


def test_options_combine(lagged):
    for adjust in ("holm", "bonferroni", "none"):
        theirs, ours = (
            engine(lagged, adjust=adjust, conf_level=0.9).coefficients
            for engine in (by_statsmodels, fit_lagged)
        )
        assert_tables_equal(ours, theirs)


# ---------------------------------------------------------------- document sums


def test_document_sums_are_the_products_of_regressors_and_residuals(lagged):
    formula = "log_norm ~ lag1 * pos"
    frame = lagged[lagged["model"] == "a"]
    for document in LagSums.from_frame(frame, formula, max_lag=None).document_sums():
        rows = frame[frame["layer"] == document.keys["layer"]].dropna(subset=["log_norm", "lag1"])
        x = np.asarray(patsy.dmatrix(formula.split("~")[1], rows))
        q = x @ document.to_terms
        e = rows["log_norm"].to_numpy() - x @ np.linalg.lstsq(x, rows["log_norm"], rcond=None)[0]
        z = np.column_stack([q, e, np.ones(len(rows))])
        for label, sums in zip(document.labels, document.sums, strict=True):
            here = (rows["doc"] == label).to_numpy()
            np.testing.assert_allclose(sums, z[here].T @ z[here], rtol=1e-8, atol=1e-10)
        k = len(document.names)
        np.testing.assert_allclose(document.sums.sum(axis=0)[:k, : k + 1], np.eye(k, k + 1), atol=1e-10)
        assert document.n == len(rows)
        np.testing.assert_allclose(document.to_terms @ document.c, document.estimate, rtol=1e-10)


def test_document_sums_need_documents(lagged):
    with pytest.raises(InputError, match="cluster='doc'"):
        LagSums.from_frame(lagged, cluster=None).document_sums()
