"""All that can be known of a corpus and a formula before any work is done."""

import hashlib
import json
import re
from typing import NamedTuple

from mechreg.corpus import stream_corpus
from mechreg.fits import formula_columns
from mechreg.moments import LagMoments
from mechreg.schema import NORM_COLUMNS, TOKEN_COLUMNS, InputError, did_you_mean
from mechreg.spec import Spec


class Survey(NamedTuple):
    """What one reading of the corpus tells."""

    sha256: str
    documents: int
    left_out: int
    columns: tuple[str, ...]


def survey_corpus(corpus: str) -> Survey:
    """Return the hash of all documents, how many there are, and their columns; nothing else is kept."""
    digest, documents, left_out, columns = hashlib.sha256(), 0, 0, dict[str, None]()
    for part in stream_corpus(corpus):
        for doc, text in part[["doc", "text"]].itertuples(index=False):
            digest.update(json.dumps([doc, text]).encode())
        documents += len(part)
        left_out += int((part["problem"] != "").sum())
        columns |= dict.fromkeys(part.columns)
    return Survey(digest.hexdigest(), documents, left_out, tuple(columns))


def below_lags(formula: str) -> tuple[int, ...]:
    """Return the lags in the layer below that a formula asks for.

    Examples
    --------
    >>> below_lags("log_norm ~ lag1 + below + below_lag2")
    (0, 2)
    """
    asked = (re.fullmatch(r"below(?:_lag(\d+))?", column) for column in formula_columns(formula))
    return tuple(sorted({int(match[1] or 0) for match in asked if match}))


def annotations_of(formula: str, columns: tuple[str, ...]) -> list[str]:
    """Return the documents' columns that the formula asks for."""
    return [c for c in formula_columns(formula) if c in columns and c not in (*NORM_COLUMNS, *TOKEN_COLUMNS)]


def check_formula(spec: Spec, columns: tuple[str, ...]) -> None:
    """Refuse a column that no step makes, and moments alone where they cannot answer."""
    below = below_lags(spec.formula)
    have = {
        *NORM_COLUMNS, *TOKEN_COLUMNS, "log_norm", *(f"lag{lag}" for lag in spec.lags), *columns,
        *("below" if lag == 0 else f"below_lag{lag}" for lag in below),
    } - {"text", "problem"}  # fmt: skip
    for column in sorted(formula_columns(spec.formula)):
        if column not in have:
            raise InputError(
                f"The formula {spec.formula!r} needs the column {column!r}; this run has {sorted(have)} "
                f"(lags = {list(spec.lags)}).{did_you_mean(column, have)}"
            )
    if spec.keep == "moments" and not is_summable(spec):
        raise InputError(
            f"keep = 'moments' cannot give cov = {spec.cov!r} of {spec.formula!r}, which needs all rows at once "
            "(hc2, hc3, splines and centring do); use keep = 'norms', or cov = 'crv3'."
        )


def is_summable(spec: Spec) -> bool:
    """Return whether sums over shards of documents are enough for a spec's tables.

    Examples
    --------
    >>> is_summable(Spec(models=("m",), corpus="demo")), is_summable(Spec(models=("m",), corpus="demo", cov="hc3"))
    (True, False)
    """
    if spec.cov in ("hc2", "hc3"):
        return False
    columns = formula_columns(spec.formula)
    # A few rows of anything: what learns from all rows is refused by its name, whatever the rows are.
    place = {"model": "m", "hook": "h", "layer": 0, "doc": "d", "window": 0, "position": range(4)}
    rows = {name: [1.0, 2.0, 4.0, 3.0] for name in columns} | place
    try:
        LagMoments(spec.formula, max_lag=None).update(rows)
    except InputError as error:
        return "needs all rows at once" not in str(error)
    return True
