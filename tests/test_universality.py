"""Profiles of several models: what is known of simulated ones, and what must not depend on order, names or copies.

Tolerances. A refit on the shared documents, its CRV3 errors and the pointwise bands are the same sums as
`fit_lagged`'s on those documents: 1e-9 relative. The meta-analysis has the formulas of statsmodels' with independent
errors: 1e-8, its own iteration's tolerance 1e-10. Draws are
compared exactly, or, where they cannot be the same draws, within four standard errors of simulation.
Rates are of simulations: their limits are stated with their number of samples.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from mechreg.regression import LagSums, fit_lagged
from mechreg.schema import InputError, NumericalError, SchemaError
from mechreg.universality import ProfileComparison, compare_profiles
from mechreg.universality.agreement import agreement
from mechreg.universality.bands import Estimates, bands, mean_square
from mechreg.universality.pairs import MIN_DOCS
from mechreg.universality.pooling import pool
from mechreg.universality.profiles import depth_bins, joint_profiles
from mechreg.universality.shapes import shape_test

FORMULA = "log_norm ~ lag1"


def make_frame(betas, *, docs=30, tokens=40, noise=1.0, spread=0.1, seed=0, hook="attn_out") -> pd.DataFrame:
    """Return a lagged frame whose lag1 has known coefficients, a list a model, and documents that differ."""
    rng = np.random.default_rng(seed)
    doc = np.repeat(np.arange(docs), tokens)
    x, level, slope = rng.normal(size=(docs * tokens)), rng.normal(size=docs), rng.normal(size=docs)
    frames = []
    for model, profile in betas.items():
        for layer, beta in enumerate(profile):
            outcome = (beta + spread * slope[doc]) * x + 0.1 * level[doc] + noise * rng.normal(size=len(doc))
            depth = (layer + 0.5) / len(profile)
            frame = {"model": model, "hook": hook, "layer": layer, "depth": depth, "doc": doc, "window": 0}
            position = np.tile(np.arange(tokens), docs)
            frames.append(pd.DataFrame(frame | {"position": position, "log_norm": outcome, "lag1": x}))
    return pd.concat(frames, ignore_index=True)


def fitted(frame: pd.DataFrame):
    return fit_lagged(frame, FORMULA)


def compare(frame: pd.DataFrame, **options) -> ProfileComparison:
    return compare_profiles(LagSums.from_frame(frame, FORMULA), **({"draws": 199} | options))


def tables_of(comparison: ProfileComparison) -> dict[str, pd.DataFrame]:
    return {name: value for name, value in vars(comparison).items() if isinstance(value, pd.DataFrame)}


def smooth(kind: str, places: int, count: int, rng) -> np.ndarray:
    """Return random profiles: autoregressions, random walks, and Gaussian processes by their length of depth."""
    if kind == "walk":
        return rng.normal(size=(count, places)).cumsum(axis=1)
    if kind.startswith("ar"):
        phi = float(kind[2:])
        profiles = rng.normal(size=(count, places))
        for place in range(1, places):
            profiles[:, place] = phi * profiles[:, place - 1] + np.sqrt(1 - phi**2) * profiles[:, place]
        return profiles
    depth = np.arange(places) / places
    if kind == "line":
        return rng.normal(size=(count, 1)) * depth + 0.02 * rng.normal(size=(count, places))
    kernel = np.exp(-0.5 * ((depth[:, None] - depth) / float(kind[2:])) ** 2) + 1e-8 * np.eye(places)
    return rng.normal(size=(count, places)) @ np.linalg.cholesky(kernel).T


def estimates_of(truth: np.ndarray, noise: np.ndarray, rng, *, docs=40, draws=399) -> list[Estimates]:
    """Return estimates of profiles (rows) as means of documents whose errors have the covariance ``noise``."""
    errors = rng.multivariate_normal(np.zeros(truth.size), noise * docs, size=docs, method="cholesky")
    about = errors - errors.mean(axis=0)
    weights = rng.multinomial(docs, np.full(docs, 1 / docs), draws) / docs
    everything = Estimates(truth.ravel() + errors.mean(axis=0), -about / (docs - 1), weights @ about)
    ends = np.split(np.arange(truth.size), len(truth))
    return [
        Estimates(everything.estimate[at], everything.jackknife[:, at], everything.draws[:, at])
        for at in ends
    ]


def noise_of(size: float, models: int, places: int, *, shared=0.6) -> np.ndarray:
    over_depth = 0.5 ** np.abs(np.subtract.outer(np.arange(places), np.arange(places)))
    return np.kron(shared + (1 - shared) * np.eye(models), size**2 * over_depth) + 1e-12 * np.eye(
        models * places
    )


# Profiles


def test_profiles_are_those_of_fit_lagged():
    frame = make_frame({"a": [0.1, 0.3], "b": [0.2, 0.5, 0.4]})
    expected = fitted(frame).coefficients.query("term == 'lag1'").reset_index(drop=True)
    found = compare(frame).profiles
    assert found[["model", "layer", "depth", "n"]].equals(expected[["model", "layer", "depth", "n"]])
    for column in ("estimate", "std_error"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-9)
    half = stats.t.ppf(0.975, expected["n_docs"] - 1) * expected["std_error"]
    np.testing.assert_allclose(found["conf_high"], expected["estimate"] + half, rtol=1e-9)
    np.testing.assert_allclose(found["conf_low"], expected["estimate"] - half, rtol=1e-9)


@pytest.mark.parametrize("cov", ["auto", "nonrobust", "hc3"])
def test_profiles_come_from_fits_of_any_covariance(cov):
    frame = make_frame({"a": [0.1, 0.3], "b": [0.2, 0.5]})
    by_sums, by_fits = compare(frame), compare_profiles(fit_lagged(frame, FORMULA, cov=cov), draws=199)
    pd.testing.assert_frame_equal(by_fits.profiles, by_sums.profiles)
    assert by_fits.verdict == by_sums.verdict


def test_models_are_refitted_on_the_documents_they_share():
    frame = make_frame({"a": [0.1, 0.3], "b": [0.2, 0.5]}, docs=20)
    keep = ((frame["model"] == "a") & (frame["doc"] != 3)) | ((frame["model"] == "b") & (frame["doc"] > 1))
    shared = frame[~frame["doc"].isin([0, 1, 3])]
    expected = fitted(shared).coefficients.query("term == 'lag1'")
    found = compare(frame[keep])
    for column in ("estimate", "std_error"):
        np.testing.assert_allclose(found.profiles[column], expected[column], rtol=1e-9)
    assert set(found.profiles["n_docs"]) == {17}
    assert found.profiles["n"].tolist() == [17 * 40] * 4
    assert "2 documents of a, 1 document of b" in found.verdict[0]
    # Every number, draws included, is that of the shared documents alone.
    for name, table in tables_of(compare(shared)).items():
        pd.testing.assert_frame_equal(tables_of(found)[name], table, rtol=1e-7, atol=1e-9)


def test_a_categorical_formula_is_compared_by_its_terms():
    frame = make_frame({"a": [0.1, 0.3], "b": [0.2, 0.5]}).assign(
        kind=lambda f: np.where(f.index % 3, "x", "y")
    )
    fits = fit_lagged(frame, "log_norm ~ lag1 * kind")
    found = compare_profiles(fits, term="lag1:kind[T.y]", draws=199).profiles
    expected = fits.coefficients.query("term == 'lag1:kind[T.y]'")
    np.testing.assert_allclose(found["std_error"], expected["std_error"], rtol=1e-8)


def test_the_bootstrap_refits_resampled_documents():
    frame = make_frame({"a": [0.1, 0.3], "b": [0.2, 0.5]}, docs=8)
    moments = LagSums.from_frame(frame, FORMULA)
    found = joint_profiles(moments, term="lag1", hook=None, draws=3, seed=5)
    drawn = np.random.default_rng(5).integers(0, 8, (3, 8))
    for draw, documents in enumerate(drawn):
        again = pd.concat([frame[frame["doc"] == doc].assign(doc=at) for at, doc in enumerate(documents)])
        expected = fitted(again).coefficients.query("term == 'lag1'")["estimate"]
        np.testing.assert_allclose(
            found.estimates.estimate + found.estimates.draws[draw], expected, rtol=1e-9
        )


def test_the_jackknife_refits_without_each_document():
    frame = make_frame({"a": [0.1, 0.3], "b": [0.2, 0.5]}, docs=8)
    found = joint_profiles(LagSums.from_frame(frame, FORMULA), term="lag1", hook=None, draws=1, seed=0)
    for doc in range(8):
        expected = fitted(frame[frame["doc"] != doc]).coefficients.query("term == 'lag1'")["estimate"]
        np.testing.assert_allclose(
            found.estimates.estimate + found.estimates.jackknife[doc], expected, rtol=1e-9
        )


@pytest.mark.parametrize(("n_layers", "bins"), itertools.product([1, 4, 6, 7, 12, 48], [1, 4, 5]))
def test_slices_of_depth_average_every_layer_by_its_overlap(n_layers, bins):
    weights = depth_bins(n_layers, bins)
    # A layer as a thousand points of its slice of depth; edges fall between points.
    points = (np.arange(n_layers * bins * 100) + 0.5) / (n_layers * bins * 100)
    layer, place = (points * n_layers).astype(int), (points * bins).astype(int)
    counts = np.zeros((bins, n_layers))
    np.add.at(counts, (place, layer), 1)
    np.testing.assert_allclose(weights, counts / counts.sum(axis=1, keepdims=True), atol=1e-12)
    profile = np.random.default_rng(0).normal(size=n_layers)
    assert (weights @ profile).mean() == pytest.approx(profile.mean())


def test_binned_profiles_are_averages_of_layers():
    found = compare(make_frame({"a": [0.1, 0.3], "b": [0.2, 0.5, 0.4, 0.6]}))
    layers = found.profiles.query("model == 'b'")["estimate"].to_numpy()
    binned = found.binned.query("model == 'b'")
    np.testing.assert_allclose(binned["estimate"], layers.reshape(2, 2).mean(axis=1))
    assert binned["depth"].tolist() == [0.25, 0.75]
    coarse = found.binned.query("model == 'a'")["estimate"].to_numpy() - binned["estimate"].to_numpy()
    np.testing.assert_allclose(found.differences["estimate"], coarse)


# Bands


def test_differences_count_that_models_read_the_same_documents():
    frame = make_frame({"a": [0.3, 0.3], "b": [0.3, 0.3]}, docs=60, spread=0.5, noise=0.3, tokens=80)
    found = compare(frame)
    alone = found.binned.groupby("bin")["std_error"].apply(lambda errors: np.sqrt((errors**2).sum()))
    assert (found.differences["std_error"].to_numpy() < 0.4 * alone.to_numpy()).all()


def test_draws_are_as_wide_as_the_standard_errors():
    (found,) = estimates_of(np.zeros((1, 3)), noise_of(0.2, 1, 3), np.random.default_rng(0), docs=8)
    np.testing.assert_allclose(np.sqrt((found.scaled_draws**2).mean(axis=0)), found.std_error)
    assert (found.draws**2).mean() < 0.95 * (found.scaled_draws**2).mean()


def test_simultaneous_bands_hold_as_often_as_independent_places_need():
    rng = np.random.default_rng(0)
    many = Estimates(np.zeros(8), rng.normal(size=(4000, 8)), rng.normal(size=(20_000, 8)))
    found = bands(many, conf_level=0.95)
    expected = stats.norm.isf((1 - 0.95 ** (1 / 8)) / 2)  # Šidák
    np.testing.assert_allclose(found.sim_high / found.std_error, expected, rtol=0.01)
    alike = Estimates(
        np.zeros(8), np.repeat(many.jackknife[:, :1], 8, axis=1), np.repeat(many.draws[:, :1], 8, axis=1)
    )
    found = bands(alike, conf_level=0.95)
    np.testing.assert_allclose(found.sim_high, found.conf_high, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("docs", "least"), [(6, 0.87), (10, 0.88), (30, 0.90), (60, 0.91)])
def test_bands_cover(docs, least):
    """Pointwise within 2% of 95%; simultaneous: 91 to 95% in 600 samples, the limit three errors of 300 lower."""
    truth = {"a": [0.3, 0.4, 0.2, 0.3], "b": [0.3, 0.5, 0.4, 0.3, 0.2, 0.2]}
    alone = together = difference = 0.0
    samples = 300
    for sample in range(samples):
        found = compare(make_frame(truth, docs=docs, seed=sample, spread=0.15), draws=399)
        true = np.concatenate(list(truth.values()))
        table = found.profiles.assign(true=true)
        alone += table.eval("conf_low <= true <= conf_high").mean() / samples
        together += table.eval("sim_low <= true <= sim_high").groupby(table["model"]).all().mean() / samples
        gap = np.array(truth["a"]) - depth_bins(6, 4) @ np.array(truth["b"])
        difference += found.differences.assign(true=gap).eval("sim_low <= true <= sim_high").all() / samples
    assert 0.93 <= alone <= 0.97
    assert together >= least
    assert difference >= least


# Agreement


def test_observed_agreement_is_the_textbooks():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 9))
    none = np.zeros((5, 9))
    found = agreement(Estimates(a, none, none), Estimates(b, none, none), conf_level=0.95)
    covariance = np.cov(a, b, bias=True)
    concordance = 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (a.mean() - b.mean()) ** 2)
    expected = {
        "concordance": concordance,
        "rank_correlation": stats.spearmanr(a, b).statistic,
        "sign_agreement": np.mean(np.sign(a) == np.sign(b)),
        "rms_difference": np.sqrt(np.mean((a - b) ** 2)),
    }
    for measure, value in expected.items():
        # Without noise, the estimate and its interval are the number itself.
        np.testing.assert_allclose(found[measure], [value] * 4, rtol=1e-12, err_msg=measure)


def test_concordance_of_a_worked_example():
    # x = 1, 2, 3 and y = x + 1: s_xx = s_yy = s_xy = 2/3, (m_x - m_y)^2 = 1, so 2 (2/3) / (4/3 + 1) = 4/7.
    none, x = np.zeros((5, 3)), np.array([1.0, 2.0, 3.0])
    found = agreement(Estimates(x, none, none), Estimates(x + 1, none, none), conf_level=0.95)
    assert found["concordance"].observed == pytest.approx(4 / 7)
    assert found["rms_difference"].observed == pytest.approx(1.0)


def test_profiles_without_variation_have_no_concordance():
    rng = np.random.default_rng(0)
    flat = estimates_of(np.zeros((2, 6)), noise_of(0.5, 2, 6), rng)
    found = agreement(*flat, conf_level=0.95)["concordance"]
    assert (found.conf_low, found.conf_high) == (-1, 1)


@pytest.mark.parametrize("size", [0.05, 0.3])
def test_equal_profiles_are_found_equal_where_percentiles_never_would(size):
    rng = np.random.default_rng(2)
    truth = np.repeat(smooth("ar0.8", 12, 1, rng), 2, axis=0)
    covers = of_ranks = percentiles = 0
    for _ in range(60):
        first, second = estimates_of(truth, noise_of(size, 2, 12), rng, draws=199)
        found = agreement(first, second, conf_level=0.95)
        covers += found["concordance"].conf_high == 1 and found["rms_difference"].conf_low == 0
        of_ranks += found["rank_correlation"].conf_high == 1
        drawn = first.estimate - second.estimate + first.draws - second.draws
        percentiles += np.quantile(np.sqrt((drawn**2).mean(axis=1)), 0.025) <= 0
    assert min(covers, of_ranks) >= 54  # of 60, nominal 57
    assert percentiles == 0


@pytest.mark.slow
@pytest.mark.parametrize("places", [4, 12, 36])
@pytest.mark.parametrize("apart", [0.0, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("size", [0.05, 0.2, 0.5])
def test_intervals_of_agreement_cover(places, apart, size):
    """At least 90% in 300 samples when this was decided; 150 samples may be 4% lower."""
    rng = np.random.default_rng([places, round(10 * apart), round(100 * size)])
    none, samples = np.zeros((2, places)), 150
    covered = dict.fromkeys(("sign_agreement", "concordance", "rank_correlation", "rms_difference"), 0.0)
    for _ in range(samples):
        base, other = smooth("ar0.8", places, 2, rng)
        truth = np.stack([base, base + apart * other])
        known = agreement(*(Estimates(profile, none, none) for profile in truth), conf_level=0.95)
        found = agreement(*estimates_of(truth, noise_of(size, 2, places), rng), conf_level=0.95)
        for measure, value in found.items():
            covered[measure] += value.conf_low - 1e-9 <= known[measure].observed <= value.conf_high + 1e-9
    assert min(covered.values()) / samples >= 0.86, covered


# Surrogates


@pytest.mark.parametrize("places", [2, 4, 5])
def test_no_p_value_is_given_where_no_test_has_power(places):
    profile, none = np.arange(places, dtype=float), np.zeros((9, places))
    assert np.isnan(shape_test(profile, profile, none, none, seed=0)).all()


def test_few_depths_say_why_there_is_no_p_value():
    found = compare(make_frame({"a": [0.1, 0.3, 0.2, 0.4], "b": [0.2, 0.5, 0.4, 0.1]}))
    table = found.agreement.set_index("measure")
    assert table["p_value"].isna().all()
    assert "4 depths" in table.loc["concordance", "note"]
    assert "6 or more" in table.loc["rank_correlation", "note"]
    assert "level" in table.loc["sign_agreement", "note"]
    assert any("cannot be tested with 4 depths" in sentence for sentence in found.verdict)


def test_the_null_is_every_pattern_of_signs():
    rng = np.random.default_rng(3)
    a, b, none = *rng.normal(size=(2, 7)), np.zeros((9, 7))
    found = shape_test(a, b, none, none, seed=0).linear
    worst = 0.0
    depth = np.arange(7)
    cosines = np.stack([np.cos(np.pi * k * (depth + 0.5) / 7) for k in range(1, 7)])
    cosines /= np.linalg.norm(cosines, axis=1, keepdims=True)
    line = (depth - 3) / np.linalg.norm(depth - 3)
    walk = cosines.T @ np.diag(1 / (2 - 2 * np.cos(np.pi * np.arange(1, 7) / 7))) @ cosines
    left = np.eye(7) - np.outer(line, line) - 1 / 7
    rest = np.linalg.svd(left @ walk @ left)[0][:, :5].T
    for waves in (cosines, np.vstack([line, rest])):
        products = (waves @ a) * (waves @ b)
        sums = [np.dot(signs, products) for signs in itertools.product([-1, 1], repeat=6)]
        worst = max(worst, np.mean(np.array(sums) >= products.sum() - 1e-9))
    assert found == pytest.approx(worst)


def test_rough_profiles_that_are_alike_are_told_from_smooth_ones_that_happen_to_be():
    rng, none = np.random.default_rng(4), np.zeros((9, 24))
    rough = smooth("ar0.2", 24, 1, rng)[0]
    assert shape_test(rough, rough + 0.3 * rng.normal(size=24), none, none, seed=0).linear < 0.01
    line = np.linspace(0, 1, 24)
    assert stats.spearmanr(line, line**3).pvalue < 1e-9  # what a test without smoothness says
    assert shape_test(line, line + 0.001 * rng.normal(size=24), none, none, seed=0).linear > 0.1
    assert shape_test(line, line + 0.001 * rng.normal(size=24), none, none, seed=0).rank > 0.1


def rejection_rates(kind, places, samples) -> tuple[float, float]:
    rng, none = np.random.default_rng(places), np.zeros((2, places))
    first, second = smooth(kind, places, samples, rng), smooth(kind, places, samples, rng)
    p = np.array(
        [shape_test(a, b, none, none, seed=at) for at, (a, b) in enumerate(zip(first, second, strict=True))]
    )
    return tuple((p <= 0.05).mean(axis=0))


def test_independent_smooth_profiles_are_seldom_called_alike():
    """5% of 400 within three errors, where Spearman's own test rejects 13% one-sided."""
    assert max(rejection_rates("ar0.8", 12, 400)) <= 0.085


