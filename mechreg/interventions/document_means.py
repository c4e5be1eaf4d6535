"""Sums of an edit's effects by document, and their means with intervals clustered by document."""

from typing import Any

import einops
import numpy as np
from jaxtyping import Float, Int

from mechreg.regression.results import t_columns


class Tally:
    """Sums by document, measure and offset, of effects and of clean values; the last offset is the total of all.

    Counts are by kind of measure: those of the next token, which the last token of a window lacks, and norms.
    """

    def __init__(self, n_docs: int, n_measures: int, max_offset: int) -> None:
        self.max_offset = max_offset
        self.effects, self.cleans = np.zeros((2, n_docs, n_measures, max_offset + 2))
        self.counts = np.zeros((n_docs, 2, max_offset + 2), np.int64)

    def add(
        self,
        measures: slice,
        kind: int,
        doc: Int[np.ndarray, " tokens"],
        offset: Int[np.ndarray, " tokens"],
        effects: Float[np.ndarray, "measure tokens"],
        cleans: Float[np.ndarray, "measure tokens"],
    ) -> None:
        """Add tokens' values of some measures of one kind."""
        near = offset <= self.max_offset
        for place, tokens in ((offset[near], near), (-1, slice(None))):
            at: Any = (doc[tokens], slice(None), place)
            for sums, values in ((self.effects, effects), (self.cleans, cleans)):
                np.add.at(
                    sums[:, measures],
                    at,
                    einops.rearrange(values[:, tokens], "measure tokens -> tokens measure"),
                )
            where: Any = (doc[tokens], place)
            np.add.at(self.counts[:, kind], where, 1)


class DocumentMeans:
    """The running mean of document means: every document counts equally."""

    def __init__(self) -> None:
        self.n = self.n_docs = np.zeros((), np.int64)
        self.estimate = self.squares = np.zeros(())

    def add(self, sums: Float[np.ndarray, "docs ..."], counts: Int[np.ndarray, "docs ..."]) -> None:
        """Add further documents: the sums over their tokens, and the number of tokens."""
        n_docs = (counts > 0).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.where(counts > 0, sums / counts, 0.0)
            estimate = np.where(n_docs > 0, means.sum(axis=0) / n_docs, 0.0)
        squares = (np.where(counts > 0, means - estimate, 0.0) ** 2).sum(axis=0)
        # Chan, Golub and LeVeque (1983): the squares about the common mean of two groups.
        before, both = self.n_docs, self.n_docs + n_docs
        step, share = estimate - self.estimate, n_docs / np.maximum(both, 1)
        self.estimate = np.where(before > 0, self.estimate + step * share, estimate)
        self.squares = self.squares + squares + step**2 * before * share
        self.n_docs, self.n = both, self.n + counts.sum(axis=0)

    def table(self, *, conf_level: float) -> dict[str, Any]:
        """Return the mean with its interval from t(G - 1), where G documents, two or more, have a token."""
        n_docs = self.n_docs
        df = np.where(n_docs > 1, n_docs - 1, np.nan)
        estimate = np.where(n_docs > 0, self.estimate, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            std_error = np.where(n_docs > 1, np.sqrt(self.squares / (n_docs - 1) / n_docs), np.nan)
            return t_columns(estimate, std_error, df, conf_level) | {"n": self.n, "n_docs": n_docs}
