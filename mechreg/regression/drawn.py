"""Documents drawn again: how often each one counts, the coefficients on them, and intervals from many such draws.

Everything comes from `DocumentSums`: no row is looked at again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import einops
import numpy as np
import pandas as pd
from jaxtyping import Float

from mechreg.regression.clusters import DocumentSums
from mechreg.schema import NumericalError

Weights = Float[np.ndarray, "draws docs"]  # how often each document counts in each draw

# Least share of the sums over all documents, in any direction, that documents must have to be fitted alone.
MIN_SHARE = 1e-8


class Drawn(NamedTuple):
    """One group fitted to documents drawn again."""

    sums: DocumentSums
    products: Float[np.ndarray, "draws terms terms"]  # each draw's sums of q q'
    moved: Float[np.ndarray, "draws terms"]  # by how much the coefficients of q move

    @property
    def estimate(self) -> Float[np.ndarray, "draws terms"]:
        """The coefficients in every draw."""
        return self.sums.estimate + self.moved @ self.sums.to_terms.T

    @property
    def influence(self) -> Float[np.ndarray, "draws docs terms"]:
        """Each document's influence on the coefficients of every draw."""
        products, scores = self.sums.products, self.sums.scores
        # Each document's score at the draw's own coefficients, in the place where the draw's inverse takes it.
        fitted = self.moved @ einops.rearrange(products, "docs to terms -> terms (docs to)")
        left = scores - einops.rearrange(fitted, "draws (docs to) -> draws docs to", to=scores.shape[1])
        return np.linalg.solve(self.products, left.mT).mT @ self.sums.to_terms.T


def document_weights(rng: np.random.Generator, n_docs: int, draws: int) -> Weights:
    """Return how often each document counts in draws of as many documents, with replacement."""
    return rng.multinomial(n_docs, np.full(n_docs, 1 / n_docs), size=draws).astype(np.float64)


def quantile_interval(
    drawn: Float[np.ndarray, "..."], conf_level: float, *, axis: int | tuple[int, ...] = 0
) -> tuple[Any, Any]:
    """Return the quantiles between which the share ``conf_level`` of the draws lies, one of each column of draws."""
    low, high = np.quantile(drawn, [(1 - conf_level) / 2, (1 + conf_level) / 2], axis=axis)
    return low, high


def solve_sums(
    products: Float[np.ndarray, "*fits terms terms"],
    scores: Float[np.ndarray, "*fits terms"],
    *,
    refusal: Callable[[int], str],
) -> Float[np.ndarray, "*fits terms"]:
    """Return the coefficients of q from sums over some documents.

    Where the terms are collinear in them, a NumericalError says the ``refusal`` of the first such fit's number.
    """
    is_solvable = np.linalg.eigvalsh(products)[..., 0] >= MIN_SHARE
    if not np.all(is_solvable):
        raise NumericalError(refusal(int(np.argmin(is_solvable))))
    return np.linalg.solve(products, scores[..., None])[..., 0]


def refit_drawn(sums: DocumentSums, weights: Weights, *, who: str) -> Drawn:
    """Return the fit in every draw."""

    def refusal(draw: int) -> str:
        return (
            f"{who} draws documents with replacement; in {sums.where} a draw makes the terms collinear, since too few "
            "documents tell them apart. Leave a term out, or use more documents."
        )

    products = np.tensordot(weights, sums.products, axes=1)
    return Drawn(sums, products, solve_sums(products, weights @ sums.scores, refusal=refusal))


def moved_without_each(sums: DocumentSums, *, who: str) -> Float[np.ndarray, "docs terms"]:
    """Return by how much the coefficients of q move when each document is left out."""

    def refusal(doc: int) -> str:
        return (
            f"{who} fits without each document in turn; in {sums.where} the terms are collinear without "
            f"{sums.labels[doc]}. Leave a term out."
        )

    return solve_sums(sums.products.sum(axis=0) - sums.products, -sums.scores, refusal=refusal)


def refit_to(sums: DocumentSums, docs: pd.Index, *, who: str) -> DocumentSums:
    """Return the sums of some of the documents, as of a fit to those alone."""
    part = sums._replace(sums=sums.sums[sums.labels.get_indexer(docs)], labels=docs)
    if len(docs) == len(sums.labels):
        return part

    def refusal(fit: int) -> str:
        return f"{who} fits the shared documents; in {sums.where} they make the terms collinear. Leave a term out."

    moved = solve_sums(part.products.sum(axis=0), part.scores.sum(axis=0), refusal=refusal)
    to_residuals = np.eye(part.sums.shape[-1])  # of the new coefficients: e - moved'q
    to_residuals[-2, :-2] = -moved
    return part._replace(
        estimate=sums.estimate + sums.to_terms @ moved, sums=to_residuals @ part.sums @ to_residuals.T
    )