# Of 5% tests; facts to decide by: 2,000 samples a cell gave at most what stands here less .02.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "most"),
    [
        *[(kind, 0.08) for kind in ("ar0.0", "ar0.5", "ar0.8", "ar0.95", "walk", "gp0.1", "line")],
        *[("gp0.2", 0.09), ("gp0.4", 0.12)],
    ],
)
@pytest.mark.parametrize("places", [6, 8, 12, 48])
def test_size_of_the_shape_test(kind, most, places):
    assert max(rejection_rates(kind, places, 600)) <= most


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_noise_that_models_share_is_not_taken_for_agreement(shared):
    rng, places = np.random.default_rng(5), 12
    noise = noise_of(0.6, 2, places, shared=shared)
    rejected = naive = 0
    for sample in range(200):
        first, second = estimates_of(smooth("ar0.8", places, 2, rng), noise, rng, draws=199)
        rejected += (
            shape_test(first.estimate, second.estimate, first.draws, second.draws, seed=sample).linear <= 0.05
        )
        none = np.zeros((2, places))
        naive += shape_test(first.estimate, second.estimate, none, none, seed=sample).linear <= 0.05
    assert rejected <= 19  # of 200: three errors above 5%
    assert shared == 0 or naive > 30


# Equivalence


def test_equivalence_is_two_t_tests_against_the_margin():
    found = compare(make_frame({"a": [0.30, 0.3], "b": [0.33, 0.6]}, spread=0.0, noise=0.3), margin=0.1)
    rows = found.equivalence.query("scope == 'bin'")
    gaps = found.differences
    lower = stats.t.sf((gaps["estimate"] + 0.1) / gaps["std_error"], 29)
    upper = stats.t.cdf((gaps["estimate"] - 0.1) / gaps["std_error"], 29)
    np.testing.assert_allclose(rows["p_value"], np.maximum(lower, upper), rtol=1e-9)
    inside = (rows["conf_low"] > -0.1) & (rows["conf_high"] < 0.1)
    assert rows["equivalent"].tolist() == inside.tolist() == [True, False]
    half = stats.t.isf(0.05, 29) * gaps["std_error"]
    np.testing.assert_allclose(rows["conf_high"], gaps["estimate"] + half, rtol=1e-9)
    assert set(found.equivalence["conf_level"]) == {0.9}
    overall = found.equivalence.query("scope == 'overall'").iloc[0]
    assert overall["p_value"] == rows["p_value"].max()
    assert not overall["equivalent"]
    assert overall["estimate"] == rows["estimate"].abs().max()
    assert overall["conf_high"] == rows[["conf_low", "conf_high"]].abs().to_numpy().max()
    assert overall["conf_low"] == overall["sim_low"] == rows["sim_high"].mul(-1).max() > 0.1
    assert "beyond that margin somewhere: 1" in found.verdict[1]


