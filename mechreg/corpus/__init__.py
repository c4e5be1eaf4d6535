"""Texts to documents, documents to token windows."""

from mechreg.corpus.documents import corpus_problems
from mechreg.corpus.reading import read_corpus
from mechreg.corpus.streaming import stream_corpus
from mechreg.corpus.windows import tokenize

__all__ = ["corpus_problems", "read_corpus", "stream_corpus", "tokenize"]
