"""Fits: one statsmodels regression for every model, hook point and layer, and its tidy tables."""

from mechreg.fits.lagged import LaggedFits, fit_lagged, lstsq_check
from mechreg.fits.regression_table import regression_table
from mechreg.moments import formula_columns

__all__ = ["LaggedFits", "fit_lagged", "formula_columns", "lstsq_check", "regression_table"]
