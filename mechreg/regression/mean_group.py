"""Mean group: every document's own slopes, averaged, beside the pooled regression, and how far documents differ."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from mechreg.formulas import formula_columns
from mechreg.outside import any_frames
from mechreg.regression.blocks import Codes, Columns
from mechreg.regression.clusters import require_two
from mechreg.regression.fits import fit_lagged
from mechreg.regression.fixed_effects import require_effects
from mechreg.regression.results import t_columns
from mechreg.regression.rows import Rows, absorbed_parts, read_groups
from mechreg.schema import GROUP_KEYS, TOKEN_KEYS, group_columns, require, require_shared

WHO = "mean_group"
# Rows of a half document beside its terms, and the condition of a document's correlations, that slopes are taken from.
LEAST_ROWS, MAX_CONDITION = 2, 1e8


class _Slopes(NamedTuple):
    """The slopes of every document, or of every first or second half."""

    estimate: Float[np.ndarray, "docs terms"]
    variance: Float[np.ndarray, "docs terms"]
    usable: Bool[np.ndarray, " docs"]


@any_frames
def mean_group(
    lagged: pd.DataFrame,
    formula: str = "log_norm ~ lag1 + lag2",
    *,
    effects: str | Sequence[str] = ("position",),
    conf_level: float = 0.95,
) -> pd.DataFrame:
    """Return the mean over documents of their own slopes, half-panel jackknifed, beside the pooled coefficients.

    Pooled coefficients are larger where levels differ between documents or norms have a trend. Here every document has
    its level and its slopes, and every position its own effect. A short document's slopes are too small (Nickell
    1981); twice those less the mean of its halves' is not.

    Parameters
    ----------
    lagged, formula, conf_level
        As for `fit_lagged`, with doc, window and position.
    effects : str or sequence of str
        Columns whose levels are taken off beside the documents'; () for none.

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) depth, term; pooled (`fit_lagged`), within (the same with all effects), estimate
        (mean group), std_error, statistic, df, p_value, conf_low, conf_high (from the slopes' spread over documents,
        t(documents - 1)); uncorrected (without the jackknife); spread (the slopes' standard deviation over documents
        less what their errors add); n, n_docs, n_docs_short (documents too short for slopes of halves).

    Raises
    ------
    SchemaError, InputError
        As `fit_lagged`; fewer than two documents that are long enough.

    Notes
    -----
    Mean group: Pesaran, Smith (1995). Half-panel jackknife: Dhaene, Jochmans (2015).

    Examples
    --------
    >>> from mechreg.lags import add_lags
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(["a", "b", "c"], 50),
    ...                       "window": 0, "position": np.tile(range(50), 3), "norm": rng.lognormal(size=150)})
    >>> mean_group(add_lags(norms))[["term", "df", "n_docs"]].values.tolist()
    [['lag1', 2.0, 3], ['lag2', 2.0, 3]]
    """
    others = require_effects(effects)
    require_shared(conf_level=conf_level)
    columns = formula_columns(formula)
    require(lagged, (*GROUP_KEYS, *TOKEN_KEYS, *columns, *others), who=WHO)
    names = tuple(dict.fromkeys(("doc", *others)))
    keys = group_columns(lagged)
    groups = read_groups(lagged, columns, cluster="doc", effects=names)
    table = pd.concat([_rows(rows, formula, float(conf_level)) for rows in groups], ignore_index=True)
    for name, taken_off in {"pooled": (), "within": names}.items():
        fitted = fit_lagged(lagged, formula, cov="nonrobust", effects=taken_off).coefficients
        fitted = fitted[[*keys, "term", "estimate"]].rename(columns={"estimate": name})
        table = table.merge(fitted, on=[*keys, "term"], how="left")
    first = [*keys, "depth", "term", "pooled", "within"]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _rows(rows: Rows, formula: str, conf_level: float) -> pd.DataFrame:
    parts = absorbed_parts(formula, rows)
    halves = _sums(parts.values, rows.layout.cluster)
    whole = _slopes(halves.sum(axis=1))
    first, second = (_slopes(halves[:, half]) for half in (0, 1))
    usable = whole.usable & first.usable & second.usable
    count = int(usable.sum())
    having = f" with {len(parts.names) + LEAST_ROWS} complete rows in each half"
    require_two(count, "documents", who=WHO, where=rows.where, having=having)
    own = (2 * whole.estimate - (first.estimate + second.estimate) / 2)[usable]
    estimate, error = own.mean(axis=0), own.std(axis=0, ddof=1) / np.sqrt(count)
    spread = whole.estimate[usable].var(axis=0, ddof=1) - whole.variance[usable].mean(axis=0)
    columns: dict[str, Any] = {
        **rows.keys,
        "depth": rows.depth,
        "term": parts.names[:-1],
        **t_columns(estimate, error, count - 1.0, conf_level),
        "uncorrected": whole.estimate[usable].mean(axis=0),
        "spread": np.sqrt(np.maximum(spread, 0.0)),
        "n": int(np.isin(rows.layout.cluster, np.flatnonzero(usable)).sum()),
        "n_docs": count,
        "n_docs_short": len(usable) - count,
    }
    return pd.DataFrame(columns)


def _sums(values: Columns, doc: Codes) -> Float[np.ndarray, "docs two sums sums"]:
    """Return the sums of [1, values] [1, values]' over the first and the second half of every document's rows."""
    sizes = np.bincount(doc)
    begin = np.cumsum([0, *sizes[:-1]])
    second = 2 * (np.arange(len(doc)) - begin[doc]) >= sizes[doc]
    z = np.concatenate([np.ones((1, len(doc))), values])
    sums = np.zeros((len(sizes), 2, len(z), len(z)))
    number = 2 * doc + second
    for i in range(len(z)):
        for j in range(i, len(z)):
            summed = np.bincount(number, z[i] * z[j], 2 * len(sizes)).reshape(-1, 2)
            sums[..., i, j] = sums[..., j, i] = summed
    return sums


def _slopes(sums: Float[np.ndarray, "docs sums sums"]) -> _Slopes:
    """Return the slopes about each document's means, and their own variances."""
    n = sums[:, 0, 0]
    with np.errstate(all="ignore"):
        about = sums[:, 1:, 1:] - sums[:, 1:, :1] * sums[:, :1, 1:] / n[:, None, None]
        scale = np.sqrt(np.diagonal(about, axis1=1, axis2=2))
        scaled = about / scale[:, :, None] / scale[:, None, :]
    k = scaled.shape[1] - 1
    enough = (n >= k + 1 + LEAST_ROWS) & np.isfinite(scaled).all(axis=(1, 2))
    scaled = np.where(enough[:, None, None], scaled, np.eye(k + 1))
    scale = np.where(enough[:, None], scale, 1.0)
    usable = enough & (np.linalg.cond(scaled[:, :k, :k]) < MAX_CONDITION)
    inverse = np.linalg.inv(np.where(usable[:, None, None], scaled[:, :k, :k], np.eye(k)))
    slope = (inverse @ scaled[:, :k, k:])[..., 0]
    left = np.maximum(1 - (slope * scaled[:, :k, k]).sum(axis=1), 0.0) / np.maximum(n - k - 1, 1.0)
    unit = scale[:, k:] / scale[:, :k]
    variance = left[:, None] * np.diagonal(inverse, axis1=1, axis2=2) * unit**2
    return _Slopes(slope * unit, variance, usable)
