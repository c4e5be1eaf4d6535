"""Fixed effects: one level for each value of a column, partialled out of all other columns (Frisch, Waugh, Lovell).

One effect, within the clusters where there is such a one, is taken off as its levels' means; the levels of the others
then solve normal equations, exactly where they are few, else by conjugate gradients to a relative 1e-12.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import linalg, sparse
from scipy.sparse.csgraph import connected_components

from mechreg.outside import any_frames
from mechreg.regression.blocks import Codes, Columns, Numbers
from mechreg.schema import InputError, NumericalError, group_columns, one_or_many

# So many levels, beside those of the first effect, are solved by one inverse, which crv3 needs.
MAX_DENSE = 3_000
TOLERANCE = 1e-12
# Share of a direction in a cluster beyond which it is of that cluster alone.
OWN = 1e-9


class Effects(NamedTuple):
    """Levels of every row, and what takes them off."""

    names: tuple[str, ...]  # that of the first effect first
    first: Codes | None  # numbers of the first effect's levels
    means: sparse.csr_matrix | None  # levels x rows: means over the rows of each
    columns: Int[np.ndarray, "others rows"]  # numbers of the other effects' levels, one after another
    levels: sparse.csr_matrix | None  # rows x other levels
    normal: sparse.csr_matrix | None  # of the other levels, less the first effect's means
    inverse: Float[np.ndarray, "levels levels"] | None  # where these are few
    within: int  # degrees of freedom of effects within clusters
    across: int  # of the others


def require_effects(effects: str | Sequence[str]) -> tuple[str, ...]:
    """Return the columns of ``effects``, after checking that each comes once."""
    names = tuple(one_or_many(effects))
    for name in names:
        if not isinstance(name, str) or names.count(name) > 1:
            raise InputError(
                f"effects must name columns, each once, such as ('doc', 'position'); got {names!r}."
            )
    return names


def make_effects(codes: dict[str, Codes], cluster: Codes | None) -> Effects:
    """Return the effects of these columns, in rows of these clusters; without clusters all are across."""
    numbers = {name: np.unique(code, return_inverse=True)[1] for name, code in codes.items()}
    nested = [name for name in numbers if cluster is not None and _is_nested(numbers[name], cluster)]
    eligible = nested if cluster is not None else list(numbers)
    first = max(eligible, key=lambda name: numbers[name].max(), default=None)
    others = [name for name in numbers if name != first]
    rows = len(next(iter(numbers.values())))
    means, of_first = None, 0
    if first is not None:
        sizes = np.bincount(numbers[first])
        of_first = len(sizes)
        means = sparse.csr_matrix((1 / sizes[numbers[first]], (numbers[first], np.arange(rows))))
    counts = [int(numbers[name].max()) + 1 for name in others]
    begins = np.cumsum([0, *counts])
    columns = np.array([numbers[name] + begin for name, begin in zip(others, begins, strict=False)], np.int64)
    columns = columns.reshape(len(others), rows)
    levels = normal = inverse = None
    of_others = 0
    if others:
        at = (np.tile(np.arange(rows), len(others)), columns.ravel())
        levels = sparse.csr_matrix((np.ones(columns.size), at), shape=(rows, int(begins[-1])))
        normal = sparse.csr_matrix(levels.T @ levels)
        if means is not None:
            sums = sparse.csr_matrix((means != 0).astype(np.float64) @ levels)
            normal = sparse.csr_matrix(normal - sums.T @ (means @ levels))
        if begins[-1] <= MAX_DENSE:
            inverse, of_others = _pseudo_inverse(normal.toarray())
        else:
            of_others = sum(
                _rank(None if first is None else numbers[first], numbers[name]) for name in others
            )
            of_others -= 0 if first is not None else len(others) - 1
    all_nested = cluster is not None and len(nested) == len(numbers)
    within = of_first * (first in nested) + of_others * all_nested
    names = (*others,) if first is None else (first, *others)
    return Effects(
        names, None if first is None else numbers[first], means, columns, levels, normal, inverse,
        within, of_first + of_others - within,
    )  # fmt: skip


def without_singletons(codes: list[Codes]) -> np.ndarray:
    """Return which rows remain after repeatedly dropping rows that are alone in a level, as reghdfe does."""
    kept = np.arange(len(codes[0]))
    while True:
        alone = np.zeros(len(kept), bool)
        for code in codes:
            number, counts = np.unique(code[kept], return_inverse=True, return_counts=True)[1:]
            alone |= counts[number] == 1
        if not alone.any():
            left = np.zeros(len(codes[0]), bool)
            left[kept] = True
            return left
        kept = kept[~alone]


def project(effects: Effects, values: Columns) -> Columns:
    """Return what the effects leave of the columns."""
    left = np.ascontiguousarray(values.T)
    passes = 1 if effects.levels is not None and effects.inverse is None else 2
    for _ in range(passes):  # the second pass removes the rounding error of the first
        left = _centred(effects, left)
        if effects.levels is not None:
            left = _centred(effects, left - effects.levels @ _solved(effects, effects.levels.T @ left))
    return np.ascontiguousarray(left.T)


def demeaned(values: Columns, levels: Sequence[Codes]) -> Columns:
    """Return the residuals of columns on a level for every value of some keys (without any, on their mean)."""
    if not levels:
        return values - values.mean(axis=1, keepdims=True)
    return project(make_effects({str(i): level for i, level in enumerate(levels)}, None), values)


@any_frames
def without_effects(frame: pd.DataFrame, columns: Sequence[str], effects: Sequence[str]) -> pd.DataFrame:
    """Return the complete rows of a lagged frame, these columns demeaned in every model, hook and layer."""
    rows = frame.dropna(subset=list(columns))
    keys = group_columns(rows)
    new = np.empty((len(columns), len(rows)))
    table = rows[list(columns)].to_numpy("float64").T
    codes = [pd.factorize(rows[name])[0] for name in effects]
    for place in rows.groupby(keys, observed=True, sort=False).indices.values():
        new[:, place] = demeaned(table[:, place], [code[place] for code in codes])
    return rows.assign(**dict(zip(columns, new, strict=True)))


def part_of(effects: Effects, name: str, values: Numbers, *, transposed: bool = False) -> Numbers:
    """Return the part of one effect's levels in the fit of all effects to a column, or that map transposed."""
    column = values[:, None]
    is_first = effects.first is not None and name == effects.names[0]
    mean = column - _centred(effects, column)
    if effects.levels is None:
        return mean[:, 0]
    if transposed and is_first:
        sums = effects.levels.T @ mean
        return (mean - _centred(effects, effects.levels @ _solved(effects, sums)))[:, 0]
    mine = np.zeros((effects.levels.shape[1], 1))
    if not is_first:
        mine[effects.columns[effects.names[-len(effects.columns) :].index(name)]] = 1.0
    if transposed:
        sums = mine * (effects.levels.T @ column)
        return _centred(effects, effects.levels @ _solved(effects, sums))[:, 0]
    level = _solved(effects, effects.levels.T @ _centred(effects, column))
    if is_first:
        left = column - effects.levels @ level
        return (left - _centred(effects, left))[:, 0]
    return (effects.levels @ (mine * level))[:, 0]


