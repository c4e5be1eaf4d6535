"""A sample of whole documents for the figures of a run whose norms are too many to draw."""

import hashlib
import math

import numpy as np
import pandas as pd

SAMPLE_TOKENS = 50_000
SAMPLE_SHARDS = 20


def shards_of_sample(shards: int) -> list[int]:
    """Return the shards that the sample is drawn from: at most 20, evenly spread over the corpus.

    Examples
    --------
    >>> shards_of_sample(3), shards_of_sample(1000)[:3]
    ([0, 1, 2], [0, 53, 105])
    """
    return np.linspace(0, shards - 1, min(shards, SAMPLE_SHARDS)).round().astype(int).tolist()


def sampled_documents(docs: pd.Series, shards: int) -> pd.Index:
    """Return a shard's part of the sample: whole documents in the order of the hash of their ids.

    ``docs`` is the document of every token of the shard; 50,000 tokens are shared out over the shards drawn from.
    """
    wanted = math.ceil(SAMPLE_TOKENS / len(shards_of_sample(shards)))
    sizes = docs.astype("str").value_counts()
    order = sorted(sizes.index, key=lambda doc: hashlib.sha256(doc.encode()).digest())
    before = sizes[order].cumsum() - sizes[order]
    return before.index[before < wanted]
