"""Sensitivity: does a coefficient survive other reasonable regressions, and how many lags are worth having."""

from mechreg.sensitivity.lag_orders import lag_order
from mechreg.sensitivity.specifications import SPECIFICATIONS, robustness

__all__ = ["SPECIFICATIONS", "lag_order", "robustness"]
