"""How many lags are worth having: information criteria and held-out documents, for every layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechreg.outside import any_frames
from mechreg.regression import DocumentSums, LagSums, formula_columns, require_effects, without_effects
from mechreg.robustness.held_out import held_out_r_squared, in_folds
from mechreg.robustness.specifications import relagged, skip_of
from mechreg.schema import GROUP_KEYS, MAX_LAGS, TOKEN_KEYS, require, require_shared, require_whole_number


@any_frames
def lag_order(
    frame: pd.DataFrame,
    *,
    max_lag: int = 8,
    effects: str | Sequence[str] = (),
    folds: int = 10,
    skip: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return AIC, BIC and held-out R2 of every number of lags in every layer, and which each of them picks.

    Parameters
    ----------
    frame : pandas.DataFrame
        A norm frame, or what `add_lags` returns.
    max_lag : int
        Orders 0 (an intercept only) to this are fitted, all on the rows that the longest has: criteria of fits to
        different rows are not comparable.
    effects : str or sequence of str
        Columns, such as ``("doc", "position")``, a level of every value of which is taken off first.
    folds, seed : int
        Number of parts in which documents are left out, at random.
    skip : int, optional
        By default that of the lagged frame, or 1.

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) depth, order, n, n_docs, aic, bic, held_out_r_squared, aic_pick, bic_pick,
        held_out_pick (True in one row of every layer).

    Raises
    ------
    SchemaError, InputError, NumericalError
        As `add_lags` and `fit_lagged`; fewer documents than folds.

    Notes
    -----
    AIC and BIC are statsmodels' and take tokens for independent given their lags; with documents of different levels
    they pick more lags than new documents reward, which is what ``held_out_r_squared`` shows. Small gains over many
    tokens move every criterion: look at their size before you believe in a pick.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(list("abcd"), 50),
    ...                       "window": 0, "position": np.tile(range(50), 4), "norm": rng.lognormal(size=200)})
    >>> table = lag_order(norms, max_lag=3, folds=4)
    >>> table.loc[table["bic_pick"], "order"].tolist()
    [0]
    """
    require_whole_number(max_lag, name="max_lag", most=MAX_LAGS)
    if skip is not None:
        require_shared(skip=skip)
    require(frame, (*GROUP_KEYS, *TOKEN_KEYS, "norm"), who="lag_order")
    fold = in_folds(frame["doc"], folds=folds, seed=seed)
    if skip is None:
        skip = skip_of(frame) if "log_norm" in frame.columns else 1
    lags = range(1, int(max_lag) + 1)
    formula = "log_norm ~ " + " + ".join(f"lag{lag}" for lag in lags)
    rows = relagged(frame, lags=lags, skip=skip)
    names = require_effects(effects)
    require(rows, names, who="lag_order")
    if names:
        rows = without_effects(rows, formula_columns(formula), names)
    sums = LagSums.from_frame(rows, formula, max_lag=None)
    tables = [_criteria(group, fold[group.labels].to_numpy()) for group in sums.document_sums()]
    return pd.concat(tables, ignore_index=True)


def _criteria(group: DocumentSums, fold: Int[np.ndarray, " docs"]) -> pd.DataFrame:
    """Return the rows of one layer."""
    # The orthonormal regressors are nested in the lags: leaving out the last ones adds their squares.
    dropped = np.r_[0.0, np.cumsum(group.c[:0:-1] ** 2)][::-1]
    residual = group.sums[:, -2, -2].sum() + dropped
    n, terms = group.n, np.arange(len(residual)) + 1
    deviance = n * (np.log(2 * np.pi) + np.log(residual / n) + 1)
    columns: dict[str, Any] = {
        **group.keys,
        "depth": group.depth,
        "order": terms - 1,
        "n": n,
        "n_docs": len(group.labels),
        "aic": deviance + 2 * terms,
        "bic": deviance + np.log(n) * terms,
        "held_out_r_squared": [held_out_r_squared(group, fold, terms=int(k)) for k in terms],
    }
    table = pd.DataFrame(columns)
    return table.assign(
        aic_pick=table.index == table["aic"].idxmin(),
        bic_pick=table.index == table["bic"].idxmin(),
        held_out_pick=table.index == table["held_out_r_squared"].idxmax(),
    )
