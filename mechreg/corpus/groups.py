"""Norms by group: the log norm of a part of speech, a source or a genre in every layer, and of how many tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from mechreg.outside import any_frames
from mechreg.schema import (
    GROUP_KEYS,
    InputError,
    group_columns,
    log_norms,
    require,
    require_by,
    require_shared,
)


@any_frames
def group_norms(
    norms: pd.DataFrame, *, by: str | Sequence[str] = ("pos",), skip: int = 1, conf_level: float = 0.95
) -> pd.DataFrame:
    """Return the log norm of every group of tokens in every layer: counts, mean with its interval, quartiles.

    Parameters
    ----------
    norms : pandas.DataFrame
        A norm frame with the columns of ``by`` (`join_annotations`), of tokens or of whole words.
    by : str or sequence of str
        For example "pos" or ("source", "pos").
    skip : int
        How many first positions of each window are left out.
    conf_level : float

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) the columns of ``by``, depth, n (tokens), share (of the layer's tokens), n_docs,
        estimate (mean log norm), std_error, df, conf_low, conf_high, q25, median, q75. Errors are clustered by
        document (crv3, effective df), as those of ``fit_lagged(..., "log_norm ~ 1", by=by)``; NaN with one document.

    Raises
    ------
    SchemaError, InputError, NumericalError
        A missing column or value, no token after the first positions, or a norm without a logarithm.

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
    require_shared(skip=skip, conf_level=conf_level)
    require(norms, (*GROUP_KEYS, "depth", "doc", "position", "norm", *names), who="group_norms")
    for name in names:
        if norms[name].isna().any():  # pandas would silently drop such rows
            raise InputError(f"group_norms needs a value of {name!r} in every row; some are missing.")
    frame = norms[norms["position"] >= skip]
    if not len(frame):
        raise InputError(f"group_norms finds no token after the first {skip} positions.")
    keys = group_columns(frame)
    table = frame[[*keys, "depth", "doc", *names]].assign(log_norm=log_norms(frame, who="group_norms"))
    by_group = table.groupby([*keys, *names], observed=True, sort=True)
    means = by_group.agg(depth=("depth", "first"), n=("log_norm", "size"), estimate=("log_norm", "mean"))
    quartiles = by_group["log_norm"].quantile(np.array([0.25, 0.5, 0.75])).unstack()
    quartiles.columns = ["q25", "median", "q75"]
    of_docs = table.groupby([*keys, *names, "doc"], observed=True)["log_norm"].agg(["size", "mean"])
    table = means.join(_errors(of_docs, means, [*keys, *names])).join(quartiles).reset_index()
    table["share"] = table["n"] / table.groupby(keys, observed=True)["n"].transform("sum")
    half = stdtrit(table["df"], (1 + conf_level) / 2) * table["std_error"]
    table = table.assign(conf_low=table["estimate"] - half, conf_high=table["estimate"] + half)
    numbers = ["n", "share", "n_docs", "estimate", "std_error", "df", "conf_low", "conf_high"]
    return table[[*keys, *names, "depth", *numbers, "q25", "median", "q75"]]


def _errors(of_docs: pd.DataFrame, means: pd.DataFrame, levels: list[str]) -> pd.DataFrame:
    """Return every mean's standard error, from the means without each document, its df, and the documents' number."""
    index: Any = of_docs.index
    total, mean = (means[name].reindex(index.droplevel("doc")).to_numpy() for name in ("n", "estimate"))
    size, own = of_docs["size"].to_numpy(), of_docs["mean"].to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = pd.Series(size * (mean - own) / (total - size), of_docs.index)  # NaN: the only document
        left_out = pd.Series(size / (total - size), of_docs.index)
        parts = {"moved": moved**2, "own": left_out + left_out**2, "shared": left_out**2}
        parts |= {"own_2": parts["own"] ** 2, "mixed": parts["own"] * parts["shared"]}
    sums = pd.DataFrame(parts).groupby(level=levels, observed=True)
    n_docs, total_of = sums.size().reindex(means.index), sums.sum().reindex(means.index)
    together, shared = total_of["own"], total_of["shared"]
    df = (together - shared) ** 2 / (total_of["own_2"] - 2 * total_of["mixed"] + shared**2)
    std_error = np.sqrt((n_docs - 1) / n_docs * total_of["moved"])
    table = pd.DataFrame({"std_error": std_error, "df": df}).where(n_docs > 1, axis=0)
    return table.assign(n_docs=n_docs)
