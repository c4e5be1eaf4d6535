"""Rows: the complete rows of every group of a frame, in an order of their own, and a formula's columns in them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mechreg.regression.blocks import Codes, Columns, Layout
from mechreg.regression.design import NeedsAllRows, Parts, Terms, take_apart
from mechreg.regression.evaluation import plain_column
from mechreg.regression.fixed_effects import Effects, make_effects, project, without_singletons
from mechreg.schema import TOKEN_KEYS, InputError, NumericalError, document_ids, group_columns
from mechreg.words import keys_in_words

# Relative size below which what effects leave of a column is rounding.
TAKEN_UP = 1e-9

NO_LABELS: pd.Index = pd.Index([], dtype="str")
Place = Codes  # the numbers of a group's rows in its frame


class Rows(NamedTuple):
    """The complete rows of one group, sorted by the document's id as text, then window and position."""

    keys: dict[str, Any]
    depth: float
    data: pd.DataFrame  # the formula's columns
    layout: Layout
    n_dropped: int
    at: Codes  # where each of them is in the frame
    effects: Effects | None
    n_sinks: int = 0  # rows of the group that add_lags left out

    @property
    def where(self) -> str:
        """The keys in words."""
        return keys_in_words(self.keys)


class _Ids(NamedTuple):
    """Numbers of a column's values, -1 where one is missing, and the values (None: the numbers are the values)."""

    codes: Codes
    names: pd.Index | None


def read_groups(
    frame: pd.DataFrame,
    columns: tuple[str, ...],
    *,
    cluster: str | None,
    by: tuple[str, ...] = (),
    effects: tuple[str, ...] = (),
) -> Iterator[Rows]:
    """Yield the groups of a frame; the layout and the effects of groups with the same rows are made once."""
    data = {name: _prepared(frame[name]) for name in columns}
    complete = np.ones(len(frame), bool)
    for column in data.values():
        complete &= column.notna().to_numpy()
    for name in effects:
        complete &= frame[name].notna().to_numpy()
    ids = {str(key): _ids(frame[key]) for key in (*TOKEN_KEYS, cluster, *effects) if key in frame.columns}
    if "position" in ids and ids["position"].names is not None:
        raise InputError(
            f"The regression needs whole numbers as 'position'; the column is {frame['position'].dtype}."
        )
    depth = frame["depth"].to_numpy(np.float64) if "depth" in frame.columns else np.full(len(frame), np.nan)
    is_sink = frame["is_sink"].to_numpy(bool) if "is_sink" in frame.columns else np.zeros(len(frame), bool)
    known: tuple[Any, ...] | None = None
    for keys, place in groups_of(frame, by):
        kept = complete[place]
        same = [kept, *(codes[place] for codes, _ in ids.values())]
        if known is None or not all(map(np.array_equal, same, known[0])):
            if effects and kept.any():
                kept = kept.copy()
                kept[kept] = without_singletons([ids[name].codes[place][kept] for name in effects])
            part = {key: _Ids(codes[place][kept], names) for key, (codes, names) in ids.items()}
            known = (same, kept, *_layout(part, int(kept.sum()), cluster, effects, where=keys_in_words(keys)))
        _, kept, order, layout, taken_off = known
        at = place[kept][order]
        taken = {name: plain_column(column.iloc[at].reset_index(drop=True)) for name, column in data.items()}
        counts = int((~kept).sum()), at, taken_off, int(is_sink[place].sum())
        yield Rows(keys, float(depth[place[0]]), pd.DataFrame(taken), layout, *counts)


def groups_of(frame: pd.DataFrame, by: tuple[str, ...] = ()) -> Iterator[tuple[dict[str, Any], Place]]:
    """Yield the keys of every group, as plain values, and the numbers of its rows."""
    keys = [*group_columns(frame), *by]
    if not len(frame):
        raise InputError("The regression needs at least one row; the frame is empty.")
    codes = []
    for key in keys:
        if key in ("layer", "head") and not pd.api.types.is_integer_dtype(frame[key]):
            raise InputError(f"The regression needs whole numbers as {key!r}; it is {frame[key].dtype}.")
        if frame[key].isna().any():  # pandas' groups would leave such rows out without a word
            raise InputError(f"The regression needs a value of {key!r} in every row; some are missing.")
        codes.append(_ids(frame[key]).codes)
    begins = np.r_[0, np.flatnonzero(np.any([code[1:] != code[:-1] for code in codes], axis=0)) + 1]
    runs = frame[keys].take(begins).reset_index(drop=True)
    ends = np.r_[begins[1:], len(frame)]
    number = np.repeat(runs.groupby(keys, observed=True, sort=False).ngroup().to_numpy(), ends - begins)
    places = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])
    kinds = {"model": str, "hook": str, "layer": int, "head": int}
    for place, values in zip(places, runs.drop_duplicates().itertuples(index=False, name=None), strict=True):
        plain = {
            key: kinds[key](value) if key in kinds else getattr(value, "item", lambda value=value: value)()
            for key, value in zip(keys, values, strict=True)
        }
        yield plain, place


