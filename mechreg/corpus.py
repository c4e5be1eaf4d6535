"""Texts to documents, documents to token windows."""

import glob
import gzip
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechreg import miniatures
from mechreg.schema import TOKEN_COLUMNS, InputError, did_you_mean, require

log = logging.getLogger("mechreg")

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".csv", ".parquet", ".conllu")
ID_COLUMNS = ("doc", "id")
SOURCE_COLUMNS = ("source", "genre")


def read_corpus(corpus: Any, *, text: str = "text") -> pd.DataFrame:
    """Return the documents frame of a corpus: doc (unique id), text, source, annotations, problem.

    Text is decoded as UTF-8 (a byte-order mark is taken off) and not altered otherwise.

    Parameters
    ----------
    corpus : str, Path, list of str, or DataFrame
        "demo"; a file or glob of .txt (a document a file), .jsonl(.gz), .csv, .parquet (a document a row; other
        columns are kept as annotations; the id is in ``doc`` or ``id``) or .conllu (a document a ``# newdoc``;
        ``words`` holds each word's start, end and universal tag); "datasets:NAME" or "datasets:NAME:CONFIG:SPLIT"
        of the Hugging Face hub; texts themselves; or a frame with a text column.
    text : str
        The column that holds the text.

    Returns
    -------
    pandas.DataFrame
        ``problem`` is "" where a document is fine, else "empty", "whitespace" or "undecodable": such documents
        stay in the frame, so that they can be reported, and are left out by `tokenize`.

    Raises
    ------
    InputError
        No such file, an unknown kind of file, a malformed line, two documents of one id, or nothing usable.

    Examples
    --------
    >>> read_corpus(["One text.", " "])[["doc", "problem"]].values.tolist()
    [['text-0', ''], ['text-1', 'whitespace']]
    """
    if isinstance(corpus, pd.DataFrame):
        documents = _from_table(corpus, text, stem="row", where="the frame")
    elif isinstance(corpus, str) and corpus == "demo":
        documents = _read_file(miniatures.DEMO_CORPUS, "demo", text)
    elif isinstance(corpus, str) and corpus.startswith("datasets:"):
        documents = _from_hub(corpus.removeprefix("datasets:"), text)
    elif isinstance(corpus, str | Path):
        documents = _from_files(str(corpus), text)
    elif isinstance(corpus, list | tuple) and all(isinstance(entry, str) for entry in corpus):
        frame = pd.DataFrame({"doc": [f"text-{i}" for i in range(len(corpus))], "text": list(corpus)})
        documents = _from_table(frame, "text", stem="text", where="the list")
    else:
        raise InputError(
            f"read_corpus needs a path, a glob, 'demo', 'datasets:NAME', a list of str or a frame; "
            f"got {type(corpus).__name__}."
        )
    twice = documents["doc"][documents["doc"].duplicated()].unique()
    if len(twice):
        raise InputError(f"Document ids must be unique; {len(twice)} come twice, the first is {twice[0]!r}.")
    documents = _with_problems(documents)
    if documents["problem"].ne("").all():
        raise InputError(f"The corpus has no usable document ({len(documents)} read, all empty or undecodable).")
    return documents


