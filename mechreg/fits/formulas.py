"""Formulas: statsmodels' model of a group's rows."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

from mechreg.moments.formulas import evaluate, plain_column


def formula_data(
    lagged: pd.DataFrame, rows: np.ndarray, columns: tuple[str, ...], formula: str
) -> pd.DataFrame:
    """Return the formula's columns of some rows, in dtypes that patsy reads as what they are."""
    return pd.DataFrame(
        {
            name: plain_column(lagged[name].iloc[rows].reset_index(drop=True), name, formula)
            for name in columns
        }
    )


def ols_model(data: pd.DataFrame, formula: str, *, where: str) -> Any:
    """Return statsmodels' model; its formula sees the columns and numpy, and no other variable."""
    build = partial(smf.ols, formula, data, missing="raise", eval_env={"np": np})
    return evaluate(build, formula, where=where)
