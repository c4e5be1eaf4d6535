"""Texts to documents, documents to token windows, tags and covariates of tokens."""

from mechreg.corpus.alignment import annotate_pos, require_words
from mechreg.corpus.covariates import COVARIATES, token_counts
from mechreg.corpus.documents import corpus_problems
from mechreg.corpus.reading import read_corpus
from mechreg.corpus.streaming import stream_corpus
from mechreg.corpus.tagging import load_pipeline, tag_words
from mechreg.corpus.windows import tokenize

__all__ = [
    "COVARIATES",
    "annotate_pos",
    "corpus_problems",
    "load_pipeline",
    "read_corpus",
    "require_words",
    "stream_corpus",
    "tag_words",
    "token_counts",
    "tokenize",
]
