"""Blocks: sums of products of one group's columns, by cluster, in coordinates that lose no digits.

A row of the group is the vector z = [1, z_1, ..., z_m], where u = shift + basis' z are its numbers: the regressors'
atoms and, last, the outcome. ``basis`` is upper triangular, from a QR decomposition of the rows that came first,
centred: the z are then nearly orthonormal, so that their sums of products keep what a QR of all rows would keep,
whatever the level, the scale and the collinearity of u. Products q = (z_i z_j, i <= j) are numbered as by
np.triu_indices; sums of q are the Gram blocks, sums of q_t q_(t-j)' carry everything that residuals are asked for.
"""

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.linalg import solve_triangular

from mechreg.schema import InputError

Codes = Int[np.ndarray, " rows"]
Numbers = Float[np.ndarray, " rows"]
Columns = Float[np.ndarray, "columns rows"]
BlockSums = Float[np.ndarray, "blocks products"]

# Rows that the coordinates are chosen from: more would not choose better.
SAMPLE = 4096
# Relative size below which what is left of a column is rounding: without its mean, without the columns before.
CONSTANT, DEPENDENT = 1e-12, 1e-10
# Products are summed at most this many rows back.
MAX_SUMMED_LAGS = 10_000
# A chunk's products should stay in the processor's cache: beyond, matrix products were 5 times slower.
CHUNK_NUMBERS = 40_000


class TooManyProducts(InputError):
    """More sums of products of products would be needed than the caller allows."""


class Coordinates(NamedTuple):
    """u = shift + basis' z; the last column is the outcome."""

    shift: Float[np.ndarray, " columns"]
    basis: Float[np.ndarray, "columns columns"]


class Layout(NamedTuple):
    """The layout of a group's rows, without their values; rows are sorted by document, window, position."""

    cluster: Codes  # numbers of clusters
    labels: pd.Index  # the clusters' names
    docs: pd.Index  # the documents' names; empty where there are none
    run: Codes  # how many tokens directly before, in the same window, are rows
    longest: int  # rows of the longest window; 0 where the order is not known
    has_gaps: bool  # some window lacks rows inside
    within: int = 0  # degrees of freedom that effects within clusters take
    across: int = 0  # those that other effects take


class Blocks(NamedTuple):
    """The sums of one group; a block is a cluster's rows in one cell (a combination of categories)."""

    coordinates: Coordinates
    gram: BlockSums
    cluster: Int[np.ndarray, " blocks"]  # numbers of labels
    cell: Int[np.ndarray, " blocks"]
    labels: pd.Index
    docs: pd.Index
    # Sums of q_t q_(t-j)' for j = 0, 1, ..., by the cells of rows t and t-j; no j where they were not asked for.
    pairs: Int[np.ndarray, "pairs two"]
    lagged: Float[np.ndarray, "pairs lags products products"]
    n: int
    longest: int
    has_gaps: bool
    within: int = 0
    across: int = 0