def tokenize(
    model: Any, documents: Any, *, prepend_bos: bool = False, n_ctx: int | None = None, spans: bool = False
) -> pd.DataFrame:
    """Return the token frame: every document cut into windows of at most the model's context.

    Parameters
    ----------
    model : TransformerLens model
        Its ``tokenizer`` and ``cfg.n_ctx`` are used.
    documents : documents frame, or what `read_corpus` takes
        A frame with ``token_ids`` (a list of int per document) in place of text works without a tokenizer.
    prepend_bos : bool
        Each window then begins with one BOS token, which takes a place of its context; a BOS that the text
        already begins with is not doubled.
    n_ctx : int, optional
        Shorter windows than the model's context.
    spans : bool
        Adds ``char_start`` and ``char_end``, the token's place in its document's text (-1 for BOS).

    Returns
    -------
    pandas.DataFrame
        doc, window, position (within the window), token_id, token. A token that is not whole UTF-8 is shown by
        its bytes, as in ``\\xe2\\x80``.

    Raises
    ------
    InputError
        No tokenizer, no BOS token, a window size that does not fit, or no document with a token.

    Examples
    --------
    >>> from mechreg import load_model
    >>> tokenize(load_model("mini-s"), ["A cat."])["token"].tolist()[0]
    'A'
    """
    context = int(model.cfg.n_ctx)
    size = context if n_ctx is None else n_ctx
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= context:
        raise InputError(f"n_ctx must be a whole number from 1 to the model's context, {context}; got {n_ctx!r}.")
    tokenizer = getattr(model, "tokenizer", None)
    has_ids = isinstance(documents, pd.DataFrame) and "token_ids" in documents.columns
    if tokenizer is None and not has_ids:
        name = getattr(model.cfg, "model_name", "the model")
        raise InputError(
            f"{name} has no tokenizer, so it cannot read text; load it with tokenizer=, or give documents "
            "with a column 'token_ids'."
        )
    bos = _bos_id(tokenizer) if prepend_bos else None
    if bos is not None and size < 2:
        raise InputError("prepend_bos=True needs windows of at least 2 tokens; n_ctx is 1.")
    if has_ids:
        require(documents, ("doc", "token_ids"), who="tokenize")
        usable, ids = documents, [np.asarray(list(line), np.int64) for line in documents["token_ids"]]
        offsets = None
    else:
        if not (isinstance(documents, pd.DataFrame) and {"doc", "text", "problem"} <= set(documents.columns)):
            documents = read_corpus(documents)
        _warn(documents.loc[documents["problem"] != "", "doc"], "cannot be read and are left out")
        usable = documents[documents["problem"] == ""]
        ids, offsets = _encode(tokenizer, usable["text"].tolist(), spans=spans)
    first = None if bos is None else bos
    if first is not None:  # asked twice is still once
        starts = [int(len(line) > 0 and line[0] == first) for line in ids]
        ids = [line[start:] for line, start in zip(ids, starts, strict=True)]
        offsets = offsets and [line[start:] for line, start in zip(offsets, starts, strict=True)]
    lengths = np.array([len(line) for line in ids], np.int64)
    _warn(usable["doc"][lengths == 0], "have no token and are left out")
    _warn(usable["doc"][lengths == 1], "have one token, so no lag")
    if not lengths.sum():
        raise InputError("No document has a token; there is nothing to run.")

    step = size - (first is not None)
    flat = np.concatenate(ids)
    doc_of = np.repeat(np.arange(len(ids)), lengths)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    window, position = place // step, place % step
    columns = {"doc_of": doc_of, "window": window, "position": position, "token_id": flat}
    if offsets is not None and spans:
        both = np.concatenate(offsets)
        columns |= {"char_start": both[:, 0], "char_end": both[:, 1]}
    if first is not None:
        at = np.flatnonzero(position == 0)
        columns["position"] = position + 1
        added = {"position": 0, "token_id": first, "char_start": -1, "char_end": -1}
        columns = {
            key: np.insert(values, at, added[key] if key in added else values[at]) for key, values in columns.items()
        }
    frame = pd.DataFrame(columns)
    docs = usable["doc"].astype(str).to_numpy()
    frame.insert(0, "doc", pd.Categorical.from_codes(frame.pop("doc_of").to_numpy(), categories=docs))
    frame.insert(4, "token", _token_strings(tokenizer, frame["token_id"].to_numpy()))
    kinds = {key: dtype for key, dtype in TOKEN_COLUMNS.items() if key != "doc"}
    return frame.astype(kinds)


