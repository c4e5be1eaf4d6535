"""Which tokens are edited, and how far every other token is behind them."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from mechreg.forward import Window
from mechreg.interventions.seeding import generator
from mechreg.schema import InputError, did_you_mean

Positions = str | int | Callable[[pd.DataFrame], Any]


def chosen(tokens: pd.DataFrame, positions: Positions) -> Bool[np.ndarray, " tokens"]:
    """Return which rows of a token frame are to be edited.

    Parameters
    ----------
    tokens : pandas.DataFrame
        doc, window, position, and any annotations.
    positions : "all", "first", int, column name or function
        As in `intervene`.

    Raises
    ------
    InputError
        No such choice, a column or an answer that is not true or false for every token, or no token at all.

    Examples
    --------
    >>> tokens = pd.DataFrame({"doc": "d", "window": 0, "position": range(5)})
    >>> chosen(tokens, 2).tolist()
    [False, False, True, False, True]
    """
    position = tokens["position"].to_numpy(np.int64)
    if callable(positions):
        found = _booleans(positions(tokens.copy()), len(tokens), said="the function given as positions=")
    elif isinstance(positions, Integral) and not isinstance(positions, bool):
        if positions < 1:
            raise InputError(f"positions= as a number k means every k-th token, 1 or more; got {positions}.")
        found = (position > 0) & (position % int(positions) == 0)
    elif isinstance(positions, str) and positions in ("all", "first"):
        found = (position == 0) if positions == "first" else np.ones(len(tokens), bool)
    elif isinstance(positions, str) and positions in tokens.columns:
        found = _booleans(tokens[positions], len(tokens), said=f"the column {positions!r}")
    else:
        known = ["all", "first", *map(str, tokens.columns)]
        hint = did_you_mean(positions, known) if isinstance(positions, str) else ""
        raise InputError(
            "positions must be 'all', 'first', a number k (every k-th token), a function of the token frame, or one "
            f"of its columns {[str(name) for name in tokens.columns]}; got {positions!r}.{hint}"
        )
    if not found.any():
        raise InputError(f"positions={positions!r} chooses no token of these documents; choose others.")
    return found


def others(
    tokens: pd.DataFrame, windows: Sequence[Window], edited: Bool[np.ndarray, " tokens"], *, seed: int
) -> Bool[np.ndarray, " tokens"]:
    """Return as many other tokens of each window, drawn at random without position 0; fewer where there are fewer.

    Raises
    ------
    InputError
        No window has another token.

    Examples
    --------
    >>> tokens = pd.DataFrame({"doc": "d", "window": 0, "position": range(4)})
    >>> others(tokens, [Window(0, 4)], np.array([False, True, False, True]), seed=0).tolist()
    [False, False, True, False]
    """
    found = np.zeros(len(tokens), bool)
    for window in windows:
        here = edited[window.rows]
        if here.any():
            free = np.flatnonzero(~here[1:]) + 1
            place = (tokens["doc"].iat[window.start], tokens["window"].iat[window.start])
            draw = generator(seed, "other_position", *place)
            found[window.start + draw.permutation(free)[: int(here.sum())]] = True
    if not found.any():
        raise InputError(
            "The control 'other_position' needs tokens that are not edited (position 0 is never one of them); "
            "choose fewer with positions=."
        )
    return found


def offsets(edited: Bool[np.ndarray, "batch pos"]) -> Int[np.ndarray, "batch pos"]:
    """Return how many tokens back the last edited token of the same window is: 0 at an edited one, -1 before all.

    Examples
    --------
    >>> offsets(np.array([[False, True, False], [False, False, False]])).tolist()
    [[-1, 0, 1], [-1, -1, -1]]
    """
    place = np.arange(edited.shape[1])
    last = np.maximum.accumulate(np.where(edited, place, -1), axis=1)
    return np.where(last >= 0, place - last, -1)


def _booleans(values: Any, n: int, *, said: str) -> Bool[np.ndarray, " tokens"]:
    is_nullable = isinstance(values, pd.Series) and values.dtype == "boolean" and not values.isna().any()
    array = np.asarray(values.astype("bool") if is_nullable else values)
    if array.shape != (n,) or array.dtype != np.bool_:
        raise InputError(
            f"{said[0].upper()}{said[1:]} must say True or False for every one of the {n} tokens; got "
            f"{array.dtype} of shape {array.shape}."
        )
    return array
