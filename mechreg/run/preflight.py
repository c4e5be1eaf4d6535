"""All that can be known of a corpus and a formula before any work is done."""

import contextlib
import hashlib
import json
import re
from typing import NamedTuple, get_args

import numpy as np
import pandas as pd
from patsy import ModelDesc

from mechreg.corpus import COVARIATES, load_tagger, require_words, tag_words
from mechreg.formulas import names_in
from mechreg.lags import lags_among
from mechreg.nulls.null_norms import READ_AGAIN
from mechreg.regression import LagSums, formula_columns
from mechreg.regression.design import NeedsAllRows
from mechreg.regression.results import CLUSTERED
from mechreg.run.tokens import TAG_COLUMNS, recorded_columns, stream_documents
from mechreg.schema import NORM_COLUMNS, TOKEN_COLUMNS, InputError, NumericalError, RunMeasure, did_you_mean
from mechreg.sinks import sink_rules
from mechreg.spec import OWN_TAGS, Spec

_MADE = {*NORM_COLUMNS, *TOKEN_COLUMNS, *COVARIATES, *get_args(RunMeasure), "log_norm", "head"}
_NUMBERS = {
    **dict.fromkeys(("integer", "floating", "mixed-integer-float", "decimal"), "numbers"),
    "boolean": "true or false",
}
_MOST_ROWS = 300
# Columns that have one value in a regression.
_OF_A_FIT = {"model", "hook", "layer", "depth"}
_MADE_BY_LAG = r"(lag|layer_below_lag)[0-9]+|layer_below"
# What a run's own passes give beside norms, and what a token takes with it to another place.
_OF_PASSES = {*get_args(RunMeasure), "surprisal"} - {"norm"}
_OF_TOKENS = {"token", "token_id", *TAG_COLUMNS, *COVARIATES} - {"distance"}


class Survey(NamedTuple):
    """What one reading of the corpus shows."""

    sha256: str
    documents: int
    left_out: int
    columns: tuple[str, ...]
    kinds: dict[str, tuple[str, ...]]  # of the formula's columns: "numbers", ..., or two of their texts
    rows: pd.DataFrame  # the different rows of these columns, up to a bound
    tags: dict[str, str]  # the tagger, and the hashes of tags and annotations
    read: tuple[str, ...]  # the hash of all that was read, after each part, for `unchanged_documents`

    @property
    def usable(self) -> int:
        """Documents that can be used."""
        return self.documents - self.left_out


def survey_corpus(spec: Spec) -> Survey:
    """Return the hash of all documents, their number, their columns, and what tags them; nothing else is kept."""
    tagger = spec.tagger
    digest, tags, beside = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    documents, left_out, read, rows = 0, 0, list[str](), pd.DataFrame()
    columns, made_by = dict[str, None](), dict[str, None]()
    kinds: dict[str, dict[str, None]] = {}
    if tagger not in ("none", OWN_TAGS):  # a trial run, so that a missing capability is reported now
        made_by = dict.fromkeys(tag_words(["A word."], tagger=load_tagger(tagger))["tagger"])
    for part, so_far in stream_documents(spec):
        read.append(so_far)
        usable = part[part["problem"] == ""]
        for doc, text in part[["doc", "text"]].itertuples(index=False):
            digest.update(json.dumps([doc, text]).encode())
        named = recorded_columns(spec, tuple(part.columns))
        beside.update(json.dumps(part[named].to_numpy().tolist(), default=str).encode())
        if len(rows) < _MOST_ROWS:
            with contextlib.suppress(TypeError):  # lists and the like, which `check_levels` refuses
                rows = pd.concat([rows, usable[named]]).drop_duplicates()
        for name in named:
            known = kinds.setdefault(name, {})
            known |= dict.fromkeys(
                kind for kind in _kinds(usable[name]) if len(known) < 3 or kind[0] not in "'\""
            )
        if tagger == OWN_TAGS:
            require_words(part)
            words = [
                [doc, *([int(word["start"]), int(word["end"]), word["upos"]] for word in words)]
                for doc, words in usable[["doc", "words"]].itertuples(index=False)
            ]
            tags.update(json.dumps(words).encode())
            taggers = part["tagger"].fillna(OWN_TAGS) if "tagger" in part.columns else [OWN_TAGS]
            made_by |= dict.fromkeys(map(str, taggers))
        elif tagger != "none" and "words" in part.columns:
            raise InputError(
                f"The corpus {spec.corpus!r} brings tagged words of its own; set tagger = {OWN_TAGS!r}."
            )
        documents += len(part)
        left_out += len(part) - len(usable)
        columns |= dict.fromkeys(part.columns)
    record = {"tagger": "; ".join(made_by)} if made_by else {}
    if tagger == OWN_TAGS:
        record["tags_sha256"] = tags.hexdigest()
    record["annotations_sha256"] = beside.hexdigest()
    return Survey(
        sha256=digest.hexdigest(),
        documents=documents,
        left_out=left_out,
        columns=tuple(columns),
        kinds={name: tuple(seen) for name, seen in kinds.items()},
        rows=rows.head(_MOST_ROWS).reset_index(drop=True),
        tags=record,
        read=tuple(read),
    )


