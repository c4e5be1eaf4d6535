"""Autocorrelations against loops, dummies and simulated processes.

Tolerances: the same sums in another order agree to 1e-10. Simulated s and rho are of 60 documents of 300 tokens, whose
bootstrap has a standard error of .02 and .005; sizes of a 5% test are of 200 layers, standard error .015.
"""

import numpy as np
import pandas as pd
import pytest
from frames import make_norms
from statsmodels.tsa.arima_process import arma_pacf

from mechreg.lags import add_lags
from mechreg.regression import demeaned
from mechreg.robustness import autocorrelation, lag_order
from mechreg.schema import InputError, NumericalError


def series(
    docs: int, tokens: int, *, rho: float, share: float, layers: int = 1, seed: int = 0
) -> pd.DataFrame:
    """Return norms whose logs are an AR(1) with so large a share of the variance, and white noise."""
    rng = np.random.default_rng(seed)
    slow = rng.normal(size=(layers, docs, tokens))
    for now in range(1, tokens):
        slow[..., now] = rho * slow[..., now - 1] + np.sqrt(1 - rho**2) * slow[..., now]
    log_norm = np.sqrt(share) * slow + np.sqrt(1 - share) * rng.normal(size=slow.shape)
    layer, doc, position = (axis.ravel() for axis in np.indices(slow.shape))
    rows = {"model": "m", "hook": "attn_out", "layer": layer, "depth": (layer + 0.5) / layers, "doc": doc}
    return pd.DataFrame(rows | {"window": 0, "position": position, "norm": np.exp(log_norm).ravel()})


def test_demeaned_is_what_dummies_leave():
    rng = np.random.default_rng(0)
    doc, position = rng.integers(0, 7, 200), rng.integers(0, 23, 200)
    values = rng.normal(size=(2, 200)) + doc + position**0.5
    dummies = np.column_stack([doc[:, None] == np.arange(7), position[:, None] == np.arange(23)]).astype(
        float
    )
    expected = values - (dummies @ np.linalg.lstsq(dummies, values.T, rcond=None)[0]).T
    np.testing.assert_allclose(demeaned(values, [doc, position]), expected, atol=1e-10)
    np.testing.assert_allclose(demeaned(values, []), values - values.mean(axis=1, keepdims=True), atol=1e-10)


def test_pairs_are_those_of_a_loop_over_tokens():
    norms = make_norms([[9, 7], [12], [3]], layers=(0,))
    norms["odd"] = (norms["doc"] == "d1") & (norms["position"] == 5)
    lagged = add_lags(norms, drop_sinks="odd").dropna(subset="log_norm")
    value = lagged["log_norm"] - lagged.groupby("doc")["log_norm"].transform("mean")
    places = zip(lagged["doc"], lagged["window"], lagged["position"], strict=True)
    at = dict(zip(places, value, strict=True))
    found = autocorrelation(norms, max_lag=3, effects="doc", order=1, drop_sinks="odd", draws=99).lags
    variance = np.mean([y**2 for y in at.values()])
    for lag, acf, n_pairs in zip(found["lag"], found["acf"], found["n_pairs"], strict=True):
        pairs = [y * at[d, w, p - lag] for (d, w, p), y in at.items() if (d, w, p - lag) in at]
        assert n_pairs == len(pairs)
        assert acf == pytest.approx(np.mean(pairs) / variance, abs=1e-10)


