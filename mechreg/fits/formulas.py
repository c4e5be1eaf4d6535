"""Formulas: statsmodels' model of a group's rows."""

from typing import Any

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

from mechreg.moments.design import require_every_term
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

    def build() -> Any:
        model = smf.ols(formula, data, missing="raise", eval_env={"np": np})
        # Named design_info before statsmodels 0.15.
        require_every_term(getattr(model.data, "model_spec", None) or model.data.design_info)
        return model

    return evaluate(build, formula, where=where)
