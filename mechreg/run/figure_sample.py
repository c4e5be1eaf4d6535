"""A sample of whole documents for the figures of a run whose norms are too many to draw."""

import hashlib
import math

import numpy as np
import pandas as pd

SAMPLE_TOKENS = 50_000
SAMPLE_SHARDS = 20


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