@pytest.mark.parametrize(("rho", "share"), [(0.9, 0.5), (0.7, 0.8)])
def test_a_slow_context_under_white_noise_comes_back(rho, share):
    found = autocorrelation(series(60, 300, rho=rho, share=share, layers=4), effects=(), draws=199)
    layers, lags = found.layers, found.lags[found.lags["layer"] == 0]
    assert layers["s"].mean() == pytest.approx(share, abs=0.03)
    assert layers["rho"].mean() == pytest.approx(rho, abs=0.01)
    assert (layers["white_share"] == 1 - layers["s"]).all()
    np.testing.assert_allclose(layers["half_life"], np.log(0.5) / np.log(layers["rho"]))
    assert layers["rho"].between(layers["rho_low"], layers["rho_high"]).all()
    truth = share * rho ** found.lags["lag"]
    assert truth.between(found.lags["acf_low"], found.lags["acf_high"]).mean() > 0.85
    # The process is an ARMA(1,1): its partial autocorrelations go on where an AR(2)'s end.
    spread = (1 - share) * (1 + rho**2) + share * (1 - rho**2)
    theta = np.roots([(1 - share) * rho, -spread, (1 - share) * rho]).min()
    np.testing.assert_allclose(lags["pacf"], arma_pacf([1, -rho], [1, -theta], 33)[1:], atol=0.05)


def test_levels_and_trends_are_no_autocorrelation():
    norms = series(30, 200, rho=0.5, share=0.0)
    levels = norms["doc"] / 10 + 0.01 * norms["position"]
    norms = norms.assign(norm=norms["norm"] * np.exp(levels))
    assert autocorrelation(norms, effects=(), draws=99).lags["acf"].min() > 0.3
    assert autocorrelation(norms, draws=99).lags["acf"].abs().max() < 0.05


def test_breusch_godfrey_has_its_size_and_sees_what_two_lags_leave():
    white = autocorrelation(series(12, 60, rho=0.0, share=0.5, layers=200), max_lag=2, draws=99).layers
    assert white["breusch_godfrey_df_denom"].eq(12 - 4).all()
    assert 0.01 <= (white["breusch_godfrey_p"] < 0.05).mean() <= 0.10
    slow = autocorrelation(series(40, 150, rho=0.95, share=0.5, layers=3), max_lag=2, draws=99).layers
    assert (slow["breusch_godfrey_p"] < 0.01).all()
    assert white["half_life"].isna().mean() > 0.9, "white noise has no half-life"
    assert slow["half_life"].notna().all()


def test_lag_order_with_effects_is_the_bic_of_dummies():
    import statsmodels.formula.api as smf

    norms = series(5, 40, rho=0.8, share=0.6)
    table = lag_order(norms, max_lag=3, effects=("doc", "position"), folds=2)
    rows = add_lags(norms, lags=(1, 2, 3)).dropna()
    lags = ["", " + lag1", " + lag1 + lag2", " + lag1 + lag2 + lag3"]
    bic = [smf.ols(f"log_norm ~ C(doc) + C(position){more}", rows).fit().bic for more in lags]
    np.testing.assert_allclose(np.diff(table["bic"]), np.diff(bic), atol=1e-8)


def test_what_cannot_be_answered_is_refused():
    norms = make_norms([[9], [7]], layers=(0,))
    with pytest.raises(InputError, match=r"needs tokens 32 apart.* smaller max_lag="):
        autocorrelation(norms)
    with pytest.raises(InputError, match=r"two documents or more; model m.* has 1"):
        autocorrelation(norms[norms["doc"] == "d0"], max_lag=2)
    with pytest.raises(InputError, match="effects must name columns, each once"):
        autocorrelation(norms, effects=("doc", "doc"))


def test_documents_that_repeat_each_other_have_no_test_and_leave_nothing_after_positions():
    rng = np.random.default_rng(0)
    one = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "window": 0, "position": range(40)})
    one = one.assign(norm=np.exp(rng.normal(size=40)))
    norms = pd.concat([one.assign(doc=doc) for doc in "abcdefgh"], ignore_index=True)
    with pytest.raises(NumericalError, match=r"nothing left of the log norms .* documents repeat each other"):
        autocorrelation(norms, max_lag=4, draws=99)
    assert autocorrelation(norms, max_lag=4, draws=99, effects="doc").layers["breusch_godfrey_p"].isna().all()
