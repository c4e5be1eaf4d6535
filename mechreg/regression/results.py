"""Results: the coefficient frame and the statistics frame from every group's blocks."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from mechreg.regression.blocks import Blocks
from mechreg.regression.diagnostics import fit_statistics, residual_statistics
from mechreg.regression.max_t import Influence, influence, max_t
from mechreg.regression.solve import Clusters, Solution, changes_without, clusters_of, product_covariance
from mechreg.regression.tables import adjusted_p, typed
from mechreg.schema import COEFFICIENT_COLUMNS, STATISTICS_COLUMNS, InputError

# So far back at most are products summed.
MAX_LAGS = 10_000


def require_summable(cov: str) -> None:
    """Refuse a covariance that no sums have."""
    if cov in ("hc2", "hc3"):
        raise InputError(
            f"cov={cov!r} needs a second look at the rows; use fit_lagged on one frame, or cov='crv3'."
        )


class Fit(NamedTuple):
    """One group, solved."""

    keys: dict[str, Any]
    depth: float
    n_dropped: int
    blocks: Blocks
    solution: Solution
    where: str


class Covariance(NamedTuple):
    """A covariance of the coefficients in the orthonormal basis, and the t distribution that goes with it."""

    matrix: Float[np.ndarray, "terms terms"]
    df: int
    label: str
    clusters: Clusters | None
    kind: str


def coefficient_frame(
    fits: list[Fit],
    *,
    cov: str,
    adjust: str,
    cluster: str | None,
    hac_lags: int | None,
    conf_level: float,
    seed: int,
    by: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Return a row for every term of every fit."""
    parts, shares = [], []
    for fit in fits:
        covariance = _covariance(fit, cov, cluster, hac_lags)
        part = _rows(fit, covariance, conf_level)
        parts.append(part)
        if adjust == "max-t":
            shares.append(_share(fit, covariance, part["statistic"].to_numpy(), cov))
    table = pd.concat(parts, ignore_index=True)
    p = adjusted_p(table, adjust)
    if adjust == "max-t":
        families = pd.DataFrame([fit.keys for fit in fits]).groupby(["model", "hook"], sort=False).indices
        number = np.repeat(np.arange(len(fits)), [len(part) for part in parts])
        tested = (table["term"] != "Intercept").to_numpy()
        for members in families.values():
            here = np.isin(number, members) & tested
            if here.any():
                p[here] = max_t([shares[member] for member in np.sort(members)], seed=seed)
    return typed(table.assign(p_adjusted=p), COEFFICIENT_COLUMNS, by=by)


