"""Universality: is a term's profile over depth the same in several models, and do they update the same tokens?"""

from mechreg.universality.comparison import ProfileComparison as ProfileComparison
from mechreg.universality.comparison import compare_profiles as compare_profiles
from mechreg.universality.tokens import TokenComparison as TokenComparison
from mechreg.universality.tokens import compare_tokens as compare_tokens
