"""All that can be known of a corpus and a formula before any work is done."""

import hashlib
import json
import re
from typing import NamedTuple

import pandas as pd

from mechreg.corpus import COVARIATES, load_pipeline, require_words, stream_corpus, tag_words
from mechreg.fits import formula_columns
from mechreg.moments import LagMoments
from mechreg.moments.design import NeedsAllRows
from mechreg.run.tokens import TAG_COLUMNS
from mechreg.schema import NORM_COLUMNS, TOKEN_COLUMNS, InputError, did_you_mean
from mechreg.spec import OWN_TAGS, Spec


class Survey(NamedTuple):
    """What one reading of the corpus tells."""

    sha256: str
    documents: int
    left_out: int
    columns: tuple[str, ...]
    tags: dict[str, str]  # what made the parts of speech, and the hash of those that the corpus brings


def survey_corpus(corpus: str, *, tagger: str = "none") -> Survey:
    """Return the hash of all documents, how many there are, their columns, and what tags them; nothing else is kept.

    Parameters
    ----------
    corpus, tagger : str
        As in a spec.

    Raises
    ------
    InputError
        As `stream_corpus`; a tagger that is not there, or tags that are not of the text.
    """
    digest, documents, left_out, columns = hashlib.sha256(), 0, 0, dict[str, None]()
    made_by: dict[str, None] = {}
    tags = hashlib.sha256()
    if tagger not in ("none", OWN_TAGS):  # it tags something, so that what it cannot do is known now
        made_by = dict.fromkeys(tag_words(["A word."], pipeline=load_pipeline(tagger))["tagger"])
    for part in stream_corpus(corpus, tags=tagger == OWN_TAGS):
        for doc, text in part[["doc", "text"]].itertuples(index=False):
            digest.update(json.dumps([doc, text]).encode())
        if tagger == OWN_TAGS:
            require_words(part)
            tags.update(_words_as_text(part).encode())
            said = part["tagger"].fillna(OWN_TAGS).astype("str") if "tagger" in part.columns else [OWN_TAGS]
            made_by |= dict.fromkeys(said)
        elif tagger != "none" and "words" in part.columns:
            raise InputError(
                f"The corpus {corpus!r} brings tagged words of its own; set tagger = {OWN_TAGS!r}."
            )
        documents += len(part)
        left_out += int((part["problem"] != "").sum())
        columns |= dict.fromkeys(part.columns)
    told = {"tagger": "; ".join(made_by)} if made_by else {}
    if tagger == OWN_TAGS:
        told["tags_sha256"] = tags.hexdigest()
    return Survey(digest.hexdigest(), documents, left_out, tuple(columns), told)


def _words_as_text(documents: pd.DataFrame) -> str:
    """Return the places and tags of the words of documents that can be read."""
    usable = documents[documents["problem"] == ""]
    return json.dumps(
        [
            [doc, *([int(word["start"]), int(word["end"]), word["upos"]] for word in words)]
            for doc, words in usable[["doc", "words"]].itertuples(index=False)
        ]
    )


def below_lags(formula: str) -> tuple[int, ...]:
    """Return the lags in the layer below that a formula asks for.

    Examples
    --------
    >>> below_lags("log_norm ~ lag1 + below + below_lag2")
    (0, 2)
    """
    asked = (re.fullmatch(r"below(?:_lag(\d+))?", column) for column in formula_columns(formula))
    return tuple(sorted({int(match[1] or 0) for match in asked if match}))


def check_formula(spec: Spec, columns: tuple[str, ...]) -> None:
    """Refuse a column that no step makes or two would, and moments alone where they cannot answer."""
    below, asked = below_lags(spec.formula), formula_columns(spec.formula)
    tags = () if spec.tagger == "none" else TAG_COLUMNS
    for column in (*(name for name in COVARIATES if name in asked), *tags):
        if column in columns:
            raise InputError(
                f"The corpus has a column {column!r} of its own, which would be taken for the one that mechreg makes; "
                "rename the corpus's."
            )
    have = {
        *NORM_COLUMNS, *TOKEN_COLUMNS, "log_norm", *(f"lag{lag}" for lag in spec.lags), *columns, *tags, *COVARIATES,
        *("below" if lag == 0 else f"below_lag{lag}" for lag in below),
    } - {"text", "problem", "words"}  # fmt: skip
    for column in sorted(asked):
        if column in TAG_COLUMNS and column not in have:
            raise InputError(
                f"The formula {spec.formula!r} needs {column!r}, which comes of tagging; say what tags the tokens: "
                f"tagger = {OWN_TAGS!r} (.conllu, the demo, documents with 'words') or a spaCy pipeline, such as "
                "tagger = 'en_core_web_sm'."
            )
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
    except NeedsAllRows:
        return False
    except InputError:  # of these rows
        pass
    return True
