"""Regression: a formula to tables, from sums of products in one pass; statsmodels' own results on demand."""

from mechreg.formulas import formula_columns
from mechreg.regression.clusters import DocumentSums, solve_sums
from mechreg.regression.effects import (
    Effects,
    demeaned,
    make_effects,
    project,
    require_effects,
    without_effects,
    without_singletons,
)
from mechreg.regression.fits import LaggedFits, fit_lagged, sums_by_document
from mechreg.regression.lag_sums import LagSums, within_documents
from mechreg.regression.linear_combinations import linear_combination
from mechreg.regression.lstsq_check import lstsq_check
from mechreg.regression.mean_group import mean_group
from mechreg.regression.regression_table import regression_table
from mechreg.regression.wild_bootstrap import wild_bootstrap

__all__ = [
    "DocumentSums",
    "Effects",
    "LagSums",
    "LaggedFits",
    "demeaned",
    "fit_lagged",
    "formula_columns",
    "linear_combination",
    "lstsq_check",
    "make_effects",
    "mean_group",
    "project",
    "regression_table",
    "require_effects",
    "solve_sums",
    "sums_by_document",
    "wild_bootstrap",
    "within_documents",
    "without_effects",
    "without_singletons",
]
