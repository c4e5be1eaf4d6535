"""Columns of tokens and documents joined to the rows of a norm frame, each exactly once or not at all."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechreg.outside import any_frames
from mechreg.schema import NORM_COLUMNS, TOKEN_KEYS, InputError, document_ids, one_or_many, require

# Columns that a norm frame does not need.
_LEFT_OUT = ("text", "problem", "words", "char_start", "char_end")


@any_frames
def join_annotations(
    norms: pd.DataFrame, annotations: pd.DataFrame, *, columns: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the norm frame (or lagged frame) with columns of its tokens or its documents.

    Parameters
    ----------
    norms : pandas.DataFrame
        doc, window, position, and model or token_id where ``annotations`` has them.
    annotations : pandas.DataFrame
        A token frame (a row for each doc, window, position, and model where it has that column: surprisals are one
        model's own), or a documents frame (a row for each doc).
    columns : str or sequence of str, optional
        By default all that the norms lack, except text, problem, words and spans.

    Returns
    -------
    pandas.DataFrame
        The same rows in the same order, and the columns. Text comes as categories.

    Raises
    ------
    SchemaError, InputError
        A missing column, a column that is there already, a key that comes twice, a row without its token or
        document, or tokens of another tokenizer.

    Examples
    --------
    >>> norms = pd.DataFrame({"doc": ["d", "d"], "window": 0, "position": [0, 1], "norm": [2.0, 3.0]})
    >>> join_annotations(norms, pd.DataFrame({"doc": ["d"], "source": ["news"]}))["source"].tolist()
    ['news', 'news']
    """
    require(annotations, ("doc",), who="join_annotations")
    of_tokens = {"window", "position"} <= set(annotations.columns)
    keys = ["doc"]
    if of_tokens:
        keys = ["model", *TOKEN_KEYS] if "model" in annotations.columns else list(TOKEN_KEYS)
    require(norms, keys, who="join_annotations")
    if not of_tokens and (own := [c for c in annotations.columns if c in NORM_COLUMNS and c not in keys]):
        raise InputError(
            f"The documents have columns whose names norm frames reserve, {own}; rename or drop them."
        )
    left_out = {*norms.columns, *keys, *_LEFT_OUT}
    chosen = (
        [name for name in annotations.columns if name not in left_out]
        if columns is None
        else one_or_many(columns)
    )
    require(annotations, chosen, who="join_annotations")
    if replaced := [name for name in chosen if name in norms.columns]:
        raise InputError(f"join_annotations would replace the columns {replaced}; drop them first.")
    if not chosen:
        raise InputError("join_annotations finds no column that the norms lack; name it with columns=.")
    at = _rows_of(norms, annotations, keys)
    if of_tokens and "token_id" in annotations.columns and "token_id" in norms.columns:
        differs = norms["token_id"].to_numpy() != annotations["token_id"].to_numpy()[at]
        if differs.any():
            row = norms.iloc[int(differs.argmax())]
            raise InputError(
                f"The annotations are of another tokenizer's tokens: token ids differ at document {row['doc']!r}, "
                f"position {row['position']} ({int(differs.sum())} such rows). Annotate the tokens of this model."
            )
    joined = {}
    for name in chosen:
        values = annotations[name]
        if pd.api.types.is_string_dtype(values.dtype):
            values = values.astype("category")
        joined[name] = values.take(at).set_axis(norms.index)
    return norms.assign(**joined)


def _rows_of(norms: pd.DataFrame, annotations: pd.DataFrame, keys: list[str]) -> Int[np.ndarray, " rows"]:
    """Return which row of the annotations belongs to each row of the norms."""
    index = pd.MultiIndex.from_frame(_as_text(annotations[keys]))
    if index.has_duplicates:
        twice = dict(zip(keys, index[index.duplicated()][0], strict=True))
        raise InputError(
            f"join_annotations needs one row for each {', '.join(keys)}; there are two for {twice}."
        )
    # A token's keys come again in every layer: they are looked up once.
    places = _as_text(norms[keys])
    number = places.groupby(keys, sort=False).ngroup().to_numpy()
    distinct = places.take(np.unique(number, return_index=True)[1])
    rows = index.get_indexer(pd.MultiIndex.from_frame(distinct))
    lacking = rows < 0
    if lacking.any():
        first = distinct.iloc[int(lacking.argmax())].to_dict()
        raise InputError(
            f"join_annotations finds no row for {first} ({int(lacking.sum())} such tokens or documents). Give it the "
            "annotations of the documents, windows and models that the norms are of."
        )
    return np.asarray(rows[number])


def _as_text(keys: pd.DataFrame) -> pd.DataFrame:
    """Return keys with the models and documents as text, whatever dtype each frame has."""
    kinds = {"model": "str"} if "model" in keys.columns else {}
    return keys.assign(doc=document_ids(keys["doc"])).astype(kinds)
