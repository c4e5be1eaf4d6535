"""Tags of words to tags of tokens, by character span."""

import re
import unicodedata
from collections.abc import Iterator
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechreg.corpus.reading import require_tags
from mechreg.outside import any_frames
from mechreg.schema import InputError, document_ids, require, require_option

Tag = Literal["upos", "xpos"]
NO_TAG = "none"
PIECES = ("first", "continuation", NO_TAG)
# Tokens that do not spell their text: bytes, unknown and control tokens.
_NOT_LETTERS = re.compile(r".*\\x[0-9a-f]{2}.*|.*�.*|<.*>|\[.*\]", re.DOTALL)


@any_frames
def annotate_pos(tokens: pd.DataFrame, documents: pd.DataFrame, *, tag: Tag = "upos") -> pd.DataFrame:
    """Return the token frame with the part of speech of every token, and its place in its word.

    A token belongs to the first word with which it shares a character; without one (a line end, a BOS, untagged text)
    its tag is "none".

    Parameters
    ----------
    tokens : pandas.DataFrame
        What ``tokenize(..., spans=True)`` gives, of any model.
    documents : pandas.DataFrame
        The documents that were tokenized, with ``words``: from .conllu, ``read_corpus("demo", tags=True)``,
        `tag_words`, or your own (a list of dicts of start and end in characters, upos, xpos, and ``form`` where it is
        to be compared with the text).
    tag : str
        "upos" (universal) or "xpos" (the tagger's own).

    Returns
    -------
    pandas.DataFrame
        The same rows and ``pos`` (the tag); ``piece``: "first" piece of its word, "continuation" or "none"; ``word``:
        the word's number in its document, -1 for none; ``n_words``: how many words it shares a character with (2 for
        " don" of "do" and "n't").

    Raises
    ------
    SchemaError, InputError
        No spans, no words, a document that is not there, or words or tokens that are not of its text.

    Examples
    --------
    >>> from mechreg import load_model, read_corpus, tokenize
    >>> documents = read_corpus("demo", tags=True).iloc[:1]
    >>> tokens = tokenize(load_model("mini-s"), documents, spans=True)
    >>> annotate_pos(tokens, documents)[["token", "pos", "piece"]].iloc[1:5].values.tolist()
    [[' l', 'NOUN', 'first'], ['ic', 'NOUN', 'continuation'], ['hen', 'NOUN', 'continuation'], [' is', 'AUX', 'first']]
    """
    require_option(tag, get_args(Tag), name="tag")
    needed = ("doc", "window", "position", "token", "char_start", "char_end")
    if "token_id" in getattr(tokens, "columns", ()) and "char_start" not in tokens.columns:
        raise InputError("annotate_pos needs the spans of tokens; make them with tokenize(..., spans=True).")
    require(tokens, needed, who="annotate_pos")
    require(documents, ("doc", "text"), who="annotate_pos")
    require_tags(documents)
    by_doc = documents.assign(doc=document_ids(documents["doc"])).drop_duplicates("doc").set_index("doc")
    span = tokens[["char_start", "char_end"]].to_numpy(np.int64)
    codes, docs = pd.factorize(document_ids(tokens["doc"]))
    word, n_words = np.full(len(tokens), -1), np.zeros(len(tokens), np.int64)
    pos = np.full(len(tokens), NO_TAG, dtype=object)
    order = np.lexsort((tokens["position"], tokens["window"], codes))
    for doc, rows in zip(docs, np.split(order, np.flatnonzero(np.diff(codes[order])) + 1), strict=True):
        if doc not in by_doc.index:
            raise InputError(f"annotate_pos needs the documents that were tokenized; {doc!r} is missing.")
        text: Any = by_doc.at[doc, "text"]
        words: Any = by_doc.at[doc, "words"]
        rows = rows[span[rows, 0] >= 0]  # an added BOS has no place
        _require_text(text, tokens["token"].iloc[rows].tolist(), span[rows], doc)
        edges = _word_spans(text, words, tag, doc)
        word[rows], n_words[rows] = _overlaps(span[rows], edges)
        tagged = rows[word[rows] >= 0]
        pos[tagged] = np.array([entry[tag] for entry in words], dtype=object)[word[tagged]]
    return tokens.assign(
        pos=pd.Categorical(pos),
        piece=pd.Categorical(_pieces(codes, word, order), categories=PIECES),
        word=word.astype(np.int32),
        n_words=n_words.astype(np.int32),
    )


def _overlaps(
    span: Int[np.ndarray, "tokens 2"], edges: Int[np.ndarray, "words 2"]
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " tokens"]]:
    """Return the first word that shares a character with each token (-1: none), and how many do."""
    first = np.searchsorted(edges[:, 1], span[:, 0], side="right")
    beyond = np.searchsorted(edges[:, 0], span[:, 1], side="left")
    # A token that stands for no character, such as a prefix "▁", shares none.
    count = np.where(span[:, 0] < span[:, 1], np.maximum(beyond - first, 0), 0)
    return np.where(count > 0, first, -1), count


