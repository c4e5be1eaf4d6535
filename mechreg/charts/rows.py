"""Which rows of a frame a chart shows: one hook point, a few models, one term, one row a coefficient."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechreg.schema import InputError, NumericalError, SchemaError, did_you_mean

MAX_MODELS = 6


def frame_of(holder: Any, part: str, *, who: str) -> pd.DataFrame:
    """Return a frame, or the one that an object holds as its ``part``: an attribute, or a method without arguments.

    Raises
    ------
    SchemaError
        Neither a frame nor such an object.

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
    """Return the names that an option has, one or several, each once.

    Raises
    ------
    InputError
        No name, one twice, or what is no name.

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
    """Return the name that an option has.

    Raises
    ------
    InputError
        It is something else.

    Examples
    --------
    >>> one_name("pos", name="by")
    'pos'
    """
    if not isinstance(value, str):
        raise InputError(f"{name} must be one name, a string; got {value!r}.")
    return value


def one_hook(frame: pd.DataFrame, hook: str | None, *, who: str) -> tuple[pd.DataFrame, str]:
    """Return the rows of one hook point and its name: the one asked for, else the only one.

    Raises
    ------
    InputError
        The frame is empty or lacks a model, hook, layer or depth in some row; it has several hooks and none was
        asked for, or not the one that was.

    Examples
    --------
    >>> frame = pd.DataFrame({"model": "m", "hook": ["z", "attn_out"], "layer": 0, "depth": 0.5})
    >>> one_hook(frame, "z", who="plot_norms")[1]
    'z'
    """
    if not len(frame):
        raise InputError(f"{who} needs at least one row; the frame is empty.")
    for key in ("model", "hook", "layer", "depth"):
        if frame[key].isna().any():  # such rows would vanish from the figure without a word
            raise InputError(f"{who} needs a value of {key!r} in every row; some are missing.")
    hook = None if hook is None else one_name(hook, name="hook")
    have = distinct(frame["hook"])
    listed = ", ".join(repr(name) for name in have)
    if hook is None and len(have) > 1:
        raise InputError(f"{who} shows one hook at a time; the frame has {listed}. Choose with hook=.")
    if hook is not None and hook not in have:
        raise InputError(
            f"{who} has no rows of the hook {hook!r}; the frame has {listed}.{did_you_mean(hook, have)}"
        )
    chosen = have[0] if hook is None else hook
    return frame[frame["hook"] == chosen], chosen


def few_models(frame: pd.DataFrame, *, who: str) -> list[str]:
    """Return the models of a frame in its order, at most as many as one figure can show.

    Raises
    ------
    InputError
        There are more.

    Examples
    --------
    >>> few_models(pd.DataFrame({"model": ["gpt2-xl", "gpt2", "gpt2"]}), who="plot_betas")
    ['gpt2-xl', 'gpt2']
    """
    models = distinct(frame["model"])
    if len(models) > MAX_MODELS:
        raise InputError(
            f"{who} shows at most {MAX_MODELS} models in one figure; the frame has {len(models)} "
            f"({', '.join(models[:3])}, ...). Choose some: frame[frame['model'].isin([...])]."
        )
    return models


def of_term(frame: pd.DataFrame, term: str, *, who: str) -> pd.DataFrame:
    """Return the rows of one term.

    Raises
    ------
    InputError
        There are none; the message has the terms that there are.

    Examples
    --------
    >>> len(of_term(pd.DataFrame({"term": ["lag1", "lag2"]}), "lag2", who="plot_nulls"))
    1
    """
    have = distinct(frame["term"])
    if one_name(term, name="term") not in have:
        raise InputError(
            f"{who} has no rows of the term {term!r}; the frame has {have}.{did_you_mean(term, have)}"
        )
    return frame[frame["term"] == term]


def require_one_row(frame: pd.DataFrame, keys: Sequence[str], numbers: Sequence[str], *, who: str) -> None:
    """Check that every coefficient has one row, a depth, and finite numbers.

    Raises
    ------
    InputError
        Two rows for one, or a depth that is none.
    NumericalError
        A number that is NaN or infinite; the message says where.

    Examples
    --------
    >>> frame = pd.DataFrame({"layer": [0, 1], "depth": [0.25, 0.75], "estimate": [0.1, 0.2]})
    >>> require_one_row(frame, ("layer",), ("estimate",), who="plot_betas")
    """

    def at(rows: pd.Series) -> str:
        row = frame[rows].iloc[0]
        return ", ".join(f"{key} {row[key]}" for key in keys)

    twice = frame.duplicated(list(keys))
    if twice.any():
        heads = "head" in frame and frame["head"].nunique() > 1
        raise InputError(
            f"{who} needs one row for each coefficient; there are two for {at(twice)}. "
            + ("Choose one head: frame[frame['head'] == 0]." if heads else "Were two tables concatenated?")
        )
    if not frame["depth"].between(0, 1, inclusive="neither").all():
        raise InputError(f"{who} needs a 'depth' between 0 and 1, (layer + 0.5) / n_layers, in every row.")
    bad = ~np.isfinite(frame[list(numbers)].to_numpy(dtype="float64", na_value=np.nan)).all(axis=1)
    if bad.any():
        raise NumericalError(
            f"{who} needs finite numbers as {', '.join(numbers)}; some are not at "
            f"{at(pd.Series(bad, frame.index))} ({int(bad.sum())} such rows)."
        )


def distinct(values: pd.Series) -> list[str]:
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
