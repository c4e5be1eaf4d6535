"""Texts to documents, documents to token windows, tags and covariates of tokens."""

from mechreg.corpus.alignment import annotate_pos, require_words
from mechreg.corpus.annotations import join_annotations
from mechreg.corpus.covariates import COVARIATES, token_counts
from mechreg.corpus.documents import corpus_problems
from mechreg.corpus.groups import group_norms
from mechreg.corpus.reading import read_corpus, stream_corpus
from mechreg.corpus.tagging import load_tagger, tag_words
from mechreg.corpus.windows import tokenize
from mechreg.corpus.words import word_norms

__all__ = [
    "COVARIATES",
    "annotate_pos",
    "corpus_problems",
    "group_norms",
    "join_annotations",
    "load_tagger",
    "read_corpus",
    "require_words",
    "stream_corpus",
    "tag_words",
    "token_counts",
    "tokenize",
    "word_norms",
]
