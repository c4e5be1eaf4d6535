"""Solving: least squares and its covariances from a group's blocks, with no second look at the rows.

The sums over each cell are turned into a square root M (M'M = the sums), so that the design's columns, M times their
weights, are solved by QR: what the coordinates kept is not lost by squaring once more. Everything after that is done
in the orthonormal basis of the design, where the sum of x x' is the identity.
"""

from typing import Any, NamedTuple

import einops
import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import solve_triangular

from mechreg.regression.blocks import Blocks, gram_matrices, sums_by
from mechreg.regression.design import Terms
from mechreg.schema import InputError, NumericalError
from mechreg.words import count

Forms = Float[np.ndarray, "cells columns some"]
RootColumns = Float[np.ndarray, "rows some"]
Sums = Float[np.ndarray, "cells columns columns"]
Basis = Float[np.ndarray, "cells columns terms"]

# Beyond 1/sqrt(eps) of the centred and scaled columns, their products are singular in double precision.
MAX_CONDITION = float(np.finfo(np.float64).eps ** -0.5)
# Relative spread below which a column is constant; 1e-16 is what rounding its mean leaves.
CONSTANT = 1e-12
# Relative error of the sums as the design sees it; with ten times more, 1e-9 could not be promised.
MAX_LOSS = 1e-11
# The constant is in the span of the columns when no more than this is left of it.
IN_SPAN = 1e-7


class Solution(NamedTuple):
    """Least squares of one group; a row's x in the orthonormal basis is basis' z, its residual is residual' z."""

    names: tuple[str, ...]
    estimate: Float[np.ndarray, " terms"]
    to_terms: Float[np.ndarray, "terms terms"]  # from coefficients in the orthonormal basis
    basis: Basis
    residual: Float[np.ndarray, "cells columns"]
    has_constant: bool
    residual_ss: float
    total_ss: float  # about the mean where there is a constant
    n: int
    absorbed: int = 0  # degrees of freedom that effects took

    @property
    def df(self) -> int:
        """Degrees of freedom of the residuals."""
        return self.n - self.to_terms.shape[1] - self.absorbed


class Fit(NamedTuple):
    """One group, solved."""

    keys: dict[str, Any]
    depth: float
    n_dropped: int
    n_sinks: int
    blocks: Blocks
    solution: Solution
    where: str

    @property
    def key(self) -> tuple:
        """The values of the keys."""
        return tuple(self.keys.values())


def solve(blocks: Blocks, terms: Terms, *, where: str, n_dropped: int = 0) -> Solution:
    """Return the least-squares fit, or refuse a group whose numbers would be wrong."""
    k = len(terms.names)
    absorbed = blocks.within + blocks.across
    if blocks.n < k + 2 + absorbed:
        levels = f" and {count(absorbed, 'level')} of effects" if absorbed else ""
        raise InputError(
            f"The regression needs at least {k + 2 + absorbed} complete rows for {count(k, 'term')}{levels}; "
            f"{where} has {blocks.n} ({n_dropped} dropped for missing values); give more text, or fewer terms."
        )
    raw = _forms(blocks, terms)
    forms, changes = _without_levels(raw, (terms.weights[:, 1:] == 0).all(axis=(0, 1)))
    root, scale = _square_roots(gram_matrices(sums_by(blocks.cell, blocks.gram)[1]))
    design, ones = _columns(root, forms), _columns(root, np.eye(forms.shape[1])[None, :, :1])[:, 0]
    _require_solvable(design, ones, np.linalg.norm(_columns(root, raw), axis=0), terms, where=where)
    size = np.linalg.norm(design, axis=0)
    orthonormal, triangle = np.linalg.qr(design / size)
    triangle = triangle * size
    from_basis = solve_triangular(triangle[:k, :k], np.eye(k))
    reduced = from_basis @ triangle[:k, k]
    flat = einops.rearrange(forms[..., :k], "cells columns terms -> terms (cells columns)")
    flat = solve_triangular(triangle[:k, :k], flat, trans=1)
    basis = einops.rearrange(flat, "terms (cells columns) -> cells columns terms", cells=len(forms))
    loss = float(np.finfo(np.float64).eps * ((scale[..., None] * basis) ** 2).sum(axis=(0, 1)).max())
    if loss > MAX_LOSS:
        raise NumericalError(
            f"The regression would lose too many digits in {where} (a relative {loss:.0e}): the first rows say too "
            "little about the others, or terms are nearly collinear. Begin with an update of more documents, or "
            "leave a term out."
        )
    beyond = ones - orthonormal[:, :k] @ (orthonormal[:, :k].T @ ones)
    has_constant = "Intercept" in terms.names or bool(np.linalg.norm(beyond) < IN_SPAN * np.linalg.norm(ones))
    outcome = _centred(design[:, k:], ones) if has_constant else _columns(root, raw[..., k:])
    return Solution(
        names=terms.names,
        estimate=np.linalg.solve(changes[:k, :k], reduced + changes[:k, k]),
        to_terms=np.linalg.solve(changes[:k, :k], from_basis),
        basis=basis,
        residual=forms[..., k] - forms[..., :k] @ reduced,
        has_constant=has_constant,
        residual_ss=float(triangle[k, k] ** 2),
        total_ss=float((outcome**2).sum()),
        n=blocks.n,
        absorbed=absorbed,
    )


