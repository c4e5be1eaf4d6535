"""A corpus as a stream: the documents that `read_corpus` gives, some at a time."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from mechreg.corpus.documents import require_unique
from mechreg.corpus.formats import ROWS, filled
from mechreg.corpus.reading import require_tags, require_usable, tables_of_corpus
from mechreg.outside import any_frames

# In memory at a time: about a quarter of a million tokens.
CHUNK_CHARACTERS = 1_000_000


@any_frames
def stream_corpus(
    corpus: Any, *, text: str = "text", characters: int = CHUNK_CHARACTERS, tags: bool = False
) -> Iterator[pd.DataFrame]:
    """Yield the documents frame of a corpus in parts of at least so many characters, the last one shorter.

    Concatenated, the parts are what `read_corpus` gives, whose options these are. Of .jsonl and .parquet files only a
    part is in memory; .txt, .csv, .conllu and compressed .parquet are read a file at a time.

    Examples
    --------
    >>> from mechreg.corpus import read_corpus
    >>> parts = list(stream_corpus("demo"))
    >>> pd.concat(parts).equals(read_corpus("demo"))
    True
    """
    seen: list[np.ndarray] = []
    problems: Counter[str] = Counter()
    parts = _parts(corpus, text, tags)
    for held in filled(parts, lambda part: int(part["text"].str.len().sum()), most=characters):
        documents = pd.concat(held, ignore_index=True)
        if tags:
            require_tags(documents)
        seen.append(pd.util.hash_array(documents["doc"].to_numpy(object)))  # 8 bytes a document are kept
        problems.update(documents["problem"])
        yield documents
    hashes, counts = np.unique(np.concatenate([*seen, np.array([], np.uint64)]), return_counts=True)
    if (counts > 1).any():
        twice = set(hashes[counts > 1].tolist())
        suspects = [
            part["doc"][[h in twice for h in pd.util.hash_array(part["doc"].to_numpy(object)).tolist()]]
            for part in _parts(corpus, text, False)
        ]
        require_unique(pd.concat(suspects))
    require_usable(problems)


def _parts(corpus: Any, text: str, tags: bool) -> Iterator[pd.DataFrame]:
    for documents in tables_of_corpus(corpus, text=text, tags=tags):
        for row in range(0, max(len(documents), 1), ROWS):
            yield documents.iloc[row : row + ROWS]
