"""Formulas: statsmodels' model of a group's rows."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from statsmodels.tools.sm_exceptions import MissingDataError

from mechreg.regression.design import require_every_term
from mechreg.regression.evaluation import environment, evaluate, plain_column, require_narrow
from mechreg.schema import NumericalError


def formula_data(lagged: pd.DataFrame, rows: np.ndarray, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return the formula's columns of some rows, in dtypes that patsy reads as what they are."""
    return pd.DataFrame(
        {name: plain_column(lagged[name].iloc[rows].reset_index(drop=True)) for name in columns}
    )


def ols_model(data: pd.DataFrame, formula: str, *, where: str) -> Any:
    """Return statsmodels' model; its formula sees the columns, the listed functions, and no other variable."""
    return evaluate(partial(_ols_model, data, formula, where), formula, where=where)


def _ols_model(data: pd.DataFrame, formula: str, where: str) -> Any:
    require_narrow(formula, data)
    with warnings.catch_warnings():
        # statsmodels wants a dict, of which it makes an environment that has Python's builtins.
        warnings.filterwarnings("ignore", "EvalEnvironment is deprecated", FutureWarning)
        try:
            model = smf.ols(formula, data, missing="raise", eval_env=environment())
        except MissingDataError as error:  # patsy names missing values itself: these are infinite
            raise NumericalError(
                f"fit_lagged needs finite numbers; {formula!r} gives infinite values in {where}."
            ) from error
    # Named design_info before statsmodels 0.15.
    require_every_term(getattr(model.data, "model_spec", None) or model.data.design_info)
    return model
