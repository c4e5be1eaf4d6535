"""Clusters: what each adds to a fit, and the degrees of freedom of its covariances.

Everything is in the design's orthonormal basis, where the sum of x x' is the identity. With effects that go across
clusters the sums are x'R⁻¹x and x'R⁻¹e, R = 1 - the effects' own projection within the cluster: leaving a cluster out
then estimates those effects anew.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import sparse

from mechreg.regression.blocks import Codes, Columns, Numbers, gram_matrices
from mechreg.regression.design import require_room
from mechreg.regression.fixed_effects import MAX_DENSE, Effects, hat, pattern, solve_rest
from mechreg.regression.rows import Rows
from mechreg.regression.solve import Fit
from mechreg.schema import InputError, NumericalError

ClusterProducts = Float[np.ndarray, "clusters terms terms"]
ClusterScores = Float[np.ndarray, "clusters terms"]

# Without a cluster, the least that must be left of the design in any direction.
MIN_LEFT = 1e-8


class Clusters(NamedTuple):
    """What each cluster adds to the sums of x e and of x x'."""

    score: ClusterScores
    products: ClusterProducts
    labels: pd.Index
    across: "Across | None" = None


class Across(NamedTuple):
    """What degrees of freedom need beside the sums, where effects go across clusters."""

    effects: Effects
    cluster: Codes
    x: Float[np.ndarray, "rows terms"]  # R⁻¹x
    squares: ClusterProducts  # sums of R⁻¹x x'R⁻¹


def require_two(count: int, of: str, *, who: str, where: str, having: str = "", remedy: str = "") -> None:
    """Check that there are two clusters, documents or other things: one has no spread."""
    if count < 2:
        raise InputError(f"{who} needs two {of} or more{having}; {where} has {count}.{remedy}")


def sums_by_cluster(columns: Columns, cluster: Codes) -> Float[np.ndarray, "clusters columns"]:
    """Return every cluster's sums of columns."""
    return np.array([np.bincount(cluster, column) for column in columns]).T


def cluster_sums(fit: Fit) -> Float[np.ndarray, "clusters columns columns"]:
    """Return every cluster's sum of z z', z = [x, e, 1] of a row, x in the orthonormal basis."""
    solution, blocks = fit.solution, fit.blocks
    one = np.zeros_like(solution.residual)
    one[:, 0] = 1.0
    forms = np.concatenate([solution.basis, solution.residual[..., None], one[..., None]], axis=-1)
    clusters, columns = len(blocks.labels), forms.shape[-1]
    require_room(clusters * columns**2, f"{columns - 2:,} terms in {clusters:,} clusters")
    sums = np.zeros((clusters, columns, columns))
    for cell, form in enumerate(forms):
        here = blocks.cell == cell  # a cluster has one block of a cell, so that no addition is lost
        sums[blocks.cluster[here]] += form.T @ gram_matrices(blocks.gram[here]) @ form
    return sums


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
    def key(self) -> tuple:
        """The values of the keys."""
        return tuple(self.keys.values())

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


def sums_of(fit: Fit) -> DocumentSums:
    """Return the sums of one group's clusters."""
    solved = fit.solution
    of_terms = solved.names, solved.estimate, solved.to_terms
    return DocumentSums(fit.keys, fit.depth, *of_terms, fit.blocks.labels, cluster_sums(fit), fit.where)


def clusters_of(fit: Fit) -> Clusters:
    """Return what every cluster adds."""
    k, sums = len(fit.solution.names), cluster_sums(fit)
    return Clusters(sums[:, :k, k], sums[:, :k, :k], fit.blocks.labels)


def left_out(clusters: Clusters, *, cov: str, where: str, cluster: str) -> ClusterProducts:
    """Return (1 - products)⁻¹ of every cluster, or for crv2 its root: it turns a score into one without the cluster."""
    # A direction's share in a cluster is at most the trace: most clusters need no eigenvalues.
    large = np.flatnonzero(np.trace(clusters.products, axis1=1, axis2=2) > 0.9)
    remaining = 1 - np.linalg.eigvalsh(clusters.products[large])[:, -1]
    if (remaining < MIN_LEFT).any():
        raise NumericalError(
            f"cov={cov!r} fits without each cluster in turn; in {where} the terms are collinear without "
            f"{cluster} {clusters.labels[large[int(remaining.argmin())]]}. Use cov='crv1', or leave a term out."
        )
    if cov == "crv2":
        values, vectors = np.linalg.eigh(clusters.products)
        return (vectors / np.sqrt(1 - values)[:, None, :]) @ vectors.mT
    return np.linalg.inv(np.eye(clusters.score.shape[1]) - clusters.products)


