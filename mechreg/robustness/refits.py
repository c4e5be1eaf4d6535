"""Refits: what document sums give for documents left out, and for what varies within documents."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mechreg.regression import DocumentSums
from mechreg.schema import InputError, NumericalError, document_ids, require_whole_number

# Relative size below which what document effects leave of a term is rounding.
TAKEN_UP = 1e-9
# Least share of the whole in any direction that a part of the documents must have, to be fitted alone.
MIN_SHARE = 1e-8
# Beyond this condition of scaled sums, coefficients within documents have fewer than 6 digits.
MAX_CONDITION = 1e10


def in_folds(docs: pd.Index, *, folds: int, seed: int, who: str) -> pd.Series:
    """Return a fold for every document, of as equal sizes as can be.

    Raises
    ------
    InputError
        There are fewer documents than folds.
    """
    require_whole_number(folds, name="folds", least=2)
    require_whole_number(seed, name="seed", least=0)
    if len(docs) < folds:
        raise InputError(
            f"{who} leaves out documents in {folds} folds; the frame has {len(docs)} documents. Use folds=2 to "
            f"{max(2, len(docs))}, or more documents."
        )
    order = np.random.default_rng(seed).permutation(len(docs))
    return pd.Series(order % folds, index=pd.Index(document_ids(docs), dtype="str"))


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
