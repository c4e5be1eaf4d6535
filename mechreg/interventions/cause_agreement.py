"""Agreement of regression and cause over the pairs of layers, and whether so many pairs could have shown it."""

from collections.abc import Callable
from typing import Any

import einops
import numpy as np
from jaxtyping import Float
from scipy import stats

from mechreg.interventions.seeding import generator
from mechreg.regression.drawn import document_weights, quantile_interval

HALVES = 50  # random splits of the documents, over which reliabilities are means
POWER = 0.8
FEWEST_PAIRS = 4  # Fisher's transformation has a standard error from there on

# Draws of weights of the documents -> the coefficients of every pair of layers.
Coefficients = Callable[[Float[np.ndarray, "draw doc"]], Float[np.ndarray, "draw layer later_layer"]]


def agreement(
    coefficients: Coefficients,
    effects: Float[np.ndarray, "doc layer later_layer"],
    *,
    conf_level: float,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Return the rank correlation of coefficients and mean effects where l > k, its interval, and what it can say."""
    n_docs, above = len(effects), np.triu(np.ones(effects.shape[1:], bool), 1)

    def both(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shares = weights / einops.reduce(weights, "draw doc -> draw 1", "sum")
        mean = einops.einsum(shares, effects, "draw doc, doc layer later -> draw layer later")
        return coefficients(weights)[:, above], mean[:, above]

    everything = rank_correlations(*both(np.ones((1, n_docs))))[0]
    rng = generator(seed, "causes", "bootstrap")
    known = np.empty(0)
    low = high = np.nan
    if n_docs > 1:  # NaN in draws of so few documents that a coefficient is not determined
        drawn = rank_correlations(*both(document_weights(rng, n_docs, draws)))
        known = drawn[np.isfinite(drawn)]
        if len(known):
            low, high = quantile_interval(known, conf_level)
    halves = _halves(n_docs, rng)
    one, other = (both(weights) for weights in (halves, 1 - halves)) if len(halves) else ((), ())
    reliability = [_reliability(*maps) for maps in zip(one, other, strict=True)] or [np.nan, np.nan]
    n_pairs = int(above.sum())
    least = _detectable(n_pairs, reliability, conf_level)
    return {
        "n_pairs": n_pairs,
        "spearman": everything,
        "conf_low": low,
        "conf_high": high,
        "draws": len(known),
        "coefficient_reliability": reliability[0],
        "effect_reliability": reliability[1],
        "detectable": least,
        "verdict": _verdict(everything, low, high, n_pairs, least, conf_level),
    }


def rank_correlations(
    one: Float[np.ndarray, "draw pair"], other: Float[np.ndarray, "draw pair"]
) -> Float[np.ndarray, " draw"]:
    """Return Spearman's correlation in each draw; NaN with fewer than three pairs, or one not known."""
    product = np.full(len(one), np.nan)
    if one.shape[1] < 3:
        return product
    known = np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1)
    ranks = [stats.rankdata(values[known], axis=1) for values in (one, other)]
    centred = [rank - einops.reduce(rank, "draw pair -> draw 1", "mean") for rank in ranks]
    sizes = [np.sqrt(einops.reduce(rank**2, "draw pair -> draw", "sum")) for rank in centred]
    with np.errstate(invalid="ignore"):  # all effects alike
        product[known] = einops.reduce(centred[0] * centred[1], "draw pair -> draw", "sum") / (
            sizes[0] * sizes[1]
        )
    return product


def _halves(n_docs: int, rng: np.random.Generator) -> Float[np.ndarray, "draw doc"]:
    """Return 1 for the documents in the first half of each random split; no split of fewer than four."""
    if n_docs < 4:
        return np.empty((0, n_docs))
    order = rng.permuted(np.tile(np.arange(n_docs), (HALVES, 1)), axis=1)
    return (order < n_docs // 2).astype(float)


def _reliability(one: Float[np.ndarray, "draw pair"], other: Float[np.ndarray, "draw pair"]) -> float:
    """Return the mean correlation of two halves, as it would be of two wholes (Spearman, Brown)."""
    found = rank_correlations(one, other)
    found = found[np.isfinite(found)]
    half = float(np.mean(found)) if len(found) else np.nan
    return 2 * half / (1 + half) if half > 0 else half


def _detectable(n_pairs: int, reliability: list[float], conf_level: float) -> float:
    """Return the smallest true rank correlation that pairs, were they independent, would show; infinite if none."""
    if n_pairs < FEWEST_PAIRS or not min(reliability) > 0:
        return np.inf
    # Fieller, Hartley, Pearson (1957): the standard error of Fisher's z of a rank correlation.
    error = np.sqrt(1.06 / (n_pairs - 3))
    seen = np.tanh((stats.norm.ppf((1 + conf_level) / 2) + stats.norm.ppf(POWER)) * error)
    least = float(seen / np.sqrt(reliability[0] * reliability[1]))  # noise of both maps hides as much
    return least if least < 1 else np.inf


def _verdict(found: float, low: float, high: float, n_pairs: int, least: float, conf_level: float) -> str:
    """Return what may be said: alike, opposite, not told from 0 by pairs that could have shown it, or nothing."""
    if np.isfinite(found) and n_pairs >= FEWEST_PAIRS:
        z = np.arctanh(np.clip(found, -1 + 1e-12, 1 - 1e-12)) / np.sqrt(1.06 / (n_pairs - 3))
        if abs(z) > stats.norm.ppf((1 + conf_level) / 2):
            if low > 0:
                return "alike"
            if high < 0:
                return "opposite"
    if not np.isfinite(least):
        return "cannot be told"
    return f"not told from 0: {least:.2f} would have been seen"
