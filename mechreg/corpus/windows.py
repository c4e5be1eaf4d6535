"""Documents to token windows, with token strings that a person can read."""

import copy
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechreg.corpus.documents import require_unique
from mechreg.corpus.formats import filled
from mechreg.corpus.pieces import LONGEST_PIECE, PIECE, cuts_anyway, pieces_of
from mechreg.corpus.reading import as_documents
from mechreg.outside import any_frames
from mechreg.schema import TOKEN_COLUMNS, InputError, document_ids, require, require_whole_number

log = logging.getLogger("mechreg")
BATCH_CHARACTERS = 1_000_000  # given to the tokenizer at a time; it returns 140 bytes for each


@any_frames
def tokenize(
    model: Any, documents: Any, *, prepend_bos: bool = False, n_ctx: int | None = None, spans: bool = False
) -> pd.DataFrame:
    """Return the token frame: every document cut into windows of at most the model's context.

    Documents that cannot be read, or have no token, are left out and logged by id. A tokenizer of GPT-2's kind gets
    long texts in pieces, cut where it cuts anyway (`mechreg.corpus.pieces`): a fifth of the memory, the same tokens.

    Parameters
    ----------
    model : TransformerLens model, or what `load_model` takes
        Its ``tokenizer``, ``cfg.n_ctx`` and ``cfg.d_vocab`` are used.
    documents : documents frame, or what `read_corpus` takes
        A frame of ``doc`` and ``token_ids`` (a list of int per document) works without a tokenizer.
    prepend_bos : bool
        Begin each window with one BOS token, which takes a place of its context; a document's own BOS is not doubled.
        Nothing else is added, whatever the tokenizer's settings.
    n_ctx : int, optional
        Shorter windows than the model's context.
    spans : bool
        Add ``char_start`` and ``char_end``: the token is ``text[char_start:char_end]`` of its document, -1 for an added
        BOS. A part of a character has the whole character's span, a space put before a text an empty one.

    Returns
    -------
    pandas.DataFrame
        doc, window, position (within the window), token_id, token (the bytes of one that is not whole UTF-8).

    Raises
    ------
    InputError
        No tokenizer, no BOS token, a wrong window size, ids that the model lacks, no document with a token, or
        millions of characters with no place to cut.

    Examples
    --------
    >>> tokenize("mini-s", ["A cat."])["token"].tolist()[0]
    'A'
    """
    if not hasattr(model, "cfg"):
        from mechreg.models import load_model  # a frame of texts is read without it

        model = load_model(model)
    size = model.cfg.n_ctx if n_ctx is None else n_ctx
    require_whole_number(size, name="n_ctx", most=model.cfg.n_ctx)
    tokenizer = getattr(model, "tokenizer", None)
    bos = _bos_id(tokenizer, size) if prepend_bos else None
    docs, encoded = _encode(tokenizer, documents, spans=spans)
    require_unique(docs)
    if bos is not None:  # a document's own BOS is its first window's
        encoded = [line[1:] if len(line) and line[0, 0] == bos else line for line in encoded]
    lengths = np.array([len(line) for line in encoded], np.int64)
    _warn(docs[lengths == 0], "have no token and are left out")
    _warn(docs[lengths == 1], "have one token, so no lag")
    if not lengths.sum():
        raise InputError("No document has a token; there is nothing to run.")

    names = ["token_id", "char_start", "char_end"] if spans else ["token_id"]
    frame = pd.DataFrame(np.concatenate(encoded), columns=names)
    del encoded
    number = np.repeat(np.arange(len(docs), dtype=np.int32), lengths)
    _require_in_vocabulary(frame["token_id"].to_numpy(), number, docs, model.cfg.d_vocab)
    place = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    step = size if bos is None else size - 1
    frame.insert(0, "doc", number)
    frame.insert(1, "window", place // step)
    frame.insert(2, "position", place % step)
    if bos is not None:
        added = dict.fromkeys(names, -1) | {"position": -1, "token_id": bos}
        frame = pd.concat([frame, frame[frame["position"] == 0].assign(**added)])
        frame = frame.sort_values(["doc", "window", "position"], ignore_index=True)
        frame["position"] += 1
    frame.insert(4, "token", _token_strings(tokenizer, frame["token_id"].to_numpy()))
    if spans:
        _empty_prefixes(frame)
    has_tokens = lengths > 0
    frame["doc"] = pd.Categorical.from_codes(
        (np.cumsum(has_tokens) - 1)[frame["doc"]], categories=pd.Index(docs[has_tokens])
    )
    return frame.astype(TOKEN_COLUMNS)


def _empty_prefixes(frame: pd.DataFrame) -> None:
    """Give white space that the tokenizer added before the next token's characters an empty span."""
    start, end, doc = (frame[name].to_numpy() for name in ("char_start", "char_end", "doc"))
    shares = np.r_[(start[1:] < end[:-1]) & (doc[1:] == doc[:-1]), False]
    blank = (frame["token"].str.strip() == "").to_numpy()
    frame["char_end"] = np.where(shares & blank & (start >= 0), start, end)


def _bos_id(tokenizer: Any, size: int) -> int:
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        raise InputError("prepend_bos=True needs a tokenizer with a BOS token; this model has none.")
    if size < 2:
        raise InputError("prepend_bos=True needs windows of at least 2 tokens; n_ctx is 1.")
    return int(bos)


def _encode(tokenizer: Any, documents: Any, *, spans: bool) -> tuple[pd.Series, list[Int[np.ndarray, "_ _"]]]:
    """Return the usable documents' ids, and the tokens of each: a row of id, and with spans start and end."""
    if isinstance(documents, pd.DataFrame) and "token_ids" in documents.columns:
        require(documents, ("doc",), who="tokenize")
        if "text" in documents.columns:
            raise InputError("These documents have both 'text' and 'token_ids'; drop or rename one of them.")
        if spans:
            raise InputError("spans=True needs texts; these documents are token_ids.")
        docs = document_ids(documents["doc"])
        return docs, [_given_ids(doc, line) for doc, line in zip(docs, documents["token_ids"], strict=True)]
    if tokenizer is None:
        raise InputError(
            "The model has no tokenizer, so it cannot read text; load it with tokenizer=, or give a frame of "
            "doc and token_ids."
        )
    _require_one_way(tokenizer)
    documents = as_documents(documents)
    _warn(documents.loc[documents["problem"] != "", "doc"], "cannot be read and are left out")
    usable = documents[documents["problem"] == ""]
    docs = document_ids(usable["doc"])
    return docs, _encode_texts(tokenizer, docs.tolist(), usable["text"].tolist(), spans=spans)


def _encode_texts(
    tokenizer: Any, docs: list[str], texts: list[str], *, spans: bool
) -> list[Int[np.ndarray, "_ _"]]:
    if not getattr(tokenizer, "is_fast", False):
        if spans:
            raise InputError("spans=True needs a fast tokenizer (transformers' Rust ones).")
        off = {"add_special_tokens": False, "padding": False, "truncation": False, "verbose": False}
        return [np.array(ids, np.int64).reshape(-1, 1) for ids in tokenizer(texts, **off)["input_ids"]]
    plain = tokenizer.backend_tokenizer
    if spans or plain.padding is not None or plain.truncation is not None:
        # A copy without what it was set to add, cut, pad or trim; the user's own stays as it was.
        plain = copy.deepcopy(plain)
        plain.no_padding()
        plain.no_truncation()
        plain.post_processor = None
    encode = plain.encode_batch if spans else plain.encode_batch_fast  # the fast one finds no spans
    cut = any(len(text) > PIECE for text in texts) and cuts_anyway(plain)
    lines_of: list[list[Int[np.ndarray, "_ _"]]] = [[] for _ in texts]
    for batch in filled(_pieces(docs, texts, cut=cut), lambda piece: len(piece[2]), most=BATCH_CHARACTERS):
        encodings = encode([piece for _, _, piece in batch], add_special_tokens=False)
        for (number, start, _), each in zip(batch, encodings, strict=True):
            line = np.array(each.ids, np.int32).reshape(-1, 1)
            if spans:
                line = np.hstack([line, start + np.array(each.offsets, np.int32).reshape(-1, 2)])
            lines_of[number].append(line)
    return [np.concatenate(lines).astype(np.int64) for lines in lines_of]


def _require_one_way(tokenizer: Any) -> None:
    """Check that a tokenizer does not sample, which gives other tokens at every call."""
    dropout = getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "dropout", None)
    if dropout:
        raise InputError(
            f"The tokenizer cuts texts at random (BPE dropout of {dropout:g}), so that every call gives other "
            "tokens; set tokenizer.backend_tokenizer.model.dropout = None, or null in its tokenizer.json."
        )
    sampling = getattr(tokenizer, "sp_model_kwargs", None) or {}
    if sampling.get("enable_sampling"):
        raise InputError(
            "The tokenizer cuts texts at random (sp_model_kwargs has enable_sampling), so that every call gives other "
            "tokens; load it without sampling."
        )


