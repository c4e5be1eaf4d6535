"""Rows: the complete rows of every group of a frame, sorted, and which of them are neighbours."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechreg.regression.blocks import Layout
from mechreg.regression.evaluation import plain_column
from mechreg.schema import GROUP_KEYS, TOKEN_KEYS, InputError, document_ids

NO_LABELS: pd.Index = pd.Index([], dtype="str")


class Rows(NamedTuple):
    """The complete rows of one group, sorted by document, window, position."""

    keys: dict[str, Any]
    depth: float
    data: dict[str, Any]  # the formula's columns
    layout: Layout
    n_dropped: int


class _Places(NamedTuple):
    """Where every row of a frame belongs: numbers in order of appearance, -1 where the value is missing."""

    codes: dict[str, Int[np.ndarray, " rows"]]
    names: dict[str, pd.Index | None]  # None: the codes are the values


def read_groups(
    frame: pd.DataFrame,
    columns: tuple[str, ...],
    *,
    cluster: str | None,
    by: tuple[str, ...] = (),
    who: str,
) -> Iterator[Rows]:
    """Yield the groups of a frame; the layout of groups with the same rows is made once."""
    if not len(frame):
        raise InputError(f"{who} needs at least one row; the frame is empty.")
    data = {name: _prepared(frame[name]) for name in columns}
    complete = np.ones(len(frame), bool)
    for column in data.values():
        complete &= ~np.asarray(pd.isna(column))
    keys = [key for key in TOKEN_KEYS if key in frame.columns]
    if cluster is not None and cluster not in keys:
        keys.append(cluster)
    places = _places(frame, keys, who=who)
    depth = frame["depth"].to_numpy(np.float64) if "depth" in frame.columns else None
    known: tuple[list[np.ndarray], np.ndarray | None, Layout] | None = None
    for group, rows in _groups(frame, by, who=who):
        kept = complete[rows]
        same = [kept, *(code[rows] for code in places.codes.values())]
        if known is None or not all(map(np.array_equal, same, known[0])):
            known = (same, *_layout(same, places, cluster, where=words(group), who=who))
        _, order, layout = known
        taken = {name: _taken(column, rows, kept, order) for name, column in data.items()}
        first = rows.start if isinstance(rows, slice) else rows[0]
        yield Rows(group, np.nan if depth is None else float(depth[first]), taken, layout, int((~kept).sum()))


def words(keys: dict[str, Any]) -> str:
    """Return a group's keys in words."""
    return ", ".join(f"{key} {value}" for key, value in keys.items())


def plain_keys(keys: dict[str, Any]) -> dict[str, Any]:
    """Return a group's keys as plain values: text, whole numbers, and those of other columns as they are.

    Examples
    --------
    >>> plain_keys({"model": "m", "layer": np.int16(3), "pos": "NOUN"})
    {'model': 'm', 'layer': 3, 'pos': 'NOUN'}
    """
    kinds = {"model": str, "hook": str, "layer": int, "head": int}
    return {
        key: kinds[key](value) if key in kinds else value.item() if isinstance(value, np.generic) else value
        for key, value in keys.items()
    }


