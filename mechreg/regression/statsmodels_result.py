"""Statsmodels' own results object of one group: its model, with our estimates and the covariance that was asked for."""

import warnings
from functools import partial
from typing import Any

import pandas as pd
import statsmodels.formula
import statsmodels.formula.api as smf
from statsmodels.base.covtype import descriptions
from statsmodels.regression.linear_model import OLSResults, RegressionResultsWrapper

from mechreg.regression.evaluation import environment, evaluate
from mechreg.regression.results import Covariance, Fit
from mechreg.schema import InputError

_COV_TYPES = {"crv1": "cluster", "crv3": "cluster-crv3", "jackknife": "cluster-jk", "hac": "hac-panel"}
_DESCRIPTIONS = {"hac-panel": descriptions["HAC-Panel"]} | descriptions


def statsmodels_result(
    data: pd.DataFrame, formula: str, fit: Fit, covariance: Covariance
) -> RegressionResultsWrapper:
    """Return the results of a group's complete rows; statsmodels computes from them whatever else is asked."""
    solution = fit.solution
    model = evaluate(partial(_model, data, formula), formula, where=fit.where)
    model.fit()  # leaves in the model what influence measures need
    result = OLSResults(
        model,
        solution.estimate,
        normalized_cov_params=solution.to_terms @ solution.to_terms.T,
        scale=solution.residual_ss / solution.df,
    )
    if covariance.kind != "nonrobust":
        result.cov_type = _COV_TYPES.get(covariance.kind, covariance.kind.upper())
        result.cov_kwds = {"description": _DESCRIPTIONS[result.cov_type]}
        result.cov_params_default = solution.to_terms @ covariance.matrix @ solution.to_terms.T
    result.df_resid_inference, result.use_t = covariance.df, True
    return RegressionResultsWrapper(result)


def _model(data: pd.DataFrame, formula: str) -> Any:
    """Return the model; its formula sees the columns and the listed functions, and no other variable."""
    if statsmodels.formula.options.formula_engine != "patsy":
        raise InputError(
            "statsmodels reads formulas with another library; set statsmodels.formula.options.formula_engine = "
            "'patsy' and leave SM_FORMULA_ENGINE unset"
        )
    with warnings.catch_warnings():
        # statsmodels wants a dict, of which it makes an environment that has Python's builtins.
        warnings.filterwarnings("ignore", "EvalEnvironment is deprecated", FutureWarning)
        return smf.ols(formula, data, eval_env=environment())
