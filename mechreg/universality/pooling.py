"""Pooling: random-effects meta-analysis of models whose errors are correlated, since they read the same documents."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.linalg import helmert
from scipy.optimize import brentq

# Relative size of a variance that is rounding: two models with the same norms have errors that do not differ.
ROUNDING = 1e-12


class Pooled(NamedTuple):
    """The mean over models, and how much models differ beyond sampling noise."""

    estimate: float
    std_error: float
    conf_low: float
    conf_high: float
    tau2: float
    i2: float
    q: float
    q_p_value: float
    prediction_low: float
    prediction_high: float


def pool(
    effects: Float[np.ndarray, " models"],
    covariance: Float[np.ndarray, "models models"],
    *,
    df: float | int = np.inf,
    conf_level: float,
) -> Pooled:
    """Return the random-effects mean, tau2, I2 and prediction interval of one effect in several models.

    ``covariance`` is that of the sampling errors, estimated with ``df`` degrees of freedom (documents less one). The
    mean is generalised least squares', its interval by t(k - 1); Q is Cochran's, its p value Hotelling's: (df - k + 2)
    / (df (k - 1)) Q by F(k - 1, df - k + 2), or chi2(k - 1) where df is infinite. The prediction interval, of one more
    such model, is by t(k - 2) (Higgins, Thompson, Spiegelhalter 2009, J. R. Stat. Soc. A 172, 137), and too short with
    fewer than five models (Partlett, Riley 2017).

    Tau2 is where Q equals its expectation (Paule, Mandel 1982, with the full covariance): k - 1, and more by as much
    as the inverse of an estimated covariance is too large. With independent errors all numbers are those of
    statsmodels' ``combine_effects(method_re="iterated", use_t=True)``.
    """
    k = len(effects)
    # Contrasts and the mean, so that errors that the models share drop out of the contrasts.
    contrasts, mean = helmert(k), np.full(k, 1 / k)
    values, vectors = np.linalg.eigh(contrasts @ covariance @ contrasts.T)
    values = np.where(values > ROUNDING * np.trace(covariance), values, 0.0)
    along = vectors.T @ (contrasts @ effects)
    along = np.where(np.abs(along) > ROUNDING * np.abs(effects).max(), along, 0.0)
    q = _q(0.0, along, values)
    tau2 = 0.0
    expected = _expected_q(0.0, values, df)
    if q > expected:
        # Beyond this variance Q is below k - 1, and so below what is expected.
        most = float((along**2).sum()) / (k - 1)

        def excess(t: float) -> float:
            return _q(t, along, values) - _expected_q(t, values, df)

        tau2 = float(brentq(excess, 0.0, most, xtol=1e-16 * most, rtol=1e-14))
    spread = covariance + tau2 * np.eye(k)
    shared = vectors.T @ contrasts @ spread @ mean
    weights = np.divide(shared, values + tau2, out=np.zeros(k - 1), where=values + tau2 > 0)
    estimate = float(mean @ effects - weights @ along)
    error = float(np.sqrt(max(mean @ spread @ mean - weights @ shared, 0.0)))
    half = float(stats.t.isf((1 - conf_level) / 2, k - 1)) * error
    far = float(stats.t.isf((1 - conf_level) / 2, k - 2)) * np.sqrt(tau2 + error**2) if k > 2 else np.nan
    return Pooled(
        estimate=estimate,
        std_error=error,
        conf_low=estimate - half,
        conf_high=estimate + half,
        tau2=tau2,
        i2=max(0.0, 1 - expected / q) if q > 0 else 0.0,
        q=q,
        q_p_value=_p_value(q, k, df),
        prediction_low=estimate - far,
        prediction_high=estimate + far,
    )


def _expected_q(tau2: float, values: Float[np.ndarray, " contrasts"], df: float | int) -> float:
    """Return the expectation of Q: more than its degrees of freedom, as far as the variances are estimated."""
    count = len(values)
    if np.isinf(df):
        return float(count)
    excess = (count + 1) / (df - count - 1) if df > count + 1 else 0.0  # of an inverse Wishart matrix's mean
    noise = np.divide(values, values + tau2, out=np.ones(count), where=values + tau2 > 0)
    return float(count + (excess * noise**2).sum())


def _p_value(q: float, k: int, df: float | int) -> float:
    """Return Hotelling's p value of Q, NaN where the covariance has more contrasts than documents."""
    if np.isinf(df):
        return float(stats.chi2.sf(q, k - 1))
    left = df - k + 2
    return float(stats.f.sf(left / (df * (k - 1)) * q, k - 1, left)) if left > 0 else np.nan


def _q(tau2: float, along: Float[np.ndarray, " contrasts"], values: Float[np.ndarray, " contrasts"]) -> float:
    """Return Cochran's Q about the generalised least squares mean."""
    variance = values + tau2
    different = along != 0
    if (different & (variance == 0)).any():
        return np.inf
    return float((along[different] ** 2 / variance[different]).sum())
