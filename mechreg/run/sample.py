"""What is read into memory at once: all norms of a model, else a sample of whole documents for figures and nulls."""

import hashlib
import math
from typing import Any

import numpy as np
import pandas as pd

from mechreg import store
from mechreg.frames import stacked
from mechreg.models import is_per_head
from mechreg.schema import TOKEN_KEYS
from mechreg.spec import Spec

# Up to so many rows of a model's layers its norms are read into memory, and statsmodels' text is written of all fits.
STATSMODELS_ROWS = 1_000_000
SAMPLE_TOKENS = 50_000
SAMPLE_SHARDS = 20


def series_per_layer(record: dict[str, Any], hook: str) -> int:
    """Return how many norms a token has in a layer of a model with that record: one, or one for each head."""
    return record["facts"]["heads"] if is_per_head(hook) else 1


def is_large(spec: Spec, record: dict[str, Any], tokens: int) -> bool:
    """Return whether a model's rows are more than are read into memory at once, or are not kept."""
    series = record["facts"]["blocks"] * sum(series_per_layer(record, hook) for hook in spec.hooks)
    return spec.keep == "moments" or tokens * series > STATSMODELS_ROWS


def shards_of_sample(shards: int) -> list[int]:
    """Return the shards that the sample is drawn from: at most 20, evenly spread over the corpus."""
    return np.linspace(0, shards - 1, min(shards, SAMPLE_SHARDS)).round().astype(int).tolist()


def sampled_documents(docs: pd.Series, shards: int) -> pd.Index:
    """Return a shard's part of the sample, given each token's document: whole documents by the hash of their ids."""
    wanted = math.ceil(SAMPLE_TOKENS / len(shards_of_sample(shards)))
    sizes = docs.astype("str").value_counts()
    order = sorted(sizes.index, key=lambda doc: hashlib.sha256(doc.encode()).digest())
    before = sizes[order].cumsum() - sizes[order]
    return before.index[before < wanted]


def read_sample(run: store.Run, record: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the norms of the sample, and the tokens of its shards; where only sums are kept, no others are stored."""
    shards, norms, tokens = record["plan"]["shards"], [], []
    for index in shards_of_sample(shards):
        tokens.append(store.read_token_shard(store.shard_path(run.path, "tokens", record, index)))
        docs = sampled_documents(tokens[-1]["doc"], shards)
        paths = [store.shard_path(run.path, "norms", record, index, hook) for hook in run.hooks]
        norms += [frame[frame["doc"].isin(docs)] for frame in map(store.read_norm_shard, paths)]
    return stacked(norms, sort=True), stacked(tokens, sort=True)


def sample_in_words(norms: pd.DataFrame, record: dict[str, Any]) -> str:
    """Return what part of the corpus a sample is, "" where it is all of it."""
    tokens, plan = norms.drop_duplicates([*TOKEN_KEYS]), record["plan"]
    if len(tokens) == plan["tokens"]:
        return ""
    return (
        f"a sample of {tokens['doc'].nunique():,} of {plan['documents']:,} documents ({len(tokens):,} of "
        f"{plan['tokens']:,} tokens), whole, from all parts of the corpus"
    )
