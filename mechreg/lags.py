"""Lagged columns that never cross a window, and lags across layers."""

import itertools
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mechreg.outside import any_frames
from mechreg.schema import (
    GROUP_KEYS,
    MAX_LAGS,
    TOKEN_KEYS,
    InputError,
    group_columns,
    log_norms,
    one_or_many,
    require,
    require_shared,
    require_whole_numbers,
)
from mechreg.sinks import Codes, Numbers, find_sinks
from mechreg.words import keys_in_words

_OWN_COLUMN = re.compile(r"log_norm|lag\d+|layer_below(_lag\d+)?|is_sink")


@any_frames
def add_lags(
    norms: pd.DataFrame,
    *,
    column: str = "norm",
    lags: int | Iterable[int] = (1, 2),
    skip: int = 1,
    layer_below: int | Iterable[int] = (),
    drop_sinks: str | Iterable[str] = (),
) -> pd.DataFrame:
    """Return the norm frame with the log of every norm, or another measure, and those of the tokens before.

    Parameters
    ----------
    norms : pandas.DataFrame
        A norm frame, rows in any order. All positions of each window must be there, so lags come before any filter.
    column : str
        What is lagged. A norm by its logarithm, in ``log_norm``; any other column, such as ``cos_resid``, as it is: it
        may be missing, and becomes float64, NaN where a token is left out.
    lags : int or iterable of int
        How many tokens back; ``(1, 2)`` adds the columns ``lag1`` and ``lag2``.
    skip : int
        So many first positions of each window are neither outcome nor lag (their ``log_norm`` is NaN).
    layer_below : int or iterable of int
        Tokens back in the layer below: 0 adds ``layer_below`` (same token, one layer down), 1 ``layer_below_lag1``.
    drop_sinks : str or iterable of str
        Tokens that are, as the first ones, neither an outcome nor a lag. "size" (that is, "size>8"): the log norm is
        more than 8 robust standard deviations (1.4826 median |deviation|, at least .1) above the median of its model,
        hook and layer (and head), in that layer only; "token_id=0"; "position=1"; "special", or another column of True
        and False. `docs/traps.md` has what the 8 costs where tails are long.

    Returns
    -------
    pandas.DataFrame
        The same rows in the same order, plus ``log_norm`` (natural logarithm) of a norm, and the lags, all float64;
        NaN where a window has no such token, or it is left out. With ``drop_sinks``, ``is_sink`` too, which the fits
        count. A document of n tokens in one window has n - 3 complete rows with ``lags=(1, 2), skip=1``.

    Raises
    ------
    SchemaError, InputError
        A missing column, a bad option, or positions of a window that are not 0, 1, 2, ...
    NumericalError
        A norm without a logarithm (zero, negative, NaN, infinite): model, hook, layer, doc, position.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": "d", "window": 0,
    ...                       "position": range(4), "norm": np.exp([9.0, 0.0, 1.0, 2.0])})
    >>> add_lags(norms)[["log_norm", "lag1", "lag2"]]
       log_norm  lag1  lag2
    0       NaN   NaN   NaN
    1       0.0   NaN   NaN
    2       1.0   0.0   NaN
    3       2.0   1.0   0.0
    """
    lags = require_whole_numbers(_few(lags, name="lags"), name="lags", least=1)
    layer_below = require_whole_numbers(_few(layer_below, name="layer_below"), name="layer_below", fewest=0)
    require_shared(skip=skip)
    drop_sinks = one_or_many(drop_sinks)
    needed = (column, "norm") if drop_sinks else (column,)
    require(norms, (*GROUP_KEYS, *TOKEN_KEYS, *needed), who="add_lags")
    if column in (*GROUP_KEYS, *TOKEN_KEYS, "head") or _OWN_COLUMN.fullmatch(column):
        raise InputError(f"column= of add_lags must be a measure, such as 'norm'; got {column!r}.")

    lag_names = {f"lag{lag}": lag for lag in lags}
    below_names = {"layer_below" if lag == 0 else f"layer_below_lag{lag}": lag for lag in layer_below}
    outcome_name = "log_norm" if column == "norm" else column
    names = {outcome_name, *lag_names, *below_names, *(["is_sink"] if drop_sinks else [])}
    stale = [str(name) for name in norms.columns if _OWN_COLUMN.fullmatch(str(name)) and name not in names]
    if stale:  # they were made with another skip=, maybe
        raise InputError(
            f"The frame already has the columns {stale} from an earlier add_lags; pass the norm frame itself."
        )

    group_keys = group_columns(norms)
    if norms["position"].isna().any() or not pd.api.types.is_integer_dtype(norms["position"]):
        missing = " with missing values" if norms["position"].isna().any() else ""
        came = f"{norms['position'].dtype}{missing}"
        raise InputError(f"add_lags needs whole numbers as 'position'; the column is {came}.")
    position = norms["position"].to_numpy(dtype="int64")
    window = _codes(norms, [*group_keys, "doc", "window"])
    order = np.lexsort((position, window))
    _require_whole_windows(norms, window[order], position[order], order)

    is_out = position < skip
    columns: dict[str, np.ndarray] = {}
    if drop_sinks:
        log_norm = np.where(is_out, np.nan, _log(norms))
        columns["is_sink"] = find_sinks(norms, drop_sinks, log_norm=log_norm, group=_codes(norms, group_keys))
        is_out = is_out | columns["is_sink"]
    outcome = np.where(is_out, np.nan, _log(norms) if column == "norm" else _numbers(norms, column))
    columns[outcome_name] = outcome
    for name, lag in lag_names.items():
        columns[name] = _shift(outcome, lag, window, order)
    if layer_below:
        down = _one_layer_down(norms, outcome, position)
        for name, lag in below_names.items():
            columns[name] = _shift(down, lag, window, order)
    return norms.assign(**columns)


