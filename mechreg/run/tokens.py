"""A model's token frame as a stream, with the documents' columns, tags and counts that a spec asks for."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from mechreg.corpus import (
    COVARIATES,
    annotate_pos,
    corpus_problems,
    load_tagger,
    stream_corpus,
    tag_words,
    token_counts,
    tokenize,
)
from mechreg.regression import formula_columns
from mechreg.schema import NORM_COLUMNS, TOKEN_COLUMNS, InputError
from mechreg.spec import OWN_TAGS, Spec

TAG_COLUMNS = ("pos", "piece", "word", "n_words")


def covariates_of(formula: str) -> list[str]:
    """Return the token covariates that a formula asks for."""
    asked = formula_columns(formula)
    return [name for name in COVARIATES if name in asked]


def recorded_columns(spec: Spec, columns: tuple[str, ...]) -> list[str]:
    """Return the documents' columns that stand beside the tokens: the source, and what the formula asks for."""
    others = {*NORM_COLUMNS, *TOKEN_COLUMNS, "source"}
    asked = formula_columns(spec.formula)
    return ["source", *(name for name in asked if name in columns and name not in others)]


def stream_documents(spec: Spec) -> Iterator[tuple[pd.DataFrame, str]]:
    """Yield the documents of a spec's corpus in parts, each with the hash of all that was read so far."""
    digest = hashlib.sha256()
    for part in stream_corpus(spec.corpus, tags=spec.tagger == OWN_TAGS):
        digest.update(json.dumps([list(part.columns), part.to_numpy().tolist()], default=str).encode())
        yield part, digest.hexdigest()


def unchanged_documents(spec: Spec, read: tuple[str, ...]) -> Iterator[pd.DataFrame]:
    """Yield the documents of a spec's corpus in parts, each only if its hash is what the survey ``read``."""
    count = 0
    for count, (part, digest) in enumerate(stream_documents(spec), start=1):
        if count > len(read) or digest != read[count - 1]:
            break
        yield part
    else:
        if count == len(read):
            return
    raise InputError(
        f"The corpus {spec.corpus!r} changed during the run, so the tokens would not be those of the "
        "corpus that is recorded; leave it unchanged during a run, and start again in a new folder (--out)."
    )


def stream_tokens(
    model: Any, spec: Spec, columns: tuple[str, ...], read: tuple[str, ...]
) -> Iterator[tuple[pd.DataFrame | None, pd.DataFrame]]:
    """Yield the tokens of some documents (None where none can be used), and what is wrong with documents.

    Beside the tokens stand the source, what the formula asks for of the documents' ``columns``, and tags.
    """
    counted = [name for name in covariates_of(spec.formula) if name != "surprisal"]
    log_share = _log_shares(model, spec, read) if "log_frequency" in counted else np.empty(0)
    nlp = None if spec.tagger in ("none", OWN_TAGS) else load_tagger(spec.tagger)
    for documents in unchanged_documents(spec, read):
        if not (documents["problem"] == "").any():
            yield None, corpus_problems(documents)
            continue
        tokens = tokenize(model, documents, prepend_bos=spec.prepend_bos, spans=spec.tagger != "none")
        if spec.tagger != "none":
            tagged = documents if nlp is None else tag_words(documents, tagger=nlp)
            found = annotate_pos(tokens, tagged).astype({"pos": "str", "piece": "str"})
            tokens = found.drop(columns=["char_start", "char_end"])
        counts = token_counts(tokens, covariates=counted)
        if "log_frequency" in counted:  # of the whole corpus, not of this part
            counts = counts.assign(log_frequency=log_share[tokens["token_id"]])
        problems = corpus_problems(documents, tokens, prepend_bos=spec.prepend_bos)
        about = documents.reindex(columns=["doc", *recorded_columns(spec, columns)])
        known = pd.concat([tokens.astype({"doc": "str"}), counts], axis="columns")
        yield known.merge(about, on="doc", how="left", validate="m:1"), problems


def cut(pieces: Iterator[pd.DataFrame], size: int) -> Iterator[pd.DataFrame]:
    """Yield the tokens of whole documents, at least ``size`` at a time but for the last."""
    held: list[pd.DataFrame] = []
    count = 0
    for piece in pieces:
        docs = pd.factorize(piece["doc"])[0]
        begins = [0, *(docs[1:] != docs[:-1]).nonzero()[0] + 1]
        start = 0
        for begin, end in zip(begins, [*begins[1:], len(piece)], strict=True):
            count += end - begin
            if count >= size:
                yield pd.concat([*held, piece.iloc[start:end]], ignore_index=True)
                held, count, start = [], 0, end
        if start < len(piece):
            held.append(piece.iloc[start:])
    if held:
        yield pd.concat(held, ignore_index=True)


def _log_shares(model: Any, spec: Spec, read: tuple[str, ...]) -> np.ndarray:
    """Return the log of every token's share in the corpus, by its id; -inf for one that it does not have."""
    counts = np.zeros(model.cfg.d_vocab, np.int64)
    for documents in unchanged_documents(spec, read):
        if (documents["problem"] == "").any():
            tokens = tokenize(model, documents, prepend_bos=spec.prepend_bos)
            counts += np.bincount(tokens["token_id"], minlength=len(counts))
    with np.errstate(divide="ignore"):
        return np.log(counts / counts.sum())
