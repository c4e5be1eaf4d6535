"""Where texts come from: files, globs, lists, frames, the hub's data sets, the demo."""

import contextlib
import glob
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mechreg import miniatures
from mechreg.corpus.documents import documents_frame, require_unique
from mechreg.corpus.formats import ROWS, SUFFIXES, filled, from_arrow, tables_of
from mechreg.outside import any_frames
from mechreg.schema import DOCUMENT_COLUMNS, InputError, did_you_mean
from mechreg.words import first_line

# In memory at a time, of a stream: about a quarter of a million tokens.
CHUNK_CHARACTERS = 1_000_000


@any_frames
def read_corpus(corpus: Any, *, text: str = "text", tags: bool = False) -> pd.DataFrame:
    """Return the documents frame of a corpus: doc (unique id), text, source, problem, annotations.

    Text is read as UTF-8 (a byte-order mark is taken off) and not altered otherwise.

    Parameters
    ----------
    corpus : str, Path, list, dict or Series of str, or DataFrame
        "demo"; a file or glob of files, gzipped (.gz) or not: .txt (a document a file, its folder the source),
        .jsonl, .csv, .parquet (a document a row) or .conllu (a document a ``# newdoc``, its text rebuilt from
        the words); "datasets:NAME" or "datasets:NAME:CONFIG:SPLIT" of the Hugging Face hub; texts themselves, in a
        dict by id; or a frame.
    text : str
        The column of rows that holds the text. The id is in ``doc`` or ``id`` (text or whole numbers), or is made
        of the file's name and the row's number; the source is in ``source``, or is the file's name.
    tags : bool
        With the tagged ``words`` that the corpus must then have: .conllu always brings them, the demo when asked.

    Returns
    -------
    pandas.DataFrame
        ``problem`` is "" where a document is fine, else "empty", "whitespace" or "undecodable": such documents
        stay in the frame, so that they can be reported, and are left out by `tokenize`. Other columns are kept
        as annotations, those of numbers as numbers; so is what .conllu says of a document (``# meta::genre = news`` is
        the column ``genre``; its comments on sentences are not kept). From .conllu, ``words`` lists form, start,
        end, upos and xpos of each word of the text; a contraction is one word where its parts do not make up its
        letters ("du": "ADP+DET"). The demo's are a spaCy pipeline's, named in ``tagger``; how good they are is in the
        miniatures' card.

    Raises
    ------
    InputError
        No such file, an unknown kind of file, a malformed line, two documents of one id, or nothing usable.

    Examples
    --------
    >>> read_corpus(["One text.", " "])[["doc", "problem"]].values.tolist()
    [['text-0', ''], ['text-1', 'whitespace']]
    """
    if not isinstance(text, str) or not text:
        raise InputError(f"text must be the name of the column that holds the text; got {text!r}.")
    if not isinstance(tags, bool):
        raise InputError(f"tags must be True or False; got {tags!r}.")
    return pd.concat(stream_corpus(corpus, text=text, tags=tags), ignore_index=True)


@any_frames
def stream_corpus(
    corpus: Any, *, text: str = "text", characters: int = CHUNK_CHARACTERS, tags: bool = False
) -> Iterator[pd.DataFrame]:
    """Yield the documents frame of a corpus in parts of at least so many characters, the last one shorter.

    Concatenated, the parts are what `read_corpus` gives, whose options these are. Of .jsonl and .parquet files only a
    part is in memory; .txt, .csv, .conllu and compressed .parquet are read a file at a time.
    """
    seen: list[np.ndarray] = []
    problems: Counter[str] = Counter()
    parts = _parts(corpus, text, tags)
    for held in filled(parts, lambda part: int(part["text"].str.len().sum()), most=characters):
        documents = pd.concat(held, ignore_index=True)
        if tags:
            require_tags(documents)
        seen.append(pd.util.hash_array(documents["doc"].to_numpy(object)))  # 8 bytes a document are kept
        problems.update(documents["problem"].tolist())
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


