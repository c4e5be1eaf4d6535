"""Which rows of a frame a chart shows, and whether they can be drawn: each chart checks them here, once, at its top."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechreg import schema
from mechreg.outside import any_frames
from mechreg.schema import InputError, NumericalError, SchemaError, require
from mechreg.words import count

MAX_MODELS = 6
MAX_GROUPS = 20  # more panels than that are a poster
PLACE = ("model", "hook", "layer", "depth")


@any_frames
def frame_of(holder: Any, part: str, columns: Iterable[str] = (), *, who: str) -> pd.DataFrame:
    """Return a frame, or the one that an object holds as its ``part``: an attribute, or a method without arguments.

    One of which columns are needed has these, and a row.
    """
    held = holder if hasattr(holder, "columns") else getattr(holder, part, None)
    held = held() if callable(held) else held
    if not isinstance(held, pd.DataFrame):
        raise SchemaError(
            f"{who} needs a pandas DataFrame, or an object that holds one as .{part}; got {type(holder).__name__}."
        )
    require(held, columns, who=who)
    if columns and not len(held):
        raise InputError(f"{who} needs at least one row; the frame is empty.")
    return held


def one_name(value: Any, *, name: str) -> str:
    """Return the name that an option has; anything else is an InputError."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be one name, a string; got {value!r}.")
    return value


def one_value(frame: pd.DataFrame, column: str, wanted: Any, *, who: str) -> tuple[pd.DataFrame, Any]:
    """Return the rows that have one value in a column, and that value: the one asked for, else the only one."""
    value = schema.one_value(frame[column].unique(), wanted, name=column, who=who)
    return frame if wanted is None else frame[frame[column] == value], value