def _forms(blocks: Blocks, terms: Terms) -> Float[np.ndarray, "cells columns terms_and_outcome"]:
    """Return the weights on z, in every cell, of every term and of the outcome."""
    shift, basis = blocks.coordinates
    numbers = np.zeros((len(shift) + 1, len(shift) + 1))  # column j: the weights of [1, u] on [1, z]
    numbers[0, 0] = 1.0
    numbers[0, 1:] = shift
    numbers[1:, 1:] = basis
    design = numbers[:, :-1] @ terms.weights
    outcome = np.broadcast_to(numbers[:, -1:], (len(design), len(numbers), 1))
    return np.concatenate([design, outcome], axis=-1)


def _without_levels(
    raw: Forms, is_level: Bool[np.ndarray, " terms"]
) -> tuple[Forms, Float[np.ndarray, "some some"]]:
    """Return forms without what the terms that are levels (intercept, categories) take up, and raw = forms @ changes.

    A column of mean 1e4 and spread 0.3 beside an intercept becomes one of mean 0, with nothing rounded.
    """
    levels = np.flatnonzero(is_level)
    others = np.setdiff1d(np.arange(raw.shape[-1]), levels)
    changes = np.eye(raw.shape[-1])
    forms = raw.copy()
    if len(levels):
        patterns = raw[:, 0, levels]
        inverse = np.linalg.pinv(patterns)
        for _ in range(2):  # the second time takes up what the first one rounded
            taken = inverse @ forms[:, 0, others]
            forms[:, 0, others] -= patterns @ taken
            changes[np.ix_(levels, others)] += taken
    return forms, changes


def _square_roots(sums: Sums) -> tuple[Sums, Float[np.ndarray, "cells columns"]]:
    """Return M with M'M = the sums, in every cell, and the columns' sizes; singular sums have a root too."""
    scale = np.sqrt(np.einsum("...ii->...i", sums))
    safe = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(sums / (safe[:, :, None] * safe[:, None, :]))
    root = np.sqrt(np.maximum(values, 0.0))[:, :, None] * vectors.mT * safe[:, None, :]
    return root, scale


def _columns(root: Sums, forms: Float[np.ndarray, "cells_or_one columns some"]) -> RootColumns:
    """Return columns whose products are those of the group's rows."""
    return einops.rearrange(root @ forms, "cells columns some -> (cells columns) some")


def _centred(columns: RootColumns, ones: Float[np.ndarray, " rows"]) -> RootColumns:
    for _ in range(2):
        columns = columns - np.outer(ones, ones @ columns / (ones @ ones))
    return columns


def _require_solvable(
    design: RootColumns,
    ones: Float[np.ndarray, " rows"],
    size: Float[np.ndarray, " some"],
    terms: Terms,
    *,
    where: str,
) -> None:
    """Refuse constant and collinear columns; an intercept takes up the level of the others."""
    names = (*terms.names, terms.outcome)
    centred = np.array(["Intercept" in terms.names and name != "Intercept" for name in names])
    centred[-1] = True
    variation = np.where(centred, _centred(design, ones), design)
    for name, spread, level in zip(names, np.linalg.norm(variation, axis=0), size, strict=True):
        if spread <= CONSTANT * level:
            raise InputError(f"The regression needs columns that vary; {name!r} is constant in {where}.")
    condition = float(np.linalg.cond(variation[:, :-1] / np.linalg.norm(variation[:, :-1], axis=0)))
    if not condition < MAX_CONDITION:
        raise NumericalError(
            f"The regression needs terms that double precision can tell apart; in {where} they are collinear "
            f"(condition {condition:.1e} of the centred and scaled columns, at most {MAX_CONDITION:.1e}). Leave a "
            "term out."
        )
