"""Moments: fits from one streaming pass over sums of products, for data larger than memory."""

from mechreg.moments.formulas import formula_columns
from mechreg.moments.lag_moments import LagMoments

__all__ = ["LagMoments", "formula_columns"]
