"""Excess coefficients: what is left of every coefficient beyond its null, with a bootstrap of the documents of both."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import einops
import numpy as np
import pandas as pd
from jaxtyping import Float

from mechreg.lags import add_lags
from mechreg.regression import DocumentSums, LagSums, formula_columns
from mechreg.schema import (
    InputError,
    NumericalError,
    one_or_many,
    require,
    require_conf_level,
    require_whole_number,
)

# Numbers of one array of a chunk of draws: 16 megabytes.
CHUNK_NUMBERS = 2_000_000
# Relative size below which a standard error is rounding.
ROUNDING = 1e-12
# Beyond this condition of a draw's sums, of columns that are orthonormal in all documents, it has lost half its digits.
MAX_CONDITION = 1e8


def compare_to_nulls(
    norms: pd.DataFrame,
    nulls: Mapping[str, Iterable[pd.DataFrame]],
    *,
    formula: str = "log_norm ~ lag1 + lag2",
    lags: int | Iterable[int] = (1, 2),
    skip: int = 1,
    draws: int = 999,
    conf_level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Return every coefficient beside what it is under each null, and the excess: coefficient - null coefficient.

    Parameters
    ----------
    norms : pandas.DataFrame
        A norm frame.
    nulls : mapping of str to frames
        The norm frames of each null, as `null_norms` makes them, or your own (another checkpoint): the same model
        names, hooks, layers and documents. Several frames of one null are averaged.
    formula, lags, skip
        As in `fit_lagged` and `add_lags`; the same for all frames.
    draws : int
        Of the bootstrap: documents are drawn with replacement, the same ones in the frame and in all its nulls.
    conf_level : float
    seed : int

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) depth, term (not the intercept), null, estimate, null_estimate (the mean over
        ``repeats`` frames), null_low, null_high (between which the coefficient of one such frame lies, over frames and
        draws), excess, std_error, conf_low, conf_high, p_value (of no excess), repeats, draws, n, n_docs.

    Raises
    ------
    SchemaError, InputError, NumericalError
        As `add_lags` and `fit_lagged`; a null without frames, or without a group or document of ``norms``.

    Notes
    -----
    Intervals and p values are from the studentised bootstrap of pairs by cluster, symmetric about the excess (Cameron,
    Gelbach, Miller 2008, section 3), and agree with each other. What shuffling adds is independent between documents
    and so in the interval; random weights are shared by all documents, and the interval is that of the networks drawn:
    look at null_low and null_high for others. p values are not adjusted for their number.

    Examples
    --------
    >>> from mechreg.nulls import null_norms
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(list("abcdef"), 50),
    ...                       "window": 0, "position": np.tile(range(50), 6), "token_id": rng.integers(0, 9, 300),
    ...                       "norm": rng.lognormal(size=300)})
    >>> table = compare_to_nulls(norms, null_norms(norms, nulls=["norm_order"]), draws=199)
    >>> table[["term", "null", "repeats"]].values.tolist(), bool((table["p_value"] > 0.05).all())
    ([['lag1', 'norm_order', 5], ['lag2', 'norm_order', 5]], True)
    """
    require_whole_number(draws, name="draws", least=99, most=1_000_000)
    require_whole_number(seed, name="seed", least=0)
    require_conf_level(conf_level)
    if not isinstance(nulls, Mapping) or not nulls:
        raise InputError(
            "compare_to_nulls needs a mapping of null names to norm frames, as null_norms gives it."
        )
    lags = one_or_many(lags)
    formula_columns(formula)

    def summed(frame: pd.DataFrame, who: str) -> list[DocumentSums]:
        require(frame, ("doc", "norm"), who=who)
        lagged = add_lags(frame, lags=lags, skip=skip)
        return LagSums.from_frame(lagged, formula, max_lag=None).document_sums()

    real = summed(norms, "compare_to_nulls")
    of_nulls: dict[str, list[dict[tuple, DocumentSums]]] = {}
    for null, frames in nulls.items():
        who = f"compare_to_nulls, null {null!r},"
        # A frame is let go once it is summed up: what is kept is a few numbers a document.
        of_nulls[null] = [{_key(sums): sums for sums in summed(frame, who)} for frame in frames]
        if not of_nulls[null]:
            raise InputError(
                f"compare_to_nulls needs a frame or more of the null {null!r}; there is none. (Iterators of null_norms "
                "can be gone through once; make them anew.)"
            )
    return _compared(real, of_nulls, int(draws), float(conf_level), seed)


def _compared(
    real: list[DocumentSums],
    of_nulls: dict[str, list[dict[tuple, DocumentSums]]],
    draws: int,
    conf_level: float,
    seed: int,
) -> pd.DataFrame:
    """Return the rows of all groups; a draw's documents are the same in all of them."""
    docs = real[0].labels
    for sums in real[1:]:
        docs = docs if docs.equals(sums.labels) else docs.union(sums.labels)
    if len(docs) < 2:
        raise InputError(f"compare_to_nulls draws documents; it needs two or more, got {len(docs)}.")
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(docs), np.full(len(docs), 1 / len(docs)), size=draws).astype(np.float64)
    parts = []
    for sums in real:
        here = weights[:, docs.get_indexer(sums.labels)]
        others = {
            null: [_matched(sums, repeat.get(_key(sums)), null) for repeat in repeats]
            for null, repeats in of_nulls.items()
        }
        parts += _rows(sums, others, here, conf_level)
    table = pd.concat(parts, ignore_index=True)
    # The lags first, whatever else the formula has: they are what the nulls are asked about.
    keys = [*real[0].keys, "null"]
    table = table[table["term"] != "Intercept"].assign(_other=lambda t: ~t["term"].str.fullmatch(r"lag\d+"))
    order = table.groupby(keys, sort=False).ngroup()
    return table.iloc[np.lexsort((table["_other"], order))].drop(columns="_other").reset_index(drop=True)


