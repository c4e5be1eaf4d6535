"""Norms: token windows in, one norm or more measures per hook point, layer and token out, reduced on the way."""

from mechreg.norms.covariances import VectorCovariances as VectorCovariances
from mechreg.norms.covariances import vector_covariances as vector_covariances
from mechreg.norms.covariates import token_covariates as token_covariates
from mechreg.norms.covariates import token_frame as token_frame
from mechreg.norms.extraction import as_models as as_models
from mechreg.norms.extraction import extract_norms as extract_norms
from mechreg.norms.measures import MEASURES as MEASURES
from mechreg.norms.measures import as_numbers as as_numbers
from mechreg.norms.measures import known_measures as known_measures
from mechreg.norms.reduction import BATCH_TOKENS as BATCH_TOKENS
from mechreg.norms.reduction import head_norms as head_norms
from mechreg.norms.reduction import known_hooks as known_hooks
from mechreg.norms.reduction import known_layers as known_layers
from mechreg.norms.reduction import vector_norms as vector_norms
from mechreg.norms.reduction import window_norms as window_norms
from mechreg.norms.vectors import Vectors as Vectors
from mechreg.norms.vectors import extract_vectors as extract_vectors