def corpus_problems(documents: pd.DataFrame, tokens: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the documents that could not be used, or not for lags: doc and problem.

    Examples
    --------
    >>> corpus_problems(read_corpus(["One text.", ""])).values.tolist()
    [['text-1', 'empty']]
    """
    problems = documents.loc[documents["problem"] != "", ["doc", "problem"]]
    if tokens is not None:
        counts = tokens.groupby("doc", observed=True).size()
        single = pd.DataFrame({"doc": counts.index[counts == 1].astype(str), "problem": "one token"})
        problems = pd.concat([problems, single], ignore_index=True)
    return problems.reset_index(drop=True)


def _from_files(pattern: str, text: str) -> pd.DataFrame:
    paths = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    if not paths:
        raise InputError(
            f"No file matches {pattern!r} (looked in {Path(pattern).parent.resolve()})."
            f"{did_you_mean(pattern, ['demo'])}"
        )
    if any(path.is_dir() for path in paths):
        raise InputError(f"{pattern!r} is a folder; give a glob, for example '{pattern.rstrip('/')}/*.txt'.")
    # Files of one name in two folders must not share an id.
    stems = [path.name.split(".")[0] for path in paths]
    unique = len(set(stems)) == len(stems)
    names = stems if unique else [str(path.with_suffix("")) for path in paths]
    return pd.concat(
        [_read_file(path, name, text) for path, name in zip(paths, names, strict=True)], ignore_index=True
    )


def _read_file(path: Path, name: str, text: str) -> pd.DataFrame:
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: read_corpus reads {', '.join(SUFFIXES)}; got {suffix or 'no suffix'!r}.")
    try:
        if suffix == ".parquet":
            return _from_table(pd.read_parquet(path), text, stem=name, where=str(path))
        data = gzip.decompress(path.read_bytes()) if suffix == ".jsonl.gz" else path.read_bytes()
        if suffix == ".txt":
            content = _decode(data)
            row = {"doc": name, "text": content, "source": path.parent.name or name}
            return pd.DataFrame([row]).assign(undecodable=content is None)
        if suffix.startswith(".jsonl"):
            return _from_table(_json_lines(data, path), text, stem=name, where=str(path))
        content = _decode(data)
        if content is None:
            raise InputError(f"{path} is not UTF-8; save it as UTF-8, or give its texts as a list.")
        if suffix == ".csv":
            import io

            table = pd.read_csv(io.StringIO(content), keep_default_na=False)
            return _from_table(table, text, stem=name, where=str(path))
        return _from_table(pd.DataFrame(_conllu(content, name)), "text", stem=name, where=str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path} is not a table: {error}") from error


def _json_lines(data: bytes, path: Path) -> pd.DataFrame:
    """Return the lines' objects; a line that is not UTF-8 becomes a document with that problem."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except UnicodeDecodeError:
            row = {"undecodable": True}
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}, is not JSON: {error.msg}.") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}, is not a JSON object but {type(row).__name__}.")
        rows.append(row)
    return pd.DataFrame(rows)