@pytest.mark.parametrize(("errors", "equivalent"), [(1.6, False), (1.8, True)])  # t(29) at 5%: 1.70
def test_the_level_of_equivalence_is_one_less_the_confidence(errors, equivalent):
    frame = make_frame({"a": [0.3, 0.3], "b": [0.3, 0.5]}, spread=0.0, noise=0.3)
    farthest = compare(frame).differences.iloc[1]
    found = compare(frame, margin=abs(farthest["estimate"]) + errors * farthest["std_error"])
    assert found.equivalence.query("scope == 'overall'")["equivalent"].tolist() == [equivalent]


def test_equal_models_are_equivalent_with_enough_documents():
    found = compare(make_frame({"a": [0.3, 0.5], "b": [0.3, 0.5]}, docs=80), margin=0.15)
    assert found.equivalence["equivalent"].all()
    assert "All 1 pair are equivalent" in found.verdict[1] or "equivalent within ±0.15" in found.verdict[1]


def test_no_difference_found_is_not_equivalence():
    found = compare(make_frame({"a": [0.3, 0.5], "b": [0.3, 0.5]}, docs=8, tokens=8, noise=3.0), margin=0.1)
    assert (found.differences["p_value"] > 0.05).all()
    assert not found.equivalence["equivalent"].any()
    assert "undecided: 1" in found.verdict[1]