def _pieces(docs: list[str], texts: list[str], *, cut: bool) -> Iterator[tuple[int, int, str]]:
    """Yield the number of the text, the start of the piece, and the piece; short texts are one piece."""
    for number, (doc, text) in enumerate(zip(docs, texts, strict=True)):
        for start, piece in pieces_of(text) if cut else [(0, text)]:
            if cut and len(piece) > LONGEST_PIECE:
                raise InputError(
                    f"The document {doc!r} has {len(piece):,} characters from character {start:,} on without a space "
                    f"or line end after a letter; more than {LONGEST_PIECE:,} are too many for the tokenizer's memory. "
                    "Split it, or leave it out."
                )
            yield number, start, piece


def _given_ids(doc: str, line: Any) -> Int[np.ndarray, "_ 1"]:
    try:
        ids = np.asarray(line)
    except ValueError:  # lists in the list
        ids = np.empty((0, 0))
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise InputError(f"The token_ids of {doc!r} must be a list of whole numbers.")
    return ids.astype(np.int64).reshape(-1, 1)


def _require_in_vocabulary(
    ids: Int[np.ndarray, " rows"], number: Int[np.ndarray, " rows"], docs: pd.Series, d_vocab: int
) -> None:
    wrong = (ids < 0) | (ids >= d_vocab)
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(
            f"The token id {ids[at]} of document {docs.iloc[number[at]]!r} is not in the model's vocabulary of "
            f"{d_vocab}; tokenize with the model's own tokenizer."
        )


