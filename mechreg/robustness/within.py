"""Within documents: the estimator with a level for every document, and its half-panel jackknife."""

from typing import Any, NamedTuple

import einops
import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from mechreg.regression import DocumentSums, LagSums, formula_columns
from mechreg.schema import GROUP_KEYS, TOKEN_KEYS, InputError, NumericalError, document_ids

# Relative size below which what document effects leave of a term is rounding.
TAKEN_UP = 1e-9
# Beyond this condition of scaled sums, coefficients within documents have fewer than 6 digits.
MAX_CONDITION = 1e10


class _Part(NamedTuple):
    """A within estimator that counts in a weighted sum of them."""

    weight: float
    sums: Float[np.ndarray, "docs columns columns"]  # of [x, y], each less its document's mean


def within_table(
    frame: pd.DataFrame, formula: str, fold: pd.Series, conf_level: float, *, halves: bool
) -> pd.DataFrame:
    """Return the rows of the within estimator, or of its half-panel jackknife, in every group."""
    doc = pd.Categorical(document_ids(frame["doc"]), categories=fold.index)
    # Every group splits its own complete rows: the halves of the shortest lag's rows are not those of the longest.
    frame = frame.assign(half_document=2 * doc.codes.astype("int64") + _second_half(frame, formula))
    sums = LagSums.from_frame(frame, formula, cluster="half_document", max_lag=None)
    return pd.concat(
        [_rows(group, fold, conf_level, halves=halves) for group in sums.document_sums()], ignore_index=True
    )


def _rows(halves_of: DocumentSums, fold: pd.Series, conf_level: float, *, halves: bool) -> pd.DataFrame:
    """Return the rows of one group, whose sums are of half documents."""
    numbers, at = np.unique(halves_of.labels.to_numpy() // 2, return_inverse=True)
    whole = np.zeros((len(numbers), *halves_of.sums.shape[1:]))
    np.add.at(whole, at, halves_of.sums)
    document = halves_of._replace(sums=whole, labels=fold.index[numbers])
    count, where = len(numbers), document.where
    if count < 2:
        raise InputError(f"Document effects need at least two documents; {where} has {count}.")
    names, sums = _within_documents(document)
    parts = [_Part(1.0, sums)]
    if halves:
        of_halves = _within_documents(halves_of)[1]
        parts = [_Part(2.0, sums)]
        for half in (0, 1):
            here = halves_of.labels.to_numpy() % 2 == half
            parts.append(_Part(-0.5, np.zeros_like(sums)))
            parts[-1].sums[at[here]] = of_halves[here]
    estimate = _estimates(parts, [np.zeros_like(part.sums[:1]) for part in parts], where)[0]
    without_each = _estimates(parts, [part.sums for part in parts], where)
    error = np.sqrt((count - 1) / count * ((without_each - estimate) ** 2).sum(axis=0))
    half_width = stats.t.ppf((1 + conf_level) / 2, count - 1) * error
    of_document = fold[document.labels].to_numpy()
    left_out = (np.unique(of_document)[:, None] == of_document).astype(float)
    tests = [np.tensordot(left_out, part.sums, axes=1) for part in parts]
    columns: dict[str, Any] = {
        **document.keys,
        "depth": document.depth,
        "term": names,
        "estimate": estimate,
        "std_error": error,
        "df": float(count - 1),
        "p_value": 2 * stats.t.sf(np.abs(estimate / error), count - 1),
        "conf_low": estimate - half_width,
        "conf_high": estimate + half_width,
        "n": document.n,
        "n_docs": count,
        "r_squared": _r_squared(sums.sum(axis=0)[None], estimate[None]),
        "held_out_r_squared": _r_squared(tests[0], _estimates(parts, tests, where)),
        "cov_type": "jackknife over documents" if halves else "crv3",
    }
    return pd.DataFrame(columns)


def _within_documents(document: DocumentSums) -> tuple[list[str], Float[np.ndarray, "docs columns columns"]]:
    """Return the terms but the intercept, and the sums of [x, y] with every document's (or part's) mean taken off."""
    kept = [at for at, name in enumerate(document.names) if name != "Intercept"]
    forms = np.zeros((len(document.c) + 2, len(kept) + 1))
    forms[:-2, :-1] = np.linalg.inv(document.to_terms)[:, kept]
    forms[:-2, -1], forms[-2, -1] = document.c, 1.0
    total = document.sums.sum(axis=0)
    about_mean = total - np.outer(total[-1], total[-1]) / total[-1, -1]
    mean = document.sums[:, -1] / np.sqrt(document.sums[:, -1, -1])[:, None]
    sums = forms.T @ (document.sums - mean[:, :, None] * mean[:, None, :]) @ forms
    spread, spread_within = np.diag(forms.T @ about_mean @ forms), np.diag(sums.sum(axis=0))
    names = [document.names[at] for at in kept]
    for name, is_constant in zip(names, spread_within <= TAKEN_UP * spread, strict=False):
        if is_constant:
            raise NumericalError(
                f"Document effects take off every document's mean, and {name!r} is constant within documents in "
                f"{document.where}; leave it out of the formula, or the specification out of specifications=."
            )
    return names, sums


def _estimates(
    parts: list[_Part], removed: list[Float[np.ndarray, "fits columns columns"]], where: str
) -> Float[np.ndarray, "fits terms"]:
    """Return the weighted coefficients with some sums taken off each part, for every fit."""
    return np.sum(
        [
            weight * _within_estimates(sums.sum(axis=0) - taken, where)
            for (weight, sums), taken in zip(parts, removed, strict=True)
        ],
        axis=0,
    )


def _within_estimates(
    sums: Float[np.ndarray, "fits columns columns"], where: str
) -> Float[np.ndarray, "fits terms"]:
    """Return the coefficients that sums of [x, y] give, where double precision has digits enough for them."""
    size = np.sqrt(einops.einsum(sums, "fits column column -> fits column"))[..., :-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = sums[..., :-1, :-1] / (size[..., :, None] * size[..., None, :])
        if not np.isfinite(scaled).all() or not (np.linalg.cond(scaled) < MAX_CONDITION).all():
            raise NumericalError(
                f"Document effects take off every document's mean; in {where} the terms are then collinear, with all "
                "documents or without one. Leave the specification out of specifications=."
            )
    return np.linalg.solve(scaled, sums[..., :-1, -1:] / size[..., None])[..., 0] / size


def _r_squared(
    sums: Float[np.ndarray, "parts columns columns"], estimate: Float[np.ndarray, "parts terms"]
) -> float:
    """Return 1 - squared errors / squares over all parts, each with its coefficients."""
    to_residual = np.concatenate([-estimate, np.ones((len(estimate), 1))], axis=1)
    error = np.einsum("pi,pij,pj->", to_residual, sums, to_residual)
    return float(1 - error / sums[:, -1, -1].sum())


def _second_half(frame: pd.DataFrame, formula: str) -> Int[np.ndarray, " rows"]:
    """Return 1 for the complete rows in the second half of their group's document, else 0."""
    complete = frame[list(formula_columns(formula))].notna().all(axis=1).to_numpy()
    keys = [key for key in (*GROUP_KEYS, "head") if key in frame.columns]
    rows = frame.loc[complete, [*keys, *TOKEN_KEYS]].reset_index(drop=True)
    by = rows.sort_values(["window", "position"]).groupby([*keys, "doc"], observed=True, sort=False)
    second = 2 * by.cumcount() >= by["position"].transform("size")
    numbers = np.zeros(len(frame), np.int64)
    numbers[complete] = second.sort_index().to_numpy()
    return numbers
