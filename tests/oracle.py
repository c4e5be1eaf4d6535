"""Statsmodels as the oracle: the tables of `fit_lagged` by its own covariances, group after group, from the rows."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.diagnostic import het_breuschpagan
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.sandwich_covariance import weights_bartlett
from statsmodels.stats.stattools import jarque_bera

from mechreg.regression import formula_columns
from mechreg.regression.evaluation import environment, plain_column
from mechreg.schema import COEFFICIENT_COLUMNS, STATISTICS_COLUMNS, TOKEN_KEYS

CLUSTERED = {"crv1": "cluster", "crv3": "cluster-crv3", "jackknife": "cluster-jk"}


def by_statsmodels(
    lagged,
    formula="log_norm ~ lag1 + lag2",
    *,
    cov="auto",
    adjust="bh",
    cluster="doc",
    by=(),
    hac_lags=None,
    conf_level=0.95,
):
    """Return an object with the coefficients and statistics that statsmodels gives."""
    keys = ["model", "hook", "layer", *(["head"] if "head" in lagged else []), *by]
    groups = dict(list(lagged.groupby(keys, observed=True, sort=False)))
    first = {key: list(lagged[key].unique()) for key in ("model", "hook")}
    parts, statistics = [], []
    for names in sorted(
        groups, key=lambda g: (first["model"].index(g[0]), first["hook"].index(g[1]), *g[2:])
    ):
        rows = groups[names]
        about = dict(zip(keys, names, strict=True))
        about["depth"] = rows["depth"].iloc[0] if "depth" in rows else np.nan
        complete = rows.dropna(subset=list(formula_columns(formula)))
        complete = complete.sort_values([key for key in TOKEN_KEYS if key in rows]).reset_index(drop=True)
        about |= {"n": len(complete), "n_docs": complete["doc"].nunique() if "doc" in rows else 0}
        data = pd.DataFrame({name: plain_column(complete[name]) for name in formula_columns(formula)})
        model = smf.ols(formula, data, missing="raise", eval_env=environment())
        fit, label = with_covariance(model, complete, cov, cluster, hac_lags)
        df = np.full(len(fit.params), float(getattr(fit, "df_resid_inference", None) or fit.df_resid))
        if label.startswith(("crv3", "jackknife")):
            df = bell_mccaffrey(model.exog, pd.factorize(complete[cluster])[0])
        error, statistic = np.asarray(fit.bse), np.asarray(fit.tvalues)
        half = stats.t.ppf((1 + conf_level) / 2, df) * error
        low, high = np.asarray(fit.params) - half, np.asarray(fit.params) + half
        part = {
            "term": model.exog_names,
            "estimate": fit.params,
            "std_error": error,
            "statistic": statistic,
        }
        part |= {
            "df": df,
            "p_value": 2 * stats.t.sf(np.abs(statistic), df),
            "conf_low": low,
            "conf_high": high,
        }
        part = pd.DataFrame({key: np.asarray(values) for key, values in part.items()})
        parts.append(
            part.assign(
                **about,
                n_dropped=len(rows) - len(complete),
                r_squared=fit.rsquared,
                adj_r_squared=fit.rsquared_adj,
                cov_type=label,
            )
        )
        statistics.append(about | {"n_sinks": 0} | residual_statistics(model.fit(), complete))
    table = pd.concat(parts, ignore_index=True)
    p = np.where(table["term"] == "Intercept", np.nan, table["p_value"])
    if adjust != "none":
        for _, family in table[np.isfinite(p)].groupby(["model", "hook"], observed=True):
            method = {"bh": "fdr_bh"}.get(adjust, adjust)
            p[family.index] = multipletests(family["p_value"], method=method)[1]
    order = [*keys, *(name for name in COEFFICIENT_COLUMNS if name not in keys)]
    coefficients = table.assign(p_adjusted=p)[order].astype(COEFFICIENT_COLUMNS)
    order = [*keys, *(name for name in STATISTICS_COLUMNS if name not in keys)]
    return SimpleNamespace(
        coefficients=coefficients, statistics=pd.DataFrame(statistics)[order].astype(STATISTICS_COLUMNS)
    )


def with_covariance(model, rows, cov, cluster, hac_lags):
    """Return statsmodels' fit with its own covariance, and our name of that."""
    kind = ("crv3" if rows[cluster].nunique() > 1 else "nonrobust") if cov == "auto" else cov
    label, options = kind, {}
    if kind in CLUSTERED:
        options = {"groups": pd.factorize(rows[cluster], sort=True)[0]}
        label = kind if cluster == "doc" else f"{kind} ({cluster})"
    elif kind == "hac":  # plain HAC would cross windows
        window = rows.groupby(["doc", "window"], observed=True, sort=False).ngroup().to_numpy()
        longest = int(np.bincount(window).max())
        lags = min(int(4 * (longest / 100) ** (2 / 9)), longest - 1) if hac_lags is None else hac_lags
        label = f"hac({lags})"
        options = {
            "groups": window,
            # Beyond the longest window there are no pairs and statsmodels raises; the weights stay those of `lags`.
            "maxlags": min(lags, longest - 1),
            "kernel": lambda last: weights_bartlett(lags)[: last + 1],
            "use_correction": "hac",
            "df_correction": False,
        }
    elif cov == "auto":
        label = f"nonrobust (single {'document' if cluster == 'doc' else cluster})"
    name = CLUSTERED.get(kind) or {"hac": "hac-panel", "nonrobust": kind}.get(kind, kind.upper())
    return model.fit(cov_type=name, cov_kwds=options, use_t=True), label