# GPT-2's printable characters for bytes: those that print stand for themselves, the others follow from 256 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


def _token_strings(tokenizer: Any, ids: Int[np.ndarray, " rows"]) -> Any:
    """Return each token as a person reads it, looked up once for each distinct id."""
    inverse, distinct = pd.factorize(ids)
    pieces, added, is_byte_level = [None] * len(distinct), {}, False
    if tokenizer is not None:
        pieces, added = tokenizer.convert_ids_to_tokens(distinct.tolist()), tokenizer.get_added_vocab()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        is_byte_level = "ByteLevel" in str(getattr(backend, "decoder", None))
    shown = []
    for token_id, piece in zip(distinct, pieces, strict=True):
        if piece is None:
            shown.append(f"[{token_id}]")
        elif piece in added:
            shown.append(piece)
        elif is_byte_level and BYTE_OF.keys() >= set(piece):
            shown.append(bytes(BYTE_OF[character] for character in piece).decode("utf-8", "backslashreplace"))
        elif re.fullmatch("<0x[0-9A-F]{2}>", piece):  # SentencePiece's way to write a byte
            shown.append(bytes([int(piece[3:5], 16)]).decode("utf-8", "backslashreplace"))
        else:
            shown.append(piece.replace("▁", " "))
    return pd.array(shown, dtype="str").take(inverse)


def _warn(docs: pd.Series, what: str) -> None:
    if len(docs):
        listed = ", ".join(docs[:5]) + (" ..." if len(docs) > 5 else "")
        log.warning("%d documents %s: %s", len(docs), what, listed)