def _kinds(column: pd.Series) -> list[str]:
    """Return what a documents' column holds: two of its texts at most, quoted, or the kinds of its other values."""
    given = column.dropna()
    if not len(given):
        return []
    kind = pd.api.types.infer_dtype(given)
    if kind in _NUMBERS or pd.api.types.is_numeric_dtype(given.dtype):
        return ["true or false"] if kind == "boolean" else ["numbers"]
    if kind in ("string", "categorical", "date", "datetime", "datetime64"):
        return [repr(value) for value in given.astype("str").drop_duplicates().iloc[:2]]
    names = _NUMBERS | {"string": "texts"}
    return sorted({names.get(pd.api.types.infer_dtype([value]), type(value).__name__) for value in given})


def check_formula(spec: Spec, columns: tuple[str, ...]) -> None:
    """Refuse a column that no step, or two steps, would provide, and keep = "moments" where sums are not enough."""
    asked = formula_columns(spec.formula)
    layer_below = lags_among(asked)[1]
    tags = () if spec.tagger == "none" else TAG_COLUMNS
    made = [name for name in asked if name != "doc" and (name in _MADE or re.fullmatch(_MADE_BY_LAG, name))]
    for column in (*made, *tags):
        if column in columns:
            raise InputError(
                f"The corpus has a column {column!r} of its own, which would be taken for the one that mechreg makes; "
                "rename the corpus's."
            )
    have = {
        *NORM_COLUMNS, *TOKEN_COLUMNS, "log_norm", *(f"lag{lag}" for lag in spec.lags), *columns, *tags, *COVARIATES,
        *spec.measures,
        *("layer_below" if lag == 0 else f"layer_below_lag{lag}" for lag in layer_below),
    } - {"text", "problem", "words"}  # fmt: skip
    for column in sorted(asked):
        if column in TAG_COLUMNS and column not in have:
            raise InputError(
                f"The formula {spec.formula!r} needs {column!r}, which requires tagger = {OWN_TAGS!r} (.conllu, the "
                "demo, documents with 'words') or a spaCy pipeline, such as tagger = 'en_core_web_sm'."
            )
        if column not in have:
            raise InputError(
                f"The formula {spec.formula!r} needs the column {column!r}; this run has {sorted(have)} "
                f"(lags = {list(spec.lags)}).{did_you_mean(column, have)}"
            )
    if spec.keep == "moments" and not is_summable(spec):
        raise InputError(
            f"keep = 'moments' cannot give cov = {spec.cov!r} of {spec.formula!r} with effects = {[*spec.effects]}, "
            "which needs all rows: hc2 and hc3 do, functions of a whole column, such as splines, center(x) and "
            "x.rank(), and effects beside 'doc'. Use keep = 'norms'."
        )


def check_levels(formula: str, kinds: dict[str, tuple[str, ...]]) -> None:
    """Refuse a document column that cannot give a coefficient."""
    for name in formula_columns(formula):
        seen = kinds.get(name)
        if seen is None:
            continue
        if not seen:
            raise InputError(f"The formula {formula!r} needs {name!r}, which no document of the corpus has.")
        texts = [kind for kind in seen if kind[0] in "'\""]
        others = [kind for kind in seen if kind not in texts]
        others += ["texts"] * bool(texts and others)
        if len(others) > 1 or not {*others} <= {*_NUMBERS.values()}:
            raise InputError(
                f"The corpus's column {name!r} holds {' and '.join(others)}; a column of a formula "
                "must hold numbers, texts or booleans."
            )
        if len(texts) == 1:
            raise InputError(
                f"The formula {formula!r} needs two values of {name!r} or more; it is {texts[0]} in every document. "
                "Leave it out."
            )