def test_without_a_margin_nothing_is_said_about_equivalence():
    found = compare(make_frame({"a": [0.3, 0.5], "b": [0.3, 0.5]}))
    assert found.equivalence.empty
    assert "No margin was given" in found.verdict[1]


@pytest.mark.slow
def test_models_at_the_margin_are_seldom_called_equivalent():
    """The worst case of a 5% test: one slice exactly at the margin, the others equal; 300 samples, three errors."""
    wrong = sum(
        bool(
            compare(make_frame({"a": [0.3, 0.3], "b": [0.3, 0.4]}, seed=sample, docs=40), margin=0.1)
            .equivalence.query("scope == 'overall'")["equivalent"]
            .iloc[0]
        )
        for sample in range(300)
    )
    assert wrong <= 0.088 * 300


# Meta-analysis


@pytest.mark.parametrize("seed", range(40))
def test_with_independent_errors_pooling_is_statsmodels(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 9))
    effects, variances = rng.normal(size=k) * rng.choice([0.1, 1.0, 3.0]), rng.uniform(0.05, 2.0, k)
    found = pool(effects, np.diag(variances), conf_level=0.9)
    options = {"method_re": "iterated", "atol": 1e-10, "maxiter": 500}
    expected = combine_effects(effects, variances, **options)
    if expected.tau2 == 0 and expected.q > k - 1:
        # A last step that passed the root by rounding, which statsmodels answers with 0. It stays where its own
        # equation holds when it begins there.
        expected = combine_effects(effects, variances, **options, tau2_start=found.tau2 * (1 - 1e-11))
    close = {"rtol": 1e-8, "atol": 1e-8}
    np.testing.assert_allclose(found.tau2, expected.tau2, **close)
    np.testing.assert_allclose(found.estimate, expected.mean_effect_re, **close)
    np.testing.assert_allclose(found.std_error, expected.sd_eff_w_re, **close)
    np.testing.assert_allclose([found.q, found.i2], [expected.q, max(expected.i2, 0)], **close)
    np.testing.assert_allclose(found.q_p_value, expected.test_homogeneity().pvalue, **close)
    interval = expected.conf_int(alpha=0.1, use_t=True)[1]
    np.testing.assert_allclose([found.conf_low, found.conf_high], interval, **close)
    if k > 2:  # Higgins, Thompson, Spiegelhalter (2009), equation 12
        half = stats.t.isf(0.05, k - 2) * np.sqrt(expected.tau2 + expected.sd_eff_w_re**2)
        np.testing.assert_allclose(found.prediction_high - found.estimate, half, rtol=1e-7)
    else:
        assert np.isnan(found.prediction_high)


