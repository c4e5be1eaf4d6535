"""Results: covariances, and the coefficient frame and the statistics frame of solved groups."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mechreg.regression.blocks import MAX_SUMMED_LAGS
from mechreg.regression.clusters import Clusters, clusters_of, effective_df, left_out, of_each, require_two
from mechreg.regression.max_t import Influence, influence, max_t
from mechreg.regression.residuals import Products, Residuals, fit_statistics
from mechreg.regression.solve import Fit
from mechreg.schema import (
    AUTO_COV,
    COEFFICIENT_COLUMNS,
    STATISTICS_COLUMNS,
    InputError,
    NumericalError,
    group_columns,
    require_option,
    require_shared,
    require_whole_number,
)

Adjust = Literal["bh", "bonferroni", "holm", "max-t", "none"]
_MULTIPLETESTS = {"bh": "fdr_bh", "bonferroni": "bonferroni", "holm": "holm"}
# The covariances that have clusters; "auto" is one of them, or nonrobust where all rows are of one cluster.
CLUSTERED = ("auto", "crv1", "crv2", "crv3", "jackknife", "cr0")


class Covariance(NamedTuple):
    """A covariance of the coefficients in the orthonormal basis, and the t distribution of each coefficient."""

    kind: str
    label: str
    matrix: Float[np.ndarray, "terms terms"]
    df: Float[np.ndarray, " terms"]
    clusters: Clusters | None = None


def require_table_options(
    cov: str, known: Sequence[str], adjust: str, hac_lags: int | None, conf_level: float, seed: int
) -> None:
    """Check the options of a coefficient frame, whose covariance is one of the ``known``."""
    require_option(cov, known, name="cov")
    require_option(adjust, get_args(Adjust), name="adjust")
    require_shared(conf_level=conf_level, seed=seed)
    if hac_lags is not None:
        require_whole_number(hac_lags, name="hac_lags", least=0, most=MAX_SUMMED_LAGS)
        if cov != "hac":
            raise InputError(f"hac_lags={hac_lags} needs cov='hac'; got cov={cov!r}.")
    if adjust == "max-t" and cov not in ("auto", "crv1", "crv3"):
        raise InputError(f"adjust='max-t' resamples clusters: it needs cov='crv3' or 'crv1'; got {cov!r}.")


def coefficient_frame(
    fits: Sequence[Fit],
    covariances: Sequence[Covariance],
    *,
    adjust: str,
    conf_level: float,
    seed: int,
    by: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Return a row for every term of every fit."""
    parts = [_rows(*both, conf_level) for both in zip(fits, covariances, strict=True)]
    table = pd.concat(parts, ignore_index=True)
    number = np.repeat(np.arange(len(fits)), [len(part) for part in parts])

    def of_family(family: pd.DataFrame) -> np.ndarray:
        if adjust in _MULTIPLETESTS:
            return multipletests(family["p_value"], method=_MULTIPLETESTS[adjust])[1]
        if adjust == "none":
            return family["p_value"].to_numpy()
        chosen = np.unique(number[family.index])
        shares = [_share(fits[i], covariances[i], parts[i]["statistic"].to_numpy()) for i in chosen]
        return max_t(shares, seed=seed)

    return _typed(_adjusted(table, of_family), COEFFICIENT_COLUMNS, by)


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the coefficient frames of different layers as one, p adjusted over all of them (Benjamini-Hochberg)."""
    table = _with_heads(pd.concat(tables, ignore_index=True))
    return _adjusted(table, lambda family: multipletests(family["p_value"], method=_MULTIPLETESTS["bh"])[1])


def _adjusted(table: pd.DataFrame, of_family: Callable[[pd.DataFrame], np.ndarray]) -> pd.DataFrame:
    """Return a table with p adjusted over all terms but the intercept in all layers of a (model, hook)."""
    p = np.where(table["term"] == "Intercept", np.nan, table["p_value"])
    for _, family in table[np.isfinite(p)].groupby(["model", "hook"], sort=False, observed=True):
        p[family.index] = of_family(family)
    return table.assign(p_adjusted=p)


def statistics_frame(
    fits: Sequence[Fit], residuals: Sequence[Residuals], *, by: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Return a row for every fit, all from the nonrobust fit; NaN where products were not kept."""
    rows = []
    for fit, tests in zip(fits, residuals, strict=True):
        start = {**fit.keys, "depth": fit.depth, "n": fit.solution.n, "n_docs": len(fit.blocks.docs)}
        start["n_sinks"] = fit.n_sinks
        rows.append(start | fit_statistics(fit.solution) | tests._asdict())
    return _typed(pd.DataFrame(rows), STATISTICS_COLUMNS, by)


