"""Covariates of tokens that need no model: frequency, repetition, distance from the start."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from mechreg.outside import any_frames
from mechreg.schema import TOKEN_KEYS, InputError, require, require_names

Covariate = Literal["surprisal", "log_frequency", "is_repeat", "distance"]
COVARIATES: tuple[str, ...] = get_args(Covariate)
_OF_COUNTS = COVARIATES[1:]


@any_frames
def token_counts(tokens: pd.DataFrame, *, covariates: Sequence[str] = _OF_COUNTS) -> pd.DataFrame:
    """Return the covariates of every token that follow from the token frame alone, rows and index as they are.

    "log_frequency" is the log of the token's share in this corpus; "is_repeat" is 1 where the document had the token
    before; "distance" counts tokens from the document's start, over all its windows.
    """
    covariates = require_names(covariates, _OF_COUNTS, name="covariates", least=0)
    require(tokens, (*TOKEN_KEYS, "token_id"), who="token_counts")
    if tokens.duplicated(list(TOKEN_KEYS)).any():
        raise InputError("token_counts needs every token once; some are repeated. Pass one token frame.")
    places = tokens[[*TOKEN_KEYS, "token_id"]].assign(row=np.arange(len(tokens)))
    ordered = places.sort_values(list(TOKEN_KEYS))
    made = {}
    if "log_frequency" in covariates:
        count = ordered.groupby("token_id")["row"].transform("size")
        made["log_frequency"] = np.log(count / len(ordered))
    if "is_repeat" in covariates:
        before = ordered.groupby(["doc", "token_id"], observed=True).cumcount()
        made["is_repeat"] = (before > 0).astype("float64")
    if "distance" in covariates:
        made["distance"] = ordered.groupby("doc", observed=True).cumcount()
    in_order = np.argsort(ordered["row"].to_numpy())
    return pd.DataFrame(made, index=ordered.index).iloc[in_order][covariates]
