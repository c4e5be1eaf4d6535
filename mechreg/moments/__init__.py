"""Moments: fits from one streaming pass over sums of products, for data larger than memory."""

from mechreg.formulas import formula_columns
from mechreg.moments.document_sums import DocumentSums
from mechreg.moments.lag_moments import LagMoments

__all__ = ["DocumentSums", "LagMoments", "formula_columns"]
