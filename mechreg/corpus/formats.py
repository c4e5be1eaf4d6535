"""What is in a file (.txt, .jsonl, .csv, .parquet, .conllu, gzipped or not): tables of documents, some at a time."""

import gzip
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet

from mechreg.corpus.documents import ID_COLUMNS
from mechreg.words import first_line

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet", ".conllu")
ROWS = 256  # documents of a table read at a time
LINES = 65_536  # bytes of whole lines read at a time
LONGEST_LINE = 2**28  # bytes of a line of .jsonl, which is one document
LARGEST = 2**31  # bytes of a file that is read whole
# A small file that unpacks to gigabytes is an attack or an accident: text packs 3 to 20 times.
UNPACKED, MOST_TIMES = 2**26, 100
Item = TypeVar("Item")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)([.][0-9]+)?")


def tables_of(path: str, kind: str, *, stem: str, text: str) -> Iterator[pd.DataFrame]:
    """Yield a file's documents, a row each: .jsonl and .parquet a part at a time, other kinds the whole file.

    Bytes of a text that are not UTF-8 become half characters, which mark its document.
    """
    if kind == ".jsonl":
        yield from _json_tables(path, text)
    elif kind == ".parquet":
        yield from _parquet_tables(path, text)
    elif kind == ".csv":
        yield from_arrow(_csv(_contents(path), text), text)
    else:
        data = _contents(path)
        content = data.decode("utf-8-sig", errors="surrogateescape")
        if kind == ".conllu":
            _require_8_bits(data)
        rows = _conllu(content, stem) if kind == ".conllu" else [{"doc": stem, "text": content}]
        yield pd.DataFrame(rows, columns=None if rows else [text], dtype=object)


def _opened(path: str) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _contents(path: str) -> bytes:
    """Return all bytes of a file, unpacked, up to a bound."""
    if not path.endswith(".gz") and (size := os.path.getsize(path)) > LARGEST:
        raise ValueError(
            f"its {size:,} bytes are more than the {LARGEST:,} that are read whole; split it, or make it .jsonl or "
            ".parquet, which are read in parts"
        )
    parts = []
    with _opened(path) as file:
        while part := file.read(2**20):
            parts.append(part)
            _require_modest(path, file.tell())
    return b"".join(parts)


def _require_modest(path: str, unpacked: int) -> None:
    """Refuse a packed file that unpacks to far more than text does."""
    if path.endswith(".gz") and unpacked > max(UNPACKED, MOST_TIMES * os.path.getsize(path)):
        raise ValueError(
            f"it unpacks to more than {MOST_TIMES} times its size, which text does not; if it is meant, unpack it and "
            "give the unpacked file"
        )


def _require_8_bits(data: bytes) -> None:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("it is UTF-16; save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8`")


def _csv(data: bytes, text: str) -> pa.Table:
    if not data.strip():
        return pa.table({text: pa.array([], pa.string())})
    _require_8_bits(data)
    if data.count(b'"') % 2:  # Arrow would take all that follows for one field
        raise ValueError("a quoted field does not end (the number of quotation marks is odd)")
    header = data.split(b"\n", 1)[0].decode("utf-8-sig", errors="replace").strip()
    for mark, name in {";": "semicolons", "\t": "tabs", "|": "bars"}.items():
        columns = [column.strip('" ') for column in header.split(mark)]
        if text in columns and len(columns) > 1 and "," not in header:
            raise ValueError(
                f"its columns are separated by {name}; save it with commas, or give read_corpus the frame that "
                f"pandas.read_csv(..., sep={mark!r}) returns"
            )
    as_they_are = dict.fromkeys([*ID_COLUMNS, "source"], pa.string()) | {text: pa.large_binary()}
    try:
        return csv.read_csv(
            pa.BufferReader(data),
            read_options=csv.ReadOptions(block_size=min(len(data) + 1, 2**31 - 1)),  # a row must fit a block
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=as_they_are),
        )
    except pa.ArrowInvalid as error:
        try:
            data.decode()
        except UnicodeDecodeError:
            raise ValueError(
                f"{first_line(error)}; it is not UTF-8: save it as UTF-8, for example with `iconv -f LATIN1 -t UTF-8`"
            ) from error
        raise


def _parquet_tables(path: str, text: str) -> Iterator[pd.DataFrame]:
    source = pa.BufferReader(_contents(path)) if path.endswith(".gz") else path
    with parquet.ParquetFile(source) as file:
        about, size = file.metadata, os.path.getsize(path)
        unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if max(unpacked, about.num_rows) > max(UNPACKED, MOST_TIMES * size):
            raise ValueError(
                f"it unpacks to {about.num_rows:,} rows and {unpacked:,} bytes, more than {MOST_TIMES} times its size, "
                "which text does not; if it is meant, write it without compression"
            )
        for batch in file.iter_batches(batch_size=ROWS):
            yield from_arrow(pa.Table.from_batches([batch]), text)
        if not about.num_rows:
            yield from_arrow(file.schema_arrow.empty_table(), text)


def from_arrow(table: pa.Table, text: str) -> pd.DataFrame:
    """Return an Arrow table as a frame; the text is decoded here, since Arrow does not check that it is UTF-8."""
    # Whole numbers of which some are missing come as objects: a float does not hold all of them.
    how: dict[str, Any] = {"ignore_metadata": True, "integer_object_nulls": True}
    if table.column_names.count(text) != 1:
        return table.to_pandas(**how)  # `documents_frame` says what is wrong
    column, rest = table.column(text), table.drop_columns([text])
    rest.validate(full=True)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    texts = [
        entry.decode("utf-8", errors="surrogateescape") if isinstance(entry, bytes) else entry
        for entry in column.to_pylist()
    ]
    return pd.concat([pd.DataFrame({text: texts}, dtype=object), rest.to_pandas(**how)], axis=1)


