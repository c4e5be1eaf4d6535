"""Max-T: p values of a family of coefficients, adjusted with the dependence between layers and lags that there is."""

from collections.abc import Iterator
from typing import NamedTuple

import einops
import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mechreg.regression.clusters import ClusterProducts, Clusters, of_each

DRAWS = 9_999
# With so few clusters there are too few patterns of signs: six-point weights (Webb 2023) make more.
WEBB_BELOW = 13
WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])
# Weights drawn at a time: they should stay in the processor's cache.
CHUNK_NUMBERS = 2**18


class Influence(NamedTuple):
    """One group's share in the bootstrap, in its design's orthonormal basis.

    Under weights w the coefficients move by d = sum over clusters g of w_g moved_g, and the variance of coefficient j
    becomes factor times the sum of (w_g own_gj - other_gj'd) squared; kept are the parts of that, multiplied out.
    """

    statistic: Float[np.ndarray, " tested"]
    to_terms: Float[np.ndarray, "tested terms"]
    moved: Float[np.ndarray, "clusters terms"]
    own_squared: Float[np.ndarray, "clusters tested"]
    own_other: Float[np.ndarray, "clusters tested_x_terms"]
    other_squared: Float[np.ndarray, "tested terms terms"]
    factor: float
    labels: pd.Index


def influence(
    statistic: Float[np.ndarray, " tested"],
    to_terms: Float[np.ndarray, "tested terms"],
    clusters: Clusters,
    without: ClusterProducts | None,
    *,
    factor: float,
) -> Influence:
    """Return what the bootstrap needs of one group.

    With what crv3 takes from a score to be ``without`` its own cluster, scores are taken at that estimate and the
    variance is CRV3 (MacKinnon, Nielsen, Webb 2023, WCU-S); else scores are plain and the variance CRV1 (WCU-C).
    """
    score, products = clusters.score, clusters.products
    moved, own, other = score, score @ to_terms.T, to_terms @ products
    if without is not None:
        moved = of_each(without, score)
        own = of_each(without, moved) @ to_terms.T
        other = to_terms @ (without @ products)
    mixed = einops.rearrange(own[..., None] * other, "clusters tested terms -> clusters (tested terms)")
    other = einops.rearrange(other, "clusters tested terms -> tested clusters terms")
    return Influence(statistic, to_terms, moved, own**2, mixed, other.mT @ other, factor, clusters.labels)


def max_t(groups: list[Influence], *, seed: int, draws: int = DRAWS) -> Float[np.ndarray, " all_tested"]:
    """Return p adjusted over all tested coefficients of all groups, step down.

    A studentised wild score bootstrap: every cluster's score is multiplied by a random weight, the same in all groups,
    so that the maximum of |t| over the family has the dependence of layers and lags in it. Weights are signs, or
    Webb's six points with fewer than 13 clusters. Step down: Westfall, Young (1993), algorithm 2.8. p is (1 + number of
    larger maxima) / (1 + draws), in the order of the groups.
    """
    labels = groups[0].labels
    for group in groups[1:]:
        labels = labels if labels.equals(group.labels) else labels.union(group.labels)
    where = [labels.get_indexer(group.labels) for group in groups]
    rng = np.random.default_rng(seed)
    observed = np.abs(np.concatenate([group.statistic for group in groups]))
    order = np.argsort(observed)
    larger = np.zeros(len(observed), np.int64)
    for weights in weight_chunks(rng, draws, len(labels)):
        drawn = np.concatenate([_drawn(g, weights, at) for g, at in zip(groups, where, strict=True)], axis=1)
        # From the smallest statistic up: each is compared with the maximum over itself and all below.
        maxima = np.maximum.accumulate(np.abs(drawn)[:, order], axis=1)
        larger += (maxima >= observed[order] * (1 - 1e-12)).sum(axis=0)
    p = (1 + larger) / (1 + draws)
    adjusted = np.empty(len(observed))
    adjusted[order] = np.maximum.accumulate(p[::-1])[::-1]
    return adjusted


def weight_chunks(
    rng: np.random.Generator, draws: int, clusters: int
) -> Iterator[Float[np.ndarray, "some clusters"]]:
    """Yield the weights of all draws, some at a time."""
    step = max(1, CHUNK_NUMBERS // clusters)
    for begin in range(0, draws, step):
        yield wild_weights(rng, min(step, draws - begin), clusters)


def wild_weights(rng: np.random.Generator, draws: int, clusters: int) -> Float[np.ndarray, "draws clusters"]:
    """Return random signs, or with few clusters Webb's weights."""
    if clusters < WEBB_BELOW:
        return WEBB[rng.integers(0, 6, (draws, clusters))]
    return rng.integers(0, 2, (draws, clusters), dtype=np.int8) * 2.0 - 1.0


def _drawn(
    group: Influence, weights: Float[np.ndarray, "draws clusters"], at: Int[np.ndarray, " present"]
) -> Float[np.ndarray, "draws tested"]:
    """Return the studentised coefficients under every draw of weights."""
    if len(at) < weights.shape[1] or (np.diff(at) < 0).any():
        weights = weights[:, at]
    moved = weights @ group.moved
    mixed = einops.rearrange(
        weights @ group.own_other, "draws (tested terms) -> tested draws terms", terms=moved.shape[1]
    )
    squares = ((moved @ group.other_squared - 2 * mixed) * moved).sum(axis=-1)
    variance = weights**2 @ group.own_squared + einops.rearrange(squares, "tested draws -> draws tested")
    return moved @ group.to_terms.T / np.sqrt(np.maximum(group.factor * variance, np.finfo(np.float64).tiny))