def chosen_group(
    norms: pd.DataFrame, wanted: dict[str, Any], *, who: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the rows of one model, hook, layer, head and so on, and which those are, of what the frame has."""
    place = {}
    for key, which in wanted.items():
        if key in norms:
            norms, place[key] = one_value(norms, key, which, who=who)
        elif which is not None:
            raise InputError(f"{who} was asked for {key} {which!r}; the frame has no column {key!r}.")
    return norms, place


def rows_of_hook(
    frame: pd.DataFrame, hook: str | None, columns: Iterable[str] = (), *, who: str
) -> tuple[pd.DataFrame, str]:
    """Return the rows of one hook point and its name, of a frame that has the columns and a place in every row."""
    frame = frame_of(frame, "", (*PLACE, *columns), who=who)
    for key in PLACE:
        if frame[key].isna().any():  # such rows would vanish from the figure without a word
            raise InputError(f"{who} needs a value of {key!r} in every row; some are missing.")
    return one_value(frame, "hook", hook, who=who)


def few(values: Iterable[Any], noun: str = "model", *, most: int = MAX_MODELS, who: str) -> list[Any]:
    """Return the different values in their order, at most as many as one figure can show."""
    have = list(dict.fromkeys(values))
    if len(have) > most:
        raise InputError(
            f"{who} shows at most {most} {noun}s in one figure; the frame has {len(have)} "
            f"({', '.join(map(str, have[:3]))}, ...). Choose some of its rows with isin([...])."
        )
    return have


def require_one_row(
    frame: pd.DataFrame,
    keys: Sequence[str],
    numbers: Sequence[str],
    *,
    depths: Sequence[str] = ("depth",),
    who: str,
) -> None:
    """Check that every mark has one row, its depths between 0 and 1, and finite numbers."""
    twice = frame.duplicated(list(keys))
    if twice.any():
        row = frame[twice].iloc[0]
        where = ", ".join(f"{key} {row[key]}" for key in keys)
        heads = "head" in frame and frame["head"].nunique() > 1
        raise InputError(
            f"{who} needs one row for each mark; there are two for {where}. "
            + ("Choose one head: frame[frame['head'] == 0]." if heads else "Were two tables concatenated?")
        )
    for depth in depths:
        if not frame[depth].between(0, 1, inclusive="neither").all():
            raise InputError(
                f"{who} needs a {depth!r} between 0 and 1, (layer + 0.5) / n_layers, in every row."
            )
    require_finite(frame, keys, numbers, who=who)


def require_finite(frame: pd.DataFrame, keys: Sequence[str], numbers: Sequence[str], *, who: str) -> None:
    """Check that numbers are finite; the keys say which row is not."""
    bad = ~np.isfinite(frame[list(numbers)].to_numpy(dtype="float64", na_value=np.nan)).all(axis=1)
    if bad.any():
        row = frame[bad].iloc[0]
        raise NumericalError(
            f"{who} needs finite numbers as {', '.join(numbers)}; some are not at "
            f"{', '.join(f'{key} {row[key]}' for key in keys)} ({int(bad.sum())} such rows)."
        )


def drawable(rows: pd.DataFrame, keys: Sequence[str], numbers: Sequence[str], *, who: str) -> list[str]:
    """Return the models of rows that can be drawn: few, with one row a mark and finite numbers."""
    models = few(rows["model"], who=who)
    require_one_row(rows, keys, numbers, who=who)
    return models


def by_group(rows: pd.DataFrame, by: str, *, who: str) -> dict[str, pd.DataFrame]:
    """Return the rows of every group, of at most twenty, largest group first."""
    if rows[by].isna().any():
        raise InputError(f"{who} needs a value of {by!r} in every row; some are missing.")
    few(rows[by], "group", most=MAX_GROUPS, who=who)
    groups = rows[by].astype("str")
    order = rows.groupby(groups)["n"].max().sort_values(ascending=False).index
    rows = rows.drop(columns=by)  # whose name could be an expression to Vega
    return {str(group): rows[groups == group].assign(group=str(group)) for group in order}


def by_model(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield every model and its rows, in the order of the models' first rows."""
    for model, part in rows.groupby("model", sort=False, observed=True):
        yield str(model), part


def in_words(column: str) -> str:
    """Return a column of groups in words."""
    return {"pos": "part of speech"}.get(column, column)


def named(rows: pd.DataFrame, keys: Sequence[str], sentence: Callable[[pd.DataFrame], str]) -> Iterator[str]:
    """Yield a sentence a group of rows, after the group's name."""
    for names, part in rows.groupby(list(keys), sort=False, observed=True):
        yield f"{', '.join(map(str, names))}: {sentence(part)}"


def one_comparison(frame: pd.DataFrame, numbers: tuple[str, ...], *, who: str) -> tuple[str, str, float, int]:
    """Return the hook, the term, the level of the intervals and the documents, which all rows must share."""
    keys = ("hook", "term", "conf_level", "n_docs")
    frame = frame_of(frame, "", keys, who=who)
    for key in keys:
        if frame[key].nunique(dropna=False) > 1:
            raise InputError(
                f"{who} draws one comparison; the frame has several values of {key!r}. Choose one."
            )
    require_finite(frame, keys, numbers, who=who)
    first = frame.iloc[0]
    return str(first["hook"]), str(first["term"]), float(first["conf_level"]), int(first["n_docs"])


def largest(rows: pd.DataFrame, column: str = "estimate") -> pd.Series:
    """Return the row in which a column is largest in size."""
    return rows.iloc[int(rows[column].abs().to_numpy().argmax())]


def number(value: float, digits: int = 2) -> str:
    """Return a number with its decimals and a minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def sample_size(rows: pd.DataFrame, *, layers: bool = False) -> str:
    """Return how many tokens and documents, and if asked for how many layers, some coefficients are of."""
    low, high = int(rows["n"].min()), int(rows["n"].max())
    parts = [f"n = {low:,}" + (f" to {high:,}" if high > low else "")]
    parts.append(count(int(rows["n_docs"].max()), "document"))
    return ", ".join([*parts, count(rows["layer"].nunique(), "layer")] if layers else parts)
