"""How many lags are worth having: information criteria and held-out documents, for every layer."""

import numpy as np
import pandas as pd

from mechreg.lags import add_lags
from mechreg.regression import LagSums
from mechreg.robustness.refits import held_out_r_squared, in_folds
from mechreg.robustness.specifications import relagged, skip_of
from mechreg.schema import GROUP_KEYS, TOKEN_KEYS, require, require_whole_number


def lag_order(
    frame: pd.DataFrame, *, max_lag: int = 8, folds: int = 10, skip: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """Return AIC, BIC and held-out R2 of every number of lags in every layer, and which each of them picks.

    Parameters
    ----------
    frame : pandas.DataFrame
        A norm frame, or what `add_lags` gave.
    max_lag : int
        Orders 0 (an intercept only) to this are fitted, all on the rows that the longest has: criteria of fits to
        different rows are not comparable.
    folds : int
        Documents are left out in so many parts.
    skip : int, optional
        By default that of the lagged frame, or 1.
    seed : int
        Of the folds.

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
    require_whole_number(max_lag, name="max_lag", most=256)
    if skip is not None:
        require_whole_number(skip, name="skip", least=0)
    require(frame, (*GROUP_KEYS, *TOKEN_KEYS, "norm"), who="lag_order")
    names = [f"lag{lag}" for lag in range(1, int(max_lag) + 1)]
    if "log_norm" in frame.columns:
        was = skip_of(frame, who="lag_order")
        lagged = relagged(frame, lags=names, skip=was if skip is None else skip)
    else:
        lagged = add_lags(frame, lags=range(1, int(max_lag) + 1), skip=1 if skip is None else skip)
    docs = pd.Index(pd.unique(frame["doc"])).sort_values()
    fold = in_folds(docs, folds=folds, seed=seed, who="lag_order")
    moments = LagSums.from_frame(lagged, f"log_norm ~ {' + '.join(names)}", max_lag=None)
    parts = []
    for document in moments.document_sums():
        # The orthonormal regressors are nested in the lags: leaving out the last ones adds their squares.
        dropped = np.r_[0.0, np.cumsum(document.c[:0:-1] ** 2)][::-1]
        residual = document.sums[:, -2, -2].sum() + dropped
        n, terms = document.n, np.arange(len(residual)) + 1
        deviance = n * (np.log(2 * np.pi) + np.log(residual / n) + 1)
        folded = fold[document.labels].to_numpy()
        part = pd.DataFrame(
            {
                **document.keys,
                "depth": document.depth,
                "order": terms - 1,
                "n": n,
                "n_docs": len(document.labels),
                "aic": deviance + 2 * terms,
                "bic": deviance + np.log(n) * terms,
                "held_out_r_squared": [
                    held_out_r_squared(document, folded, who="lag_order", terms=int(k)) for k in terms
                ],
            }
        )
        parts.append(
            part.assign(
                aic_pick=part.index == part["aic"].idxmin(),
                bic_pick=part.index == part["bic"].idxmin(),
                held_out_pick=part.index == part["held_out_r_squared"].idxmax(),
            )
        )
    return pd.concat(parts, ignore_index=True)