def choose_coordinates(values: Columns, *, whole: bool) -> Coordinates:
    """Return coordinates in which a sample of the rows has mean 0 and, where it can, unit covariance.

    A few rows say little about how the columns covary, unless they are the ``whole``.
    """
    sample = values[:, :: -(-values.shape[1] // SAMPLE)]
    columns, rows = sample.shape
    shift = sample.mean(axis=1)
    centred = (sample - shift[:, None]).T / np.sqrt(rows)
    own = np.linalg.norm(centred, axis=0)
    size = np.linalg.norm(sample, axis=1) / np.sqrt(rows)
    own = np.where(own > CONSTANT * size, own, np.where(size > 0, size, 1.0))
    if rows < (columns if whole else 10 * columns):
        return Coordinates(shift, np.diag(own))
    basis = np.array(np.linalg.qr(centred, mode="r"))
    basis = basis * np.where(np.diag(basis) < 0, -1.0, 1.0)[:, None]
    dependent = np.diag(basis) <= DEPENDENT * own
    basis[dependent] = 0.0  # what is left of such a column is rounding: nothing is measured along it
    basis[dependent, dependent] = own[dependent]
    return Coordinates(shift, basis)


def sum_blocks(
    values: Columns,
    cell: Codes,
    layout: Layout,
    coordinates: Coordinates,
    *,
    max_lag: int | None,
    most_products: int | None = None,
) -> Blocks:
    """Return the sums over the rows, in one pass over chunks of them; more than so many of q q' are refused."""
    n, size = values.shape[1], len(values) + 1
    cells = int(cell.max()) + 1
    block, key = layout.cluster, np.arange(len(layout.labels) or 1)
    if cells > 1:
        key, block = np.unique(layout.cluster * cells + cell, return_inverse=True)
    gram = np.zeros((len(key), _products(size)))
    begins = np.flatnonzero(np.diff(block, prepend=-1))
    together = len(np.unique(block[begins])) == len(begins)  # every block's rows are contiguous
    lags = 0 if max_lag is None else max_lag + 1
    lagged: dict[int, np.ndarray] = {}  # by pair of cells; most pairs of many cells never occur
    back = max(lags - 1, 0)
    step = max(256, CHUNK_NUMBERS // gram.shape[1])
    for begin in range(0, n, step):
        if most_products is not None and max(len(lagged), 1) * lags * gram.shape[1] ** 2 > most_products:
            raise TooManyProducts(f"The residuals' statistics would need more than {most_products:,} sums.")
        before = max(0, begin - back)  # rows of the chunk before are looked back at
        chunk, here = slice(before, min(n, begin + step)), begin - before
        q = _products_of(in_coordinates(values[:, chunk], coordinates))
        _add_runs(gram, q[:, here:], block[chunk][here:], together=together)
        for lag in range(lags):
            _add_lagged(lagged, lag, lags, q, layout.run[chunk], cell[chunk], here, cells)
    pairs = np.array(sorted(lagged), np.int64)
    cluster_of, cell_of = np.divmod(key, cells)
    return Blocks(
        coordinates=coordinates,
        gram=gram,
        cluster=cluster_of,
        cell=cell_of,
        labels=layout.labels,
        docs=layout.docs,
        pairs=np.stack(np.divmod(pairs, cells), axis=1),
        lagged=np.array([lagged[pair] for pair in pairs.tolist()]).reshape(
            len(pairs), lags, gram.shape[1], gram.shape[1]
        ),
        n=n,
        longest=layout.longest,
        has_gaps=layout.has_gaps,
        within=layout.within,
        across=layout.across,
    )


def merge_blocks(first: Blocks, second: Blocks, *, cell_of_second: Int[np.ndarray, " cells"]) -> Blocks:
    """Return the sums over the rows of both, in the coordinates of the one with more rows."""
    coordinates = (first if first.n >= second.n else second).coordinates
    first, second = _in_coordinates(first, coordinates), _in_coordinates(second, coordinates)
    number, labels = pd.factorize(first.labels.append(second.labels), sort=True)
    if len(labels):
        number = np.concatenate(
            [number[: len(first.labels)][first.cluster], number[len(first.labels) :][second.cluster]]
        )
    else:  # no clusters: all rows are of one
        number = np.concatenate([first.cluster, second.cluster])
    cell = np.concatenate([first.cell, cell_of_second[second.cell]])
    cells = int(cell.max()) + 1
    key, gram = sums_by(number * cells + cell, np.concatenate([first.gram, second.gram]))
    pairs = np.concatenate([first.pairs, cell_of_second[second.pairs]])
    pair, lagged = sums_by(pairs[:, 0] * cells + pairs[:, 1], np.concatenate([first.lagged, second.lagged]))
    cluster_of, cell_of = np.divmod(key, cells)
    return Blocks(
        coordinates=coordinates,
        gram=gram,
        cluster=cluster_of,
        cell=cell_of,
        labels=labels,
        docs=first.docs.append(second.docs),
        pairs=np.stack(np.divmod(pair, cells), axis=1),
        lagged=lagged,
        n=first.n + second.n,
        # If the order of either part is unknown, nothing is known about neighbours.
        longest=max(first.longest, second.longest) if first.longest and second.longest else 0,
        has_gaps=first.has_gaps or second.has_gaps,
        within=first.within + second.within,
        across=first.across + second.across,
    )


def within_clusters(blocks: Blocks) -> Blocks:
    """Return the sums, of one cell, with a level of every cluster taken off; clusters of one row go."""
    kept = blocks.gram[:, 0] > 1
    gram, number = gram_matrices(blocks.gram[kept]), blocks.cluster[kept]
    rows = gram[:, :1, :1]
    gram = gram - gram[..., :1] * gram[:, :1] / rows
    gram[:, :1, :1] = rows
    size = gram.shape[-1]
    return blocks._replace(
        coordinates=blocks.coordinates._replace(shift=np.zeros_like(blocks.coordinates.shift)),
        gram=gram[:, *np.triu_indices(size)],
        cluster=np.arange(len(gram)),
        cell=blocks.cell[kept],
        labels=blocks.labels[number],
        docs=blocks.docs[blocks.docs.isin(blocks.labels[number])],
        pairs=np.zeros((0, 2), np.int64),
        lagged=np.zeros((0, 0, *blocks.lagged.shape[2:])),
        n=round(float(rows.sum())),
        within=len(gram),
    )


def product_weights(
    first: Float[np.ndarray, "*forms columns"], second: Float[np.ndarray, "*other columns"]
) -> Float[np.ndarray, "*both products"]:
    """Return the weights w with w'q = (first'z) (second'z)."""
    i, j = np.triu_indices(first.shape[-1])
    return first[..., i] * second[..., j] + np.where(i == j, 0.0, first[..., j] * second[..., i])


def gram_matrices(
    gram: Float[np.ndarray, "*blocks products"],
) -> Float[np.ndarray, "*blocks columns columns"]:
    """Return the sums of products as symmetric matrices."""
    size = int((np.sqrt(8 * gram.shape[-1] + 1) - 1) / 2)
    i, j = np.triu_indices(size)
    matrices = np.empty((*gram.shape[:-1], size, size))
    matrices[..., i, j] = gram
    matrices[..., j, i] = gram
    return matrices


def _in_coordinates(blocks: Blocks, new: Coordinates) -> Blocks:
    """Return the sums in other coordinates: z = change' z_old, q = weights q_old."""
    old = blocks.coordinates
    if old is new or all(np.array_equal(a, b) for a, b in zip(old, new, strict=True)):
        return blocks
    change = np.zeros((len(old.shift) + 1,) * 2)
    change[0, 0] = 1.0
    change[0, 1:] = solve_triangular(new.basis, old.shift - new.shift, trans=1)
    change[1:, 1:] = solve_triangular(new.basis, old.basis.T, trans=1).T
    i, j = np.triu_indices(len(change))
    weights = product_weights(change.T[i], change.T[j])
    return blocks._replace(
        coordinates=new, gram=blocks.gram @ weights.T, lagged=weights @ blocks.lagged @ weights.T
    )


def _products(size: int) -> int:
    return size * (size + 1) // 2


def in_coordinates(values: Columns, coordinates: Coordinates) -> Float[np.ndarray, "size rows"]:
    """Return [1, z] of every row, by substitution: a product with the inverse would lose digits."""
    z = np.empty((len(values) + 1, values.shape[1]))
    z[0] = 1.0
    np.subtract(values, coordinates.shift[:, None], out=z[1:])
    basis = coordinates.basis
    for j in range(len(values)):
        for i in np.flatnonzero(basis[:j, j]):
            z[j + 1] -= basis[i, j] * z[i + 1]
        z[j + 1] /= basis[j, j]
    return z


def _products_of(z: Float[np.ndarray, "size rows"]) -> Float[np.ndarray, "products rows"]:
    q = np.empty((_products(len(z)), z.shape[1]))
    begin = 0
    for i in range(len(z)):
        np.multiply(z[i], z[i:], out=q[begin : begin + len(z) - i])
        begin += len(z) - i
    return q


def _add_runs(
    gram: BlockSums, q: Float[np.ndarray, "products rows"], block: Codes, *, together: bool
) -> None:
    if not together:
        order = np.argsort(block, kind="stable")
        q, block = q[:, order], block[order]
    begins = np.flatnonzero(np.diff(block, prepend=-1))
    gram[block[begins]] += np.add.reduceat(q, begins, axis=1).T


def _add_lagged(
    lagged: dict[int, np.ndarray],
    lag: int,
    lags: int,
    q: Float[np.ndarray, "products rows"],
    run: Codes,
    cell: Codes,
    here: int,
    cells: int,
) -> None:
    """Add q_t q_(t-lag)' of the rows from ``here`` on, to the pair of cells of rows t and t - lag."""
    begin = max(here, lag)
    if cells == 1:
        sums = lagged.setdefault(0, np.zeros((lags, len(q), len(q))))
        sums[lag] += (q[:, begin:] * (run[begin:] >= lag)) @ q[:, begin - lag : q.shape[1] - lag].T
        return
    now = begin + np.flatnonzero(run[begin:] >= lag)
    pair = cell[now] * cells + cell[now - lag]
    order = np.argsort(pair, kind="stable")
    now, pair = now[order], pair[order]
    edges = [*np.flatnonzero(np.diff(pair, prepend=-1)).tolist(), len(pair)]
    for first, last in itertools.pairwise(edges):
        sums = lagged.setdefault(int(pair[first]), np.zeros((lags, len(q), len(q))))
        sums[lag] += q[:, now[first:last]] @ q[:, now[first:last] - lag].T


def sums_by(
    key: Int[np.ndarray, " parts"], parts: Float[np.ndarray, "parts ..."]
) -> tuple[Int[np.ndarray, " keys"], Float[np.ndarray, "keys ..."]]:
    """Return the sorted keys and the sum of the parts of each."""
    if not len(key):
        return key, parts
    order = np.argsort(key, kind="stable")
    key = key[order]
    begins = np.flatnonzero(np.diff(key, prepend=-1))
    return key[begins], np.add.reduceat(parts[order], begins, axis=0)
