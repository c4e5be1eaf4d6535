"""What is in a file: the bytes of .txt, .jsonl, .csv, .parquet and .conllu to a table of documents."""

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet

from mechreg.corpus.documents import ID_COLUMNS, SOURCE_COLUMNS

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet", ".conllu")


def read_table(data: bytes, kind: str, *, stem: str, text: str) -> pd.DataFrame:
    """Return a file's documents, a row each.

    Bytes of a text that are not UTF-8 become half characters, so that its document can be told from the others.

    Raises
    ------
    ValueError, pyarrow.ArrowException
        The file is not of its kind; the message says where.

    Examples
    --------
    >>> read_table(b'{"text": "One."}', ".jsonl", stem="news", text="text")
       text
    0  One.
    """
    if kind == ".parquet":
        return from_arrow(parquet.ParquetFile(pa.BufferReader(data)).read(), text)
    if kind == ".csv":
        return from_arrow(_csv(data, text), text)
    content = data.decode("utf-8-sig", errors="surrogateescape")
    if kind == ".jsonl":
        rows = json_rows(content.split("\n"))
    else:
        rows = _conllu(content, stem) if kind == ".conllu" else [{"doc": stem, "text": content}]
    return pd.DataFrame(rows, columns=None if rows else [text], dtype=object)


def reason(error: BaseException) -> str:
    """Return the first line of what an error says, without its full stop."""
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return said.splitlines()[0].rstrip(".")


def _csv(data: bytes, text: str) -> pa.Table:
    if not data.strip():
        return pa.table({text: pa.array([], pa.string())})
    if data.count(b'"') % 2:  # Arrow would take all that follows for one field
        raise ValueError("a quoted field does not end (the number of quotation marks is odd)")
    as_they_are = dict.fromkeys([*ID_COLUMNS, *SOURCE_COLUMNS], pa.string()) | {text: pa.large_binary()}
    return csv.read_csv(
        pa.BufferReader(data),
        read_options=csv.ReadOptions(block_size=min(len(data) + 1, 2**31 - 1)),  # a row must fit into a block
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=as_they_are),
    )


def from_arrow(table: pa.Table, text: str) -> pd.DataFrame:
    """Return an Arrow table as a frame, the text decoded here: Arrow does not look whether it is UTF-8."""
    if table.column_names.count(text) != 1:
        return table.to_pandas(ignore_metadata=True)  # `documents_frame` says what is wrong
    column, rest = table.column(text), table.drop_columns([text])
    rest.validate(full=True)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    texts = [
        entry.decode("utf-8", errors="surrogateescape") if isinstance(entry, bytes) else entry
        for entry in column.to_pylist()
    ]
    frame = pd.DataFrame({text: texts}, dtype=object)
    return pd.concat([frame, rest.to_pandas(ignore_metadata=True)], axis=1)


def json_rows(lines: Iterable[str], *, first: int = 1) -> list[dict[str, Any]]:
    """Return the objects of lines of JSON, of which the first is line ``first`` of its file."""
    rows = []
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({reason(error)})") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object but a {type(row).__name__}")
        rows.append(row)
    return rows


def _conllu(content: str, stem: str) -> list[dict[str, Any]]:
    """Return the documents of a CoNLL-U file: text rebuilt from its words, and each word's place and tags."""
    documents: list[dict[str, Any]] = []
    sentence: list[list[str]] = []
    for number, line in enumerate([*content.split("\n"), ""], start=1):
        if line.startswith("#"):
            key, _, value = (part.strip() for part in line[1:].partition("="))
            if key in ("newdoc", "newdoc id"):
                documents.append({"doc": value, "source": stem, "pieces": [], "words": []})
            elif key == "meta::genre" and documents:
                documents[-1]["source"] = value
        elif line.strip():
            columns = line.rstrip("\r").split("\t")
            if len(columns) != 10 or not re.fullmatch(r"[0-9]+([-.][0-9]+)?", columns[0]):
                raise ValueError(f"line {number} is not a word in CoNLL-U's ten columns: {line[:60]!r}")
            sentence.append(columns)
        elif sentence:
            if not documents:
                documents.append({"doc": stem, "source": stem, "pieces": [], "words": []})
            try:
                _add_sentence(documents[-1], sentence)
            except ValueError as error:
                raise ValueError(f"in the sentence before line {number}, {error}") from error
            sentence = []
    # The last piece is what would stand before the next word.
    return [document | {"text": "".join(document.pop("pieces")[:-1])} for document in documents]


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
