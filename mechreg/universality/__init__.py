"""Universality: is a term's profile over depth the same in several models, and do they update the same tokens?"""

from mechreg.universality.comparison import ProfileComparison, compare_profiles
from mechreg.universality.tokens import TokenComparison, compare_tokens

__all__ = ["ProfileComparison", "TokenComparison", "compare_profiles", "compare_tokens"]