def covariance_of(
    fit: Fit,
    products: Products,
    *,
    cov: str,
    cluster: str | None,
    hac_lags: int | None,
    clusters: Clusters | None = None,
) -> Covariance:
    """Return the covariance that was asked for; effects that go across clusters need what those add given."""
    solution, blocks = fit.solution, fit.blocks
    k, count = len(solution.names), len(blocks.labels)
    kind = (AUTO_COV if count > 1 else "nonrobust") if cov == "auto" else cov
    if kind == "nonrobust":
        single = f" (single {'document' if cluster in (None, 'doc') else cluster})" if cov == "auto" else ""
        matrix = solution.residual_ss / solution.df * np.eye(k)
        return Covariance(kind, f"nonrobust{single}", matrix, np.full(k, float(solution.df)))
    if kind not in CLUSTERED:
        return _of_rows(fit, products, kind, hac_lags)
    who = f"cov={kind!r} with cluster={cluster!r}"
    require_two(count, "clusters", who=who, where=fit.where, remedy=" Use cov='auto'.")
    label = kind if cluster == "doc" else f"{kind} ({cluster})"
    if kind in ("cr0", "crv1"):
        clusters = clusters_of(fit)
        factor = 1.0 if kind == "cr0" else crv1_factor(fit, count)
        matrix = factor * clusters.score.T @ clusters.score
        return Covariance(kind, label, matrix, np.full(k, count - 1.0), clusters)
    if blocks.across and (clusters is None or kind == "crv2"):
        raise InputError(
            f"cov={kind!r} cannot be computed from sums where effects have levels in several clusters; in "
            f"{fit.where} some have. Use fit_lagged with cov='crv3', or cov='crv1'."
        )
    clusters = clusters_of(fit) if clusters is None else clusters
    without = left_out(clusters, cov=kind, where=fit.where, cluster=str(cluster))
    moved = of_each(without, clusters.score)
    moved = moved - moved.mean(axis=0) if kind == "jackknife" else moved
    factor = 1.0 if kind == "crv2" else (count - 1) / count
    df = effective_df(clusters, without, solution.to_terms)
    return Covariance(kind, label, factor * moved.T @ moved, df, clusters._replace(across=None))


def crv1_factor(fit: Fit, count: int) -> float:
    """Return Stata's factor of crv1; effects within clusters count as one constant, as in reghdfe and pyfixest."""
    n = fit.solution.n
    parameters = len(fit.solution.names) + fit.blocks.across + (fit.blocks.within > 0)
    return count / (count - 1) * (n - 1) / (n - parameters)


def _of_rows(fit: Fit, products: Products, kind: str, hac_lags: int | None) -> Covariance:
    """Return a covariance from the products of each row's score: White's, or Newey's and West's."""
    solution = fit.solution
    scores, label, weights = products.times(products.x, products.e), kind, np.ones(1)
    factor = 1.0 if kind == "hc0" else solution.n / solution.df
    if kind in ("hc2", "hc3"):
        if solution.absorbed:
            raise InputError(f"cov={kind!r} needs the leverage of effects; use cov='hc1' or 'crv3'.")
        if products.leverage is None:
            raise InputError(
                f"cov={kind!r} needs a second look at the rows; use fit_lagged on one frame, or cov='crv3'."
            )
        one_minus_leverage = 1 - products.leverage
        if one_minus_leverage.min() < 1e-10:
            raise NumericalError(
                f"cov={kind!r} divides by 1 - leverage; in {fit.where} one row has a term to itself. Use cov='hc1'."
            )
        scores, factor = scores / one_minus_leverage ** (0.5 if kind == "hc2" else 1.0), 1.0
    if kind == "hac":
        weights = _bartlett(fit, products.max_lag, hac_lags)
        label = f"hac({len(weights) - 1})"
    if products.max_lag < 0:
        raise InputError(f"cov={kind!r} needs the sums of products; make LagSums with max_lag=, 0 or more.")
    total = products.total(0, scores, scores)
    for lag in range(1, min(len(weights), max(fit.blocks.longest, 1))):  # beyond, there are no pairs
        part = weights[lag] * products.total(lag, scores, scores)
        total = total + part + part.T
    return Covariance(kind, label, factor * total, np.full(len(total), float(solution.df)))