def _pieces(
    doc: Int[np.ndarray, " tokens"], word: Int[np.ndarray, " tokens"], order: Int[np.ndarray, " tokens"]
) -> np.ndarray:
    """Return whether a token is its word's first piece; a word that a window's end cuts has one, not two."""
    again = np.empty(len(word), bool)
    again[order] = pd.DataFrame({"doc": doc[order], "word": word[order]}).duplicated()
    return np.where(word < 0, NO_TAG, np.where(again, "continuation", "first"))


@any_frames
def require_words(documents: pd.DataFrame, *, tag: Tag = "upos") -> None:
    """Check that all readable documents have words with what `annotate_pos` needs, and of their own text."""
    usable = documents[documents["problem"] == ""]
    for doc, text, words in usable[["doc", "text", "words"]].itertuples(index=False):
        _word_spans(text, words, tag, doc)


def _word_spans(text: str, words: Any, tag: str, doc: str) -> Int[np.ndarray, "words 2"]:
    """Return start and end of a document's words, checked against its text."""
    listed = isinstance(words, list | tuple | np.ndarray)
    if not listed or not all(isinstance(entry, dict) for entry in words):
        raise InputError(
            f"Document {doc!r} has no tagged words: 'words' must be a list of objects with start, end and {tag}; it is "
            f"{str(words)[:40]!r}. Tag it, or leave it out."
        )
    for entry in words:
        for key in ("start", "end", tag):
            if key not in entry:
                raise InputError(f"Every word needs {key!r}; one of document {doc!r} has {sorted(entry)}.")
            kind, in_words = (str, "text") if key == tag else (Integral, "a whole number")
            if not isinstance(entry[key], kind):
                raise InputError(
                    f"Every word's {key!r} must be {in_words}; document {doc!r} has {str(entry[key])[:40]!r}."
                )
    edges = np.array([[entry["start"], entry["end"]] for entry in words], np.int64).reshape(-1, 2)
    before = 0
    for entry, (start, end) in zip(words, edges.tolist(), strict=True):
        piece = text[start:end]
        form = entry.get("form", piece)
        if not before <= start < end <= len(text) or piece != form or piece != piece.strip():
            raise InputError(
                f"The words of document {doc!r} are not those of its text: characters {start} to {end} are "
                f"{piece!r}, the word {form!r} (after one that ends at {before}; the text has {len(text)}). Tag the "
                "text that was tokenized."
            )
        before = end
    return edges


def _require_text(text: str, tokens: list[str], span: Int[np.ndarray, "tokens 2"], doc: str) -> None:
    """Check that tokens are of this text: nothing but white space is left out, and letters agree."""
    wrong = f"The tokens of document {doc!r} are not those of its text: "
    remedy = ". Tokenize the documents that have the tags."
    end = np.r_[0, np.maximum.accumulate(span[:, 1])]
    for start, stop in zip(end.tolist(), np.r_[span[:, 0], len(text)].tolist(), strict=True):
        if text[start:stop].strip() and _seen(text[start:stop]):
            raise InputError(f"{wrong}{text[start:stop][:40]!r} at character {start} is in no token{remedy}")
    if end[-1] > len(text):
        raise InputError(f"{wrong}they end at character {end[-1]}, the text at {len(text)}{remedy}")
    for start, stop, pieces in _pieces_of_characters(tokens, span):
        spelled = "".join(pieces)
        own = text[start:stop]
        if spelled == own or _letters(spelled) == _letters(own) or any(map(_NOT_LETTERS.fullmatch, pieces)):
            continue
        if _seen(spelled) != _seen(own):
            raise InputError(f"{wrong}characters {start} to {stop} are {own!r}, not {spelled!r}{remedy}")


def _pieces_of_characters(
    tokens: list[str], span: Int[np.ndarray, "tokens 2"]
) -> Iterator[tuple[int, int, list[str]]]:
    """Yield characters and the tokens that spell them: more than one where a character is cut (NFKC's "fi")."""
    held: list[str] = []
    begin = end = 0
    for token, (start, stop) in zip(tokens, span.tolist(), strict=True):
        if held and start >= end:
            yield begin, end, held
            held = []
        begin, end = (min(begin, start), max(end, stop)) if held else (start, stop)
        held.append(token)
    if held:
        yield begin, end, held


def _letters(text: str) -> str:
    """Return a text as tokenizers may alter it: without white space at its ends, in one form and case."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _seen(text: str) -> str:
    """Return a text's letters without those that are not seen, such as joiners, which tokenizers make white space."""
    return "".join(letter for letter in _letters(text) if unicodedata.category(letter)[0] not in "CZ")