def absorbed_parts(formula: str, rows: Rows, *, whole: bool = True) -> Parts:
    """Return the parts of some rows; with effects each term's column is a number from which they are taken off."""
    parts, effects = take_apart(formula, rows.data, whole=whole, where=rows.where), rows.effects
    if effects is None:
        return parts
    is_plain = parts.learned is None and len(parts.seen) == 1
    if not whole and not is_plain:
        raise NeedsAllRows(
            f"Effects beside the categories of {formula!r} need all rows at once, and update sees a part; make columns "
            "of 0 and 1 first, or use LagSums.from_frame or fit_lagged on one frame."
        )
    terms = parts.terms(formula)
    kept = [at for at, name in enumerate(terms.names) if name != "Intercept"]
    if not kept:
        raise InputError(f"effects= takes off the intercept, and {formula!r} has no other term; add one.")
    design = columns_of(parts, terms)[[*kept, -1]]
    names = (*(terms.names[at] for at in kept), terms.outcome)
    with np.errstate(all="ignore"):  # infinite values are refused later
        left = project(effects, design)
        spread = np.linalg.norm(design - design.mean(axis=1, keepdims=True), axis=1)
        taken_up = np.linalg.norm(left, axis=1) <= TAKEN_UP * spread
    left[taken_up] = 0.0  # of a part of the rows; a column that is 0 in all is refused when they are solved
    if whole and taken_up.any():
        raise NumericalError(
            f"The effects {list(effects.names)} take off all of {names[int(taken_up.argmax())]!r} in {rows.where}, "
            "which is constant within them; leave it out of the formula, or them out of effects=."
        )
    cell, seen = np.zeros(len(parts.cell), np.int64), parts.seen if is_plain else parts.seen[:0]
    return Parts(left, names, cell, seen, None if is_plain else without_intercept(terms))


def columns_of(parts: Parts, terms: Terms) -> Columns:
    """Return every term's column of numbers, then the outcome."""
    columns = np.empty((len(terms.names) + 1, parts.values.shape[1]))
    columns[-1] = parts.values[-1]
    numbers = np.concatenate([np.ones((1, columns.shape[1])), parts.values[:-1]])
    for cell, weights in enumerate(terms.weights):
        here = parts.cell == cell
        columns[:-1, here] = weights.T @ numbers[:, here]
    return columns


def without_intercept(terms: Terms) -> Terms:
    """Return the terms as columns of their own, which they are once effects are taken off."""
    names = tuple(name for name in terms.names if name != "Intercept")
    return Terms(names, terms.outcome, np.eye(len(names) + 1)[None, :, 1:])


def _layout(
    ids: dict[str, _Ids], rows: int, cluster: str | None, effects: tuple[str, ...], *, where: str
) -> tuple[np.ndarray, Layout, Effects | None]:
    """Return the order in which complete rows are sorted, their layout and their effects."""
    codes, labels = {}, {"doc": NO_LABELS, cluster: NO_LABELS}
    for key, (code, names) in ids.items():
        codes[key] = code.astype(np.int64)
        if names is not None and (code < 0).any():  # pandas would take them for a value of their own
            raise InputError(
                f"The regression needs a value of {key!r} in every complete row; {where} lacks some."
            )
        if names is not None or key in labels:
            codes[key], labels[key] = _ranked(codes[key], names, is_doc=key == "doc")
    keys = [codes[key] for key in TOKEN_KEYS if key in codes]
    order = np.lexsort(keys[::-1]) if keys else np.arange(rows)
    codes = {key: code[order] for key, code in codes.items()}
    run, longest, has_gaps = np.zeros(rows, np.int64), 0, False
    if len(keys) == len(TOKEN_KEYS) and rows:
        run, longest, has_gaps = _runs(*(codes[key] for key in TOKEN_KEYS), where=where)
    number = np.zeros(rows, np.int64) if cluster is None else codes[cluster]
    layout = Layout(number, labels[cluster], labels["doc"], run, longest, has_gaps)
    if not effects or not rows:
        return order, layout, None
    made = make_effects({name: codes[name] for name in effects}, None if cluster is None else number)
    return order, layout._replace(within=made.within, across=made.across), made


def _runs(doc: Codes, window: Codes, position: Codes, *, where: str) -> tuple[Codes, int, bool]:
    """Return how many rows in a row are the tokens directly before, the longest window's rows, and if any has gaps."""
    first = np.r_[True, (np.diff(doc) != 0) | (np.diff(window) != 0)]
    step = np.diff(position, prepend=0)
    if (~first & (step == 0)).any():
        raise InputError(
            f"The regression needs every token once in a group; {where} has some twice. "
            "Was a frame concatenated with itself, or joined on too few keys?"
        )
    here = np.arange(len(doc))
    start = np.maximum.accumulate(np.where(first | (step != 1), here, 0))
    longest = int(np.diff(np.flatnonzero(np.r_[first, True])).max())
    return here - start, longest, bool((~first & (step != 1)).any())


def _ids(column: pd.Series) -> _Ids:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _Ids(column.cat.codes.to_numpy(), column.cat.categories)
    if column.dtype.kind in "iu" and not column.hasnans:
        return _Ids(column.to_numpy(), None)
    codes, names = pd.factorize(column)
    return _Ids(codes, pd.Index(names))


def _ranked(code: Codes, names: pd.Index | None, *, is_doc: bool) -> tuple[Codes, pd.Index]:
    """Return codes into the sorted distinct values, and those values: int64 or str, for documents always str."""
    present, number = np.unique(code, return_inverse=True)
    values = present if names is None else names.to_numpy()[present]
    if is_doc:
        values = document_ids(pd.Index(values)).to_numpy()
        if len(set(values)) < len(values):
            raise InputError(
                "The regression finds documents whose ids are the same as text, such as 1 and '1'; rename them."
            )
    kind = "int64" if pd.api.types.is_integer_dtype(values) else "str"
    rank, labels = pd.factorize(pd.Index(values, dtype=kind), sort=True)
    return rank[number].astype(np.int64), labels


def _prepared(column: pd.Series) -> pd.Series:
    """Return a column as a formula sees it, as far as its missing values allow; text as sorted categories."""
    if pd.api.types.infer_dtype(column, skipna=True) == "string":
        return column.astype("category")
    if not pd.api.types.is_float_dtype(column.dtype) and column.isna().any():
        return column  # without missing values, whole numbers and booleans get their own dtype back
    return plain_column(column)