@pytest.mark.parametrize("seed", range(10))
def test_with_shared_errors_pooling_solves_its_equations(seed):
    rng = np.random.default_rng(seed)
    k = 5
    root = rng.normal(size=(k, k)) / 10
    covariance = root @ root.T + 0.02
    effects = rng.normal(size=k)
    found = pool(effects, covariance, conf_level=0.95)
    inverse = np.linalg.inv(covariance + found.tau2 * np.eye(k))
    mean = inverse.sum(axis=0) @ effects / inverse.sum()
    assert found.estimate == pytest.approx(mean, rel=1e-8)
    assert found.std_error == pytest.approx(inverse.sum() ** -0.5, rel=1e-8)
    left = effects - mean
    assert left @ inverse @ left == pytest.approx(k - 1, rel=1e-8)  # tau2 > 0: effects far apart


@pytest.mark.parametrize("docs", [12, 60])
def test_hotellings_f_keeps_its_size_and_tau2_its_mean_with_an_estimated_covariance(docs):
    # 1,000 true nulls: a 5% test's share has a standard error of .007. chi2 rejects 22% of them with 12 documents.
    rng, truth = np.random.default_rng(0), 0.5 + 0.5 * np.eye(5)
    noise = rng.multivariate_normal(np.zeros(5), truth, size=(1000, docs))
    effects = noise.sum(axis=1) / np.sqrt(docs)
    found = [
        pool(effect, np.cov(own.T), df=docs - 1, conf_level=0.95)
        for effect, own in zip(effects, noise, strict=True)
    ]
    assert 0.03 <= np.mean([one.q_p_value < 0.05 for one in found]) <= 0.07
    # I2 of true nulls: cut at 0, it has a mean of .13 where the covariance is known.
    assert np.mean([one.i2 for one in found]) == pytest.approx(0.13, abs=0.03)
    apart = effects + np.sqrt(2) * rng.normal(size=effects.shape)
    pairs = zip(apart[:500], noise, strict=False)
    tau2 = [pool(effect, np.cov(own.T), df=docs - 1, conf_level=0.95).tau2 for effect, own in pairs]
    assert np.mean(tau2) == pytest.approx(2.0, abs=0.25)


