"""A corpus as a stream: the documents that `read_corpus` gives, some at a time."""

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from mechreg.corpus.documents import documents_frame, require_unique
from mechreg.corpus.formats import from_arrow, json_rows, reason
from mechreg.corpus.reading import files_of, kind_of, read_corpus, read_file, require_tags, require_usable
from mechreg.schema import InputError

# So much text is in memory at a time, about a quarter of a million tokens.
CHUNK_CHARACTERS = 1_000_000
_ROWS = 256  # documents of a table that are taken at a time


def stream_corpus(
    corpus: str, *, text: str = "text", characters: int = CHUNK_CHARACTERS, tags: bool = False
) -> Iterator[pd.DataFrame]:
    """Yield the documents frame of a corpus in parts of at least so many characters, the last one shorter.

    The parts on top of each other are what `read_corpus` gives. Of .jsonl and .parquet files only a part is in
    memory; .txt, .csv, .conllu and compressed .parquet are read a file at a time.

    Parameters
    ----------
    corpus : str
        A file or glob, "demo" or "datasets:...", as for `read_corpus`.
    text, tags
        As for `read_corpus`.
    characters : int

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


def _parts(corpus: str, text: str, tags: bool) -> Iterator[pd.DataFrame]:
    if corpus == "demo" or corpus.startswith("datasets:"):
        yield from _some_at_a_time(read_corpus(corpus, text=text, tags=tags))
        return
    for path, stem in files_of(corpus):
        kind = kind_of(path)
        if kind == ".jsonl":
            tables = _json_tables(path, text)
        elif kind == ".parquet" and not path.endswith(".gz"):
            tables = _parquet_tables(path, text)
        else:
            yield from _some_at_a_time(read_file(path, stem=stem, text=text))
            continue
        try:
            first = 0
            for table in tables:
                yield documents_frame(table, text=text, stem=stem, where=path, first=first)
                first += len(table)
        except InputError:
            raise
        except (OSError, EOFError, zlib.error, ValueError, RecursionError, pa.ArrowException) as error:
            raise InputError(f"{path} cannot be read: {reason(error)}.") from error


def _some_at_a_time(documents: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for row in range(0, len(documents), _ROWS):
        yield documents.iloc[row : row + _ROWS]


def _json_tables(path: str, text: str) -> Iterator[pd.DataFrame]:
    """Yield the rows of a .jsonl file, some lines at a time; all have the columns of those before."""
    columns: dict[str, None] = {}
    number = 1
    with _opened(path) as file:
        while lines := file.readlines(65_536):  # whole lines, of about so many bytes together
            decoded = [line.decode("utf-8", errors="surrogateescape") for line in lines]
            if number == 1:
                decoded[0] = decoded[0].removeprefix("\ufeff")
            rows = json_rows((line.removesuffix("\n") for line in decoded), first=number)
            number += len(lines)
            if rows:
                table = pd.DataFrame(rows, dtype=object)
                columns |= dict.fromkeys(table.columns)
                yield table.reindex(columns=list(columns))
        if not columns:
            yield pd.DataFrame(columns=[text], dtype=object)


def _parquet_tables(path: str, text: str) -> Iterator[pd.DataFrame]:
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS):
            yield from_arrow(pa.Table.from_batches([batch]), text)
        if not file.metadata.num_rows:
            yield from_arrow(file.schema_arrow.empty_table(), text)


def _opened(path: str) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")
