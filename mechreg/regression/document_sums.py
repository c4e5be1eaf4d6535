"""Document sums: each document's share in a fit, from which refits on other documents need no second look at rows."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechreg.regression.clusters import cluster_sums
from mechreg.regression.solve import Fit

# Least share of the sums over all documents, in any direction, that documents must have to be fitted alone.
MIN_SHARE = 1e-8


class DocumentSums(NamedTuple):
    """The sums of z z' of every document (or other cluster) in one (model, hook, layer[, head]).

    A row is z = [q, e, 1]: q its regressors in the fit's orthonormal basis, e its residual. The outcome is
    y = e + c'q, c the coefficients of q; the terms' are ``to_terms`` @ c. Any other coefficients b of q leave the
    residual e + (c - b)'q, so that these sums give estimates and squared errors on any documents, whole or weighted.
    Over all documents the sum of q q' is the identity and that of q e is 0.
    """

    keys: dict[str, Any]
    depth: float
    names: tuple[str, ...]
    estimate: Float[np.ndarray, " terms"]
    to_terms: Float[np.ndarray, "terms terms"]  # from coefficients of q to those of the terms
    labels: pd.Index
    sums: Float[np.ndarray, "docs columns columns"]
    where: str

    @property
    def c(self) -> Float[np.ndarray, " terms"]:
        """The coefficients of q in the fit to all documents."""
        return np.linalg.solve(self.to_terms, self.estimate)

    @property
    def n(self) -> int:
        """Rows."""
        return round(float(self.sums[:, -1, -1].sum()))

    @property
    def products(self) -> Float[np.ndarray, "docs terms terms"]:
        """Each document's sums of q q'."""
        return self.sums[:, :-2, :-2]

    @property
    def scores(self) -> Float[np.ndarray, "docs terms"]:
        """Each document's sums of q e."""
        return self.sums[:, :-2, -2]


def solve_sums(
    products: Float[np.ndarray, "*fits terms terms"], scores: Float[np.ndarray, "*fits terms"]
) -> Float[np.ndarray, "*fits terms"]:
    """Return the coefficients of q from sums over some documents, NaN where the terms are collinear in them."""
    solved = np.full(scores.shape, np.nan)
    is_solvable = np.linalg.eigvalsh(products)[..., 0] >= MIN_SHARE
    solved[is_solvable] = np.linalg.solve(products[is_solvable], scores[is_solvable][..., None])[..., 0]
    return solved


def sums_of(fit: Fit) -> DocumentSums:
    """Return the sums of one group's clusters."""
    return DocumentSums(
        keys=fit.keys,
        depth=fit.depth,
        names=fit.solution.names,
        estimate=fit.solution.estimate,
        to_terms=fit.solution.to_terms,
        labels=fit.blocks.labels,
        sums=cluster_sums(fit),
        where=fit.where,
    )