def test_too_few_documents_for_so_many_models_have_no_test():
    found = pool(np.arange(7.0), np.eye(7), df=5, conf_level=0.95)
    assert np.isnan(found.q_p_value)
    assert found.tau2 > 0


def test_errors_that_all_models_share_are_no_difference():
    shared = np.full((4, 4), 0.04) + 0.0001 * np.eye(4)
    effects = np.array([0.31, 0.29, 0.30, 0.30])
    found = pool(effects, shared, conf_level=0.95)
    apart = pool(effects, np.diag(np.diag(shared)), conf_level=0.95)
    assert found.q > 100 * apart.q
    assert found.std_error == pytest.approx(0.2, rel=0.01)
    assert apart.std_error == pytest.approx(0.1, rel=0.01)


# Groups


def test_sizes_are_measured_by_seeds():
    betas = {"s": [0.3, 0.3], "s-b": [0.32, 0.28], "l": [0.5, 0.5], "l-b": [0.52, 0.48]}
    frame = make_frame(betas, docs=60, spread=0.05)
    found = compare(frame, groups={model: model.removesuffix("-b") for model in betas})
    rows = found.yardstick.set_index("comparison")
    assert rows["n_pairs"].tolist() == [4, 2, 6]
    truth = {"between groups": np.sqrt((2 * 0.04 + 2 * (0.22**2 + 0.18**2) / 2) / 4), "within groups": 0.02}
    for name, value in truth.items():
        assert rows.loc[name, "conf_low"] <= value <= rows.loc[name, "conf_high"], name
    assert rows.loc["between groups", "estimate"] == pytest.approx(0.2, abs=0.03)
    assert rows.loc["ratio", "conf_low"] > 1
    assert found.differences["same_group"].sum() == 2 * 2
    assert "With 2 groups this describes these models" in found.verdict[-1]
    assert any("The seeds' number rests on 2 pairs" in sentence for sentence in found.verdict)


def test_equal_seeds_make_no_finite_ratio():
    frame = make_frame({"s": [0.3, 0.3], "l": [0.6, 0.6]})
    twin = frame[frame["model"] == "s"].assign(model="s-b")
    found = compare(pd.concat([frame, twin]), groups={"s": "s", "s-b": "s", "l": "l"}).yardstick
    ratio = found.set_index("comparison").loc["ratio"]
    assert ratio["estimate"] == ratio["conf_low"] == np.inf


def test_mean_square_takes_off_noise():
    rng = np.random.default_rng(6)
    truth = np.array([[0.3, -0.2, 0.1, 0.0]])
    found, centres = [], []
    for _ in range(600):
        value, draws = mean_square(estimates_of(truth, noise_of(0.5, 1, 4), rng, draws=99))
        found.append(value)
        centres.append(draws.mean())
    for values in (found, centres):
        assert np.mean(values) == pytest.approx((truth**2).mean(), abs=4 * np.std(values) / np.sqrt(600))


def test_leaving_one_model_out_finds_the_odd_one():
    betas = {"a": [0.3, 0.4], "b": [0.31, 0.41], "c": [0.29, 0.4], "odd": [0.9, 0.9]}
    found = compare(make_frame(betas, docs=60)).leave_one_out.set_index("model")
    assert found["rms_to_others"].idxmax() == "odd"
    assert found.loc["odd", "tau_without"] < 0.1 < found.loc["a", "tau_without"]
    assert found.loc["odd", "bins_inside"] == 0
    assert compare(make_frame({"a": [0.1, 0.2], "b": [0.1, 0.2]})).leave_one_out.empty


@pytest.mark.parametrize("count", [4, 5])
def test_from_five_models_on_a_description_may_be_more(count):
    betas = {f"m{at}": [0.3, 0.4] for at in range(count)}
    assert any("cannot be generalised" in sentence for sentence in compare(make_frame(betas)).verdict) is (
        count < 5
    )


# What must not matter

profiles_of_models = st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=4), min_size=2, max_size=4)
named = profiles_of_models.map(lambda lists: {f"m{at}": betas for at, betas in enumerate(lists)})
slowly = settings(max_examples=5, deadline=None)


def pair_of(row, names=("model_a", "model_b")) -> frozenset:
    return frozenset(row[name] for name in names)


@slowly
@given(named, st.randoms(use_true_random=False), st.integers(0, 99))
def test_the_order_of_models_does_not_matter(betas, random, seed):
    frame = make_frame(betas, docs=8, tokens=12, seed=seed)
    order = list(betas)
    random.shuffle(order)
    shuffled = pd.concat([frame[frame["model"] == model] for model in order])
    first, second = compare(frame, margin=0.2), compare(shuffled, margin=0.2)
    columns = ["observed", "estimate", "conf_low", "conf_high", "p_value"]
    keyed = [
        {(pair_of(row), row["measure"]): row[columns].astype(float) for _, row in found.agreement.iterrows()}
        for found in (first, second)
    ]
    assert keyed[0].keys() == keyed[1].keys()
    for key, row in keyed[0].items():
        np.testing.assert_allclose(row, keyed[1][key], atol=1e-7, err_msg=str(key))
    signs = [
        {
            (row["model_a"], row["model_b"], row["bin"]): row["estimate"]
            for _, row in found.differences.iterrows()
        }
        for found in (first, second)
    ]
    for (a, b, place), value in signs[0].items():
        other = signs[1].get((a, b, place), -signs[1].get((b, a, place), np.nan))
        assert value == pytest.approx(other, abs=1e-10)
    numbers = ["estimate", "tau2", "prediction_low", "prediction_high"]
    np.testing.assert_allclose(first.meta[numbers], second.meta[numbers], atol=1e-7)
    overall = [
        {pair_of(row): row["p_value"] for _, row in found.equivalence.iterrows() if row["scope"] == "overall"}
        for found in (first, second)
    ]
    assert overall[0] == pytest.approx(overall[1], abs=1e-9)


