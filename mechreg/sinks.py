"""Sinks: tokens that are neither an outcome nor a lag, by their size, their id, their position or a column."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from mechreg.schema import InputError, one_or_many, require

Codes = Int[np.ndarray, " rows"]
Numbers = Float[np.ndarray, " rows"]

# Chosen on SmolLM2 and by simulation (docs/traps.md): it finds sinks of 15 sd and costs a t3's betas .003 at most.
DEFAULT_Z = 8.0
# In a layer of almost equal norms (SmolLM2's block 24), a slightly larger one is not a sink.
LEAST_DEVIATION = 0.1
_RULE = re.compile(r"(size)>(\d+(?:\.\d*)?)|(token_id|position)=(\d+)")
_HINT = "'size', 'size>12', 'token_id=0', 'position=1', or a column of True and False, such as 'special'"


class SinkRule(NamedTuple):
    """What is left out: a kind ("size", "token_id", "position", or a column's name) and its number."""

    kind: str
    value: float


def sink_rules(drop_sinks: str | Iterable[str]) -> list[SinkRule]:
    """Return the rules that an option ``drop_sinks=`` names; none for an empty one."""
    rules = []
    for text in one_or_many(drop_sinks):
        if text == "size":
            rules.append(SinkRule("size", DEFAULT_Z))
        elif isinstance(text, str) and (found := _RULE.fullmatch(text)):
            kind, value = (part for part in found.groups() if part is not None)
            rules.append(SinkRule(kind, float(value)))
        elif isinstance(text, str) and text.isidentifier() and text not in ("token_id", "position"):
            rules.append(SinkRule(text, 1.0))
        else:
            raise InputError(f"drop_sinks must be {_HINT}, one or several; got {text!r}.")
    return rules


def find_sinks(
    norms: pd.DataFrame, drop_sinks: str | Iterable[str], *, log_norm: Numbers, group: Codes
) -> Bool[np.ndarray, " rows"]:
    """Return which rows the rules leave out, of those that have a log norm; ``group`` numbers model, hook and layer."""
    found = np.zeros(len(norms), bool)
    for kind, value in sink_rules(drop_sinks):
        if kind == "size":
            found |= robust_z(log_norm, group) > value
            continue
        _require_column(norms, kind)
        found |= norms[kind].to_numpy() == value
    return found & ~np.isnan(log_norm)


def robust_z(log_norm: Numbers, group: Codes) -> Numbers:
    """Return (log norm - median) / (1.4826 median |deviation|, at least .1) within each group, over what is not NaN."""
    deviation = log_norm - pd.Series(log_norm).groupby(group).transform("median").to_numpy()
    spread = pd.Series(np.abs(deviation)).groupby(group).transform("median").to_numpy()
    return deviation / np.maximum(1.4826 * spread, LEAST_DEVIATION)


def _require_column(norms: pd.DataFrame, name: str) -> None:
    if name == "special" and name not in norms.columns:
        raise InputError(
            "drop_sinks='special' needs the column 'special'; add it with norms.assign(special=norms['token_id'].isin("
            "mr.models.special_ids(model)))."
        )
    require(norms, (name,), who="add_lags, for drop_sinks=,")
    if name not in ("token_id", "position") and not pd.api.types.is_bool_dtype(norms[name]):
        raise InputError(f"drop_sinks={name!r} needs a column of True and False; it is {norms[name].dtype}.")
