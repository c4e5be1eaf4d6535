"""Texts to documents, documents to token windows, tags and covariates of tokens."""

from mechreg.corpus.alignment import annotate_pos as annotate_pos
from mechreg.corpus.alignment import require_words as require_words
from mechreg.corpus.annotations import join_annotations as join_annotations
from mechreg.corpus.covariates import COVARIATES as COVARIATES
from mechreg.corpus.covariates import token_counts as token_counts
from mechreg.corpus.documents import corpus_problems as corpus_problems
from mechreg.corpus.groups import group_norms as group_norms
from mechreg.corpus.reading import read_corpus as read_corpus
from mechreg.corpus.reading import stream_corpus as stream_corpus
from mechreg.corpus.tagging import load_tagger as load_tagger
from mechreg.corpus.tagging import tag_words as tag_words
from mechreg.corpus.windows import tokenize as tokenize
from mechreg.corpus.words import word_norms as word_norms
