"""Norms: token windows in, one norm or more measures per hook point, layer and token out, reduced on the way."""

from mechreg.norms.covariances import VectorCovariances, vector_covariances
from mechreg.norms.covariates import token_covariates, token_frame
from mechreg.norms.extraction import as_models, extract_norms, norm_frame
from mechreg.norms.measures import MEASURES, as_numbers, is_per_head, known_measures
from mechreg.norms.reduction import (
    BATCH_TOKENS,
    head_norms,
    known_hooks,
    known_layers,
    vector_norms,
    window_norms,
)
from mechreg.norms.vectors import Vectors, extract_vectors

__all__ = [
    "BATCH_TOKENS",
    "MEASURES",
    "VectorCovariances",
    "Vectors",
    "as_models",
    "as_numbers",
    "extract_norms",
    "extract_vectors",
    "head_norms",
    "is_per_head",
    "known_hooks",
    "known_layers",
    "known_measures",
    "norm_frame",
    "token_covariates",
    "token_frame",
    "vector_covariances",
    "vector_norms",
    "window_norms",
]
