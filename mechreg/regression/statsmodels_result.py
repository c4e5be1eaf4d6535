"""Statsmodels' own results object of one group: its model, with our estimates and the covariance that was asked for."""

import warnings
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.formula
import statsmodels.formula.api as smf
from jaxtyping import Float
from scipy import stats
from statsmodels.base.covtype import descriptions
from statsmodels.regression.linear_model import OLS, OLSResults, RegressionResultsWrapper

from mechreg.regression.design import Parts
from mechreg.regression.evaluation import environment, evaluate
from mechreg.regression.results import Covariance
from mechreg.regression.solve import Fit
from mechreg.schema import InputError

_COV_TYPES = {
    "crv1": "cluster",
    "crv2": "cluster-crv2",
    "crv3": "cluster-crv3",
    "jackknife": "cluster-jk",
    "hac": "hac-panel",
}
_DESCRIPTIONS = {
    "hac-panel": descriptions["HAC-Panel"],
    "cluster-crv2": descriptions["cluster"].replace("CRV1", "CRV2"),
    **descriptions,
}


class _Results(OLSResults):
    """Statsmodels' results, in which every coefficient has its own degrees of freedom and contrasts the fewest."""

    df_of_terms: Float[np.ndarray, " terms"]

    @cached_property
    def pvalues(self) -> Float[np.ndarray, " terms"]:
        return 2 * stats.t.sf(np.abs(self.tvalues), self.df_of_terms)

    def conf_int(self, alpha: float = 0.05, cols: Any = None) -> Float[np.ndarray, "terms two"]:
        half = stats.t.ppf(1 - alpha / 2, self.df_of_terms) * self.bse
        both = np.column_stack([self.params - half, self.params + half])
        return both if cols is None else both[cols]


class _Wrapper(RegressionResultsWrapper):
    def __repr__(self) -> str:
        return f"<statsmodels' results of {self.model.endog_names} on {', '.join(self.model.exog_names)}>"

    def conf_int(self, alpha: float = 0.05, cols: Any = None) -> pd.DataFrame:  # its own calls OLSResults'
        table = pd.DataFrame(self._results.conf_int(alpha), self.params.index)
        return table if cols is None else table.iloc[cols]


def statsmodels_result(
    data: pd.DataFrame, formula: str, fit: Fit, covariance: Covariance, parts: Parts | None
) -> RegressionResultsWrapper:
    """Return the results of a group's complete rows, or of what effects leave of them (the parts)."""
    solution = fit.solution
    if parts is None:
        model = evaluate(partial(_model, data, formula), formula, where=fit.where)
    else:
        *names, outcome = parts.names
        exog = pd.DataFrame(parts.values[:-1].T, columns=names)
        model = OLS(pd.Series(parts.values[-1], name=outcome), exog, hasconst=False)
        model.df_resid = solution.df
    model.fit()  # leaves in the model what influence measures need
    result = _Results(
        model,
        solution.estimate,
        normalized_cov_params=solution.to_terms @ solution.to_terms.T,
        scale=solution.residual_ss / solution.df,
    )
    if covariance.kind != "nonrobust":
        result.cov_type = _COV_TYPES.get(covariance.kind, covariance.kind.upper())
        result.cov_kwds = {"description": _DESCRIPTIONS[result.cov_type]}
        result.cov_params_default = solution.to_terms @ covariance.matrix @ solution.to_terms.T
    result.df_of_terms, result.use_t = covariance.df, True
    result.df_resid_inference = float(covariance.df.min())
    return _Wrapper(result)


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
