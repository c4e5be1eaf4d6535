"""Universality: is a term's profile over relative depth the same in several models?"""

from mechreg.universality.comparison import ProfileComparison, compare_profiles

__all__ = ["ProfileComparison", "compare_profiles"]