def _bartlett(fit: Fit, kept: int, hac_lags: int | None) -> Float[np.ndarray, " lags"]:
    """Return the weights of Newey and West, or say what they lack."""
    longest = fit.blocks.longest
    if longest < 2:
        raise InputError(f"cov='hac' needs a window with two complete rows or more; {fit.where} has none.")
    if fit.blocks.has_gaps:
        raise InputError(f"cov='hac' needs windows without gaps; {fit.where} has some. Use cov='crv3'.")
    lags = usual_lags(longest) if hac_lags is None else int(hac_lags)
    if min(lags, longest - 1) > kept:
        raise InputError(
            f"cov='hac' with {lags} lags needs sums as far back; they were kept to lag {kept}. Make LagSums with "
            f"max_lag={lags}."
        )
    return 1 - np.arange(lags + 1) / (lags + 1)


def usual_lags(longest: int) -> int:
    """Return the lags of Newey and West for windows of at most that many rows."""
    return min(int(4 * (longest / 100) ** (2 / 9)), longest - 1)


def t_columns(
    estimate: Float[np.ndarray, "*terms"],
    error: Float[np.ndarray, "*terms"],
    df: Float[np.ndarray, "*terms"] | float,
    conf_level: float,
) -> dict[str, Any]:
    """Return the columns of estimates whose ratios to their errors have t distributions."""
    statistic, half = estimate / error, stats.t.ppf((1 + conf_level) / 2, df) * error
    return {
        "estimate": estimate,
        "std_error": error,
        "statistic": statistic,
        "df": df,
        "p_value": 2 * stats.t.sf(np.abs(statistic), df),
        "conf_low": estimate - half,
        "conf_high": estimate + half,
    }


def _rows(fit: Fit, covariance: Covariance, conf_level: float) -> pd.DataFrame:
    """Return a row for every term; p is not yet adjusted."""
    solution, weights = fit.solution, fit.solution.to_terms
    error = np.sqrt(((weights @ covariance.matrix) * weights).sum(axis=1))
    about = fit_statistics(solution)
    columns = {**fit.keys, "depth": fit.depth, "term": solution.names}
    columns |= t_columns(solution.estimate, error, covariance.df, conf_level)
    columns |= {"n": solution.n, "n_docs": len(fit.blocks.docs), "n_dropped": fit.n_dropped}
    columns |= {key: about[key] for key in ("r_squared", "adj_r_squared")}
    return pd.DataFrame(columns | {"cov_type": covariance.label})


def _share(fit: Fit, covariance: Covariance, statistic: Float[np.ndarray, " terms"]) -> Influence:
    if covariance.kind not in ("crv1", "crv3") or covariance.clusters is None:
        raise InputError(
            "adjust='max-t' resamples clusters: it needs cov='crv3', 'crv1', or 'auto' with two clusters or more; "
            f"{fit.where} has {covariance.label} and {len(fit.blocks.labels)}."
        )
    tested = np.array([name != "Intercept" for name in fit.solution.names])
    count, without = len(fit.blocks.labels), None
    factor = crv1_factor(fit, count)
    if covariance.kind == "crv3":
        without = left_out(covariance.clusters, cov="crv3", where=fit.where, cluster="cluster")
        factor = (count - 1) / count
    of_terms = statistic[tested], fit.solution.to_terms[tested]
    return influence(*of_terms, covariance.clusters, without, factor=factor)


def _with_heads(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose rows of hook points without heads have head -1, where others have heads."""
    return table.assign(head=table["head"].fillna(-1).astype("int64")) if "head" in table else table


def _typed(table: pd.DataFrame, columns: dict[str, str], by: tuple[str, ...]) -> pd.DataFrame:
    """Return a table with the schema's columns and dtypes; after ``layer`` stand ``head`` (where it is) and ``by``."""
    keys, table = group_columns(table), _with_heads(table)
    others = [name for name in columns if name not in keys]
    return table[[*keys, *by, *others]].astype(columns)