def check_distinct(formula: str, documents: pd.DataFrame) -> None:
    """Refuse documents' columns whose terms are collinear whatever the tokens are, such as two of the same values."""
    rng, n = np.random.default_rng(0), 3000
    names = [name for name in documents.columns if name in formula_columns(formula)]
    if len(names) < 2 or not 2 <= len(documents) < _MOST_ROWS:
        return
    at, place = np.arange(n), {"model": "m", "hook": "h", "layer": 0, "depth": 0.5, "window": 0}
    tokens = {name: rng.lognormal(size=n) for name in formula_columns(formula) if name not in names}
    tokens |= {name: rng.choice(["a", "b"], n) for name in TAG_COLUMNS if name in tokens}
    place |= {"doc": (at // 50).astype(str), "position": at % 50}

    def are_collinear(*picks: np.ndarray) -> bool:
        columns = {name: documents[name].to_numpy()[pick] for name, pick in zip(names, picks, strict=True)}
        try:
            LagSums.from_frame(pd.DataFrame(tokens | columns | place), formula).coefficients(cov="nonrobust")
        except NumericalError:
            return True
        except InputError:  # of these tokens, not of the corpus
            pass
        return False

    as_they_are = [rng.integers(len(documents), size=n)] * len(names)
    if are_collinear(*as_they_are) and not are_collinear(*rng.integers(len(documents), size=(len(names), n))):
        raise InputError(
            f"The formula {formula!r} needs terms that differ; over the documents of this corpus those of "
            f"{' and '.join(map(repr, names))} are collinear. Leave one of these columns out."
        )


def require_fittable(spec: Spec, documents: int) -> None:
    """Refuse, before any norm is computed, a regression that is impossible with this many documents."""
    if spec.cov in CLUSTERED and spec.cov != "auto" and documents < 2:
        raise InputError(
            f"cov = {spec.cov!r} needs two documents or more; the corpus has {documents}. Use cov = 'auto'."
        )
    leaves_out = documents > 1 and spec.cov in ("auto", "crv2", "crv3", "jackknife")
    for term in ModelDesc.from_formula(spec.formula).rhs_termlist:
        columns = {name for factor in term.factors for name in names_in(factor.code)}
        if columns and columns <= _OF_A_FIT:
            raise InputError(
                f"The term {term.name()!r} of {spec.formula!r} is constant in every regression, which is of one "
                "model, hook and layer; leave it out."
            )
        codes = [factor.code.replace(" ", "") for factor in term.factors]
        if leaves_out and codes in (["doc"], ["C(doc)"]):
            raise InputError(
                f"cov = {spec.cov!r} fits without each document in turn, and {term.name()!r} of {spec.formula!r} "
                "has a column for each; use effects = ['doc']."
            )


def require_rows(spec: Spec, *, longest: int, blocks: int) -> None:
    """Refuse, before any forward pass, a formula for which even the longest window has no complete row."""
    lags, layer_below = lags_among(formula_columns(spec.formula))
    lag = max((*lags, *layer_below), default=0)
    if longest <= spec.skip + lag:
        raise InputError(
            f"{spec.formula!r} with skip = {spec.skip} needs windows of {spec.skip + lag + 1} tokens or more; the "
            f"longest has {longest}. Give longer documents, or fewer lags."
        )
    if layer_below and blocks < 2:
        raise InputError(f"{spec.formula!r} needs a layer below; the model has {blocks}.")


def require_nulls(spec: Spec, documents: int, *, is_split: bool) -> None:
    """Refuse, before any work, nulls that cannot be made for a spec's regression, or of models on several devices."""
    if not spec.nulls:
        return
    outcome, *others = formula_columns(spec.formula)
    if documents < 2:
        raise InputError(
            f"nulls need two documents or more, since documents are drawn; the corpus has {documents}. Split the text, "
            "or leave nulls out."
        )
    if outcome in _OF_PASSES:
        raise InputError(
            f"nulls are of norms, and the outcome of {spec.formula!r} is {outcome!r}; leave nulls out, or use log_norm."
        )
    for null in spec.nulls:
        lacking = (_OF_PASSES if null in READ_AGAIN else set()) | (
            _OF_TOKENS if null == "token_order" else set()
        )
        if column := next((name for name in (*others, *spec.effects) if name in lacking), None):
            raise InputError(
                f"The null {null!r} reads other texts or other weights, of which the run has no {column!r}; leave that "
                "null, or that term or effect, out."
            )
        if null != "norm_order" and any(rule.kind == "size" for rule in sink_rules(spec.drop_sinks)):
            raise InputError(
                f"The null {null!r} has norms of other sizes, so that drop_sinks = 'size' would leave out other "
                "tokens; use 'special', 'token_id=0' or 'position=1', or nulls = ['norm_order'] alone."
            )
        if null == "random_weights" and is_split:
            raise InputError(
                "The null 'random_weights' is made on one device; leave it, or --device-map, out."
            )


def is_summable(spec: Spec) -> bool:
    """Return whether sums over shards of documents are enough for a spec's tables."""
    needs_rows = any(rule.kind == "size" for rule in sink_rules(spec.drop_sinks))
    if needs_rows or spec.cov in ("hc2", "hc3") or not {*spec.effects} <= {"doc"}:
        return False
    # A few rows of anything: what learns from all rows is refused by its name, whatever the rows are.
    place = {"model": "m", "hook": "h", "layer": 0, "doc": "d", "window": 0, "position": range(4)}
    rows = {name: [1.0, 2.0, 4.0, 3.0] for name in formula_columns(spec.formula)} | place
    try:
        LagSums(spec.formula, max_lag=None, effects=spec.effects).update(rows)
    except NeedsAllRows:
        return False
    except (InputError, NumericalError):  # of these rows, not of the corpus
        pass
    return True
