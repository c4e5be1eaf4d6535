"""The tokens at which a measure is largest in a layer: of a shard, and of the whole corpus from its shards."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mechreg import store
from mechreg.frames import flat, series_of

_PLACE = ["model", "hook", "layer", "head", "measure"]


def top_of_shard(
    norms: Mapping[str, Mapping[str, np.ndarray]], tokens: pd.DataFrame, *, model: str, most: int
) -> pd.DataFrame:
    """Return the rows of a shard's tokens with the largest values of every measure, hook, layer and head.

    ``norms`` has by hook and measure "layer token" or "layer head token"; of equal values the earlier token counts.
    """
    about = tokens[["doc", "window", "position", "token_id", "token"]].astype({"doc": "str", "token": "str"})
    frames = []
    for hook, measures in norms.items():
        for measure, values in measures.items():
            for series, of_tokens in zip(series_of(values), flat(values.astype(np.float32)), strict=True):
                rows = np.argsort(-of_tokens, kind="stable")[:most]
                place = (model, hook, series.layer, -1 if series.head is None else series.head, measure)
                own: dict[str, Any] = {**dict(zip(_PLACE, place, strict=True)), "value": of_tokens[rows]}
                frames.append(about.iloc[rows].assign(**own))
    found = pd.concat(frames, ignore_index=True)
    return found[[*_PLACE, "value", *about.columns]].dropna(subset="value")


def top_of_run(run: store.Run, most: int) -> pd.DataFrame:
    """Return the same of all models of a run, from those of its shards, with each token's ``rank`` from 1."""
    parts = [store.read_table_shard(path) for model in run.models for path in run.shards("top", model)]
    ordered = pd.concat(parts, ignore_index=True).sort_values("value", ascending=False, kind="stable")
    rank = ordered.groupby(_PLACE).cumcount() + 1
    ordered.insert(len(_PLACE), "rank", rank)
    return ordered[rank <= most].sort_values([*_PLACE, "rank"], ignore_index=True)
