"""Norms: token windows in, one norm per hook point, layer and token out, reduced while the model runs."""

from mechreg.norms.covariates import token_covariates, token_frame
from mechreg.norms.extraction import as_models, extract_norms, norm_frame
from mechreg.norms.reduction import (
    BATCH_TOKENS,
    head_norms,
    is_per_head,
    known_hooks,
    vector_norms,
    window_norms,
)

__all__ = [
    "BATCH_TOKENS",
    "as_models",
    "extract_norms",
    "head_norms",
    "is_per_head",
    "known_hooks",
    "norm_frame",
    "token_covariates",
    "token_frame",
    "vector_norms",
    "window_norms",
]
