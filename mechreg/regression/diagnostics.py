"""Diagnostics: what the residuals are asked for, from sums of products alone."""

from typing import NamedTuple

import einops
import numpy as np
from jaxtyping import Float
from scipy import stats

from mechreg.regression.blocks import Blocks, product_weights
from mechreg.regression.solve import Solution


class Residuals(NamedTuple):
    """Moments and tests of one group's residuals; NaN where they are not defined."""

    skewness: float
    kurtosis: float
    autocorrelation: float
    jarque_bera: float
    jarque_bera_p: float
    breusch_pagan: float
    breusch_pagan_p: float
    breusch_godfrey: float
    breusch_godfrey_p: float
    durbin_watson: float

    def moments(self) -> dict[str, float]:
        """Return what is no test."""
        return {key: getattr(self, key) for key in ("skewness", "kurtosis", "autocorrelation")}


def fit_statistics(solution: Solution) -> dict[str, float]:
    """Return R2, F, AIC, BIC and the residuals' sd, as statsmodels defines them."""
    n, k = solution.n, len(solution.names)
    residual_ss, total_ss = solution.residual_ss, solution.total_ss
    df_model = k - solution.has_constant
    r_squared = 1 - residual_ss / total_ss
    likelihood = -n / 2 * (np.log(2 * np.pi) + np.log(residual_ss / n) + 1)
    f = (total_ss - residual_ss) / df_model / (residual_ss / solution.df) if df_model else np.nan
    return {
        "r_squared": r_squared,
        "adj_r_squared": 1 - (n - solution.has_constant) / solution.df * (1 - r_squared),
        "f_statistic": f,
        "f_p_value": float(stats.f.sf(f, df_model, solution.df)) if df_model else np.nan,
        "aic": -2 * likelihood + 2 * k,
        "bic": -2 * likelihood + np.log(n) * k,
        "residual_sd": float(np.sqrt(residual_ss / solution.df)),
    }


def residual_statistics(solution: Solution, blocks: Blocks) -> Residuals:
    """Return what the sums of q_t q_t' and q_t q_(t-1)' say of the residuals.

    Jarque-Bera; Breusch-Pagan in Koenker's form, for designs with an intercept and a regressor; Breusch-Godfrey of
    order 1, the residual before being 0 where a window (or a run of its rows) starts; Durbin-Watson summed within
    windows (Bhargava, Franzini, Narendranathan 1982).
    """
    n, k = solution.n, len(solution.names)
    if not blocks.lagged.shape[1]:
        return Residuals(*[np.nan] * len(Residuals._fields))
    x = einops.rearrange(solution.basis, "cells columns terms -> cells terms columns")
    e = solution.residual[:, None]
    one = np.zeros_like(e)
    one[..., 0] = 1.0
    # Linear forms of the products q: 1, e, e2 and x of a row.
    ones, errors, squares, xs = (product_weights(a, b) for a, b in ((one, one), (e, one), (e, e), (x, one)))

    def total(
        lag: int, first: Float[np.ndarray, "cells a products"], second: Float[np.ndarray, "cells b products"]
    ) -> Float[np.ndarray, "a b"]:
        """Return the sum over rows of first(row t) second(row t - lag)'."""
        found = np.zeros((first.shape[1], second.shape[1]))
        for (now, before), sums in zip(blocks.pairs, blocks.lagged, strict=True):
            found += first[now] @ sums[lag] @ second[before].T
        return found

    mean = total(0, errors, ones).item() / n
    centred, centred_squares = errors - mean * ones, squares - solution.residual_ss / n * ones
    deviation = product_weights(e - mean * one, e - mean * one)
    second, third, fourth = (
        total(0, a, b).item() / n
        for a, b in ((deviation, ones), (deviation, centred), (deviation, deviation))
    )
    skewness, kurtosis = third / second**1.5, fourth / second**2
    normality = n / 6 * (skewness**2 + (kurtosis - 3) ** 2 / 4)

    pagan = np.nan
    if "Intercept" in solution.names and k > 1:
        explained = total(0, xs, centred_squares)
        pagan = n * float((explained**2).sum()) / total(0, centred_squares, centred_squares).item()

    godfrey = watson = autocorrelation = np.nan
    # No row may follow another, as in a part of speech that never stands twice in a row.
    if blocks.longest and blocks.lagged.shape[1] > 1 and total(1, ones, ones).item() > 0.5:
        product = total(1, errors, errors).item()
        now, before = total(1, squares, ones).item(), total(1, ones, squares).item()
        watson = (now - 2 * product + before) / solution.residual_ss
        autocorrelation = product / np.sqrt(now * before) if now * before > 0 else np.nan
        # e on x, 1 and the residual before. x takes up nothing of e: what explains it is the rest of the others.
        with_x, with_e, own = total(1, xs, errors), np.array([product]), np.array([[before]])
        if not solution.has_constant:
            cross = total(1, ones, errors).item()
            with_x = np.concatenate([total(0, xs, ones), with_x], axis=1)
            with_e = np.array([n * mean, product])
            own = np.array([[n, cross], [cross, before]])
        gain = float(with_e @ np.linalg.lstsq(own - with_x.T @ with_x, with_e, rcond=None)[0])
        # The auxiliary R2 is about the mean, which is 0 but for rounding where there is a constant.
        above = 0.0 if solution.has_constant else n * mean**2
        godfrey = n * (gain - above) / (solution.residual_ss - above)
    return Residuals(
        skewness=skewness,
        kurtosis=kurtosis,
        autocorrelation=autocorrelation,
        jarque_bera=normality,
        jarque_bera_p=float(stats.chi2.sf(normality, 2)),
        breusch_pagan=pagan,
        breusch_pagan_p=float(stats.chi2.sf(pagan, k - 1)),
        breusch_godfrey=godfrey,
        breusch_godfrey_p=float(stats.chi2.sf(godfrey, 1)),
        durbin_watson=watson,
    )
