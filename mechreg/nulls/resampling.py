"""Resampling: the excess of a fit over its nulls, on documents drawn with replacement, the same ones in all fits."""

from typing import NamedTuple

import einops
import numpy as np
from jaxtyping import Float

from mechreg.regression import DocumentSums, solve_sums
from mechreg.schema import NumericalError

Weights = Float[np.ndarray, "draws docs"]
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


def refit_drawn(
    fit: DocumentSums, weights: Weights
) -> tuple[Float[np.ndarray, "draws terms"], Float[np.ndarray, "draws docs terms"]]:
    """Return the coefficients in every draw, and each document's influence on them."""
    products, scores = fit.products, fit.scores
    whole = np.tensordot(weights, products, axes=1)
    moved = solve_sums(whole, weights @ scores)
    if np.isnan(moved).any():
        raise NumericalError(
            f"compare_to_nulls draws documents; in {fit.where} some draws make the terms collinear. Use more "
            "documents, or a formula with fewer terms."
        )
    # Each document's score at the draw's own coefficients, in the place where the draw's inverse takes it.
    fitted = moved @ einops.rearrange(products, "docs to terms -> terms (docs to)")
    scores_left = scores - einops.rearrange(fitted, "draws (docs to) -> draws docs to", to=len(fit.names))
    influence = np.linalg.solve(whole, scores_left.mT).mT
    return fit.estimate + moved @ fit.to_terms.T, influence @ fit.to_terms.T


def _excess(fit: DocumentSums, nulls: Sums, weights: Weights) -> dict[str, Excess]:
    own, own_influence = refit_drawn(fit, weights)
    count = weights.sum(axis=1, keepdims=True)
    parts = {}
    for null, repeats in nulls.items():
        influence, each = own_influence, []
        for repeat in repeats:
            estimate, its_influence = refit_drawn(repeat, weights)
            influence = influence - its_influence / len(repeats)
            each.append(estimate)
        variance = count / (count - 1) * np.einsum("bd,bdt->bt", weights, influence**2)
        parts[null] = Excess(own - np.mean(each, axis=0), np.sqrt(variance), np.stack(each))
    return parts
