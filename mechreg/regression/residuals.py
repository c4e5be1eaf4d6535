"""Residuals: products of x, e and 1 summed over rows, and the statistics and tests that these give.

The sums come from a group's blocks, which hold q q' of every row; or, for what they cannot hold (each row's leverage,
more products than memory), from the rows in a second look.
"""

from collections.abc import Callable
from typing import NamedTuple

import einops
import numpy as np
from jaxtyping import Float
from scipy import stats

from mechreg.regression.blocks import MAX_SUMMED_LAGS, in_coordinates, product_weights
from mechreg.regression.rows import Rows, absorbed_parts
from mechreg.regression.solve import Fit, Solution

OfRows = np.ndarray  # one or several numbers of every row: as weights on q in every cell, or as they are


class Products(NamedTuple):
    """x (in the orthonormal basis), e and 1 of every row, and how they are multiplied and summed."""

    x: OfRows
    e: OfRows
    one: OfRows
    times: Callable[[OfRows, OfRows], OfRows]
    # The sum over rows t of first(t) second(t - lag)', of rows with such a neighbour in their window.
    total: Callable[[int, OfRows, OfRows], Float[np.ndarray, "first second"]]
    max_lag: int  # -1 where no products were kept
    leverage: Float[np.ndarray, " rows"] | None = None


class Residuals(NamedTuple):
    """Tests of one group's residuals; NaN where they are not defined."""

    jarque_bera: float = np.nan
    jarque_bera_p: float = np.nan
    breusch_pagan: float = np.nan
    breusch_pagan_p: float = np.nan
    breusch_godfrey: float = np.nan
    breusch_godfrey_p: float = np.nan
    durbin_watson: float = np.nan


def summed_products(fit: Fit) -> Products:
    """Return the products of which a group's blocks are sums."""
    solution, blocks = fit.solution, fit.blocks
    e = solution.residual[:, None]
    one = np.zeros_like(e)
    one[..., 0] = 1.0

    def total(
        lag: int, first: Float[np.ndarray, "cells a products"], second: Float[np.ndarray, "cells b products"]
    ) -> Float[np.ndarray, "a b"]:
        summed = np.zeros((first.shape[1], second.shape[1]))
        for (now, before), sums in zip(blocks.pairs, blocks.lagged, strict=True):
            summed += first[now] @ sums[lag] @ second[before].T
        return summed

    x = einops.rearrange(solution.basis, "cells columns terms -> cells terms columns")
    return Products(x, e, one, product_weights, total, blocks.lagged.shape[1] - 1)


def row_products(fit: Fit, rows: Rows, formula: str) -> Products:
    """Return the products of the rows themselves, which are those of which the blocks were made."""
    parts, solution = absorbed_parts(formula, rows), fit.solution
    z = in_coordinates(parts.values, fit.blocks.coordinates)
    x, e = np.empty((len(solution.names), z.shape[1])), np.empty((1, z.shape[1]))
    for cell, (basis, residual) in enumerate(zip(solution.basis, solution.residual, strict=True)):
        here = parts.cell == cell
        x[:, here], e[:, here] = basis.T @ z[:, here], residual @ z[:, here]
    run = rows.layout.run

    def total(
        lag: int, first: Float[np.ndarray, "a rows"], second: Float[np.ndarray, "b rows"]
    ) -> Float[np.ndarray, "a b"]:
        return (first[:, lag:] * (run[lag:] >= lag)) @ second[:, : second.shape[1] - lag].T

    return Products(x, e, np.ones_like(e), np.multiply, total, MAX_SUMMED_LAGS, leverage=(x**2).sum(axis=0))


def fit_statistics(solution: Solution) -> dict[str, float]:
    """Return R2, F, AIC, BIC and the residuals' sd, as statsmodels defines them; R2 and F of what effects leave."""
    n, k = solution.n, solution.to_terms.shape[1]
    parameters = k + solution.absorbed
    residual_ss, total_ss = solution.residual_ss, solution.total_ss
    df_model = k - solution.has_constant
    r_squared = 1 - residual_ss / total_ss
    likelihood = -n / 2 * (np.log(2 * np.pi) + np.log(residual_ss / n) + 1)
    f = (total_ss - residual_ss) / df_model / (residual_ss / solution.df) if df_model else np.nan
    about_mean = n - max(solution.has_constant, solution.absorbed)
    return {
        "r_squared": r_squared,
        "adj_r_squared": 1 - about_mean / solution.df * (1 - r_squared),
        "f_statistic": f,
        "f_p_value": float(stats.f.sf(f, df_model, solution.df)) if df_model else np.nan,
        "aic": -2 * likelihood + 2 * parameters,
        "bic": -2 * likelihood + np.log(n) * parameters,
        "residual_sd": float(np.sqrt(residual_ss / solution.df)),
    }


def residual_statistics(fit: Fit, products: Products) -> Residuals:
    """Return what the products of neighbours say of the residuals.

    Jarque-Bera; Breusch-Pagan in Koenker's form, for designs with an intercept and a regressor; Breusch-Godfrey of
    order 1, the residual before being 0 where a window (or a run of its rows) starts; Durbin-Watson summed within
    windows (Bhargava, Franzini, Narendranathan 1982).
    """
    if products.max_lag < 0:
        return Residuals()
    solution = fit.solution
    n, k = solution.n, len(solution.names)
    e, one, times, total = products.e, products.one, products.times, products.total
    ones, errors, squares, xs = times(one, one), times(e, one), times(e, e), times(products.x, one)

    mean = total(0, errors, ones).item() / n
    centred, centred_squares = errors - mean * ones, squares - solution.residual_ss / n * ones
    deviation = times(e - mean * one, e - mean * one)
    second, third, fourth = (total(0, deviation, of).item() / n for of in (ones, centred, deviation))
    skewness, kurtosis = third / second**1.5, fourth / second**2
    normality = n / 6 * (skewness**2 + (kurtosis - 3) ** 2 / 4)

    pagan = np.nan
    if "Intercept" in solution.names and k > 1:
        explained = total(0, xs, centred_squares)
        pagan = n * float((explained**2).sum()) / total(0, centred_squares, centred_squares).item()

    godfrey = watson = np.nan
    # No row may follow another, as in a part of speech that never stands twice in a row.
    if fit.blocks.longest and products.max_lag > 0 and total(1, ones, ones).item() > 0.5:
        product = total(1, errors, errors).item()
        now, before = total(1, squares, ones).item(), total(1, ones, squares).item()
        watson = (now - 2 * product + before) / solution.residual_ss
    if not np.isnan(watson) and not solution.absorbed:  # its regression would need the effects too
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
        jarque_bera=normality,
        jarque_bera_p=float(stats.chi2.sf(normality, 2)),
        breusch_pagan=pagan,
        breusch_pagan_p=float(stats.chi2.sf(pagan, k - 1)),
        breusch_godfrey=godfrey,
        breusch_godfrey_p=float(stats.chi2.sf(godfrey, 1)),
        durbin_watson=watson,
    )
