"""Groups: the complete rows of one (model, hook, layer[, head]), sorted, with their windows and clusters."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from mechreg.regression.rows import plain_keys
from mechreg.regression.statsmodels_formulas import formula_data, ols_model
from mechreg.schema import GROUP_KEYS, TOKEN_KEYS, InputError


class Recipe(NamedTuple):
    """What is done to every group."""

    formula: str
    columns: tuple[str, ...]
    cov: str
    cluster: str
    hac_lags: int | None
    conf_level: float
    by: tuple[str, ...] = ()


class Place(NamedTuple):
    """A group's keys, and where its rows are in the frame."""

    keys: dict[str, Any]
    rows: np.ndarray

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.keys.items())


class Group(NamedTuple):
    """The complete rows of one place, sorted by doc, window, position."""

    place: Place
    rows: Int[np.ndarray, " rows"]
    data: pd.DataFrame  # the formula's columns
    depth: float
    n_docs: int
    n_dropped: int
    cluster: Int[np.ndarray, " rows"]  # codes; empty where the covariance has no clusters
    cluster_names: list[Any]
    window: Int[
        np.ndarray, " rows"
    ]  # codes; empty, as is the next, unless doc, window and position are there
    follows: Bool[np.ndarray, " rows"]  # the row before is the token before, in the same window

    def model(self, formula: str) -> Any:
        """Return statsmodels' model of the rows."""
        return ols_model(self.data, formula, where=str(self.place))


def split(lagged: pd.DataFrame, *, by: tuple[str, ...] = (), who: str) -> list[Place]:
    """Return the places of a frame: models and hooks in the frame's order, then layer, head and ``by`` ascending."""
    keys = [*(key for key in (*GROUP_KEYS, "head") if key in lagged.columns), *by]
    if not len(lagged):
        raise InputError(f"{who} needs at least one row; the frame is empty.")
    for key in keys:
        if lagged[key].isna().any():  # pandas' groups would leave such rows out without a word
            raise InputError(f"{who} needs a value of {key!r} in every row; some are missing.")
        if key in ("layer", "head") and not pd.api.types.is_integer_dtype(lagged[key]):
            raise InputError(f"{who} needs whole numbers as {key!r}; the column is {lagged[key].dtype}.")
    rank = {key: {name: i for i, name in enumerate(lagged[key].unique())} for key in ("model", "hook")}
    found: dict[Any, Any] = lagged.groupby(keys, observed=True, sort=False).indices
    ordered = sorted(found, key=lambda group: (rank["model"][group[0]], rank["hook"][group[1]], *group[2:]))
    return [Place(plain_keys(dict(zip(keys, group, strict=True))), found[group]) for group in ordered]


def read(lagged: pd.DataFrame, place: Place, recipe: Recipe) -> Group:
    """Return the complete rows of a place; the same token twice is refused."""
    complete = np.ones(len(place.rows), bool)
    for name in recipe.columns:
        complete &= lagged[name].iloc[place.rows].notna().to_numpy()
    rows = place.rows[complete]
    keys = [key for key in TOKEN_KEYS if key in lagged.columns]
    codes = [_codes(lagged, key, rows, place)[0] for key in keys]
    if keys:
        order = np.lexsort(codes[::-1])
        rows, codes = rows[order], [code[order] for code in codes]
    cluster, cluster_names = np.empty(0, np.int64), list[Any]()
    if recipe.cov in ("auto", "crv1", "crv3", "jackknife"):
        cluster, cluster_names = _codes(lagged, recipe.cluster, rows, place)
    window, follows = np.empty(0, np.int64), np.empty(0, bool)
    if len(keys) == len(TOKEN_KEYS):
        window, follows = _windows(lagged["position"].iloc[rows], codes[0], codes[1], place)
    return Group(
        place=place,
        rows=rows,
        data=formula_data(lagged, rows, recipe.columns),
        depth=float(lagged["depth"].iloc[place.rows[0]]) if "depth" in lagged.columns else np.nan,
        n_docs=len(np.unique(codes[0])) if "doc" in keys else 0,
        n_dropped=len(place.rows) - len(rows),
        cluster=cluster,
        cluster_names=cluster_names,
        window=window,
        follows=follows,
    )


def clusters_of(values: np.ndarray, cluster: Int[np.ndarray, " rows"]) -> Iterator[np.ndarray]:
    """Yield the rows of each cluster, in the order of its codes."""
    order = np.argsort(cluster, kind="stable")
    yield from np.split(values[order], np.flatnonzero(np.diff(cluster[order])) + 1)


def _codes(
    lagged: pd.DataFrame, key: str, rows: np.ndarray, place: Place
) -> tuple[Int[np.ndarray, " rows"], list[Any]]:
    """Return the number of each row's value among the sorted values, and these."""
    codes, names = pd.factorize(lagged[key].iloc[rows], sort=True)
    if (codes < 0).any():  # statsmodels would take them for a cluster of their own
        raise InputError(f"fit_lagged needs a value of {key!r} in every complete row; {place} lacks some.")
    return codes.astype(np.int64), list(names)


def _windows(
    position: pd.Series, doc: Int[np.ndarray, " rows"], window: Int[np.ndarray, " rows"], place: Place
) -> tuple[Int[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Return a number for each document's window, and which rows follow on the one before; all come sorted."""
    if not pd.api.types.is_integer_dtype(position):
        raise InputError(f"fit_lagged needs whole numbers as 'position'; the column is {position.dtype}.")
    first = (np.diff(doc, prepend=-1) != 0) | (np.diff(window, prepend=-1) != 0)
    step = np.diff(position.to_numpy(np.int64), prepend=0)
    if (~first & (step == 0)).any():
        raise InputError(
            f"fit_lagged needs every token once in a group; {place} has some twice. "
            "Was a frame concatenated with itself, or joined on too few keys?"
        )
    return np.cumsum(first) - 1, ~first & (step == 1)
