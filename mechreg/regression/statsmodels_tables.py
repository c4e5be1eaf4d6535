"""Tables by statsmodels, group after group: what needs the rows themselves, and what the sums are tested against."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.diagnostic import het_breuschpagan
from statsmodels.stats.stattools import jarque_bera

from mechreg.regression.statsmodels_covariances import fit_with_covariance, require_fittable
from mechreg.regression.statsmodels_groups import Group, Recipe, read, split
from mechreg.regression.tables import adjusted_p, typed
from mechreg.schema import COEFFICIENT_COLUMNS, STATISTICS_COLUMNS, require_one_processing


def statsmodels_tables(frame: pd.DataFrame, recipe: Recipe, adjust: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the coefficient frame (where ``adjust`` is "max-t", with plain p values) and the statistics frame."""
    places = split(frame, by=recipe.by, who="fit_lagged")
    require_one_processing({place.keys["model"] for place in places}, who="fit_lagged")
    for place in places:
        require_fittable(read(frame, place, recipe), recipe)
    parts, statistics = [], []
    for place in places:  # read again: a result holds all its rows, so only one group's are there at a time
        group = read(frame, place, recipe)
        model = group.model(recipe.formula)
        fit, label = fit_with_covariance(model, group, recipe)
        parts.append(coefficient_rows(fit, group, cov_type=label, conf_level=recipe.conf_level))
        statistics.append(statistics_row(model.fit(), group))
    table = pd.concat(parts, ignore_index=True)
    coefficients = table.assign(p_adjusted=adjusted_p(table, adjust))
    return (
        typed(coefficients, COEFFICIENT_COLUMNS, by=recipe.by),
        typed(pd.DataFrame(statistics), STATISTICS_COLUMNS, by=recipe.by),
    )


def coefficient_rows(fit: Any, group: Group, *, cov_type: str, conf_level: float) -> pd.DataFrame:
    """Return a row for every term, ``p_adjusted`` not yet among the columns."""
    low, high = np.asarray(fit.conf_int(alpha=1 - conf_level)).T
    return pd.DataFrame(
        {
            **group.place.keys,
            "depth": group.depth,
            "term": fit.model.exog_names,
            "estimate": np.asarray(fit.params),
            "std_error": np.asarray(fit.bse),
            "statistic": np.asarray(fit.tvalues),
            "df": float(getattr(fit, "df_resid_inference", None) or fit.df_resid),
            "p_value": np.asarray(fit.pvalues),
            "conf_low": low,
            "conf_high": high,
            "n": int(fit.nobs),
            "n_docs": group.n_docs,
            "n_dropped": group.n_dropped,
            "r_squared": fit.rsquared,
            "adj_r_squared": fit.rsquared_adj,
            "cov_type": cov_type,
        }
    )


def statistics_row(fit: Any, group: Group) -> dict[str, Any]:
    """Return the statistics of a nonrobust fit."""
    residual = np.asarray(fit.resid)
    try:
        breusch_pagan, breusch_pagan_p, _, _ = het_breuschpagan(residual, fit.model.exog)
    except ValueError:  # defined with an intercept and a regressor only
        breusch_pagan = breusch_pagan_p = np.nan
    normality, normality_p, _, _ = jarque_bera(residual)
    godfrey, godfrey_p, watson = serial_correlation(residual, fit.model.exog, fit.k_constant, group.follows)
    return {
        **group.place.keys,
        "depth": group.depth,
        "n": int(fit.nobs),
        "n_docs": group.n_docs,
        "r_squared": fit.rsquared,
        "adj_r_squared": fit.rsquared_adj,
        "f_statistic": fit.fvalue,
        "f_p_value": fit.f_pvalue,
        "aic": fit.aic,
        "bic": fit.bic,
        "residual_sd": np.sqrt(fit.scale),
        "breusch_godfrey": godfrey,
        "breusch_godfrey_p": godfrey_p,
        "breusch_pagan": breusch_pagan,
        "breusch_pagan_p": breusch_pagan_p,
        "jarque_bera": normality,
        "jarque_bera_p": normality_p,
        "durbin_watson": watson,
    }


def serial_correlation(
    residual: Float[np.ndarray, " rows"],
    exog: Float[np.ndarray, "rows terms"],
    has_constant: int,
    follows: Bool[np.ndarray, " follows"],
) -> tuple[float, float, float]:
    """Return Breusch-Godfrey of order 1 with its p, and Durbin-Watson; no pair of rows crosses a window.

    With one window these are statsmodels' acorr_breusch_godfrey and durbin_watson; over several, Durbin-Watson
    is summed as in a panel (Bhargava, Franzini, Narendranathan 1982). All are NaN where no row follows another, as
    in a part of speech that never stands twice in a row.
    """
    if not follows.any():  # the frame does not say what comes before what, or no row comes after another
        return np.nan, np.nan, np.nan
    before = np.where(follows, np.roll(residual, 1), 0.0)
    watson = float(((residual - before)[follows] ** 2).sum() / (residual**2).sum())
    constant = np.ones((len(residual), 0 if has_constant else 1))
    auxiliary = OLS(residual, np.column_stack([exog, constant, before])).fit()
    godfrey = float(len(residual) * auxiliary.rsquared)
    return godfrey, float(stats.chi2.sf(godfrey, 1)), watson
