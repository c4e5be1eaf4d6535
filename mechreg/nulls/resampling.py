"""Resampling: the excess of a fit over its nulls, on documents drawn with replacement, the same ones in all fits."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mechreg.regression import DocumentSums
from mechreg.regression.drawn import Weights, refit_drawn

WHO = "compare_to_nulls"
Sums = dict[str, list[DocumentSums]]

# Numbers of one array of a chunk of draws: 16 megabytes.
CHUNK_NUMBERS = 2_000_000


class Excess(NamedTuple):
    """A fit's coefficients less the mean of a null's, in every draw."""

    excess: Float[np.ndarray, "draws terms"]
    error: Float[np.ndarray, "draws terms"]  # clustered by document
    each: Float[np.ndarray, "repeats draws terms"]  # the null's coefficients


def excess_over(fit: DocumentSums, nulls: Sums, weights: Weights) -> dict[str, Excess]:
    """Return the excess over every null in every draw, whose weights say how often each document counts."""
    chunks = max(1, len(weights) // max(1, CHUNK_NUMBERS // (weights.shape[1] * len(fit.names))))
    parts = [_excess(fit, nulls, chunk) for chunk in np.array_split(weights, chunks)]
    return {
        null: Excess(
            *(np.concatenate(arrays, axis=-2) for arrays in zip(*(part[null] for part in parts), strict=True))
        )
        for null in nulls
    }


def _excess(fit: DocumentSums, nulls: Sums, weights: Weights) -> dict[str, Excess]:
    own = refit_drawn(fit, weights, who=WHO)
    own_influence = own.influence
    count = weights.sum(axis=1, keepdims=True)
    parts = {}
    for null, repeats in nulls.items():
        influence, each = own_influence, []
        for repeat in repeats:
            drawn = refit_drawn(repeat, weights, who=WHO)
            influence = influence - drawn.influence / len(repeats)
            each.append(drawn.estimate)
        variance = count / (count - 1) * np.einsum("bd,bdt->bt", weights, influence**2)
        parts[null] = Excess(own.estimate - np.mean(each, axis=0), np.sqrt(variance), np.stack(each))
    return parts
