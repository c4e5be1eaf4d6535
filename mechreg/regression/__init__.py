"""Regression: a formula to tables, from sums of products in one pass; statsmodels' own results on demand."""

from mechreg.formulas import formula_columns as formula_columns
from mechreg.regression.clusters import DocumentSums as DocumentSums
from mechreg.regression.fits import LaggedFits as LaggedFits
from mechreg.regression.fits import fit_lagged as fit_lagged
from mechreg.regression.fits import sums_by_document as sums_by_document
from mechreg.regression.fixed_effects import Effects as Effects
from mechreg.regression.fixed_effects import demeaned as demeaned
from mechreg.regression.fixed_effects import make_effects as make_effects
from mechreg.regression.fixed_effects import project as project
from mechreg.regression.fixed_effects import require_effects as require_effects
from mechreg.regression.fixed_effects import without_effects as without_effects
from mechreg.regression.fixed_effects import without_singletons as without_singletons
from mechreg.regression.lag_sums import LagSums as LagSums
from mechreg.regression.lag_sums import within_documents as within_documents
from mechreg.regression.linear_combinations import linear_combination as linear_combination
from mechreg.regression.lstsq_check import lstsq_check as lstsq_check
from mechreg.regression.mean_group import mean_group as mean_group
from mechreg.regression.regression_table import regression_table as regression_table
from mechreg.regression.wild_bootstrap import wild_bootstrap as wild_bootstrap