def tables_of_corpus(corpus: Any, *, text: str, tags: bool) -> Iterator[pd.DataFrame]:
    """Yield the documents of a corpus: of files some at a time, where their kind allows, of anything else all."""
    if isinstance(corpus, Mapping | pd.Series):
        corpus, text = _named_texts(corpus), "text"
    if isinstance(corpus, pd.DataFrame):
        yield documents_frame(corpus, text=text, stem="row", where="The frame")
    elif isinstance(corpus, list | tuple):
        table = pd.DataFrame({"text": list(corpus)}, dtype=object)
        yield documents_frame(table, text="text", stem="text", where="The list")
    elif isinstance(corpus, str) and corpus == "demo":
        for documents in read_file(str(miniatures.DEMO_CORPUS), stem="demo", text="text"):
            yield _with_demo_tags(documents) if tags else documents
    elif isinstance(corpus, str) and corpus.startswith("datasets:"):
        yield _read_data_set(corpus, text=text)
    elif isinstance(corpus, str | os.PathLike):
        for path, stem in files_of(os.fspath(corpus), remedy="give a text itself in a list: [text]"):
            yield from read_file(path, stem=stem, text=text)
    else:
        raise InputError(
            "read_corpus needs a path, a glob, 'demo', 'datasets:NAME', a list or dict of str, or a frame; "
            f"got {type(corpus).__name__}."
        )


def as_documents(documents: Any) -> pd.DataFrame:
    """Return a documents frame as it is, and `read_corpus` of anything else."""
    is_read = isinstance(documents, pd.DataFrame) and set(DOCUMENT_COLUMNS) <= set(documents.columns)
    return documents if is_read else read_corpus(documents)


def _named_texts(corpus: Any) -> Any:
    """Return texts with names (a dict, or a Series whose index is not just numbers in order) as a frame."""
    if isinstance(corpus, pd.Series) and isinstance(corpus.index, pd.RangeIndex):
        return corpus.tolist()
    texts = list(corpus.values() if isinstance(corpus, Mapping) else corpus)
    return pd.DataFrame({"doc": list(corpus.keys()), "text": texts}, dtype=object)


def require_tags(documents: pd.DataFrame) -> None:
    """Check that documents have tagged words."""
    if "words" not in documents.columns:
        raise InputError(
            "This corpus has no tagged words; read .conllu, or the demo with tags=True, or make them with "
            "tag_words(documents, tagger=...), in a run with tagger = 'en_core_web_sm' or another spaCy pipeline."
        )


def _with_demo_tags(documents: pd.DataFrame) -> pd.DataFrame:
    """Return the demo with the words that ship with it, their forms taken from the text."""
    lines = miniatures.DEMO_TAGS.read_text(encoding="utf-8").splitlines()
    tags = {row["doc"]: row for row in map(json.loads, lines)}
    words: Any = [
        [
            {"form": text[start:end], "start": start, "end": end, "upos": upos, "xpos": xpos}
            for start, end, upos, xpos in tags[doc]["words"]
        ]
        for doc, text in zip(documents["doc"], documents["text"], strict=True)
    ]
    return documents.assign(words=words, tagger=[tags[doc]["tagger"] for doc in documents["doc"]])


def require_usable(problems: Mapping[str, int]) -> None:
    """Check that some document has no problem; ``problems`` counts each kind, "" for none."""
    if not problems.get(""):
        read = ", ".join(f"{count} {problem}" for problem, count in problems.items()) or "none"
        how = ", for example made by `iconv -f latin1 -t utf-8`" if "undecodable" in problems else ""
        raise InputError(
            f"The corpus has no usable text (documents read: {read}); give it some, in UTF-8{how}."
        )