def _groups(frame: pd.DataFrame, by: tuple[str, ...], *, who: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield the keys of every group and where its rows are: a slice where they are together."""
    keys = [*(key for key in (*GROUP_KEYS, "head") if key in frame.columns), *by]
    codes = []
    for key in keys:
        if key in ("layer", "head") and not pd.api.types.is_integer_dtype(frame[key]):
            raise InputError(f"{who} needs whole numbers as {key!r}; the column is {frame[key].dtype}.")
        if frame[key].isna().any():  # pandas' groups would leave such rows out without a word
            raise InputError(f"{who} needs a value of {key!r} in every row; some are missing.")
        codes.append(_codes(frame[key])[0])
    begins = np.r_[0, np.flatnonzero(np.any([code[1:] != code[:-1] for code in codes], axis=0)) + 1]
    runs = frame[keys].take(begins).reset_index(drop=True)
    ends = np.r_[begins[1:], len(frame)]
    if not runs.duplicated().any():  # every group's rows are together
        places: list[Any] = [slice(*run) for run in zip(begins.tolist(), ends.tolist(), strict=True)]
    else:
        number = runs.groupby(keys, observed=True, sort=False).ngroup().to_numpy()
        number = np.repeat(number, ends - begins)
        places = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])
        runs = runs.drop_duplicates()
    for rows, values in zip(places, runs.itertuples(index=False, name=None), strict=True):
        yield plain_keys(dict(zip(keys, values, strict=True))), rows


def _layout(
    same: list[np.ndarray], places: _Places, cluster: str | None, *, where: str, who: str
) -> tuple[np.ndarray | None, Layout]:
    """Return the order in which rows are sorted (None: they are) and their layout."""
    kept = same[0]
    by = {key: code[kept].astype(np.int64) for key, code in zip(places.codes, same[1:], strict=True)}
    for key, code in by.items():
        # pandas would take them for a cluster of their own
        if places.names[key] is not None and (code < 0).any():
            raise InputError(f"{who} needs a value of {key!r} in every complete row; {where} lacks some.")
    keys = [by[key] for key in TOKEN_KEYS if key in by]
    order = None
    if keys and kept.any() and not _in_order(keys):
        order = np.lexsort(keys[::-1])
        by = {key: code[order] for key, code in by.items()}
        keys = [key[order] for key in keys]
    rows = int(kept.sum())
    number, labels = np.zeros(rows, np.int64), NO_LABELS
    if cluster is not None:
        number, labels = _present(by[cluster], places.names[cluster], is_doc=cluster == "doc", who=who)
    docs = NO_LABELS
    if "doc" in by:
        docs = _present(by["doc"], places.names["doc"], is_doc=True, who=who)[1]
    run, longest, has_gaps = np.zeros(rows, np.int64), 0, False
    if len(keys) == len(TOKEN_KEYS) and rows:
        run, longest, has_gaps = _runs(*keys, where=where, who=who)
    return order, Layout(number, labels, docs, run, longest, has_gaps)


def _runs(
    doc: Int[np.ndarray, " rows"],
    window: Int[np.ndarray, " rows"],
    position: Int[np.ndarray, " rows"],
    *,
    where: str,
    who: str,
) -> tuple[Int[np.ndarray, " rows"], int, bool]:
    """Return how many rows in a row are the tokens directly before, the longest window's rows, and if any has gaps."""
    first = np.r_[True, (np.diff(doc) != 0) | (np.diff(window) != 0)]
    step = np.diff(position, prepend=0)
    if (~first & (step == 0)).any():
        raise InputError(
            f"{who} needs every token once in a group; {where} has some twice. "
            "Was a frame concatenated with itself, or joined on too few keys?"
        )
    starts = first | (step != 1)
    row = np.arange(len(doc))
    run = row - np.maximum.accumulate(np.where(starts, row, 0))
    return run, int(np.diff(np.r_[np.flatnonzero(first), len(doc)]).max()), bool((starts & ~first).any())


def _in_order(keys: list[Int[np.ndarray, " rows"]]) -> bool:
    """Return whether the first key's rows are together, and sorted by the other keys."""
    begins = np.r_[True, np.diff(keys[0]) != 0]
    if len(np.unique(keys[0][begins])) < begins.sum():
        return False
    tie = ~begins[1:]
    for key in keys[1:]:
        step = np.diff(key)
        if (step[tie] < 0).any():
            return False
        tie &= step == 0
    return True


def _places(frame: pd.DataFrame, keys: list[str], *, who: str) -> _Places:
    codes, names = {}, {}
    for key in keys:
        if key == "position" and not pd.api.types.is_integer_dtype(frame[key]):
            raise InputError(f"{who} needs whole numbers as 'position'; the column is {frame[key].dtype}.")
        codes[key], names[key] = _codes(frame[key])
    return _Places(codes, names)


def _codes(column: pd.Series) -> tuple[np.ndarray, pd.Index | None]:
    """Return numbers of a column's values, and these; whole numbers are their own."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy(), column.cat.categories
    if column.dtype.kind in "iu":
        return column.to_numpy(), None
    code, found = pd.factorize(column)
    return code, pd.Index(found)


def _present(
    code: Int[np.ndarray, " rows"], names: pd.Index | None, *, is_doc: bool, who: str
) -> tuple[Int[np.ndarray, " rows"], pd.Index]:
    """Return numbers of the values there are among their sorted names, and these: int64 or str, documents str."""
    there, number = np.unique(code, return_inverse=True)
    found = there if names is None else names.to_numpy()[there]
    if is_doc:
        found = document_ids(pd.Index(found)).to_numpy()
        if len(set(found)) < len(found):
            raise InputError(
                f"{who} finds documents whose ids are the same as text, such as 1 and '1'; rename them."
            )
    kind = "int64" if pd.api.types.is_integer_dtype(found) else "str"
    rank, labels = pd.factorize(pd.Index(found, dtype=kind), sort=True)
    return rank[number].astype(np.int64), labels


def _prepared(column: pd.Series) -> Any:
    """Return a column as `plain_column` gives it, text as categories in order of the alphabet."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column  # its categories are pruned where they are looked at
    if pd.api.types.infer_dtype(column, skipna=True) == "string":
        return column.astype("category")
    if pd.api.types.is_float_dtype(column.dtype):
        return column.to_numpy(np.float64, na_value=np.nan)
    if column.isna().any():  # whole numbers and truth values are such once those are gone
        return column
    plain = plain_column(column)
    return plain if plain.dtype == object else plain.to_numpy()


def _taken(column: Any, rows: Any, kept: np.ndarray, order: np.ndarray | None) -> Any:
    if not isinstance(column, pd.Series):
        part = column[rows][kept]
        return part if order is None else part[order]
    part = column.iloc[rows][kept]
    part = (part if order is None else part.iloc[order]).reset_index(drop=True)
    if isinstance(part.dtype, pd.CategoricalDtype):
        return part
    part = plain_column(part)
    return part if part.dtype == object else part.to_numpy()
