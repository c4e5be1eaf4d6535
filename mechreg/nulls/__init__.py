"""Nulls: what the coefficients would be with no context at work, and what is left of them beyond that."""

from mechreg.nulls.attention import attention_norms, pattern_overlap
from mechreg.nulls.comparison import compare_to_nulls
from mechreg.nulls.null_norms import NULLS, null_norms, random_weights
from mechreg.nulls.surrogates import shuffle_norms, shuffle_tokens, token_means

__all__ = [
    "NULLS",
    "attention_norms",
    "compare_to_nulls",
    "null_norms",
    "pattern_overlap",
    "random_weights",
    "shuffle_norms",
    "shuffle_tokens",
    "token_means",
]
