"""The simulation of analyses/06_coverage.py: is its truth the truth, and do the defaults keep what they promise?

Rates of 5% over n simulated corpora have the Monte Carlo standard error sqrt(.05 * .95 / n), 1.1% at n = 400 and 1.5%
at 200; bounds are 3.3 of them (99.9%) about what is promised, and tests that should fail must do so by as much.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mechreg.regression import LagSums

SCRIPT = Path(__file__).parents[1] / "analyses" / "06_coverage.py"


@pytest.fixture(scope="module")
def study():
    return SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="coverage"))


def bound(replications: int) -> float:
    return 3.3 * np.sqrt(0.05 * 0.95 / replications)


@pytest.mark.parametrize("kinds", ["EFFECT", "NO_EFFECT"])
def test_the_pooled_coefficients_are_what_many_documents_give(study, kinds):
    kinds = getattr(study, kinds)
    truth = study.pooled_coefficients(kinds)
    frame = study.simulated(np.random.default_rng(3), documents=3000, layers=1, kinds=kinds)
    table = LagSums.from_frame(frame, max_lag=None).coefficients(cov="crv1").set_index("term")
    for term, right in truth.items():
        assert abs(table.loc[term, "estimate"] - right) < 4 * table.loc[term, "std_error"]
    assert table.loc["lag1", "std_error"] < 0.004  # so that a truth off by .016 would be seen


def test_without_an_effect_documents_have_their_own_coefficients_and_the_pool_none(study):
    assert all(b1 != 0 for b1, _ in study.NO_EFFECT)
    np.testing.assert_allclose(list(study.pooled_coefficients(study.NO_EFFECT).values()), 0, atol=1e-15)


def test_layers_are_correlated_and_documents_of_unequal_length(study):
    frame = study.simulated(np.random.default_rng(0), documents=200, layers=3, kinds=study.EFFECT)
    wide = frame.pivot(index=["doc", "position"], columns="layer", values="log_norm").corr().to_numpy()
    # Errors correlate by .9 and .81 and layers of a document have the same coefficients: so do log norms, to 4 s.e.
    np.testing.assert_allclose([wide[0, 1], wide[1, 2], wide[0, 2]], [0.9, 0.9, 0.81], atol=0.02)
    tokens = frame[frame["layer"] == 0].groupby("doc").size()
    assert tokens.min() >= 15
    assert tokens.std() > 0.5 * tokens.mean()


@pytest.mark.slow
def test_crv3_holds_with_ten_equal_documents_and_with_a_hundred_unequal_ones(study):
    n = 400
    few = study.coverage(10, n, kinds=study.EFFECT, seed=11, uneven=0.0).query("cov == 'crv3'")
    many = study.coverage(100, n, kinds=study.EFFECT, seed=11).query("cov == 'crv3'")
    for rate in (*few["rate"], *many["rate"]):
        assert abs(rate - 0.95) < bound(n)


@pytest.mark.slow
def test_tokens_taken_for_independent_hold_less_and_crv1_less_than_crv3(study):
    n = 400
    table = study.coverage(10, n, kinds=study.NO_EFFECT, seed=12).query("term == 'lag1'")
    rate = dict(zip(table["cov"], table["rate"], strict=True))
    assert rate["nonrobust"] < 0.95 - bound(n)
    assert rate["crv1"] <= rate["crv3"]  # on the same corpora
    assert rate["nonrobust"] < rate["crv3"] - bound(n)


@pytest.mark.slow
def test_max_t_keeps_the_family_and_unadjusted_tests_do_not(study):
    n = 200
    table = study.family_wise_error(30, n, seed=13)
    rate = dict(zip(table["adjust"], table["rate"], strict=True))
    assert abs(rate["max-t"] - 0.05) < bound(n)
    assert rate["bh"] < 0.05 + bound(n)
    assert rate["none"] > 0.05 + bound(n)
