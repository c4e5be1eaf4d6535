"""Shapes: how alike two profiles would be by chance, being as smooth as they are.

A profile is decomposed into waves over depth, from slow to fast; each wave keeps its size and gets a random sign. Such
surrogates are as smooth as the profile and differ from it in shape only.
"""

from typing import NamedTuple

import einops
import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.fft import dct

from mechreg.universality.bands import Draws, Profile

# With fewer places there are too few patterns of signs for a p value of .05: 8 with 4, 16 with 5.
MIN_PLACES = 6
# Up to so many waves all patterns of signs are looked at.
ALL_PATTERNS = 12
PATTERNS = 4_999


class Shape(NamedTuple):
    """The p values of no likeness in shape; NaN where no test has any power."""

    linear: float
    rank: float


def shape_test(
    first: Profile, second: Profile, first_draws: Draws, second_draws: Draws, *, seed: int
) -> Shape:
    """Return the p values of the hypothesis that two profiles have independent shapes, against likeness.

    The draws are the profiles' deviations in the joint bootstrap, from which what their errors have in common is taken
    off. ``linear`` is for the product-moment correlation, and so for concordance and RMS difference, which depend on
    the shapes through it alone.

    With a and b the profiles' waves, the statistic is the sum of a_k b_k and the null its distribution under random
    signs: Moran spectral randomisation (Wagner, Dray 2015, Methods Ecol. Evol. 6, 1169) on a line, whose eigenvectors
    are cosines (DCT-II), nearly the principal components of any autoregression, so that signs are exchangeable. A
    straight line is no cosine: the test is made again with the line as one wave, and the larger p is returned.
    Rejection rates are tabulated in the tests; a circular shift, a random Fourier phase, a fitted AR(1) and variogram
    matching (Burt et al. 2020) kept 5% less well.
    """
    if len(first) < MIN_PLACES:
        return Shape(np.nan, np.nan)
    ranks = [stats.rankdata(profile) for profile in (first, second)]
    rank_draws = [
        stats.rankdata(profile + draws, axis=-1) - rank
        for profile, draws, rank in zip((first, second), (first_draws, second_draws), ranks, strict=True)
    ]
    signs = _patterns(len(first) - 1, seed)
    both = (_cosines(len(first)), _line_and_rest(len(first)))
    return Shape(
        max(_p(first, second, first_draws, second_draws, waves, signs) for waves in both),
        max(_p(ranks[0], ranks[1], rank_draws[0], rank_draws[1], waves, signs) for waves in both),
    )


def _p(
    first: Profile,
    second: Profile,
    first_draws: Draws,
    second_draws: Draws,
    waves: Float[np.ndarray, "places waves"],
    signs: Float[np.ndarray, "patterns waves"],
) -> float:
    """Return the share of sign patterns with as large a sum of products."""
    a, b = first_draws @ waves, second_draws @ waves
    shared = ((a - a.mean(axis=0)) * (b - b.mean(axis=0))).mean(axis=0)
    products = (first @ waves) * (second @ waves) - shared
    rounding = 1e-9 * np.abs(products).sum()
    as_large = signs @ products >= products.sum() - rounding
    if len(signs) == 2 ** len(products):  # all patterns, the observed one included
        return float(as_large.mean())
    return float((1 + as_large.sum()) / (1 + len(signs)))


def _patterns(waves: int, seed: int) -> Float[np.ndarray, "patterns waves"]:
    if waves <= ALL_PATTERNS:
        numbers = einops.rearrange(np.arange(2**waves), "patterns -> patterns 1")
        bits = numbers >> einops.rearrange(np.arange(waves), "waves -> 1 waves") & 1
        return bits * 2.0 - 1.0
    return np.random.default_rng(seed).integers(0, 2, (PATTERNS, waves)) * 2.0 - 1.0


def _cosines(places: int) -> Float[np.ndarray, "places waves"]:
    """Return the cosines, but for the constant."""
    return dct(np.eye(places), norm="ortho")[:, 1:]


def _line_and_rest(places: int) -> Float[np.ndarray, "places waves"]:
    """Return the straight line, and the principal components of a random walk without its line."""
    line = np.linalg.qr(np.vander(np.arange(places) / places, 2, increasing=True))[0]
    cosines = _cosines(places)
    walk = (cosines / (2 - 2 * np.cos(np.pi * np.arange(1, places) / places))) @ cosines.T
    off_line = np.eye(places) - line @ line.T
    components = np.linalg.eigh(off_line @ walk @ off_line)[1]
    return np.column_stack([line[:, 1], components[:, :1:-1]])
