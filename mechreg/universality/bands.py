"""Bands: how far the truth may be from an estimate, at one depth and at all depths at once.

Standard errors are the jackknife's (CRV3), critical values at one place are t(G - 1)'s, as in `fit_lagged`. The
bootstrap of documents says how alike the errors at several places are, and so how far out the largest of them is.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats


class Estimates(NamedTuple):
    """Some numbers, what they lose without each document, and by how much they move on documents drawn anew."""

    estimate: Float[np.ndarray, " places"]
    jackknife: Float[np.ndarray, "docs places"]
    draws: Float[np.ndarray, "draws places"]

    @property
    def df(self) -> int:
        """Documents less one."""
        return len(self.jackknife) - 1

    @property
    def std_error(self) -> Float[np.ndarray, " places"]:
        """The jackknife's standard errors, about the estimate."""
        return np.sqrt(self.df / (self.df + 1) * (self.jackknife**2).sum(axis=0))

    @property
    def scaled_draws(self) -> Float[np.ndarray, "draws places"]:
        """The draws' deviations with the jackknife's standard errors, which fit few documents better."""
        own = np.sqrt((self.draws**2).mean(axis=0))
        return self.draws * np.divide(self.std_error, own, out=np.zeros_like(own), where=own > 0)

    def mapped(self, weights: Float[np.ndarray, "to places"]) -> "Estimates":
        """Return linear combinations of the numbers."""
        return Estimates(weights @ self.estimate, self.jackknife @ weights.T, self.draws @ weights.T)


class Bands(NamedTuple):
    """Intervals at each place (conf), and intervals that all hold at once (sim)."""

    std_error: Float[np.ndarray, " places"]
    conf_low: Float[np.ndarray, " places"]
    conf_high: Float[np.ndarray, " places"]
    sim_low: Float[np.ndarray, " places"]
    sim_high: Float[np.ndarray, " places"]


def bands(estimates: Estimates, *, level: float) -> Bands:
    """Return the pointwise and the simultaneous (sup-t) bands.

    The simultaneous critical value is the quantile of the largest |deviation| / standard error over the places in the
    bootstrap, brought from normal tails to those of t(G - 1). In simulations with 6, 10, 20 and 60 documents, bands
    that should cover 95% did so in 91, 92, 93 and 95% of samples; without that step in 69, 81, 88 and 94%.

    Montiel Olea, Plagborg-Møller (2019), Simultaneous confidence bands, J. Applied Econometrics 34, algorithm 2.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> found = bands(Estimates(np.zeros(2), rng.normal(size=(50, 2)), rng.normal(size=(999, 2))), level=0.95)
    >>> bool((found.sim_high > found.conf_high).all())
    True
    """
    error = estimates.std_error
    alone = float(stats.t.isf((1 - level) / 2, estimates.df))
    together = max(alone, _joint_critical_value(estimates, level))
    middle = estimates.estimate
    return Bands(
        error,
        middle - alone * error,
        middle + alone * error,
        middle - together * error,
        middle + together * error,
    )


def _joint_critical_value(estimates: Estimates, level: float) -> float:
    own = np.sqrt((estimates.draws**2).mean(axis=0))
    moves = own > 0  # the difference of a model to itself does not
    if not moves.any():
        return 0.0
    largest = np.abs(estimates.draws[:, moves] / own[moves]).max(axis=1)
    return float(stats.t.isf(stats.norm.sf(np.quantile(largest, level)), estimates.df))


def interval(
    value: float,
    draws: Float[np.ndarray, " draws"],
    *,
    level: float,
    least: float = 0.0,
    most: float = np.inf,
) -> tuple[float, float]:
    """Return the interval between quantiles of draws of a number; where that is NaN it may have been anything.

    Examples
    --------
    >>> interval(0.5, np.array([0.25, 0.5, np.nan]), level=0.9)
    (0.0, inf)
    """
    undefined = np.isnan(draws)
    low = np.quantile(np.where(undefined, least, draws), (1 - level) / 2, method="nearest")
    high = np.quantile(np.where(undefined, most, draws), (1 + level) / 2, method="nearest")
    return float(np.fmin(low, value)), float(np.fmax(high, value))