class _Resampled(NamedTuple):
    """One fit's coefficients in every draw, and each document's influence on them."""

    estimate: Float[np.ndarray, "draws terms"]
    influence: Float[np.ndarray, "draws docs terms"]


def _resampled(document: DocumentSums, weights: Float[np.ndarray, "draws docs"]) -> _Resampled:
    """Return the fit of documents that count as often as their weights say."""
    k = len(document.names)
    products, scores = document.sums[:, :k, :k], document.sums[:, :k, k]
    whole = np.tensordot(weights, products, axes=1)
    if not (np.linalg.cond(whole) < MAX_CONDITION).all():
        raise NumericalError(
            f"compare_to_nulls draws documents; in {document.where} some draws cannot tell the terms apart. It needs "
            "more documents, or a formula with fewer terms."
        )
    moved = np.linalg.solve(whole, (weights @ scores)[..., None])[..., 0]
    # Each document's score at the draw's own coefficients, in the place where the draw's inverse takes it.
    fitted = moved @ einops.rearrange(products, "docs to terms -> terms (docs to)")
    left = scores - einops.rearrange(fitted, "draws (docs to) -> draws docs to", to=k)
    influence = np.linalg.solve(whole, left.mT).mT
    return _Resampled(document.estimate + moved @ document.to_terms.T, influence @ document.to_terms.T)


class _Drawn(NamedTuple):
    """What the draws say of one null."""

    excess: Float[np.ndarray, "draws terms"]
    error: Float[np.ndarray, "draws terms"]
    each: Float[np.ndarray, "repeats draws terms"]  # the null's coefficients


def _drawn(
    sums: DocumentSums, others: dict[str, list[DocumentSums]], weights: Float[np.ndarray, "draws docs"]
) -> dict[str, _Drawn]:
    """Return the excess over every null in every draw; the documents of a draw are the same in all fits."""
    found: dict[str, list[_Drawn]] = {null: [] for null in others}
    step = max(1, CHUNK_NUMBERS // (weights.shape[1] * len(sums.names)))
    for begin in range(0, len(weights), step):
        chunk = weights[begin : begin + step]
        own = _resampled(sums, chunk)
        for null, repeats in others.items():
            influence, each = own.influence, []
            for repeat in repeats:
                estimate, its_influence = _resampled(repeat, chunk)
                influence = influence - its_influence / len(repeats)
                each.append(estimate)
            excess = own.estimate - np.mean(each, axis=0)
            found[null].append(_Drawn(excess, _error(influence, chunk), np.stack(each)))
    return {
        null: _Drawn(*(np.concatenate(part, axis=-2) for part in zip(*chunks, strict=True)))
        for null, chunks in found.items()
    }


def _error(
    influence: Float[np.ndarray, "draws docs terms"], weights: Float[np.ndarray, "draws docs"]
) -> Float[np.ndarray, "draws terms"]:
    """Return the standard error clustered by document, in every draw."""
    count = weights.sum(axis=1, keepdims=True)
    return np.sqrt(count / (count - 1) * np.einsum("bd,bdt->bt", weights, influence**2))


def _rows(
    sums: DocumentSums,
    others: dict[str, list[DocumentSums]],
    weights: Float[np.ndarray, "draws docs"],
    conf_level: float,
) -> list[pd.DataFrame]:
    """Return the rows of one group, a table a null."""
    as_it_is = _drawn(sums, others, np.ones((1, weights.shape[1])))
    rows = []
    for null, drawn in _drawn(sums, others, weights).items():
        excess, error, _ = (part[0] for part in as_it_is[null])
        # A null that repeats the frame leaves rounding, which is no excess and has no error.
        is_rounding = error <= ROUNDING * np.maximum(1.0, np.abs(sums.estimate))
        with np.errstate(invalid="ignore", divide="ignore"):
            statistic, of_draws = np.abs(excess) / error, np.abs(drawn.excess - excess) / drawn.error
        statistic, of_draws = np.where(is_rounding, 0.0, statistic), np.where(is_rounding, 0.0, of_draws)
        half = np.quantile(of_draws, conf_level, axis=0, method="higher") * error
        low, high = np.quantile(drawn.each, [(1 - conf_level) / 2, (1 + conf_level) / 2], axis=(0, 1))
        rows.append(
            pd.DataFrame(
                {
                    **sums.keys,
                    "depth": sums.depth,
                    "term": sums.names,
                    "null": null,
                    "estimate": sums.estimate,
                    "null_estimate": sums.estimate - excess,
                    "null_low": low,
                    "null_high": high,
                    "excess": excess,
                    "std_error": error,
                    "conf_low": excess - half,
                    "conf_high": excess + half,
                    "p_value": (1 + (of_draws >= statistic).sum(axis=0)) / (1 + len(weights)),
                    "repeats": len(others[null]),
                    "draws": len(weights),
                    "n": sums.n,
                    "n_docs": len(sums.labels),
                }
            )
        )
    return rows


def _matched(sums: DocumentSums, other: DocumentSums | None, null: str) -> DocumentSums:
    """Return the null's sums, its documents in the order of the frame's."""
    if other is None:
        raise InputError(f"compare_to_nulls finds no rows of {sums.where} in the null {null!r}.")
    if other.names != sums.names:
        raise InputError(f"The null {null!r} has other terms than {sums.where}: {list(other.names)}.")
    if not other.labels.equals(sums.labels):
        raise InputError(
            f"compare_to_nulls needs the same documents in the frame and its nulls; {null!r} has others in "
            f"{sums.where}."
        )
    return other


def _key(sums: DocumentSums) -> tuple:
    return tuple(sums.keys.values())