def _conllu(content: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield the documents of a CoNLL-U file, their text rebuilt from the words, with each word's span and tag."""
    doc: dict[str, Any] | None = None
    pieces: list[str] = []
    length = covered = 0
    for line in content.splitlines():
        if line.startswith("# newdoc") or (doc is None and line and not line.startswith("#")):
            if doc is not None:
                yield doc | {"text": "".join(pieces).rstrip()}
            ident = line.partition("=")[2].strip() if line.startswith("# newdoc") else ""
            doc, pieces, length = {"doc": ident or name, "source": name, "words": []}, [], 0
        elif doc is not None and line.startswith("# meta::genre"):
            doc["source"] = line.partition("=")[2].strip()
        if not line or line.startswith("#") or doc is None:
            continue
        columns = line.split("\t")
        if len(columns) != 10:
            raise InputError(f"{name}: a CoNLL-U line needs 10 columns; got {len(columns)}: {line[:60]!r}.")
        number, form = columns[0], columns[1]
        if "-" in number:  # "isn't" as one surface token of two words: its parts have no place of their own
            covered = int(number.split("-")[1])
        elif "." in number or (number.isdigit() and int(number) <= covered):
            continue
        else:
            covered = 0
        doc["words"].append({"start": length, "end": length + len(form), "upos": columns[3]})
        piece = form + ("" if "SpaceAfter=No" in columns[9] else " ")
        pieces.append(piece)
        length += len(piece)
    if doc is not None:
        yield doc | {"text": "".join(pieces).rstrip()}


def _from_hub(name: str, text: str) -> pd.DataFrame:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError("A 'datasets:' corpus needs the library: pip install datasets.") from error
    path, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        table = load_dataset(path, config or None, split=split or "train").to_pandas()
    except Exception as error:  # the library raises errors of a dozen kinds here
        raise InputError(
            f"The data set {path!r} could not be loaded from the Hugging Face hub: "
            f"{str(error).splitlines()[0]} Check the name and the network."
        ) from error
    return _from_table(table, text, stem=path.replace("/", "-"), where=f"datasets:{name}")


def _from_table(table: pd.DataFrame, text: str, *, stem: str, where: str) -> pd.DataFrame:
    """Return a documents frame: id and source found or made, other columns kept."""
    if text not in table.columns and not table.get("undecodable", pd.Series([False])).all():
        have = [str(column) for column in table.columns]
        raise InputError(f"{where} has no column {text!r}; it has {have}.{did_you_mean(text, have)}")
    ident = next((column for column in ID_COLUMNS if column in table.columns), None)
    source = next((column for column in SOURCE_COLUMNS if column in table.columns), None)
    made = [f"{stem}-{i}" for i in range(len(table))]
    ids = made if ident is None else [made[i] if pd.isna(x) else str(x) for i, x in enumerate(table[ident])]
    found = table[text] if text in table.columns else pd.Series([None] * len(table), dtype=object)
    kept = [c for c in table.columns if c not in {ident, source, text, "problem"}]
    head = {
        "doc": ids,
        "text": found.to_list(),
        "source": [stem if source is None or pd.isna(x) else str(x) for x in table[source or table.columns[0]]],
    }
    rest = table[kept].reset_index(drop=True).drop(columns=[c for c in ("doc", "text", "source") if c in kept])
    return pd.concat([pd.DataFrame(head), rest], axis=1)


def _with_problems(documents: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with ``problem``, missing and undecodable texts as empty strings."""
    undecodable = documents.get("undecodable", pd.Series(False, index=documents.index)).eq(True)
    texts = [entry if isinstance(entry, str) else None for entry in documents["text"]]
    wrong = [x for x in documents["text"] if not isinstance(x, str) and not pd.isna(x)]
    if wrong:
        raise InputError(f"The text column must hold strings; it has a {type(wrong[0]).__name__}: {wrong[0]!r}.")
    problems = [
        "undecodable" if bad or _has_surrogate(text) else "empty" if not text else "whitespace" if not text.strip() else ""
        for text, bad in zip(texts, undecodable, strict=True)
    ]
    clean = ["" if text is None or _has_surrogate(text) else text for text in texts]
    whole = documents.drop(columns=["undecodable"], errors="ignore")
    return whole.assign(text=clean, problem=problems).astype({"doc": "str", "text": "str", "problem": "str"})


def _has_surrogate(text: str | None) -> bool:
    """Return whether a text holds half a character (JSON can say so), which no encoder takes."""
    return text is not None and any("\ud800" <= character <= "\udfff" for character in text)


def _decode(data: bytes) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _bos_id(tokenizer: Any) -> int:
    bos = None if tokenizer is None else tokenizer.bos_token_id
    if bos is None:
        raise InputError("prepend_bos=True needs a tokenizer with a BOS token; this one has none.")
    return int(bos)


def _encode(tokenizer: Any, texts: list[str], *, spans: bool) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Return each text's ids, and character spans; nothing is added, whatever the tokenizer was set to."""
    options = {"add_special_tokens": False, "padding": False, "truncation": False, "verbose": False}
    if spans and not tokenizer.is_fast:
        raise InputError("spans=True needs a fast tokenizer (transformers' Rust ones).")
    out = tokenizer(texts, return_offsets_mapping=spans, return_attention_mask=False, **options)
    ids = [np.asarray(line, np.int64) for line in out["input_ids"]]
    if not spans:
        return ids, None
    return ids, [np.asarray(line, np.int64).reshape(-1, 2) for line in out["offset_mapping"]]


def _token_strings(tokenizer: Any, ids: np.ndarray) -> Any:
    """Return each token as a person reads it, by way of the distinct ids."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    if tokenizer is None:
        shown = [str(token_id) for token_id in distinct]
    else:
        pieces = tokenizer.convert_ids_to_tokens(distinct.tolist())
        shown = [_readable(tokenizer, piece) for piece in pieces]
    return np.array(shown, dtype=object)[inverse]


def _byte_of() -> dict[str, int]:
    """Return GPT-2's table from printable characters back to bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_of()


def _readable(tokenizer: Any, piece: str) -> str:
    if piece in tokenizer.all_special_tokens:
        return piece
    is_byte_level = getattr(tokenizer, "is_fast", False) and "ByteLevel" in str(
        getattr(tokenizer.backend_tokenizer, "decoder", "")
    )
    if not is_byte_level or any(character not in BYTE_OF for character in piece):
        return tokenizer.convert_tokens_to_string([piece])
    data = bytes(BYTE_OF[character] for character in piece)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" if byte > 127 else chr(byte) for byte in data)


def _warn(docs: pd.Series, what: str) -> None:
    if len(docs):
        listed = ", ".join(str(doc) for doc in docs[:5]) + (" ..." if len(docs) > 5 else "")
        log.warning("%d documents %s: %s", len(docs), what, listed)