def _json_tables(path: str, text: str) -> Iterator[pd.DataFrame]:
    """Yield the rows of a .jsonl file, some lines at a time, with all columns met so far."""
    columns: dict[str, None] = {}
    number = 1
    with _opened(path) as file:
        for lines in filled(_lines(file), len, most=LINES):
            _require_modest(path, file.tell())
            if number == 1:
                _require_8_bits(lines[0])
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            rows = _json_rows(lines, first=number)
            number += len(lines)
            if rows:
                table = pd.DataFrame(rows, dtype=object)
                columns |= dict.fromkeys(table.columns)
                yield table.reindex(columns=list(columns))
        if not columns:
            yield pd.DataFrame(columns=[text], dtype=object)


def _lines(file: io.BufferedIOBase) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise ValueError(
                f"a line has more than {LONGEST_LINE:,} bytes; a line is one document in .jsonl: split it"
            )
        yield line


def filled(items: Iterable[Item], size: Callable[[Item], int], *, most: int) -> Iterator[list[Item]]:
    """Yield consecutive items together: as many as reach a size of ``most``, and the rest."""
    held: list[Item] = []
    total = 0
    for item in items:
        held.append(item)
        total += size(item)
        if total >= most:
            yield held
            held, total = [], 0
    if held:
        yield held


def _json_rows(lines: Iterable[bytes], *, first: int) -> list[dict[str, Any]]:
    """Return the objects of lines of JSON, of which the first is line ``first`` of its file."""
    rows = []
    for number, line in enumerate(lines, start=first):
        text = line.decode("utf-8", errors="surrogateescape")
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_each_key_once)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({first_line(error)})") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object but a {type(row).__name__}")
        rows.append(row)
    return rows


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return row


def _conllu(content: str, stem: str) -> list[dict[str, Any]]:
    """Return the documents of a CoNLL-U file: text rebuilt from its words, and each word's place and tags."""
    documents: list[dict[str, Any]] = []
    sentence: list[list[str]] = []
    for number, line in enumerate([*content.split("\n"), ""], start=1):
        if line.startswith("#"):
            key, _, value = (part.strip() for part in line[1:].partition("="))
            # Some treebanks say the document's id before each of its sentences.
            if key in ("newdoc", "newdoc id") and not (value and documents and documents[-1]["doc"] == value):
                documents.append(_document(value, stem))
            elif key.startswith("meta::"):
                documents = documents or [_document(stem, stem)]
                _add_meta(documents[-1], key, value, number)
        elif line.strip():
            columns = line.rstrip("\r").split("\t")
            if len(columns) != 10 or not re.fullmatch(r"[0-9]+([-.][0-9]+)?", columns[0]):
                raise ValueError(f"line {number} is not a word in CoNLL-U's ten columns: {line[:60]!r}")
            sentence.append(columns)
        elif sentence:
            if not documents:
                documents.append(_document(stem, stem))
            try:
                _add_sentence(documents[-1], sentence)
            except ValueError as error:
                raise ValueError(f"in the sentence before line {number}, {error}") from error
            sentence = []
    # The last piece is what would stand before the next word.
    metas = [document.pop("meta") for document in documents]
    for name in {name for meta in metas for name in meta}:
        having = [meta for meta in metas if name in meta]
        if all(_NUMBER.fullmatch(meta[name]) for meta in having):
            for meta in having:
                meta[name] = json.loads(meta[name])
    return [
        document | {"text": "".join(document.pop("pieces")[:-1])} | meta
        for document, meta in zip(documents, metas, strict=True)
    ]


def _document(doc: str, source: str) -> dict[str, Any]:
    return {"doc": doc, "source": source, "pieces": [], "words": [], "meta": {}}


def _add_meta(document: dict[str, Any], key: str, value: str, number: int) -> None:
    """Add what ``# meta::name = value`` says of a document, as the column ``name``."""
    name = key.removeprefix("meta::")
    if name in ("doc", "id", "text", "words", "problem", "pieces") or not name:
        raise ValueError(f"line {number} says {key!r}, a name that documents already have; rename it")
    if document["meta"].setdefault(name, value) != value:
        raise ValueError(
            f"line {number} says {key!r} of document {document['doc']!r} a second time, to another value"
        )


def _add_sentence(document: dict[str, Any], sentence: list[list[str]]) -> None:
    """Add a sentence's words to a document, whose pieces are words and what stands after each, in turn."""
    pieces, words = document["pieces"], document["words"]
    start = words[-1]["end"] + len(pieces[-1]) if words else 0
    rows = iter([row for row in sentence if "." not in row[0]])  # empty nodes are not in the text
    for row in rows:
        parts = [row]
        if "-" in row[0]:  # one token of the text, such as "don't"; the words that it consists of follow
            first, last = (int(end) for end in row[0].split("-"))
            parts = list(itertools.islice(rows, max(last - first + 1, 0)))
            numbers = [str(first + i) for i in range(len(parts))]
            if not parts or [part[0] for part in parts] != numbers or numbers[-1] != str(last):
                raise ValueError(f"the words of {row[0]} do not follow it")
            if "".join(part[1] for part in parts) != row[1]:
                parts = [[*row[:3], *("+".join(part[at] for part in parts) for at in (3, 4))]]
        for part in parts:
            end = start + len(part[1])
            words.append({"form": part[1], "start": start, "end": end, "upos": part[3], "xpos": part[4]})
            start = end
        after = "" if "SpaceAfter=No" in row[9].split("|") else " "
        pieces += [row[1], after]
        start += len(after)