def bell_mccaffrey(exog, cluster, power=-1.0):
    """Return Satterthwaite's df from the rows themselves: the p_g of Bell and McCaffrey as columns as long as the data.

    The power is -1 for CR3 and -1/2 for CR2, of 1 - the cluster's projection; null directions stay null.
    """
    inverse, dfs = np.linalg.pinv(exog.T @ exog), []
    rows = [np.flatnonzero(cluster == g) for g in range(cluster.max() + 1)]
    adjusted = []
    for own in rows:
        if len(own) > 500 and power == -1.0:  # what it comes to, by the regression without the cluster
            others = np.delete(np.arange(len(exog)), own)
            adjusted.append(exog[own] @ np.linalg.inv(exog[others].T @ exog[others]))
            continue
        values, vectors = np.linalg.eigh(np.eye(len(own)) - exog[own] @ inverse @ exog[own].T)
        values = np.where(values > 1e-9, np.maximum(values, 1e-9) ** power, 0.0)
        adjusted.append((vectors * values) @ vectors.T @ exog[own] @ inverse)
    for term in range(exog.shape[1]):
        p = np.zeros((len(exog), len(rows)))
        for g, own in enumerate(rows):
            p[own, g] = adjusted[g][:, term]
        p -= exog @ (inverse @ (exog.T @ p))
        products = p.T @ p
        dfs.append(np.trace(products) ** 2 / (products**2).sum())
    return np.array(dfs)


def residual_statistics(fit, rows) -> dict[str, float]:
    """Return the statistics of a nonrobust fit; no pair of rows crosses a window or a gap in it."""
    residual, exog = np.asarray(fit.resid), fit.model.exog
    try:
        pagan, pagan_p, _, _ = het_breuschpagan(residual, exog)
    except ValueError:  # defined with an intercept and a regressor only
        pagan = pagan_p = np.nan
    normality, normality_p, _, _ = jarque_bera(residual)
    godfrey = godfrey_p = watson = np.nan
    if set(TOKEN_KEYS) <= set(rows):
        same = (rows[["doc", "window"]] == rows[["doc", "window"]].shift()).all(axis=1)
        follows = (same & (rows["position"].diff() == 1)).to_numpy()
        if follows.any():
            before = np.where(follows, np.roll(residual, 1), 0.0)
            watson = float(((residual - before)[follows] ** 2).sum() / (residual**2).sum())
            constant = np.ones((len(residual), 0 if fit.k_constant else 1))
            godfrey = len(residual) * OLS(residual, np.column_stack([exog, constant, before])).fit().rsquared
            godfrey_p = stats.chi2.sf(godfrey, 1)
    return {
        "r_squared": fit.rsquared, "adj_r_squared": fit.rsquared_adj, "f_statistic": fit.fvalue,
        "f_p_value": fit.f_pvalue, "aic": fit.aic, "bic": fit.bic, "residual_sd": np.sqrt(fit.scale),
        "breusch_godfrey": godfrey, "breusch_godfrey_p": godfrey_p, "breusch_pagan": pagan,
        "breusch_pagan_p": pagan_p, "jarque_bera": normality, "jarque_bera_p": normality_p, "durbin_watson": watson,
    }  # fmt: skip
