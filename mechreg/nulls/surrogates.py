"""Surrogates: token and norm frames from which the order of tokens, or all context, was taken away."""

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechreg.outside import any_frames
from mechreg.regression.clusters import require_two
from mechreg.schema import (
    GROUP_KEYS,
    TOKEN_KEYS,
    InputError,
    group_columns,
    log_norms,
    require,
    require_shared,
)


@any_frames
def shuffle_tokens(tokens: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return the token frame with the tokens of every document in random order, for the model to read.

    What remains of a coefficient on such a text does not come from reading it: it comes from which words a document
    has, and from position. All columns but doc, window and position come from another token of the document, of any of
    its windows; a token that begins every window, if there are two or more (a BOS), stays where it is.

    Examples
    --------
    >>> tokens = pd.DataFrame({"doc": "d", "window": 0, "position": range(4), "token_id": [5, 6, 7, 8]})
    >>> sorted(shuffle_tokens(tokens)["token_id"])
    [5, 6, 7, 8]
    """
    require(tokens, (*TOKEN_KEYS, "token_id"), who="shuffle_tokens")
    first = tokens["position"].to_numpy() == 0
    begins = tokens.loc[first, "token_id"]
    fixed = first & (len(begins) > 1 and begins.nunique() == 1)
    source = shuffled_rows(tokens, ["doc"], fixed, seed)
    moved = [name for name in tokens.columns if name not in TOKEN_KEYS]
    return tokens.assign(**{name: tokens[name].array[source] for name in moved})


@any_frames
def shuffle_norms(norms: pd.DataFrame, *, skip: int = 1, seed: int = 0) -> pd.DataFrame:
    """Return the norm frame with the norms of every window in random order.

    What remains of a coefficient then comes from windows of different levels, their documents' or a slow drift; any
    order of the tokens gives it. With equal levels it is 0. All models, hooks, layers and heads are put into the same
    order, which keeps what they have in common at a token and does not depend on the order of the rows. ``skip`` first
    positions of each window stay where they are, as in `add_lags`.

    Examples
    --------
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": "d", "window": 0,
    ...                       "position": range(4), "norm": [9.0, 1.0, 2.0, 3.0]})
    >>> sorted(shuffle_norms(norms)["norm"].iloc[1:])
    [1.0, 2.0, 3.0]
    """
    require(norms, (*GROUP_KEYS, *TOKEN_KEYS, "norm"), who="shuffle_norms")
    require_shared(skip=skip)
    source = shuffled_rows(
        norms, [*group_columns(norms), "doc", "window"], norms["position"].to_numpy() < skip, seed
    )
    return norms.assign(norm=norms["norm"].array[source])


@any_frames
def token_means(norms: pd.DataFrame, *, skip: int = 1) -> pd.DataFrame:
    """Return the norm frame with what each token id usually has, in the other documents, in place of every norm.

    What remains of a coefficient then comes from which token follows which: is it the context, or the token?

    ``norm`` becomes exp of the mean log norm of the token id, in the same model, hook, layer and head, over all other
    documents; an id that no other document has gets their mean over all tokens. ``skip`` first positions of each window
    are left out of the means and not changed. The token's own document is left out: with it, the mean of an id that
    occurs once is its own norm, context and all, and the more rare words a corpus has, the more this null would repeat
    the very coefficient that it judges. One document, or a norm without a logarithm, is an InputError or
    NumericalError.

    Examples
    --------
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": ["a", "a", "b", "b"], "window": 0,
    ...                       "position": [0, 1, 0, 1], "token_id": [7, 8, 7, 8], "norm": [1.0, 2.0, 3.0, 4.0]})
    >>> token_means(norms, skip=0)["norm"].round(12).tolist()
    [3.0, 4.0, 1.0, 2.0]
    """
    require(norms, (*GROUP_KEYS, *TOKEN_KEYS, "token_id", "norm"), who="token_means")
    require_shared(skip=skip)
    remedy = " Its means are over other documents."
    require_two(norms["doc"].nunique(), "documents", who="token_means", where="the frame", remedy=remedy)
    logs = log_norms(norms, who="token_means")
    counted = norms["position"].to_numpy() >= skip
    group = group_columns(norms)
    rows = norms[[*group, "doc", "token_id"]].assign(
        log_norm=np.where(counted, logs, 0.0), count=counted.astype(np.int64)
    )

    def others(keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return sum and count over the rows with the same keys in other documents."""
        everywhere, here = (
            rows.groupby(by, observed=True)[["log_norm", "count"]].transform("sum")
            for by in (keys, [*keys, "doc"])
        )
        elsewhere = everywhere - here
        return elsewhere["log_norm"].to_numpy(), elsewhere["count"].to_numpy()

    total, count = others([*group, "token_id"])
    overall, rest = others(group)
    if not rest.all():
        raise InputError(
            f"token_means takes means over other documents; in some layer only one has positions from {skip} on."
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, total / count, overall / rest)
    value = norms["norm"].to_numpy("float64")
    return norms.assign(norm=np.where(counted, np.exp(mean), value))


def shuffled_rows(
    frame: pd.DataFrame, within: list[str], fixed: np.ndarray, seed: int
) -> Int[np.ndarray, " rows"]:
    """Return for every row the row that takes its place: at random within groups, the same for the same tokens."""
    keys = list(TOKEN_KEYS)
    token = frame.groupby(keys, observed=True, sort=True).ngroup().to_numpy()
    require_shared(seed=seed)
    draw = np.random.default_rng(seed).random(int(token.max()) + 1 if len(token) else 0)
    group = frame.groupby(within, observed=True, sort=False).ngroup().to_numpy()
    place = np.lexsort((token, fixed, group))
    taken = np.lexsort((np.where(fixed, token, draw[token] if len(token) else token), fixed, group))
    source = np.empty(len(frame), np.int64)
    source[place] = taken
    return source
