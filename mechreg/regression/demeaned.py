"""Demeaned columns: what the levels of a document, a position or another column leave of them (Frisch, Waugh)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import sparse

from mechreg.schema import GROUP_KEYS


def demeaned(
    values: Float[np.ndarray, "columns rows"], levels: Sequence[Int[np.ndarray, " rows"]]
) -> Float[np.ndarray, "columns rows"]:
    """Return the residuals of columns on a level for every value of one or two keys (without any, on their mean).

    The first key's levels are taken off as means; the second's then solve their normal equations, exactly.

    Examples
    --------
    >>> demeaned(np.array([[1.0, 2.0, 5.0, 6.0]]), [np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])])
    array([[0., 0., 0., 0.]])
    """
    first, *others = [np.unique(level, return_inverse=True)[1] for level in levels] or [
        np.zeros(values.shape[1], int)
    ]
    to_rows = _indicator(first)
    sizes = np.bincount(first)

    def within(columns: np.ndarray) -> np.ndarray:
        return columns - ((columns @ to_rows) / sizes) @ to_rows.T

    left = within(values)
    if others:
        (second,) = others
        dummies = _indicator(second)
        counts = (to_rows.T @ dummies).toarray()
        normal = np.diag(np.bincount(second).astype(float)) - counts.T @ (counts / sizes[:, None])
        effects = np.linalg.lstsq(normal, (left @ dummies).T, rcond=1e-10)[0].T
        left = left - within(effects @ dummies.T)
    return left


def without_effects(frame: pd.DataFrame, columns: Sequence[str], effects: Sequence[str]) -> pd.DataFrame:
    """Return the complete rows of a lagged frame, these columns demeaned in every model, hook and layer.

    Examples
    --------
    >>> frame = pd.DataFrame({"model": "m", "hook": "z", "layer": 0, "doc": [0, 0, 1, 1], "y": [1.0, 2.0, 5.0, 7.0]})
    >>> without_effects(frame, ["y"], ["doc"])["y"].tolist()
    [-0.5, 0.5, -1.0, 1.0]
    """
    rows = frame.dropna(subset=list(columns))
    keys = [key for key in (*GROUP_KEYS, "head") if key in rows.columns]
    new = np.empty((len(columns), len(rows)))
    table = rows[list(columns)].to_numpy("float64").T
    codes = [pd.factorize(rows[name])[0] for name in effects]
    for place in rows.groupby(keys, observed=True, sort=False).indices.values():
        new[:, place] = demeaned(table[:, place], [code[place] for code in codes])
    return rows.assign(**dict(zip(columns, new, strict=True)))


def _indicator(level: Int[np.ndarray, " rows"]) -> sparse.csr_array:
    """Return rows x levels, 1 where a row has the level."""
    return sparse.csr_array((np.ones(len(level)), (np.arange(len(level)), level)))
