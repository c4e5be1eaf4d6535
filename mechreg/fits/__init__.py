"""Fits: one statsmodels regression for every model, hook point and layer, and its tidy tables."""

from mechreg.fits.formulas import formula_columns
from mechreg.fits.lagged import LaggedFits, fit_lagged, lstsq_check

__all__ = ["LaggedFits", "fit_lagged", "formula_columns", "lstsq_check"]
