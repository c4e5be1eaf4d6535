"""Norms by group: the log norm of a part of speech, a source or a genre in every layer, and of how many tokens."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mechreg.corpus.annotations import group_columns
from mechreg.schema import GROUP_KEYS, InputError, NumericalError, require, require_by


def group_norms(
    norms: pd.DataFrame, *, by: Sequence[str] = ("pos",), skip: int = 1, conf_level: float = 0.95
) -> pd.DataFrame:
    """Return the log norm of every group of tokens in every layer: counts, mean with its interval, quartiles.

    Parameters
    ----------
    norms : pandas.DataFrame
        A norm frame with the columns of ``by`` (`join_annotations`), of tokens or of whole words.
    by : sequence of str
        For example ("pos",), ("source",) or ("source", "pos").
    skip : int
        So many first positions of each window are left out.
    conf_level : float

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) the columns of ``by``, depth, n (tokens), share (of the layer's tokens), n_docs,
        estimate (mean log norm), std_error, df, conf_low, conf_high, q25, median, q75. Errors are clustered by
        document (crv3, t(n_docs - 1)), as those of ``fit_lagged(..., "log_norm ~ 1", by=by)``; NaN with one document.

    Raises
    ------
    SchemaError, InputError
        A missing column or value, or no token after the first positions.
    NumericalError
        A norm without a logarithm.

    Examples
    --------
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "doc": list("ddee"),
    ...                       "position": [1, 2, 1, 2], "norm": np.exp([1.0, 2.0, 3.0, 2.0]), "pos": list("NVNN")})
    >>> group_norms(norms)[["pos", "n", "n_docs", "estimate"]].values.tolist()
    [['N', 3, 2, 2.0], ['V', 1, 1, 2.0]]
    """
    names = require_by(by, who="group_norms")
    if not names:
        raise InputError("group_norms needs at least one column, for example by=('pos',).")
    if isinstance(skip, bool) or not isinstance(skip, Integral) or skip < 0:
        raise InputError(f"skip must be a whole number, 0 or more; got {skip!r}.")
    if isinstance(conf_level, bool) or not isinstance(conf_level, Real) or not 0 < conf_level < 1:
        raise InputError(f"conf_level must be between 0 and 1, for example 0.95; got {conf_level!r}.")
    require(norms, (*GROUP_KEYS, "depth", "doc", "position", "norm", *names), who="group_norms")
    for name in names:
        if norms[name].isna().any():  # pandas would leave such rows out without a word
            raise InputError(f"group_norms needs a value of {name!r} in every row; some are missing.")
    frame = norms[norms["position"] >= skip]
    if not len(frame):
        raise InputError(f"group_norms finds no token after the first {skip} positions.")
    value = frame["norm"].to_numpy(np.float64)
    if not (np.isfinite(value) & (value > 0)).all():
        raise NumericalError("group_norms needs the logarithm of every norm; some are zero, NaN or infinite.")
    keys = group_columns(frame)
    table = frame[[*keys, "depth", "doc", *names]].assign(log_norm=np.log(value))
    by_group = table.groupby([*keys, *names], observed=True, sort=True)
    found = by_group.agg(depth=("depth", "first"), n=("log_norm", "size"), estimate=("log_norm", "mean"))
    quartiles = by_group["log_norm"].quantile(np.array([0.25, 0.5, 0.75])).unstack()
    quartiles.columns = ["q25", "median", "q75"]
    of_docs = table.groupby([*keys, *names, "doc"], observed=True)["log_norm"].agg(["size", "mean"])
    std_error, n_docs = _errors(of_docs, found, [*keys, *names])
    found = found.assign(std_error=std_error, n_docs=n_docs).join(quartiles).reset_index()
    found["share"] = found["n"] / found.groupby(keys, observed=True)["n"].transform("sum")
    found["df"] = np.where(found["n_docs"] > 1, found["n_docs"] - 1.0, np.nan)
    half = stats.t.ppf((1 + conf_level) / 2, found["df"]) * found["std_error"]
    found = found.assign(conf_low=found["estimate"] - half, conf_high=found["estimate"] + half)
    return found[
        [
            *keys, *names, "depth", "n", "share", "n_docs", "estimate", "std_error", "df", "conf_low", "conf_high",
            "q25", "median", "q75",
        ]
    ]  # fmt: skip


def _errors(of_docs: pd.DataFrame, found: pd.DataFrame, levels: list[str]) -> tuple[pd.Series, pd.Series]:
    """Return the standard error of every mean, from the means without each document, and the documents' number."""
    index: Any = of_docs.index
    total, mean = (found[name].reindex(index.droplevel("doc")).to_numpy() for name in ("n", "estimate"))
    size, own = of_docs["size"].to_numpy(), of_docs["mean"].to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = pd.Series(
            size * (mean - own) / (total - size), of_docs.index
        )  # NaN where it is the only document
    groups = moved.groupby(level=levels, observed=True)
    n_docs = groups.size().reindex(found.index)
    squares = (moved**2).groupby(level=levels, observed=True).sum().reindex(found.index)
    return np.sqrt((n_docs - 1) / n_docs * squares).where(n_docs > 1), n_docs