def add_lags_of(
    norms: pd.DataFrame,
    columns: Iterable[str],
    *,
    column: str = "norm",
    skip: int = 1,
    drop_sinks: str | Iterable[str] = (),
) -> pd.DataFrame:
    """Return the norm frame with the lags that are among a formula's columns.

    Where the layer below is one of them, the first layer, which has none below it, is left out.
    """
    lags, layer_below = lags_among(columns)
    lagged = add_lags(
        norms, column=column, lags=lags or (1,), skip=skip, layer_below=layer_below, drop_sinks=drop_sinks
    )
    return lagged[lagged["layer"] > 0] if layer_below else lagged


def lags_among(columns: Iterable[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the lags, and the lags in the layer below, whose columns are among some."""
    lags, below = set[int](), set[int]()
    for found in map(re.compile(r"lag(\d+)|layer_below(?:_lag(\d+))?").fullmatch, columns):
        if found:
            (lags if found[1] else below).add(int(found[1] or found[2] or 0))
    return tuple(sorted(lags)), tuple(sorted(below))


def _shift(values: Numbers, lag: int, window: Codes, order: Codes) -> Numbers:
    """Return each row's value ``lag`` positions before; ``order`` sorts by window, then position."""
    if lag == 0:
        return values
    now, before = order[lag:], order[:-lag]
    shifted = np.full(len(values), np.nan)
    # Windows have no gaps, so the row `lag` rows up is `lag` positions back as long as it is the same window.
    shifted[now] = np.where(window[now] == window[before], values[before], np.nan)
    return shifted


def _one_layer_down(norms: pd.DataFrame, outcome: Numbers, position: Codes) -> Numbers:
    """Return each row's outcome at the same token in the layer numbered one less, or NaN."""
    if "head" in norms.columns:
        raise InputError(
            "layer_below= needs one norm a token and layer, and head 3 of a layer is not head 3 of the next; "
            "leave layer_below= out for per-head hooks."
        )
    if not pd.api.types.is_integer_dtype(norms["layer"]):
        raise InputError(f"layer_below= needs whole numbers as 'layer'; it is {norms['layer'].dtype}.")
    layer = norms["layer"].to_numpy(dtype="int64")
    stack = _codes(norms, ["model", "hook", "doc", "window"])
    order = np.lexsort((layer, position, stack))
    up, down = order[1:], order[:-1]
    is_below = (stack[up] == stack[down]) & (position[up] == position[down]) & (layer[up] == layer[down] + 1)
    if not is_below.any():
        have = np.unique(layer).tolist()
        raise InputError(
            f"layer_below= needs adjacent layers; the frame has only {have}. Extract all layers."
        )
    below = np.full(len(outcome), np.nan)
    below[up] = np.where(is_below, outcome[down], np.nan)
    return below


def _log(norms: pd.DataFrame) -> Numbers:
    _numbers(norms, "norm")
    return log_norms(norms, who="add_lags")


def _numbers(norms: pd.DataFrame, column: str) -> Numbers:
    """Return a measure as float64, NaN where it is missing."""
    if not pd.api.types.is_numeric_dtype(norms[column]):
        raise InputError(f"add_lags needs numbers as {column!r}; the column is {norms[column].dtype}.")
    return norms[column].to_numpy(dtype="float64", na_value=np.nan)


def _codes(norms: pd.DataFrame, keys: list[str]) -> Codes:
    """Return one number for every distinct combination of the key columns."""
    for key in keys:
        if norms[key].isna().any():  # pandas' groups would leave such rows out without a word
            raise InputError(f"add_lags needs a value of {key!r} in every row; some are missing.")
    return norms.groupby(keys, observed=True, sort=False).ngroup().to_numpy(dtype="int64")


def _require_whole_windows(norms: pd.DataFrame, window: Codes, position: Codes, order: Codes) -> None:
    """Check that every window's positions are 0, 1, 2, ...; window and position come sorted."""
    if not len(window):
        return
    first = np.r_[True, window[1:] != window[:-1]]
    step = np.diff(position, prepend=-1)
    twice = ~first & (step == 0)
    if twice.any():
        raise InputError(
            f"add_lags needs every position of a window once; repeated: {_where(norms, int(order[twice.argmax()]))}. "
            "Was a frame concatenated with itself, or a 'head' column dropped?"
        )
    wrong = np.where(first, position != 0, step != 1)
    if wrong.any():
        at = int(wrong.argmax())
        came = f"starts at {position[at]}" if first[at] else f"goes from {position[at - 1]} to {position[at]}"
        raise InputError(
            f"add_lags needs the positions 0, 1, 2, ... of every window; it {came} at "
            f"{_where(norms, int(order[at]))}. Add lags before you filter rows."
        )


def _where(norms: pd.DataFrame, row: int) -> str:
    return keys_in_words({key: norms[key].iloc[row] for key in (*group_columns(norms), *TOKEN_KEYS)})


def _few(values: Any, *, name: str) -> list[Any]:
    """Return the entries of an option of lags, which may have no end, or refuse too many."""
    is_one = isinstance(values, str) or not isinstance(values, Iterable)
    given = [values] if is_one else list(itertools.islice(values, MAX_LAGS + 1))
    if len(given) > MAX_LAGS:
        raise InputError(f"{name} must be at most {MAX_LAGS}, since each becomes a column; got more.")
    return given
