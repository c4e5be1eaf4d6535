"""Held-out documents: how well the coefficients of other documents predict these."""

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechreg.regression import DocumentSums
from mechreg.regression.drawn import solve_sums
from mechreg.schema import InputError, document_ids, require_shared, require_whole_number
from mechreg.words import count


def in_folds(doc: pd.Series, *, folds: int, seed: int) -> pd.Series:
    """Return a fold for every document, of sizes that differ by one at most; fewer documents than folds are refused."""
    require_whole_number(folds, name="folds", least=2)
    require_shared(seed=seed)
    docs = pd.Index(doc.unique()).sort_values()
    if len(docs) < folds:
        raise InputError(
            f"folds={folds} leaves out documents in {folds} parts; the frame has {count(len(docs), 'document')}. "
            f"Use folds=2 to {max(2, len(docs))}, or more documents."
        )
    order = np.random.default_rng(seed).permutation(len(docs))
    return pd.Series(order % folds, index=pd.Index(document_ids(docs), dtype="str"))


def held_out_r_squared(
    document: DocumentSums, fold: Int[np.ndarray, " docs"], *, terms: int | None = None
) -> float:
    """Return 1 - squared error / squared deviation from the mean, both of documents that were not fitted.

    Coefficients and mean are those of the other folds. With ``terms`` only so many first terms are in the fit.
    """

    def refusal(fit: int) -> str:
        return (
            f"Without a fold of the documents the terms are collinear in {document.where}. Use more folds=, or leave a "
            "term out."
        )

    k = len(document.names) if terms is None else terms
    outcome = np.r_[document.c, 1.0, 0.0]
    error = total = 0.0
    everything = document.sums.sum(axis=0)
    for left_out in np.unique(fold):
        test = document.sums[fold == left_out].sum(axis=0)
        train = everything - test
        # Of all terms, so that a fit with fewer is one with zeros: the basis is nested in the terms' order.
        fitted, mean = np.zeros((2, len(outcome)))
        fitted[:k] = solve_sums(train[:k, :k], train[:k] @ outcome, refusal=refusal)
        mean[-1] = train[-1] @ outcome / train[-1, -1]
        error += (outcome - fitted) @ test @ (outcome - fitted)
        total += (outcome - mean) @ test @ (outcome - mean)
    return float(1 - error / total)
