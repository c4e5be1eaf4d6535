"""Norms: token windows in, one norm per hook point, layer and token out, reduced while the model runs."""

from mechreg.norms.covariates import token_covariates
from mechreg.norms.extraction import extract_norms
from mechreg.norms.reduction import BATCH_TOKENS, head_norms, known_hooks, vector_norms, window_norms

__all__ = [
    "BATCH_TOKENS",
    "extract_norms",
    "head_norms",
    "known_hooks",
    "token_covariates",
    "vector_norms",
    "window_norms",
]