@slowly
@given(named, st.integers(0, 99))
def test_names_rows_and_copies_of_models_do_not_matter(betas, seed):
    frame = make_frame(betas, docs=8, tokens=12, seed=seed)
    expected = compare(frame, margin=0.2)
    renamed = frame.assign(model="x" + frame["model"]).sample(frac=1, random_state=seed)
    # Groups come in the order of their first rows.
    renamed = renamed.sort_values("model", kind="stable")
    found = compare(renamed, margin=0.2)
    for name, table in tables_of(expected).items():
        texts = ["model", "model_a", "model_b"]
        numbers = [column for column in table if column not in texts]
        pd.testing.assert_frame_equal(tables_of(found)[name][numbers], table[numbers], rtol=1e-6, atol=1e-7)


@slowly
@given(named, st.integers(0, 99))
def test_the_order_of_documents_does_not_matter(betas, seed):
    frame = make_frame(betas, docs=8, tokens=12, seed=seed)
    order = np.random.default_rng(seed).permutation(8)
    shuffled = pd.concat([frame[frame["doc"] == doc] for doc in order]).sort_values("model", kind="stable")
    expected, found = compare(frame), compare(shuffled)
    for name, table in tables_of(expected).items():
        pd.testing.assert_frame_equal(tables_of(found)[name], table, rtol=1e-6, atol=1e-7)


@slowly
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=7), st.integers(0, 99))
def test_a_model_agrees_with_itself(profile, seed):
    frame = make_frame({"a": profile}, docs=8, tokens=12, seed=seed)
    found = compare(pd.concat([frame, frame.assign(model="twin")]), margin=0.01)
    table = found.agreement.set_index("measure")
    np.testing.assert_array_equal(found.differences[["estimate", "std_error", "sim_low", "sim_high"]], 0.0)
    assert (found.differences["p_value"] == 1).all()
    columns = ["observed", "conf_low", "conf_high"]
    np.testing.assert_array_equal(table.loc["rms_difference", columns].astype(float), 0.0)
    assert table.loc["concordance", "observed"] == 1
    assert table.loc["sign_agreement", "conf_low"] == 1
    assert table.loc["concordance", "conf_high"] == 1
    assert found.equivalence["equivalent"].all()
    np.testing.assert_array_equal(found.meta["tau2"], 0.0)
    np.testing.assert_allclose(found.meta["estimate"], found.binned.query("model == 'a'")["estimate"])


def test_documents_twice_halve_the_variance():
    frame = make_frame({"a": [0.1, 0.3], "b": [0.2, 0.5]}, docs=40)
    twice = pd.concat([frame, frame.assign(doc=frame["doc"] + 1000)])
    once, found = compare(frame, draws=999), compare(twice, draws=999)
    np.testing.assert_allclose(found.profiles["estimate"], once.profiles["estimate"], rtol=1e-10)
    for name in ("profiles", "differences"):
        ratio = tables_of(once)[name]["std_error"] / tables_of(found)[name]["std_error"]
        np.testing.assert_allclose(ratio, np.sqrt(2), rtol=0.03)  # CRV3's own factors: (G-1)/G and leverage


def test_the_frame_and_the_global_random_state_stay_as_they_were():
    frame = make_frame({"a": [0.1, 0.3], "b": [0.2, 0.5]})
    fits, copy = fitted(frame), frame.copy(deep=True)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = compare_profiles(fits, draws=199, seed=3), compare_profiles(fits, draws=199, seed=3)
    pd.testing.assert_frame_equal(frame, copy)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    for name, table in tables_of(first).items():
        pd.testing.assert_frame_equal(table, tables_of(second)[name])


def test_the_comparison_reads_well():
    found = compare(make_frame({"a": [0.1, 0.3], "b": [0.2, 0.5]}).assign(model=lambda f: "<" + f["model"]))
    assert repr(found).startswith(
        "lag1 of attn_out in 2 models: <a (2 layers), <b (2 layers); 30 shared documents"
    )
    assert "&lt;a" in found._repr_html_()
    assert "<a " not in found._repr_html_()


# What is refused

TWO = {"a": [0.1, 0.3], "b": [0.2, 0.5]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"term": "lag2"}, r"term must be one of 'Intercept', 'lag1'; got 'lag2'. Did you mean 'lag1'"),
        ({"hook": "attn"}, "no rows of the hook 'attn'; the frame has 'attn_out'. Did you mean 'attn_out'"),
        ({"margin": 0}, "margin must be a number above 0"),
        ({"margin": True}, "margin must be a number above 0"),
        ({"margin": float("nan")}, "margin must be a number above 0"),
        ({"draws": 10}, "draws must be a whole number from 199 to 1000000"),
        ({"draws": 200.5}, "draws must be a whole number"),
        ({"conf_level": 95}, "conf_level must be a number between 0.5 and 1"),
        ({"bins": 3}, "bins must be a whole number from 2 to 2"),
        ({"bins": 1}, "bins must be a whole number"),
        ({"groups": {"a": "s"}}, r"each of the models \['a', 'b'\] and no other"),
        ({"groups": {"a": "s", "b": "s", "c": "s"}}, "groups must give a group for each of the models"),
        ({"groups": ["s", "s"]}, "groups must give a group for each of the models"),
    ],
)
def test_wrong_options_are_refused(options, message):
    # TypeError: where the tests run under jaxtyping's checks, these see a wrong type first.
    with pytest.raises((InputError, TypeError)) as refused:
        compare(make_frame(TWO), **options)
    if isinstance(refused.value, InputError):
        refused.match(message)


