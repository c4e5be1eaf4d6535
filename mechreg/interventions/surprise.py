"""Surprise: norms set at the predictions of a fitted lag model, or so many residual standard deviations away."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mechreg.interventions.edits import Surprise
from mechreg.outside import any_frames
from mechreg.schema import GROUP_KEYS, TOKEN_KEYS, InputError, one_or_many, require, require_number


@any_frames
def surprise_edits(
    augmented: pd.DataFrame, *, k: float | int | Sequence[float | int] = (-2, -1, 0, 1, 2)
) -> list[Surprise]:
    """Return the edits that set every norm at exp(predicted + k residual standard deviations), one for each k.

    In `intervene` they measure the cost of a norm that is as predicted (k = 0) or surprising. Tokens without a
    prediction (the first of a window, which have no lags) are left as they are.

    Parameters
    ----------
    augmented : pandas.DataFrame
        What ``fits.augment(lagged)`` gives, of one model and hook: model, hook, layer, doc, window, position,
        log_norm, predicted, residual.
    k : float or sequence of float
        Residual standard deviations, each of the layer's own residuals.

    Returns
    -------
    list of SetNorm
        Their ``edit`` is "surprise" and their ``dose`` is k.

    Raises
    ------
    SchemaError, InputError
        A missing column, several models, hooks or heads, no prediction in some layer, or a fit whose outcome is
        not log_norm.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "doc": "d", "window": 0}
    >>> frame = pd.DataFrame([row | {"position": 3, "log_norm": 1.5, "predicted": 1.0, "residual": 0.5},
    ...                       row | {"position": 4, "log_norm": 0.5, "predicted": 1.0, "residual": -0.5}])
    >>> [edit.values["norm"].round(3).tolist() for edit in surprise_edits(frame, k=(0, 2))]
    [[2.718, 2.718], [11.181, 11.181]]
    """
    require(augmented, (*GROUP_KEYS, *TOKEN_KEYS, "log_norm", "predicted", "residual"), who="surprise_edits")
    for key in ("model", "hook", "head"):
        if key in augmented and augmented[key].nunique() > 1:
            raise InputError(
                f"surprise_edits needs the rows of one {key}; the frame has {augmented[key].nunique()}. Choose some: "
                f"frame[frame[{key!r}] == ...]."
            )
    steps = one_or_many(k)
    for one in steps or [None]:
        require_number(one, name="k, in residual standard deviations,", example=1.5)
    gap = (augmented["predicted"] + augmented["residual"] - augmented["log_norm"]).abs()
    if gap.max() > 1e-6:
        raise InputError(
            "surprise_edits sets norms at exp(predicted), so it needs a fit of log_norm itself: 'log_norm ~ ...'."
        )
    known = augmented[augmented["predicted"].notna()]
    layers = known.groupby("layer")["residual"].agg(["std", "size"])
    if (layers["size"] < 2).any() or len(layers) < augmented["layer"].nunique():
        raise InputError("surprise_edits needs at least two predictions in every layer of the frame.")
    spread = known["layer"].map(layers["std"]).to_numpy(dtype="float64")
    columns = [*GROUP_KEYS, *TOKEN_KEYS, *(["token_id"] if "token_id" in known else [])]
    predicted = known["predicted"].to_numpy(dtype="float64")
    return [
        Surprise(known[columns].assign(norm=np.exp(predicted + one * spread)), dose=float(one))
        for one in steps
    ]