def statistics_frame(fits: list[Fit], *, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return a row for every fit, all from the nonrobust fit; NaN where products were not kept."""
    rows = []
    for fit in fits:
        tests = residual_statistics(fit.solution, fit.blocks)._asdict()
        start = {**fit.keys, "depth": fit.depth, "n": fit.solution.n, "n_docs": len(fit.blocks.docs)}
        rows.append(start | fit_statistics(fit.solution) | tests)
    return typed(pd.DataFrame(rows), STATISTICS_COLUMNS, by=by)


def residual_frame(fits: list[Fit]) -> pd.DataFrame:
    """Return skewness, kurtosis and first-order autocorrelation of every fit's residuals."""
    rows = []
    for fit in fits:
        tests = residual_statistics(fit.solution, fit.blocks)
        rows.append({**fit.keys, "depth": fit.depth, "n": fit.solution.n} | tests.moments())
    return pd.DataFrame(rows)


def _rows(fit: Fit, covariance: Covariance, conf_level: float) -> pd.DataFrame:
    solution = fit.solution
    weights = solution.to_terms
    error = np.sqrt(((weights @ covariance.matrix) * weights).sum(axis=1))
    statistic = solution.estimate / error
    half = stats.t.ppf((1 + conf_level) / 2, covariance.df) * error
    about = fit_statistics(solution)
    return pd.DataFrame(
        {
            **fit.keys,
            "depth": fit.depth,
            "term": solution.names,
            "estimate": solution.estimate,
            "std_error": error,
            "statistic": statistic,
            "df": float(covariance.df),
            "p_value": 2 * stats.t.sf(np.abs(statistic), covariance.df),
            "conf_low": solution.estimate - half,
            "conf_high": solution.estimate + half,
            "n": solution.n,
            "n_docs": len(fit.blocks.docs),
            "n_dropped": fit.n_dropped,
            "r_squared": about["r_squared"],
            "adj_r_squared": about["adj_r_squared"],
            "cov_type": covariance.label,
        }
    )


def _covariance(fit: Fit, cov: str, cluster: str | None, hac_lags: int | None) -> Covariance:
    """Return the covariance that was asked for; "auto" depends on the clusters."""
    solution, blocks = fit.solution, fit.blocks
    n, k, count = solution.n, len(solution.names), len(blocks.labels)
    kind = ("crv3" if count > 1 else "nonrobust") if cov == "auto" else cov
    if kind == "nonrobust":
        label = "nonrobust"
        if cov == "auto":
            label += f" (single {'document' if cluster in (None, 'doc') else cluster})"
        return Covariance(solution.residual_ss / solution.df * np.eye(k), solution.df, label, None, kind)
    if kind in ("hc0", "hc1", "hac"):
        factor = 1.0 if kind == "hc0" else n / solution.df
        weights, label = np.ones(1), kind
        if kind == "hac":
            weights = _bartlett(fit, hac_lags)
            label = f"hac({len(weights) - 1})"
        if not blocks.lagged.shape[1]:
            raise InputError(
                f"cov={kind!r} needs the sums of products; make LagSums with max_lag=, 0 or more."
            )
        return Covariance(
            factor * product_covariance(solution, blocks, weights), solution.df, label, None, kind
        )
    if count < 2:
        raise InputError(
            f"cov={kind!r} needs at least two clusters; {fit.where} has one {cluster!r}. Use cov='auto'."
        )
    clusters = clusters_of(solution, blocks)
    label = kind if cluster == "doc" else f"{kind} ({cluster})"
    if kind in ("cr0", "crv1"):
        moved = clusters.score
        factor = 1.0 if kind == "cr0" else count / (count - 1) * (n - 1) / (n - k)
    else:
        moved = changes_without(clusters, cov=kind, where=fit.where, cluster=str(cluster))
        moved = moved - moved.mean(axis=0) if kind == "jackknife" else moved
        factor = (count - 1) / count
    return Covariance(factor * moved.T @ moved, count - 1, label, clusters, kind)


def _bartlett(fit: Fit, hac_lags: int | None) -> Float[np.ndarray, " lags"]:
    """Return the weights of Newey and West, or say what they lack."""
    longest, kept = fit.blocks.longest, fit.blocks.lagged.shape[1] - 1
    if longest < 2:
        raise InputError(f"cov='hac' needs a window with two complete rows or more; {fit.where} has none.")
    if fit.blocks.has_gaps:
        raise InputError(
            f"cov='hac' needs windows without gaps; {fit.where} lacks rows inside one. Use cov='crv3'."
        )
    lags = min(int(4 * (longest / 100) ** (2 / 9)), longest - 1) if hac_lags is None else int(hac_lags)
    if min(lags, longest - 1) > kept:  # beyond the longest window there are no pairs
        raise InputError(
            f"cov='hac' with {lags} lags needs sums as far back; they were kept to lag {kept}. Make LagSums with "
            f"max_lag={lags}."
        )
    return 1 - np.arange(lags + 1) / (lags + 1)


def _share(fit: Fit, covariance: Covariance, statistic: Float[np.ndarray, " terms"], cov: str) -> Influence:
    """Return what max-T needs of a fit."""
    if covariance.kind not in ("crv1", "crv3") or covariance.clusters is None:
        raise InputError(
            f"adjust='max-t' resamples clusters: it needs cov='crv3', 'crv1', or 'auto' with two clusters or more; "
            f"{fit.where} has cov={cov!r} and {len(fit.blocks.labels)}."
        )
    tested = np.array([name != "Intercept" for name in fit.solution.names])
    count, n, k = len(fit.blocks.labels), fit.solution.n, len(tested)
    is_jackknife = covariance.kind == "crv3"
    return influence(
        statistic[tested],
        fit.solution.to_terms[tested],
        covariance.clusters.score,
        covariance.clusters.products,
        jackknife=is_jackknife,
        factor=(count - 1) / count if is_jackknife else count / (count - 1) * (n - 1) / (n - k),
        labels=covariance.clusters.labels,
    )