@pytest.mark.parametrize(
    ("fits", "message"),
    [
        (make_frame(TWO), "got DataFrame. Fit it first: fit_lagged"),
        ([1], "needs what fit_lagged gives, or LagSums; got list"),
    ],
)
def test_a_frame_is_to_be_fitted_first(fits, message):
    # Where the tests run under jaxtyping's checks, these see a wrong type first.
    with pytest.raises((InputError, TypeError), match=f"{message}|fits"):
        compare_profiles(fits)


def test_sums_without_documents_are_refused():
    with pytest.raises(InputError, match=r"needs LagSums\(cluster='doc'\)"):
        compare_profiles(LagSums.from_frame(make_frame(TWO), FORMULA, cluster=None))


def test_fits_without_documents_or_depth_are_refused():
    frame = make_frame(TWO)
    with pytest.raises(SchemaError, match="needs the column 'doc'"):
        compare_profiles(fit_lagged(frame.drop(columns="doc"), FORMULA, cov="nonrobust"))
    with pytest.raises(InputError, match="needs the depth of every layer"):
        compare(frame.drop(columns="depth"))


def test_one_model_is_refused():
    with pytest.raises(InputError, match="compares models; there is one, a"):
        compare(make_frame({"a": [0.1, 0.3]}))


def test_one_layer_is_refused():
    with pytest.raises(InputError, match="compares profiles over depth; a has one layer"):
        compare(make_frame({"a": [0.1], "b": [0.1, 0.2]}))


def test_missing_layers_are_refused():
    frame = make_frame({"a": [0.1, 0.3, 0.2], "b": [0.2, 0.5]})
    with pytest.raises(InputError, match=r"needs all 3 layers of a; it lacks \[1\]"):
        compare(frame[(frame["model"] == "b") | (frame["layer"] != 1)])


def test_with_the_layer_below_models_are_compared_where_all_have_coefficients():
    frame = make_frame({"a": [0.0, 0.3, 0.2, 0.4], "b": [0.0, 0.2, 0.5, 0.1, 0.3, 0.2]})
    rng = np.random.default_rng(0)
    frame = frame.assign(layer_below=rng.normal(size=len(frame))).query("layer > 0")
    fits = fit_lagged(frame, "log_norm ~ lag1 + layer_below")
    found = compare_profiles(fits, draws=199, margin=0.1)
    # From 1/4, where the second layer of a begins, to 1 in three slices: three layers of a, 4.5 of b.
    assert found.binned.query("model == 'a'")["depth_low"].tolist() == [0.25, 0.5, 0.75]
    layers = {model: part["estimate"].to_numpy() for model, part in found.profiles.groupby("model")}
    binned = {model: part["estimate"].to_numpy() for model, part in found.binned.groupby("model")}
    np.testing.assert_allclose(binned["a"], layers["a"])
    b1, b2, b3, b4, b5 = layers["b"]
    expected = [(b1 / 2 + b2) / 1.5, (b3 + b4 / 2) / 1.5, (b4 / 2 + b5) / 1.5]
    np.testing.assert_allclose(binned["b"], expected)
    overall = found.equivalence.query("scope == 'overall'").iloc[0]
    assert (overall["depth_low"], overall["depth_high"]) == (0.25, 1.0)
    with pytest.raises(InputError, match=r"needs all 4 layers of a; it lacks \[0\]"):
        compare(frame)


def test_heads_are_refused():
    frame = make_frame(TWO)
    heads = pd.concat([frame.assign(head=0), frame.assign(head=1)])
    with pytest.raises(InputError, match="a has several, maybe one for each head"):
        compare(heads)
    assert len(compare(heads[heads["head"] == 1]).profiles) == 4


def test_several_hooks_are_chosen_from():
    both = pd.concat([make_frame(TWO), make_frame({"a": [0.5, 0.1], "b": [0.6, 0.1]}, hook="mlp_out")])
    for fits in (LagSums.from_frame(both, FORMULA), fitted(both)):
        with pytest.raises(InputError, match="one hook at a time; the frame has 'attn_out', 'mlp_out'"):
            compare_profiles(fits, draws=199)
        found = compare_profiles(fits, hook="mlp_out", draws=199)
        assert set(found.profiles["hook"]) == {"mlp_out"}
        assert found.profiles["estimate"].iloc[0] == pytest.approx(0.5, abs=0.15)


def test_too_few_shared_documents_are_refused():
    frame = make_frame(TWO, docs=10)
    apart = frame[(frame["model"] == "a") | (frame["doc"] >= 10 - MIN_DOCS + 1)]
    with pytest.raises(InputError, match=r"a, b share 5\. Extract all models from the same corpus"):
        compare(apart)
    compare(frame[(frame["model"] == "a") | (frame["doc"] >= 10 - MIN_DOCS)])


def test_a_term_that_one_document_carries_is_refused():
    frame = make_frame(TWO, docs=8).assign(rare=lambda f: np.where(f["doc"] == 3, f["lag1"] ** 2, 0.0))
    with pytest.raises(NumericalError, match=r"layer 0 the terms are collinear without 3\. Leave a term out"):
        compare_profiles(LagSums.from_frame(frame, "log_norm ~ lag1 + rare"))


def test_a_term_that_few_documents_carry_is_refused():
    frame = make_frame(TWO, docs=8).assign(
        rare=lambda f: np.where(f["doc"].isin([3, 4]), f["lag1"] ** 2, 0.0)
    )
    with pytest.raises(NumericalError, match="a draw makes the terms collinear"):
        compare_profiles(LagSums.from_frame(frame, "log_norm ~ lag1 + rare"))


def test_folded_and_raw_models_are_not_compared():
    frame = make_frame(TWO)
    with pytest.raises(InputError, match="not comparable"):
        compare(frame.assign(model=frame["model"].replace("b", "b[folded]")))
