"""Which rows of a frame a chart shows, and whether they can be drawn: each chart checks them here, once, at its top."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechreg.schema import InputError, NumericalError, SchemaError, among, did_you_mean, require

MAX_MODELS = 6
PLACE = ("model", "hook", "layer", "depth")


def frame_of(holder: Any, part: str, *, who: str) -> pd.DataFrame:
    """Return a frame, or the one that an object holds as its ``part``: an attribute, or a method without arguments.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> frame = pd.DataFrame({"term": ["lag1"]})
    >>> frame_of(SimpleNamespace(coefficients=frame), "coefficients", who="plot_betas") is frame
    True
    """
    held = holder if hasattr(holder, "columns") else getattr(holder, part, None)
    held = held() if callable(held) else held
    if not isinstance(held, pd.DataFrame):
        raise SchemaError(
            f"{who} needs a pandas DataFrame, or an object that holds one as .{part}; got {type(holder).__name__}."
        )
    return held


def names_of(value: Any, *, name: str) -> list[str]:
    """Return the names that an option has, one or several, each once; anything else is an InputError.

    Examples
    --------
    >>> names_of("lag1", name="terms"), names_of(("lag1", "lag2"), name="terms")
    (['lag1'], ['lag1', 'lag2'])
    """
    names = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if not names or not all(isinstance(entry, str) for entry in names) or len(set(names)) < len(names):
        raise InputError(f"{name} must be one name or several, each once; got {value!r}.")
    return names


def one_name(value: Any, *, name: str) -> str:
    """Return the name that an option has; anything else is an InputError."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be one name, a string; got {value!r}.")
    return value


def one_value(frame: pd.DataFrame, column: str, wanted: Any, *, who: str) -> tuple[pd.DataFrame, Any]:
    """Return the rows that have one value in a column, and that value: the one asked for, else the only one.

    Examples
    --------
    >>> frame = pd.DataFrame({"hook": ["z", "attn_out"]})
    >>> one_value(frame, "hook", "z", who="plot_norms")[1]
    'z'
    """
    have = distinct(frame[column])
    if wanted is None and len(have) == 1:
        return frame, have[0]
    listed = ", ".join(repr(name) if isinstance(name, str) else str(name) for name in have[:8])
    listed += ", ..." if len(have) > 8 else ""
    if wanted is None:
        raise InputError(
            f"{who} shows one {column} at a time; the frame has {listed}. Choose with {column}=."
        )
    if not among(wanted, have):
        raise InputError(
            f"{who} has no rows of the {column} {wanted!r}; the frame has {listed}.{did_you_mean(wanted, have)}"
        )
    return frame[frame[column] == wanted], wanted


def rows_of_hook(
    frame: pd.DataFrame, hook: str | None, columns: Iterable[str] = (), *, who: str
) -> tuple[pd.DataFrame, str]:
    """Return the rows of one hook point and its name, of a frame that has the columns and a place in every row."""
    require(frame, (*PLACE, *columns), who=who)
    if not len(frame):
        raise InputError(f"{who} needs at least one row; the frame is empty.")
    for key in PLACE:
        if frame[key].isna().any():  # such rows would vanish from the figure without a word
            raise InputError(f"{who} needs a value of {key!r} in every row; some are missing.")
    return one_value(frame, "hook", hook, who=who)


def few(values: Iterable[Any], noun: str = "model", *, most: int = MAX_MODELS, who: str) -> list[Any]:
    """Return the different values in their order, at most as many as one figure can show.

    Examples
    --------
    >>> few(["gpt2-xl", "gpt2", "gpt2"], who="plot_betas")
    ['gpt2-xl', 'gpt2']
    """
    have = list(dict.fromkeys(values))
    if len(have) > most:
        raise InputError(
            f"{who} shows at most {most} {noun}s in one figure; the frame has {len(have)} "
            f"({', '.join(map(str, have[:3]))}, ...). Choose some of its rows with isin([...])."
        )
    return have


def require_one_row(frame: pd.DataFrame, keys: Sequence[str], numbers: Sequence[str], *, who: str) -> None:
    """Check that every mark has one row, a depth between 0 and 1, and finite numbers."""

    def first_of(rows: pd.Series) -> str:
        row = frame[rows].iloc[0]
        return ", ".join(f"{key} {row[key]}" for key in keys)

    twice = frame.duplicated(list(keys))
    if twice.any():
        heads = "head" in frame and frame["head"].nunique() > 1
        raise InputError(
            f"{who} needs one row for each mark; there are two for {first_of(twice)}. "
            + ("Choose one head: frame[frame['head'] == 0]." if heads else "Were two tables concatenated?")
        )
    if not frame["depth"].between(0, 1, inclusive="neither").all():
        raise InputError(f"{who} needs a 'depth' between 0 and 1, (layer + 0.5) / n_layers, in every row.")
    bad = ~np.isfinite(frame[list(numbers)].to_numpy(dtype="float64", na_value=np.nan)).all(axis=1)
    if bad.any():
        raise NumericalError(
            f"{who} needs finite numbers as {', '.join(numbers)}; some are not at "
            f"{first_of(pd.Series(bad, frame.index))} ({int(bad.sum())} such rows)."
        )


def distinct(values: pd.Series) -> list[Any]:
    """Return the values of a column, in the order of their first row."""
    return list(values.unique())


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not 1.

    Examples
    --------
    >>> count(1, "document"), count(12000, "token")
    ('1 document', '12,000 tokens')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def sample_size(rows: pd.DataFrame, *, layers: bool = False) -> str:
    """Return how many tokens and documents, and if asked for how many layers, some coefficients are of.

    Examples
    --------
    >>> sample_size(pd.DataFrame({"n": [90, 94], "n_docs": 3}))
    'n = 90 to 94, 3 documents'
    """
    low, high = int(rows["n"].min()), int(rows["n"].max())
    parts = [f"n = {low:,}" + (f" to {high:,}" if high > low else "")]
    parts.append(count(int(rows["n_docs"].max()), "document"))
    return ", ".join([*parts, count(rows["layer"].nunique(), "layer")] if layers else parts)
