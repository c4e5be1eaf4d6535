"""Nulls: what the coefficients would be with no context at work, and what is left of them beyond that."""

from mechreg.nulls.attention import attention_norms as attention_norms
from mechreg.nulls.attention import pattern_overlap as pattern_overlap
from mechreg.nulls.comparison import compare_to_nulls as compare_to_nulls
from mechreg.nulls.null_norms import NULLS as NULLS
from mechreg.nulls.null_norms import null_norms as null_norms
from mechreg.nulls.null_norms import random_weights as random_weights
from mechreg.nulls.surrogates import shuffle_norms as shuffle_norms
from mechreg.nulls.surrogates import shuffle_tokens as shuffle_tokens
from mechreg.nulls.surrogates import token_means as token_means
