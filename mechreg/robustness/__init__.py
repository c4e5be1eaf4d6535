"""Robustness: does a coefficient survive other reasonable regressions, and how many lags are worth having."""

from mechreg.robustness.autocorrelations import Autocorrelation as Autocorrelation
from mechreg.robustness.autocorrelations import autocorrelation as autocorrelation
from mechreg.robustness.decomposition import decompose as decompose
from mechreg.robustness.lag_orders import lag_order as lag_order
from mechreg.robustness.specifications import SPECIFICATIONS as SPECIFICATIONS
from mechreg.robustness.specifications import specification_curve as specification_curve