def files_of(pattern: str, *, remedy: str) -> list[tuple[str, str]]:
    """Return the path and the stem of ids of a file, or of all files that a glob matches; none is refused."""
    # A path is UTF-8 text here, and what the system makes of it there: without UTF-8 mode these differ.
    with contextlib.suppress(UnicodeEncodeError):  # half characters, which no path has
        pattern = os.path.expanduser(os.fsdecode(pattern.encode("utf-8", "surrogateescape")))
    if os.path.isdir(pattern):
        raise InputError(f"{pattern!r} is a folder; give its files: {os.path.join(pattern, '*.txt')!r}.")
    try:
        matches = [pattern] if os.path.isfile(pattern) else sorted(_matches(pattern))
    except ValueError:  # a character that no path can have
        matches = []
    paths: dict[str, str] = {}
    for path in matches:
        if not os.path.isdir(path):  # by its target: a link to a folder above brings a file again and again
            paths.setdefault(os.path.realpath(path), os.path.abspath(path))
    if not paths:
        shown = repr(pattern if len(pattern) < 200 else f"{pattern[:60]} ...")
        hint = did_you_mean(pattern, ["demo"])
        raise InputError(f"There is no file {shown}; {remedy}.{hint}")
    # Ids are relative to what the paths share: they name no machine, and files of one name stay apart.
    top = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    stems = [os.path.splitext(os.path.relpath(path, top).removesuffix(".gz"))[0] for path in paths.values()]
    return [
        (path, _as_text(stem).replace(os.sep, "/")) for path, stem in zip(paths.values(), stems, strict=True)
    ]


def _as_text(path: str) -> str:
    """Return a part of a path as text, the same whatever encoding the terminal has."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _matches(pattern: str) -> Iterator[str]:
    """Yield what a glob matches; ``**`` enters each folder once, however many links lead to it, even in a cycle."""
    before, mark, after = f"/{pattern}".partition("/**/")
    if not mark and not pattern.endswith("**"):
        yield from glob.glob(pattern)
        return
    before = before[1:] if mark else pattern.removesuffix("**").removesuffix("/")
    after = after if mark else "*"
    seen: set[str] = set()
    for top in sorted(glob.glob(before or ("/" if pattern.startswith("/") else "."))):
        for folder, below, _ in os.walk(top, followlinks=True):
            place = os.path.realpath(folder)
            below[:] = [] if place in seen else sorted(name for name in below if not name.startswith("."))
            if place not in seen:
                yield from _matches(os.path.join(glob.escape(folder), after))
            seen.add(place)


def read_file(path: str, *, stem: str, text: str) -> Iterator[pd.DataFrame]:
    """Yield the documents of one file, some at a time where its kind allows."""
    kind = os.path.splitext(path.removesuffix(".gz"))[1].lower()
    if kind not in SUFFIXES:
        raise InputError(f"{path} has an unsupported suffix; give {', '.join(SUFFIXES)}, or a .gz of one.")
    if not os.path.isfile(path):
        raise InputError(f"{path} cannot be read: it does not exist, or is a pipe or a device.")
    if kind in (".txt", ".conllu"):
        text = "text"
    first = 0
    try:
        for table in tables_of(path, kind, stem=stem, text=text):
            if kind == ".txt":
                table["source"] = _as_text(os.path.basename(os.path.dirname(path))) or stem
            yield documents_frame(table, text=text, stem=stem, where=path, first=first)
            first += len(table)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}.") from error


def _read_data_set(corpus: str, *, text: str) -> pd.DataFrame:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError("A 'datasets:' corpus needs the library: pip install datasets.") from error
    name, config, split = [*corpus.split(":", 3)[1:], "", ""][:3]
    try:
        table = from_arrow(
            load_dataset(name, config or None, split=split or "train").with_format("arrow")[:], text
        )
    except Exception as error:  # the library raises errors of a dozen kinds here
        raise InputError(
            f"The data set {name!r} could not be loaded: {first_line(error)}. Check the network and the name, "
            "datasets:NAME:CONFIG:SPLIT."
        ) from error
    return documents_frame(table, text=text, stem=name.rstrip("/").split("/")[-1], where=repr(corpus))
