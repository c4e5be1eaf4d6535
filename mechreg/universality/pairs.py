"""Pairs: what both comparisons need: enough shared documents, groups of models, and frames of a part for each pair."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechreg.schema import InputError
from mechreg.universality.bands import Estimates

# With fewer, quantiles over resampled documents mean nothing: 5 documents have 126 resamples.
MIN_DOCS = 6


def require_documents(count: int, models: Sequence[str], *, of: str, who: str) -> None:
    """Check that models share as many documents as can be drawn again."""
    if count < MIN_DOCS:
        raise InputError(
            f"{who} resamples documents: it needs {MIN_DOCS} or more {of}; {', '.join(models)} share {count}. Extract "
            "all models from the same corpus."
        )


def group_of_each(groups: Mapping[str, str] | None, models: Sequence[str]) -> dict[str, str]:
    """Return a group for every model, or nothing."""
    if groups is None:
        return {}
    if not isinstance(groups, Mapping) or {*groups} != {*models}:
        raise InputError(
            f"groups must give a group for each of the models {[*models]} and no other, as in {{{models[0]!r}: "
            f"'small'}}; got {groups!r}."
        )
    return {model: str(groups[model]) for model in models}


def same_group(groups: Mapping[str, str], first: str, second: str) -> Any:
    """Return whether two models are of one group, NA without groups."""
    return groups[first] == groups[second] if groups else pd.NA


def within_and_between(pairs: Iterable[tuple[Any, Estimates]]) -> tuple[list[Estimates], list[Estimates]]:
    """Return the estimates of pairs within groups and of those between, both empty unless there are both."""
    found: dict[bool, list[Estimates]] = {True: [], False: []}
    for same, estimates in pairs:
        if same is not pd.NA:
            found[same].append(estimates)
    return (found[True], found[False]) if found[True] and found[False] else ([], [])


def no_yardstick(groups: Iterable[str]) -> str:
    """Return why differences between these groups cannot be measured by seeds."""
    number = len(set(groups))
    if not number:
        return "Without groups=, seeds of one size look like sizes of their own, and differences have no yardstick."
    if number == 1:
        return "All models are of one group, so there are no differences between groups to measure."
    return "No group has two models (seeds), so there is no yardstick for differences between groups."


def table_of(parts: Iterable[dict[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one frame of parts, whose columns are arrays, or one value for all rows of the part."""
    frames = [pd.DataFrame(part, index=range(max(map(np.size, part.values())))) for part in parts]
    if not frames:
        return pd.DataFrame(columns=list(columns or ()))
    table = pd.concat(frames, ignore_index=True)
    table = table if columns is None else table.reindex(columns=list(columns))
    dtypes = {"same_group": "boolean", "bin": "Int64"} if "same_group" in table else {}
    return table.astype({name: dtype for name, dtype in dtypes.items() if name in table})
