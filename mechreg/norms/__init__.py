"""Norms: token windows in, one norm per hook point, layer and token out, reduced while the model runs."""

from mechreg.norms.batches import Window, batches, token_windows
from mechreg.norms.covariates import token_covariates
from mechreg.norms.extraction import extract_norms
from mechreg.norms.next_token import LOGIT_ROWS, next_token_losses
from mechreg.norms.reduction import (
    BATCH_TOKENS,
    active_dropouts,
    head_norms,
    known_hooks,
    vector_norms,
    window_norms,
)

__all__ = [
    "BATCH_TOKENS",
    "LOGIT_ROWS",
    "Window",
    "active_dropouts",
    "batches",
    "extract_norms",
    "head_norms",
    "known_hooks",
    "next_token_losses",
    "token_covariates",
    "token_windows",
    "vector_norms",
    "window_norms",
]