def of_each(matrices: ClusterProducts, scores: ClusterScores) -> ClusterScores:
    """Return every cluster's matrix times its score."""
    return (matrices @ scores[..., None])[..., 0]


def effective_df(
    clusters: Clusters, without: ClusterProducts, to_terms: Float[np.ndarray, "tested terms"]
) -> Float[np.ndarray, " tested"]:
    """Return the Bell-McCaffrey degrees of freedom of every coefficient, were rows independent and alike.

    The variance of a coefficient is a sum of (p_g'y)² over clusters; with P the matrix of p_g'p_h, Satterthwaite's
    number is tr(P)² / tr(P P). Here p_g'p_h = own_g [g = h] - shared_g'shared_h.
    """
    moved = without @ to_terms.T
    shared = clusters.products @ moved
    squares = clusters.products if clusters.across is None else clusters.across.squares
    own = ((squares @ moved) * moved).sum(axis=1)
    return np.array([
        _satterthwaite(clusters.across, own[:, term], shared[..., term], moved[..., term])
        for term in range(len(to_terms))
    ])  # fmt: skip


def _satterthwaite(
    across: Across | None, own: Float[np.ndarray, " clusters"], shared: ClusterScores, moved: ClusterScores
) -> float:
    right = shared
    if across is not None:
        weights = (across.x * moved[across.cluster]).sum(axis=1)
        columns, inverse = across.effects.columns, across.effects.inverse
        assert inverse is not None
        at = (np.tile(across.cluster, len(columns)), columns.ravel())
        levels = sparse.csr_matrix((np.tile(weights, len(columns)), at), (len(own), len(inverse))).toarray()
        shared, right = np.concatenate([shared, levels], 1), np.concatenate([shared, levels @ inverse], 1)
    squared = (shared * right).sum(axis=1)
    # tr(S S) of S = shared right', on the smaller side
    is_wide = shared.shape[1] > len(shared)
    square = shared @ right.T if is_wide else right.T @ shared
    norm = (own**2 - 2 * own * squared).sum() + (square * square.T).sum()
    return float((own - squared).sum() ** 2 / norm)


def clusters_across(
    fits: list[tuple[Float[np.ndarray, "terms rows"], Numbers]], rows: Rows
) -> list[Clusters]:
    """Return what every cluster adds, for fits (their x and e) of the same rows, where effects go across clusters."""
    effects, cluster, labels = rows.effects, rows.layout.cluster, rows.layout.labels
    if effects is None or effects.inverse is None:
        raise InputError(
            f"cov='crv3' needs at most {MAX_DENSE:,} levels of effects that go across clusters; {rows.where} has more. "
            "Use cov='crv1'."
        )
    edges = np.cumsum([0, *(len(x) + 1 for x, _ in fits)])
    values = np.concatenate([np.concatenate([x, e[None]]) for x, e in fits]).T
    solved = np.empty_like(values)
    order = np.argsort(cluster, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1)
    alike: dict[bytes, list[np.ndarray]] = {}  # documents of one length have one projection
    for own in rows_of:
        alike.setdefault(pattern(effects, own), []).append(own)
    for owns in alike.values():
        together = solve_rest(hat(effects, owns[0]), np.concatenate([values[own] for own in owns], axis=1))
        for own, part in zip(owns, np.split(together, len(owns), axis=1), strict=True):
            solved[own] = part
    found = []
    for begin, end in itertools.pairwise(edges.tolist()):
        k = end - begin - 1
        products, squares = np.empty((2, len(labels), k, k + 1))
        for g, own in enumerate(rows_of):
            x = solved[own, begin : end - 1]
            products[g], squares[g] = x.T @ values[own, begin:end], x.T @ solved[own, begin:end]
        across = Across(effects, cluster, solved[:, begin : end - 1], squares[..., :k])
        found.append(Clusters(products[..., k], products[..., :k], labels, across))
    return found
