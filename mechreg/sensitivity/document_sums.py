"""Document sums: each document's share in a fit, from which refits on other documents need no second look at rows.

A row of a group is z = [q, e, 1]: q its regressors in the fit's orthonormal basis, e its residual. The outcome is
y = e + c'q, c the coefficients of q. Any coefficients b leave the residual e + (c - b)'q, so that sums of z z' by
document give estimates and squared errors on any documents, whole or weighted.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mechreg.moments import LagMoments
from mechreg.moments.blocks import gram_matrices
from mechreg.moments.results import Fit
from mechreg.schema import InputError, NumericalError

# Relative size below which what document effects leave of a term is rounding.
TAKEN_UP = 1e-9
# Least share of the whole in any direction that a part of the documents must have, to be fitted alone.
MIN_SHARE = 1e-8
# Beyond this condition of scaled sums, coefficients within documents have fewer than 6 digits.
MAX_CONDITION = 1e10


class DocumentSums(NamedTuple):
    """The sums of z z' of every document (or part of one) in one (model, hook, layer[, head])."""

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


def document_sums(moments: LagMoments) -> list[DocumentSums]:
    """Return the sums of every group, in the order of the coefficient frame; clusters are documents or parts."""
    return [_sums(fit) for fit in moments._fits()]


def _sums(fit: Fit) -> DocumentSums:
    solution, blocks = fit.solution, fit.blocks
    k = len(solution.names)
    sums = np.zeros((len(blocks.labels), k + 2, k + 2))
    for cell, (basis, residual) in enumerate(zip(solution.basis, solution.residual, strict=True)):
        one = np.zeros(len(residual))
        one[0] = 1.0
        forms = np.column_stack([basis, residual, one])
        here = blocks.cell == cell
        # A document has one block of a cell, so that no addition is lost.
        sums[blocks.cluster[here]] += forms.T @ gram_matrices(blocks.gram[here]) @ forms
    return DocumentSums(
        fit.keys,
        fit.depth,
        solution.names,
        solution.estimate,
        solution.to_terms,
        blocks.labels,
        sums,
        fit.where,
    )


def in_folds(docs: pd.Index, *, folds: int, seed: int, who: str) -> pd.Series:
    """Return a fold for every document, of as equal sizes as can be.

    Raises
    ------
    InputError
        There are fewer documents than folds.
    """
    if isinstance(folds, bool) or not isinstance(folds, int | np.integer) or folds < 2:
        raise InputError(f"folds must be a whole number, 2 or more; got {folds!r}.")
    if len(docs) < folds:
        raise InputError(
            f"{who} leaves out documents in {folds} folds; the frame has {len(docs)} documents. Use folds=2 to "
            f"{max(2, len(docs))}, or more documents."
        )
    order = np.random.default_rng(seed).permutation(len(docs))
    return pd.Series(order % folds, index=docs)


def held_out_r_squared(
    document: DocumentSums, fold: Int[np.ndarray, " docs"], *, who: str, terms: int | None = None
) -> float:
    """Return 1 - squared error / squared deviation from the mean, both of documents that were not fitted.

    Coefficients and mean are those of the other folds. With ``terms`` only so many first terms are in the fit.

    Raises
    ------
    NumericalError
        Without the documents of a fold the terms are collinear.
    """
    k = len(document.names) if terms is None else terms
    error = total = 0.0
    everything = document.sums.sum(axis=0)
    for left_out in np.unique(fold):
        test = document.sums[fold == left_out].sum(axis=0)
        train = everything - test
        if np.linalg.eigvalsh(train[:k, :k])[0] < MIN_SHARE:
            raise NumericalError(
                f"{who} fits without a fold of the documents; in {document.where} the terms are then collinear. "
                "Use more folds=, or leave a term out."
            )
        outcome = np.r_[document.c, 1.0, 0.0]
        # q of all terms, so that a fit with fewer is one with zeros: the basis is nested in the terms' order.
        b = np.zeros(len(document.c))
        b[:k] = np.linalg.solve(train[:k, :k], train[:k] @ outcome)
        left = outcome - np.r_[b, 0.0, 0.0]
        about_mean = outcome - np.r_[0.0 * b, 0.0, train[-1] @ outcome / train[-1, -1]]
        error += left @ test @ left
        total += about_mean @ test @ about_mean
    return float(1 - error / total)


class WithinSums(NamedTuple):
    """The sums of [x, y], each less its document's mean, of the terms that vary within documents."""

    names: tuple[str, ...]
    sums: Float[np.ndarray, "docs columns columns"]
    where: str


def within_documents(document: DocumentSums, *, who: str) -> WithinSums:
    """Return sums with every document's (or part's) mean taken off; the intercept goes with the means.

    Raises
    ------
    NumericalError
        A term is constant within documents, so that document effects take it up.
    """
    kept = [at for at, name in enumerate(document.names) if name != "Intercept"]
    forms = np.zeros((len(document.c) + 2, len(kept) + 1))
    forms[:-2, :-1] = np.linalg.inv(document.to_terms)[:, kept]
    forms[:-2, -1], forms[-2, -1] = document.c, 1.0
    mean = document.sums[:, -1] / np.sqrt(document.sums[:, -1, -1])[:, None]
    sums = forms.T @ (document.sums - mean[:, :, None] * mean[:, None, :]) @ forms
    whole = forms.T @ _about_grand_mean(document.sums.sum(axis=0)) @ forms
    names = tuple(document.names[at] for at in kept)
    for name, left, spread in zip(names, np.diag(sums.sum(axis=0)), np.diag(whole), strict=False):
        if left <= TAKEN_UP * spread:
            raise NumericalError(
                f"{who} takes off every document's mean, and {name!r} is constant within documents in "
                f"{document.where}; leave it out of the formula, or the specification out of specifications=."
            )
    return WithinSums(names, sums, document.where)


def _about_grand_mean(total: Float[np.ndarray, "columns columns"]) -> Float[np.ndarray, "columns columns"]:
    return total - np.outer(total[-1], total[-1]) / total[-1, -1]


def within_estimates(
    sums: Float[np.ndarray, "*fits columns columns"], *, where: str, who: str
) -> Float[np.ndarray, "*fits terms"]:
    """Return the coefficients that sums of [x, y] give, or refuse those that double precision cannot tell apart."""
    size = np.sqrt(np.einsum("...ii->...i", sums)[..., :-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = sums[..., :-1, :-1] / (size[..., :, None] * size[..., None, :])
        if not np.isfinite(scaled).all() or not (np.linalg.cond(scaled) < MAX_CONDITION).all():
            raise NumericalError(
                f"{who} takes off every document's mean; in {where} the terms are then collinear, with all "
                "documents or without one. Leave the specification out of specifications=."
            )
    return np.linalg.solve(scaled, sums[..., :-1, -1:] / size[..., None])[..., 0] / size
