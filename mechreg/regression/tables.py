"""Tables: dtypes and adjusted p values of the coefficient frame and the statistics frame."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from statsmodels.stats.multitest import multipletests

Adjust = Literal["bh", "bonferroni", "holm", "max-t", "none"]
_MULTIPLETESTS = {"bh": "fdr_bh", "bonferroni": "bonferroni", "holm": "holm"}


def adjusted_p(table: pd.DataFrame, adjust: str) -> Float[np.ndarray, " terms"]:
    """Return p adjusted over the terms, layers (and other groups) of each (model, hook); NaN for the intercept.

    "max-t" needs more than p values: those come back as they are.
    """
    adjusted = np.where(table["term"] == "Intercept", np.nan, table["p_value"])
    if adjust in _MULTIPLETESTS:
        for _, family in table[np.isfinite(adjusted)].groupby(["model", "hook"], sort=False):
            adjusted[family.index] = multipletests(family["p_value"], method=_MULTIPLETESTS[adjust])[1]
    return adjusted


def typed(table: pd.DataFrame, columns: dict[str, str], *, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return a table with the schema's columns and dtypes; after ``layer`` stand ``head`` (where it is) and ``by``."""
    dtypes: dict[str, str] = {}
    for name, dtype in columns.items():
        dtypes[name] = dtype
        if name == "layer" and "head" in table.columns:
            dtypes["head"] = "int64"
    names = list(dtypes)
    at = names.index("depth")
    return table[[*names[:at], *by, *names[at:]]].astype(dtypes)
