"""Sums by document of what an edit changed, and their means with intervals clustered by document."""

from typing import Any

import einops
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from mechreg.norms import LOGIT_ROWS


class Tally:
    """Sums and counts by document, measure and offset; the last offset is the total over all of them.

    Parameters
    ----------
    n_docs, n_measures, max_offset : int
    """

    def __init__(self, n_docs: int, n_measures: int, max_offset: int) -> None:
        self.max_offset = max_offset
        self.sums = np.zeros((n_docs, n_measures, max_offset + 2))
        self.counts = np.zeros((n_docs, n_measures, max_offset + 2), np.int64)

    def add(
        self,
        measures: slice,
        doc: Int[np.ndarray, " tokens"],
        offset: Int[np.ndarray, " tokens"],
        values: Float[np.ndarray, "measure tokens"],
    ) -> None:
        """Add tokens' values of some measures."""
        near = offset <= self.max_offset
        sums, counts = self.sums[:, measures], self.counts[:, measures]
        for place, tokens in ((offset[near], near), (-1, slice(None))):
            at: Any = (doc[tokens], slice(None), place)
            np.add.at(sums, at, einops.rearrange(values[:, tokens], "measure tokens -> tokens measure"))
            np.add.at(counts, at, 1)


def document_means(
    sums: Float[np.ndarray, "docs ..."], counts: Int[np.ndarray, "docs ..."], *, conf_level: float
) -> dict[str, Any]:
    """Return the mean of the documents' means with its interval from t(G - 1), where G documents have a token.

    Every document counts the same. With one document the standard error is NaN.

    Examples
    --------
    >>> table = document_means(np.array([2.0, 9.0]), np.array([2, 3]), conf_level=0.95)
    >>> float(table["estimate"]), float(table["std_error"])
    (2.0, 1.0)
    """
    n_docs = (counts > 0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(counts > 0, sums / counts, 0.0)
        estimate = means.sum(axis=0) / n_docs
        squares = (np.where(counts > 0, means - estimate, 0.0) ** 2).sum(axis=0)
        std_error = np.sqrt(squares / (n_docs - 1) / n_docs)
    std_error = np.where(n_docs > 1, std_error, np.nan)
    df = np.where(n_docs > 1, n_docs - 1, np.nan)
    half = stats.t.ppf((1 + conf_level) / 2, df) * std_error
    return {
        "estimate": estimate,
        "std_error": std_error,
        "df": df,
        "conf_low": estimate - half,
        "conf_high": estimate + half,
        "n": counts.sum(axis=0),
        "n_docs": n_docs,
    }


def next_token_changes(
    clean: Float[Tensor, "batch pos d_vocab"],
    edited: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    at: Bool[Tensor, "batch pos"],
) -> Float[np.ndarray, "3 tokens"]:
    """Return what changed in the prediction after every token of a mask: loss, divergence, flip.

    The change in the next token's cross-entropy and KL(clean || edited) are in nats; the flip is 1 where the
    likeliest next token is another. The divergence is summed as p (q/p - 1 - log(q/p)), whose terms are 0 or
    more, so that small ones keep their digits and equal distributions give 0.

    Examples
    --------
    >>> one, other = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    >>> next_token_changes(one, other, torch.tensor([[1]]), torch.tensor([[True]])).round(4).tolist()
    [[-0.3799], [0.1201], [1.0]]
    """
    target = torch.roll(tokens, -1, dims=1)[at]
    parts = (clean[at].split(LOGIT_ROWS), edited[at].split(LOGIT_ROWS), target.split(LOGIT_ROWS))
    found = []
    for old, new, wanted in zip(*parts, strict=True):
        log_p, log_q = (part.double().log_softmax(dim=1) for part in (old, new))
        step = log_q - log_p
        p = log_p.exp()
        # Where q/p could overflow it is large, and the plain difference has all its digits.
        terms = torch.where(step < 1.0, p * (step.expm1() - step), log_q.exp() - p - p * step)
        kl = einops.reduce(terms.clamp(min=0.0), "tokens d_vocab -> tokens", "sum")
        loss = -step.gather(1, einops.rearrange(wanted, "tokens -> tokens 1"))
        flip = (old.argmax(dim=1) != new.argmax(dim=1)).double()
        found.append(torch.stack([einops.rearrange(loss, "tokens 1 -> tokens"), kl, flip]))
    return torch.cat(found, dim=1).cpu().numpy()
