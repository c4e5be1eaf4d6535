"""The restricted wild cluster bootstrap of one coefficient: a second opinion where documents are few."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechreg.regression.clusters import Clusters, clusters_of, left_out, of_each, require_two
from mechreg.regression.fits import LaggedFits, sums_by_document
from mechreg.regression.lag_sums import LagSums
from mechreg.regression.max_t import DRAWS, weight_chunks
from mechreg.regression.results import crv1_factor
from mechreg.regression.solve import Fit
from mechreg.schema import InputError, require_number, require_option, require_shared, require_whole_number

WHO = "wild_bootstrap"


def wild_bootstrap(
    fits: LaggedFits | LagSums, term: str = "lag1", *, value: float = 0.0, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Return the p-value of one coefficient being ``value``, by the wild cluster bootstrap WCR-S, in every fit.

    The null is imposed; each document's residuals are those without it, times a random sign (with fewer than 13
    documents one of Webb's six weights); the statistic is crv1's t.

    Parameters
    ----------
    fits : LaggedFits or LagSums
    term : str
    value : float
    draws, seed : int

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) depth, term, value, estimate, statistic, n_docs, draws, p_value: (1 + draws as
        large) / (1 + draws).

    Raises
    ------
    InputError
        An unknown term, fewer than two documents, effects that go across documents.

    Notes
    -----
    MacKinnon, Nielsen, Webb (2023), Fast and reliable jackknife and bootstrap methods for cluster-robust inference.

    Examples
    --------
    >>> from mechreg.regression import fit_lagged
    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(range(9), 20),
    ...                       "y": rng.normal(size=180), "x": rng.normal(size=180)})
    >>> table = wild_bootstrap(fit_lagged(frame, "y ~ x"), "x", draws=999)
    >>> table[["term", "n_docs", "draws"]].values.tolist()
    [['x', 9, 999]]
    """
    require_number(value, name="value")
    require_whole_number(draws, name="draws")
    require_shared(seed=seed)
    rows = []
    for fit in sums_by_document(fits, who=WHO).solve():
        require_option(term, fit.solution.names, name="term")
        if fit.blocks.across:
            raise InputError(f"{WHO} needs effects within documents only; {fit.where} has others.")
        require_two(len(fit.blocks.labels), "documents", who=WHO, where=fit.where)
        at = fit.solution.names.index(term)
        statistic, p = _bootstrapped(fit, at, float(value), int(draws), np.random.default_rng(seed))
        about = {"term": term, "value": float(value), "estimate": fit.solution.estimate[at]}
        result = {"statistic": statistic, "p_value": p, "n_docs": len(fit.blocks.docs), "draws": int(draws)}
        rows.append({**fit.keys, "depth": fit.depth} | about | result)
    return pd.DataFrame(rows)


def _bootstrapped(
    fit: Fit, at: int, value: float, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return crv1's t and its p under the null that term ``at`` is ``value``."""
    clusters, to_term = clusters_of(fit), fit.solution.to_terms[at]
    factor, gap = crv1_factor(fit, len(clusters.labels)), fit.solution.estimate[at] - value
    statistic = gap / np.sqrt(factor * ((clusters.score @ to_term) ** 2).sum())
    score = _restricted_scores(clusters, to_term, gap, fit.where)
    larger = 0
    for weights in weight_chunks(rng, draws, len(score)):
        moved = weights @ score
        own = weights * (score @ to_term) - moved @ (clusters.products @ to_term).T
        drawn = moved @ to_term / np.sqrt(factor * (own**2).sum(axis=1))
        larger += int((np.abs(drawn) >= abs(statistic) * (1 - 1e-12)).sum())
    return float(statistic), (1 + larger) / (1 + draws)


def _restricted_scores(
    clusters: Clusters, to_term: Float[np.ndarray, " terms"], gap: float, where: str
) -> Float[np.ndarray, "clusters terms"]:
    """Return every cluster's sum of x e, e its residual in the restricted fit to the other clusters."""
    direction = to_term / np.linalg.norm(to_term)
    score = clusters.score + clusters.products @ (direction * gap / np.linalg.norm(to_term))
    free = np.linalg.svd(direction[None])[2][1:].T  # the orthonormal basis of what the null leaves free
    restricted = Clusters(score @ free, free.T @ clusters.products @ free, clusters.labels)
    without = left_out(restricted, cov="crv3", where=where, cluster="doc")
    kept = of_each(without, restricted.score)
    return score + (clusters.products @ free @ kept[..., None])[..., 0]
