"""A second look at the rows, for what sums cannot hold: leverage, and effects and clusters that go across clusters."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from mechreg.regression.clusters import Clusters, clusters_across, require_two, sums_by_cluster
from mechreg.regression.lag_sums import LagSums
from mechreg.regression.residuals import Products, row_products, summed_products
from mechreg.regression.results import Covariance, crv1_factor
from mechreg.regression.rows import Rows
from mechreg.regression.solve import Fit
from mechreg.schema import InputError

# Rows times fits that are looked at together.
MOST_TOGETHER = 15_000_000


def products_of(fits: list[Fit], sums: LagSums, frame: pd.DataFrame) -> Iterator[tuple[Fit, Products]]:
    """Yield every fit with its products: those of the sums, else of the rows in a second look."""
    if sums.max_lag is not None:
        return ((fit, summed_products(fit)) for fit in fits)
    return ((fit, row_products(fit, rows, sums.formula)) for fit, rows in with_rows(fits, sums, frame))


def with_rows(fits: list[Fit], sums: LagSums, frame: pd.DataFrame) -> Iterator[tuple[Fit, Rows]]:
    """Yield every fit with its rows, of which the sums were made."""
    by_keys = {fit.key: fit for fit in fits}
    return ((by_keys[tuple(rows.keys.values())], rows) for rows in sums.rows_of(frame))


def two_way_covariances(
    fits: list[Fit], sums: LagSums, frame: pd.DataFrame, second: str
) -> dict[tuple, Covariance]:
    """Return crv1 of every fit by the sums' clusters and those of a second column (Cameron, Gelbach, Miller 2011).

    It is that by the one, plus that by the other, less that by both together; the smaller number of clusters sets the
    factor and the t distribution, as in reghdfe and pyfixest.
    """
    codes = pd.factorize(frame[second])[0]
    names = (str(sums.cluster), second)
    found = {}
    for fit, rows in with_rows(fits, sums, frame):
        products = row_products(fit, rows, sums.formula)
        other = codes[rows.at]
        if (other < 0).any():
            raise InputError(
                f"The regression needs a value of {second!r} in every complete row; {fit.where} lacks some."
            )
        first, other = rows.layout.cluster, np.unique(other, return_inverse=True)[1]
        both = np.unique(first * (int(other.max()) + 1) + other, return_inverse=True)[1]
        scores = products.x * products.e
        counts, matrix = [], np.zeros((len(scores),) * 2)
        for codes_of, sign in ((first, 1.0), (other, 1.0), (both, -1.0)):
            clustered = sums_by_cluster(scores, codes_of)
            counts.append(len(clustered))
            matrix += sign * clustered.T @ clustered
        fewest = min(counts)
        require_two(fewest, "clusters of each", who=f"cluster={names!r}", where=fit.where)
        values, vectors = np.linalg.eigh(crv1_factor(fit, fewest) * matrix)
        matrix = (vectors * np.maximum(values, 0.0)) @ vectors.T  # a difference may be no covariance
        df = np.full(len(matrix), fewest - 1.0)
        found[fit.key] = Covariance("crv1", f"crv1 ({' x '.join(names)})", matrix, df)
    return found


def across_clusters(fits: list[Fit], sums: LagSums, frame: pd.DataFrame) -> dict[tuple, Clusters]:
    """Return the clusters of fits with effects that go across them, from the rows; fits of the same rows together."""
    found: dict[tuple, Clusters] = {}
    together: list[tuple[Fit, Products]] = []
    first: Rows | None = None

    def finish() -> None:
        if first is not None:
            made = clusters_across([(own.x, own.e[0]) for _, own in together], first)
            found.update(zip((fit.key for fit, _ in together), made, strict=True))
            together.clear()

    if not any(map(_is_across, fits)):
        return found
    for fit, rows in with_rows(fits, sums, frame):
        if _is_across(fit):
            same = first is not None and rows.layout is first.layout
            if not same or len(together) * rows.at.size > MOST_TOGETHER:
                finish()
                first = rows
            together.append((fit, row_products(fit, rows, sums.formula)))
    finish()
    return found


def _is_across(fit: Fit) -> bool:
    return fit.blocks.across > 0 and len(fit.blocks.labels) > 1
