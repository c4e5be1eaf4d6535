"""Norms of whole words: the pieces of a word taken together, so that lags go from word to word."""

from typing import Literal, get_args

import numpy as np
import pandas as pd

from mechreg.corpus.annotations import join_annotations
from mechreg.outside import any_frames
from mechreg.schema import (
    GROUP_KEYS,
    NORM_COLUMNS,
    TOKEN_KEYS,
    InputError,
    group_columns,
    require,
    require_option,
)

Reduce = Literal["mean", "first", "last"]


@any_frames
def word_norms(norms: pd.DataFrame, tokens: pd.DataFrame, *, reduce: Reduce = "mean") -> pd.DataFrame:
    """Return the norm frame of whole words: one row a word, its ``position`` the word's place in its window.

    Every token is in exactly one row: a token of no word (``word`` is -1) is a row of its own, and a word that a
    window's end cuts is a row in each of the windows. `add_lags` then takes the words before.

    Parameters
    ----------
    norms : pandas.DataFrame
        A norm frame with all tokens of its windows; not a lagged one.
    tokens : pandas.DataFrame
        What `annotate_pos` gave.
    reduce : str
        The norm of a word: "mean" of its pieces' norms, or that of its "first" or "last" piece.

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) depth, doc, window, position, token_id (of the first piece), norm, word, pos,
        n_pieces.

    Raises
    ------
    SchemaError, InputError
        A missing column, a lagged frame, or windows with gaps.

    Examples
    --------
    >>> keys = {"doc": "d", "window": 0, "position": [0, 1, 2], "token_id": [5, 6, 7]}
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, **keys,
    ...                       "norm": [1.0, 2.0, 4.0]})
    >>> tokens = pd.DataFrame({**keys, "word": [0, 1, 1], "pos": ["DET", "NOUN", "NOUN"]})
    >>> word_norms(norms, tokens)[["position", "norm", "pos", "n_pieces"]].values.tolist()
    [[0, 1.0, 'DET', 1], [1, 3.0, 'NOUN', 2]]
    """
    require_option(reduce, get_args(Reduce), name="reduce")
    require(norms, (*GROUP_KEYS, "depth", *TOKEN_KEYS, "token_id", "norm"), who="word_norms")
    require(tokens, (*TOKEN_KEYS, "word", "pos"), who="word_norms")
    if "log_norm" in norms.columns:
        raise InputError(
            "word_norms needs the norm frame; add lags to what it gives: add_lags(word_norms(...))."
        )
    groups, added = group_columns(norms), ["word", "pos"]
    checked = [name for name in ("model", "token_id") if name in tokens.columns]
    frame = norms[[*groups, "depth", *TOKEN_KEYS, "token_id", "norm"]]
    frame = join_annotations(frame, tokens[[*TOKEN_KEYS, *added, *checked]], columns=added)
    frame = frame.sort_values([*groups, *TOKEN_KEYS], ignore_index=True)
    windows = [*groups, "doc", "window"]
    new_window = frame.groupby(windows, observed=True, sort=False).ngroup().diff().ne(0).to_numpy()
    step = np.diff(frame["position"].to_numpy(np.int64), prepend=-1)
    if (np.where(new_window, frame["position"] != 0, step != 1)).any():
        raise InputError("word_norms needs all tokens of every window; some are missing or come twice.")
    word = frame["word"].to_numpy()
    begins = new_window | (word < 0) | (word != np.r_[-1, word[:-1]])
    first = np.flatnonzero(begins)
    last = np.r_[first[1:], len(frame)] - 1
    value = frame["norm"].to_numpy(np.float64)
    n_pieces = last - first + 1
    if reduce == "mean":
        reduced = np.add.reduceat(value, first) / n_pieces
    else:
        reduced = value[first if reduce == "first" else last]
    words = frame.take(first).reset_index(drop=True)
    place = np.arange(len(first))
    window_start = np.maximum.accumulate(np.where(new_window[first], place, 0))
    words = words.assign(position=place - window_start, norm=reduced, n_pieces=n_pieces.astype(np.int32))
    return words.astype({name: NORM_COLUMNS[name] for name in ("position", "norm")})
