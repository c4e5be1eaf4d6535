"""Robustness: does a coefficient survive other reasonable regressions, and how many lags are worth having."""

from mechreg.robustness.autocorrelations import Autocorrelation, autocorrelation
from mechreg.robustness.decomposition import decompose
from mechreg.robustness.lag_orders import lag_order
from mechreg.robustness.specifications import SPECIFICATIONS, specification_curve

__all__ = [
    "SPECIFICATIONS",
    "Autocorrelation",
    "autocorrelation",
    "decompose",
    "lag_order",
    "specification_curve",
]
