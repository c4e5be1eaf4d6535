"""Bands: how far the truth may be from an estimate, at one depth and at all depths at once.

Standard errors are the jackknife's (CRV3), critical values at one place are t(G - 1)'s. The
bootstrap of documents says how alike the errors at several places are, and so how far out the largest of them is.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Profile = Float[np.ndarray, " places"]
Draws = Float[np.ndarray, "draws places"]


class Estimates(NamedTuple):
    """Estimates, how far each moves without each document, and how far each moves on resampled documents."""

    estimate: Profile
    jackknife: Float[np.ndarray, "docs places"]
    draws: Draws

    @property
    def df(self) -> int:
        """Documents less one."""
        return len(self.jackknife) - 1

    @property
    def effective_df(self) -> float:
        """Those of the standard errors by the jackknife's kurtosis: fewer where few documents count."""
        squares = self.jackknife**2
        total = squares.sum(axis=0) ** 2
        moves = total > 0  # the difference of a model from itself does not vary
        df = 3 * total[moves] / (squares**2).sum(axis=0)[moves] - 1
        return float(np.clip(df, 2, self.df).mean())

    @property
    def std_error(self) -> Profile:
        """The jackknife's standard errors, about the estimate."""
        return np.sqrt(self.df / (self.df + 1) * (self.jackknife**2).sum(axis=0))

    @property
    def scaled_draws(self) -> Draws:
        """The draws' deviations with the jackknife's standard errors, which fit few documents better."""
        own = np.sqrt((self.draws**2).mean(axis=0))
        return self.draws * np.divide(self.std_error, own, out=np.zeros_like(own), where=own > 0)

    def __sub__(self, other: "Estimates") -> "Estimates":
        """Return these less others, of the same documents and draws."""
        return Estimates(*(a - b for a, b in zip(self, other, strict=True)))

    def at(self, places: Int[np.ndarray, " some"]) -> "Estimates":
        """Return the numbers at some of the places."""
        return Estimates(self.estimate[places], self.jackknife[:, places], self.draws[:, places])

    def mapped(self, weights: Float[np.ndarray, "to places"]) -> "Estimates":
        """Return linear combinations of the numbers."""
        return Estimates(weights @ self.estimate, self.jackknife @ weights.T, self.draws @ weights.T)


def mean_of(several: list[Estimates]) -> Estimates:
    """Return the mean of estimates of the same documents and draws."""
    return Estimates(*(np.mean(parts, axis=0) for parts in zip(*several, strict=True)))


def mean_square(several: list[Estimates]) -> tuple[float, Float[np.ndarray, " draws"]]:
    """Return the mean square of some numbers less that of their errors, and its draws."""
    square = np.mean([(one.estimate**2 - one.std_error**2).mean() for one in several])
    # A draw has the estimate's errors and as large ones of its own.
    drawn = [((o.estimate + o.scaled_draws) ** 2 - 2 * o.std_error**2).mean(axis=1) for o in several]
    return float(square), np.mean(drawn, axis=0)


class Bands(NamedTuple):
    """Intervals at each place (conf), and intervals that all hold at once (sim)."""

    std_error: Profile
    conf_low: Profile
    conf_high: Profile
    sim_low: Profile
    sim_high: Profile


def bands(estimates: Estimates, *, conf_level: float) -> Bands:
    """Return the pointwise and the simultaneous (sup-t) bands.

    The simultaneous critical value is the bootstrap's quantile of the largest |deviation| / standard error, brought
    from normal tails to those of t with as many degrees of freedom as documents count in effect. Bands that should
    cover 95% did so in 94 and 95% of 250 simulations of 60 documents of 15 to 400 tokens, in 95% of 20 documents.

    Montiel Olea, Plagborg-Møller (2019), Simultaneous confidence bands, J. Applied Econometrics 34, algorithm 2.
    """
    error, middle = estimates.std_error, estimates.estimate
    alone = float(stats.t.isf((1 - conf_level) / 2, estimates.df)) * error
    together = np.maximum(alone, _joint_critical_value(estimates, conf_level) * error)
    return Bands(error, middle - alone, middle + alone, middle - together, middle + together)


def _joint_critical_value(estimates: Estimates, conf_level: float) -> float:
    own = np.sqrt((estimates.draws**2).mean(axis=0))
    moves = own > 0  # the difference of a model from itself does not vary
    if not moves.any():
        return 0.0
    largest = np.abs(estimates.draws[:, moves] / own[moves]).max(axis=1)
    return float(stats.t.isf(stats.norm.sf(np.quantile(largest, conf_level)), estimates.effective_df))


def interval(
    value: float,
    draws: Float[np.ndarray, " draws"],
    *,
    conf_level: float,
    least: float = 0.0,
    most: float = np.inf,
) -> tuple[float, float]:
    """Return the interval between quantiles of draws; a draw that is NaN may be anything."""
    undefined = np.isnan(draws)
    low = np.quantile(np.where(undefined, least, draws), (1 - conf_level) / 2, method="nearest")
    high = np.quantile(np.where(undefined, most, draws), (1 + conf_level) / 2, method="nearest")
    return float(np.fmin(low, value)), float(np.fmax(high, value))
