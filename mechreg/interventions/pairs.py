"""Cross-layer lag regressions of all pairs of layers at once, from sums by document."""

from collections.abc import Sequence

import einops
import numpy as np
from jaxtyping import Float, Int

from mechreg.forward import Window
from mechreg.regression import demeaned

MAX_CORRELATION = 1 - 1e-10  # of two regressors; above it their slopes are rounding


def pair_moments(
    log_norms: Float[np.ndarray, "layer tokens"],
    windows: Sequence[Window],
    docs: Sequence[int],
    skip: int,
    *,
    effects: Sequence[str] = (),
) -> tuple[Float[np.ndarray, "doc column column"], Int[np.ndarray, " doc"]]:
    """Return each document's mean products of [1, every layer at t-1, every layer at t], and its number of tokens t.

    Means, so that every document counts the same, as in the effects of edits. ``effects``, of "doc" and "position",
    are taken off both sides; without any the layers are measured from their means, so that nothing cancels.
    """
    now = [np.arange(window.start + skip + 1, window.start + window.length) for window in windows]
    doc = np.repeat(docs, [len(rows) for rows in now])
    position = np.concatenate([skip + 1 + np.arange(len(rows)) for rows in now])
    rows = np.concatenate(now)
    levels = {"doc": doc, "position": position}
    table = demeaned(
        np.concatenate([log_norms[:, rows - 1], log_norms[:, rows]]), [levels[name] for name in effects]
    )
    table = np.concatenate([np.ones((1, len(rows))), table])
    n = np.bincount(doc)
    moments = np.zeros((len(n), len(table), len(table)))
    for number in range(len(n)):
        own = table[:, doc == number]
        moments[number] = einops.einsum(own, own, "column tokens, other tokens -> column other") / n[number]
    return moments, n


def pair_coefficients(
    moments: Float[np.ndarray, "doc column column"], weights: Float[np.ndarray, "draw doc"], *, own_lag: bool
) -> Float[np.ndarray, "draw layer later_layer"]:
    """Return the slope of every layer l at t on every layer k at t-1; a row of ones as weights is the fit itself.

    With ``own_lag`` layer l at t-1 is a regressor too, except where l = k. A slope is NaN where a regressor does not
    vary, or two are collinear.
    """
    return _coefficients(np.tensordot(weights, moments, axes=1), own_lag=own_lag)


def _coefficients(
    total: Float[np.ndarray, "draw column column"], *, own_lag: bool
) -> Float[np.ndarray, "draw layer later_layer"]:
    n_layers = (total.shape[1] - 1) // 2
    n, means = total[:, 0, 0], total[:, 0, 1:]
    squared = einops.einsum(means, means, "draw column, draw other -> draw column other")
    centred = total[:, 1:, 1:] - squared / einops.rearrange(n, "draw -> draw 1 1")
    before, across = centred[:, :n_layers, :n_layers], centred[:, :n_layers, n_layers:]
    squares = np.diagonal(before, axis1=1, axis2=2)
    # Below this they vary by the rounding of float32.
    squares = np.where(squares > 1e-12 * einops.rearrange(n, "draw -> draw 1"), squares, np.nan)
    alone = across / einops.rearrange(squares, "draw layer -> draw layer 1")
    if not own_lag:
        return alone
    # With two regressors, k and l at t-1, the slope of k is that of what l leaves of it (Frisch and Waugh 1933).
    both = einops.einsum(squares, squares, "draw layer, draw later -> draw layer later")
    left = np.where(before**2 < MAX_CORRELATION * both, both - before**2, np.nan)
    diagonal = np.eye(n_layers, dtype=bool)
    own = np.diagonal(across, axis1=1, axis2=2)
    slopes = across * einops.rearrange(squares, "draw later -> draw 1 later")
    slopes = slopes - before * einops.rearrange(own, "draw later -> draw 1 later")
    return np.where(diagonal, alone, slopes / np.where(diagonal, 1.0, left))


def jackknife_errors(
    moments: Float[np.ndarray, "doc column column"],
    estimate: Float[np.ndarray, "layer later_layer"],
    *,
    own_lag: bool,
) -> Float[np.ndarray, "layer later_layer"]:
    """Return the jackknife's standard errors (CRV3), of each document left out; NaN if undetermined."""
    total = moments.sum(axis=0)
    squares = np.zeros(estimate.shape)
    for some in np.array_split(moments, max(1, len(moments) // 64)):
        left = _coefficients(total - some, own_lag=own_lag)
        squares += ((left - estimate) ** 2).sum(axis=0)
    return np.sqrt((len(moments) - 1) / len(moments) * squares)
