"""A corpus as a stream: the documents that `read_corpus` gives, some at a time."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from mechreg.corpus.documents import require_unique
from mechreg.corpus.formats import ROWS
from mechreg.corpus.reading import files_of, read_corpus, read_file, require_tags, require_usable

# In memory at a time: about a quarter of a million tokens.
CHUNK_CHARACTERS = 1_000_000


def stream_corpus(
    corpus: Any, *, text: str = "text", characters: int = CHUNK_CHARACTERS, tags: bool = False
) -> Iterator[pd.DataFrame]:
    """Yield the documents frame of a corpus in parts of at least so many characters, the last one shorter.

    Concatenated, the parts are what `read_corpus` gives, whose options these are. Of .jsonl and .parquet files only a
    part is in memory; .txt, .csv, .conllu and compressed .parquet are read a file at a time.

    Raises
    ------
    InputError
        As `read_corpus`; what concerns all documents (an id that comes twice, nothing usable) at the end.

    Examples
    --------
    >>> parts = list(stream_corpus("demo"))
    >>> pd.concat(parts).equals(read_corpus("demo"))
    True
    """
    seen: list[np.ndarray] = []
    problems: Counter[str] = Counter()
    for documents in _filled(_parts(corpus, text, tags), characters):
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


def _filled(parts: Iterator[pd.DataFrame], characters: int) -> Iterator[pd.DataFrame]:
    """Yield small parts together, up to so many characters."""
    held: list[pd.DataFrame] = []
    size = 0
    for part in parts:
        held.append(part)
        size += int(part["text"].str.len().sum())
        if size >= characters:
            yield pd.concat(held, ignore_index=True)
            held, size = [], 0
    if held:
        yield pd.concat(held, ignore_index=True)


def _parts(corpus: Any, text: str, tags: bool) -> Iterator[pd.DataFrame]:
    corpus = os.fspath(corpus) if isinstance(corpus, os.PathLike) else corpus
    if not isinstance(corpus, str) or corpus == "demo" or corpus.startswith("datasets:"):
        yield from _some_at_a_time(read_corpus(corpus, text=text, tags=tags))
        return
    for path, stem in files_of(corpus):
        for documents in read_file(path, stem=stem, text=text):
            yield from _some_at_a_time(documents)


def _some_at_a_time(documents: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for row in range(0, max(len(documents), 1), ROWS):
        yield documents.iloc[row : row + ROWS]
