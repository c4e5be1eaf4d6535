"""Positions: the tokens that are edited, and the distance of every other token behind them."""

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


def chosen(
    tokens: pd.DataFrame, positions: Positions, *, name: str = "positions"
) -> Bool[np.ndarray, " tokens"]:
    """Return which rows of a token frame an option of that name chooses, as ``positions`` does in `intervene`."""
    position = tokens["position"].to_numpy(np.int64)
    if callable(positions):
        edited = _booleans(positions(tokens.copy()), len(tokens), f"The function given as {name}=")
    elif isinstance(positions, Integral) and not isinstance(positions, bool):
        if positions < 1:
            raise InputError(f"{name}= as a number k means every k-th token, 1 or more; got {positions}.")
        edited = (position > 0) & (position % int(positions) == 0)
    elif isinstance(positions, str) and positions in ("all", "first", "last"):
        # A window ends where another begins.
        ends = {"all": np.ones(len(tokens), bool), "first": position == 0}
        edited = ends.get(positions, np.append(position[1:] == 0, True))
    elif isinstance(positions, str) and positions in tokens.columns:
        edited = _booleans(tokens[positions], len(tokens), f"The column {positions!r}")
    else:
        known = ["all", "first", "last", *map(str, tokens.columns)]
        hint = did_you_mean(positions, known) if isinstance(positions, str) else ""
        raise InputError(
            f"{name} must be 'all', 'first', 'last', a number k (every k-th token), a function of the token frame, or "
            f"one of its columns {[str(name) for name in tokens.columns]}; got {positions!r}.{hint}"
        )
    if not edited.any():
        raise InputError(f"{name}={positions!r} chooses no token of these documents; choose others.")
    return edited


def others(
    tokens: pd.DataFrame, windows: Sequence[Window], edited: Bool[np.ndarray, " tokens"], *, seed: int
) -> Bool[np.ndarray, " tokens"]:
    """Return as many other tokens of each window, drawn without position 0; fewer where there are fewer."""
    drawn = np.zeros(len(tokens), bool)
    for window in windows:
        here = edited[window.rows]
        if here.any():
            free = np.flatnonzero(~here[1:]) + 1
            place = (tokens["doc"].iat[window.start], tokens["window"].iat[window.start])
            draw = generator(seed, "other_position", *place)
            drawn[window.start + draw.permutation(free)[: int(here.sum())]] = True
    if not drawn.any():
        raise InputError(
            "The control 'other_position' needs tokens that are not edited (position 0 is never one of them); "
            "choose fewer with positions=."
        )
    return drawn


def offsets(edited: Bool[np.ndarray, "batch pos"]) -> Int[np.ndarray, "batch pos"]:
    """Return the tokens since the last edited one of the same window: 0 at an edited token, -1 before the first."""
    place = np.arange(edited.shape[1])
    last = np.maximum.accumulate(np.where(edited, place, -1), axis=1)
    return np.where(last >= 0, place - last, -1)


def _booleans(values: Any, n: int, source: str) -> Bool[np.ndarray, " tokens"]:
    is_nullable = isinstance(values, pd.Series) and values.dtype == "boolean" and not values.isna().any()
    array = np.asarray(values.astype("bool") if is_nullable else values)
    if array.shape != (n,) or array.dtype != np.bool_:
        raise InputError(
            f"{source} must give True or False for each of the {n} tokens; got {array.dtype} of shape "
            f"{array.shape}."
        )
    return array
