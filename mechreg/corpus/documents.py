"""The documents frame: every document has an id, a text, a source, and what is wrong with it."""

from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import pandas as pd

from mechreg.outside import any_frames
from mechreg.schema import (
    DOCUMENT_COLUMNS,
    TOKEN_COLUMNS,
    InputError,
    did_you_mean,
    document_id,
    document_ids,
    require,
)

ID_COLUMNS = ("doc", "id")
PROBLEMS = ("", "empty", "whitespace", "undecodable")
_EXACT = 2**53  # beyond it a float does not hold every whole number


def documents_frame(table: pd.DataFrame, *, text: str, stem: str, where: str, first: int = 0) -> pd.DataFrame:
    """Return a documents frame: ids and sources taken or made, texts checked, other columns kept.

    ``stem`` is the source of documents that name none and, with the row's number (from ``first`` on), their id;
    ``where`` opens the messages. A half character in a text (``surrogateescape``) makes it undecodable.
    """
    have = [str(column) for column in table.columns]
    if text not in have:
        hint = did_you_mean(text, have)
        raise InputError(
            f"{where} has no column {text!r}; it has {have}. Name the right one with text=.{hint}"
        )
    if len(set(have)) < len(have):
        raise InputError(f"{where} has two columns of one name: {have}; rename one.")
    table = table.set_axis(have, axis=1).reset_index(drop=True)
    if "problem" in have and not table["problem"].isin(PROBLEMS).all():
        raise InputError(f"{where} has a column 'problem', which mechreg adds itself; rename it.")
    made = [f"{stem}-{first + i}" for i in range(len(table))]
    ident = next((column for column in ID_COLUMNS if column in have), None)
    docs = made
    if ident is not None:
        try:
            given = [document_id(entry) for entry in table[ident]]
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        docs = [entry or other for entry, other in zip(given, made, strict=True)]
    texts = ["" if _is_missing(entry) else entry for entry in table[text]]
    for doc, entry in zip(docs, texts, strict=True):
        if not isinstance(entry, str):
            raise InputError(f"{where}: the text of {doc!r} must be a string; got {type(entry).__name__}.")
    problems = [_problem(entry) for entry in texts]
    columns = {
        "doc": docs,
        "text": ["" if p == "undecodable" else entry for entry, p in zip(texts, problems, strict=True)],
        "source": [_source(entry) or stem for entry in table["source"]] if "source" in have else stem,
        "problem": problems,
    }
    kept = {name: _annotation(table[name]) for name in have if name not in {text, ident, *columns}}
    frame = pd.DataFrame(columns).astype(DOCUMENT_COLUMNS)
    return pd.concat([frame, pd.DataFrame(kept, index=frame.index)], axis=1)


@any_frames
def corpus_problems(
    documents: pd.DataFrame, tokens: pd.DataFrame | None = None, *, prepend_bos: bool = False
) -> pd.DataFrame:
    """Return the documents that cannot be used, or not for lags: doc and problem.

    ``tokens`` and ``prepend_bos``, as in `tokenize`, add the problems "no token" and "one token".
    """
    require(documents, ("doc", "problem"), who="corpus_problems")
    docs, problem = document_ids(documents["doc"]), documents["problem"]
    if tokens is not None:
        require(tokens, TOKEN_COLUMNS, who="corpus_problems")
        own = document_ids(tokens.loc[tokens["position"] >= int(prepend_bos), "doc"]).value_counts()
        counts = docs.map(own).fillna(0)
        problem = problem.mask((problem == "") & (counts == 0), "no token")
        problem = problem.mask((problem == "") & (counts == 1), "one token")
    return pd.DataFrame({"doc": docs, "problem": problem})[problem != ""].reset_index(drop=True)


def require_unique(docs: pd.Series) -> None:
    """Check that no two documents have one id."""
    twice = docs[docs.duplicated()]
    if len(twice):
        raise InputError(
            f"Document ids must be unique; {twice.nunique()} occur more than once, the first is "
            f"{twice.iloc[0]!r}. Rename them, or drop the id column."
        )


def _problem(text: str) -> str:
    if not text.strip():
        return "whitespace" if text else "empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "undecodable"
    return ""


def _source(entry: Any) -> str:
    """Return a source as text, a whole number by its digits, "" where it is missing."""
    try:
        return document_id(entry)
    except InputError:
        return str(entry)


def _annotation(column: pd.Series) -> pd.Series:
    """Return a column of objects with the dtype of its values; a missing value alters no number."""
    if column.dtype != object:
        return column
    given = [entry for entry in column if not _is_missing(entry)]
    number = [isinstance(entry, Real | Decimal) and not isinstance(entry, bool) for entry in given]
    if given and all(number):
        if all(isinstance(entry, Integral) for entry in given):
            largest = max(map(abs, given))
            if largest > _EXACT and len(given) < len(column):
                return column.astype("Int64") if largest < 2**63 else column
        elif any(isinstance(entry, Decimal) for entry in given):
            return column.map(float, na_action="ignore").astype("float64")
    # Half characters, which no frame stores, are spelled out.
    read = [document_id(entry) if isinstance(entry, str) else entry for entry in column]
    return pd.Series(read, column.index, dtype=object).infer_objects()


def _is_missing(entry: Any) -> bool:
    return not isinstance(entry, str) and bool(pd.api.types.is_scalar(entry) and pd.isna(entry))
