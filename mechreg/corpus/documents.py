"""The documents frame: every document has an id, a text, a source, and what is wrong with it."""

from typing import Any

import pandas as pd

from mechreg.schema import DOCUMENT_COLUMNS, TOKEN_COLUMNS, InputError, did_you_mean, require

ID_COLUMNS = ("doc", "id")
SOURCE_COLUMNS = ("source", "genre")


def documents_frame(table: pd.DataFrame, *, text: str, stem: str, where: str, first: int = 0) -> pd.DataFrame:
    """Return a documents frame: id and source found or made, texts judged, other columns kept.

    Parameters
    ----------
    table : pandas.DataFrame
        A row a document.
    text : str
        The column of texts; a half character in one (what ``surrogateescape`` leaves) makes it undecodable.
    stem : str
        The source of documents that name none; with the row's number, their id.
    where : str
        Where the table comes from; it opens the messages.
    first : int
        The number of the table's first row, where it is a part of a file.

    Examples
    --------
    >>> table = pd.DataFrame({"id": [7, 8], "text": ["One.", ""], "year": [1848, 1849]})
    >>> documents_frame(table, text="text", stem="news", where="The frame")
      doc  text source problem  year
    0   7  One.   news          1848
    1   8         news   empty  1849
    """
    have = [str(column) for column in table.columns]
    if text not in have:
        hint = did_you_mean(text, have)
        raise InputError(f"{where} has no column {text!r}; it has {have}. Say which with text=.{hint}")
    if len(set(have)) < len(have):
        raise InputError(f"{where} has two columns of one name: {have}; rename one.")
    table = table.set_axis(have, axis=1).reset_index(drop=True)
    ident = next((column for column in ID_COLUMNS if column in have), None)
    source = next((column for column in SOURCE_COLUMNS if column in have), None)
    docs = _strings(table, ident, [f"{stem}-{first + i}" for i in range(len(table))])
    texts = ["" if _is_missing(entry) else entry for entry in table[text]]
    for doc, entry in zip(docs, texts, strict=True):
        if not isinstance(entry, str):
            raise InputError(f"{where}: the text of {doc!r} must be a string; got {type(entry).__name__}.")
    problems = [_problem(entry) for entry in texts]
    columns = {
        "doc": docs,
        "text": ["" if p == "undecodable" else entry for entry, p in zip(texts, problems, strict=True)],
        "source": _strings(table, source, [stem] * len(table)),
        "problem": problems,
    }
    kept = table[[column for column in have if column not in {text, ident, source, *columns}]].copy()
    for column in kept.select_dtypes("object"):
        kept[column] = [_readable(entry) if isinstance(entry, str) else entry for entry in kept[column]]
    return pd.concat([pd.DataFrame(columns).astype(DOCUMENT_COLUMNS), kept.infer_objects()], axis=1)


def corpus_problems(
    documents: pd.DataFrame, tokens: pd.DataFrame | None = None, *, prepend_bos: bool = False
) -> pd.DataFrame:
    """Return the documents that cannot be used, or not for lags: doc and problem.

    Parameters
    ----------
    documents : pandas.DataFrame
        What `read_corpus` gives.
    tokens : pandas.DataFrame, optional
        What `tokenize` made of them: adds the problems "no token" and "one token".
    prepend_bos : bool
        As it was in `tokenize`.

    Examples
    --------
    >>> from mechreg import read_corpus
    >>> corpus_problems(read_corpus(["One text.", ""])).values.tolist()
    [['text-1', 'empty']]
    """
    require(documents, ("doc", "problem"), who="corpus_problems")
    problem = documents["problem"]
    if tokens is not None:
        require(tokens, TOKEN_COLUMNS, who="corpus_problems")
        own = tokens.loc[tokens["position"] >= int(prepend_bos), "doc"].astype("str").value_counts()
        counts = documents["doc"].map(own).fillna(0)
        problem = problem.mask((problem == "") & (counts == 0), "no token")
        problem = problem.mask((problem == "") & (counts == 1), "one token")
    return documents[["doc"]].assign(problem=problem)[problem != ""].reset_index(drop=True)


def require_unique(docs: pd.Series) -> None:
    """Check that no two documents have one id."""
    twice = docs[docs.duplicated()]
    if len(twice):
        raise InputError(
            f"Document ids must be unique; {twice.nunique()} come more than once, the first is "
            f"{twice.iloc[0]!r}. Rename them, or leave the id column out."
        )


def _problem(text: str) -> str:
    if not text.strip():
        return "whitespace" if text else "empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "undecodable"
    return ""


def _strings(table: pd.DataFrame, column: str | None, made: list[str]) -> list[str]:
    """Return a column as strings, with what was made where it says nothing."""
    if column is None:
        return made
    given = ["" if _is_missing(entry) else _readable(str(entry)) for entry in table[column]]
    return [entry or other for entry, other in zip(given, made, strict=True)]


def _is_missing(entry: Any) -> bool:
    return bool(pd.api.types.is_scalar(entry) and pd.isna(entry))


def _readable(text: str) -> str:
    """Return a text with its half characters, which no frame takes, spelled out."""
    return text.encode("utf-8", errors="backslashreplace").decode()