def hat(effects: Effects, own: Int[np.ndarray, " own"]) -> Float[np.ndarray, "own own"]:
    """Return the projection on the effects that go across clusters, in the rows of one cluster."""
    assert effects.inverse is not None
    here = effects.columns[:, own]
    block = np.zeros((len(own), len(own)))
    for one in here:
        for other in here:
            block += effects.inverse[one[:, None], other]
    if effects.first is not None:  # its levels are of this cluster alone
        number = np.unique(effects.first[own], return_inverse=True)[1]
        same = (number[:, None] == number).astype(np.float64)
        mean = same / same.sum(axis=1)
        block = block - mean @ block
        block = block - block @ mean
    return block


def pattern(effects: Effects, own: Int[np.ndarray, " own"]) -> bytes:
    """Return what `hat` depends on."""
    first = np.zeros(0) if effects.first is None else np.unique(effects.first[own], return_inverse=True)[1]
    return effects.columns[:, own].tobytes() + b"|" + first.tobytes()


def solve_rest(
    block: Float[np.ndarray, "own own"], values: Float[np.ndarray, "own some"]
) -> Float[np.ndarray, "own some"]:
    """Return (1 - block)⁻¹ values; directions that are of this cluster alone stay out of it."""
    rest = np.eye(len(block)) - block
    try:
        factor = linalg.cho_factor(rest, lower=True)
        if np.diag(factor[0]).min() ** 2 > OWN:
            return linalg.cho_solve(factor, values)
    except linalg.LinAlgError:
        pass
    sizes, vectors = np.linalg.eigh(rest)
    inverse = np.where(sizes > OWN, 1 / np.where(sizes > OWN, sizes, 1.0), 0.0)
    return (vectors * inverse) @ (vectors.T @ values)


def _is_nested(number: Codes, cluster: Codes) -> bool:
    of_level = np.zeros(int(number.max(initial=0)) + 1, np.int64)
    of_level[number] = cluster
    return bool((of_level[number] == cluster).all())


def _centred(
    effects: Effects, values: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, "rows columns"]:
    if effects.means is None:
        return values
    return values - (effects.means @ values)[effects.first]


def _solved(
    effects: Effects, sums: Float[np.ndarray, "levels columns"]
) -> Float[np.ndarray, "levels columns"]:
    if effects.inverse is not None:
        return effects.inverse @ sums
    assert effects.normal is not None
    diagonal = effects.normal.diagonal()
    scale = sparse.diags(1 / np.where(diagonal > 0, diagonal, 1.0))
    solved = np.zeros_like(sums)
    for column in range(sums.shape[1]):
        solved[:, column], failed = sparse.linalg.cg(
            effects.normal, sums[:, column], rtol=TOLERANCE, atol=0.0, maxiter=10_000, M=scale
        )
        if failed:
            raise NumericalError(
                f"The effects {list(effects.names)} could not be solved to {TOLERANCE}; leave one out."
            )
    return solved


def _pseudo_inverse(normal: Float[np.ndarray, "levels levels"]) -> tuple[np.ndarray, int]:
    """Return the pseudo-inverse of scaled normal equations, and their rank."""
    scale = np.sqrt(np.diag(normal))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(normal / scale[:, None] / scale)
    kept = values > 1e-10 * max(float(values.max()), 1.0)
    root = vectors[:, kept] / scale[:, None]
    return (root / values[kept]) @ root.T, int(kept.sum())


def _rank(first: np.ndarray | None, other: Codes) -> int:
    """Return the rank of an effect beside the first: its levels less the parts of the graph that both make."""
    levels = int(other.max()) + 1
    if first is None:
        return levels
    of_first = int(first.max()) + 1
    size = of_first + levels
    graph = sparse.csr_matrix((np.ones(len(other)), (first, of_first + other)), shape=(size, size))
    return levels - int(connected_components(graph, directed=False)[0])
