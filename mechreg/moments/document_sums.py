"""Document sums: each document's share in a fit, from which refits on other documents need no second look at rows."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechreg.moments.blocks import gram_matrices
from mechreg.moments.results import Fit


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


def sums_of(fit: Fit) -> DocumentSums:
    """Return the sums of one group's clusters."""
    solution, blocks = fit.solution, fit.blocks
    k = len(solution.names)
    sums = np.zeros((len(blocks.labels), k + 2, k + 2))
    for cell, (basis, residual) in enumerate(zip(solution.basis, solution.residual, strict=True)):
        one = np.zeros(len(residual))
        one[0] = 1.0
        forms = np.column_stack([basis, residual, one])
        here = blocks.cell == cell  # a cluster has one block of a cell, so that no addition is lost
        sums[blocks.cluster[here]] += forms.T @ gram_matrices(blocks.gram[here]) @ forms
    return DocumentSums(
        keys=fit.keys,
        depth=fit.depth,
        names=solution.names,
        estimate=solution.estimate,
        to_terms=solution.to_terms,
        labels=blocks.labels,
        sums=sums,
        where=fit.where,
    )
