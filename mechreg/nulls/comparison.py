"""Excess coefficients: what is left of every coefficient beyond its null, with a bootstrap of the documents of both."""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechreg.lags import add_lags_of
from mechreg.outside import any_frames
from mechreg.regression import DocumentSums, LaggedFits, LagSums, formula_columns, sums_by_document
from mechreg.regression.clusters import require_two
from mechreg.regression.drawn import Weights, document_weights, quantile_interval, refit_drawn
from mechreg.schema import InputError, one_or_many, require, require_shared, require_whole_number

WHO = "compare_to_nulls"
# Relative size below which a standard error is rounding.
ROUNDING = 1e-12
NullSums = dict[str, list[DocumentSums]]  # by the nulls' names, the sums of one group in each of their frames
# Numbers of one array of a chunk of draws: 16 megabytes.
CHUNK_NUMBERS = 2_000_000


class Excess(NamedTuple):
    """A fit's coefficients less the mean of a null's, in every draw."""

    excess: Float[np.ndarray, "draws terms"]
    error: Float[np.ndarray, "draws terms"]  # clustered by document
    each: Float[np.ndarray, "repeats draws terms"]  # the null's coefficients


@any_frames
def compare_to_nulls(
    fits: LaggedFits | LagSums,
    nulls: Mapping[str, Iterable[pd.DataFrame | LaggedFits | LagSums]],
    *,
    skip: int = 1,
    drop_sinks: str | Iterable[str] = (),
    draws: int = 999,
    conf_level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Return every coefficient beside what it is under each null, and the excess: coefficient - null coefficient.

    Parameters
    ----------
    fits : LaggedFits or LagSums
        What `fit_lagged` gives, or the sums of products, clustered by doc.
    nulls : mapping of str to norm frames
        The norm frames of each null, as `null_norms` makes them, or your own (another checkpoint), or their fits or
        sums: the same model names, hooks, layers and documents, and effects. Several of one null are averaged.
    skip, drop_sinks
        As in `add_lags`, for the frames of the nulls: those of the lags that were fitted.
    draws, conf_level, seed
        Of the bootstrap: documents are drawn with replacement, the same ones in the fits and in all nulls.

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) (by,) depth, term (not the intercept), null, estimate, null_estimate (the mean over
        ``repeats`` frames), null_low, null_high (between which the coefficient of one such frame lies, over frames and
        draws), excess, std_error, conf_low, conf_high, p_value (of no excess), repeats, draws, n, n_docs.

    Raises
    ------
    SchemaError, InputError, NumericalError
        As `add_lags` and `fit_lagged`; a null without frames, or without a group, document or row of the fits.

    Notes
    -----
    The frames of the nulls are fitted as the fits were: formula, ``by`` and effects; other terms or effects of a null
    that comes as a fit are refused. Draws keep the levels of effects that all documents gave.

    Intervals and p values are from the studentised bootstrap of pairs by cluster, symmetric about the excess (Cameron,
    Gelbach, Miller 2008, section 3), and agree with each other. What shuffling adds is independent between documents
    and so in the interval; random weights are shared by all documents, and the interval is that of the networks drawn:
    look at null_low and null_high for others. p values are not adjusted for their number.

    Examples
    --------
    >>> from mechreg.lags import add_lags
    >>> from mechreg.nulls import null_norms
    >>> from mechreg.regression import fit_lagged
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(list("abcdef"), 50),
    ...                       "window": 0, "position": np.tile(range(50), 6), "token_id": rng.integers(0, 9, 300),
    ...                       "norm": rng.lognormal(size=300)})
    >>> fits = fit_lagged(add_lags(norms))
    >>> table = compare_to_nulls(fits, null_norms(norms, nulls=["norm_order"]), draws=199)
    >>> table[["term", "null", "repeats"]].values.tolist(), bool((table["p_value"] > 0.05).all())
    ([['lag1', 'norm_order', 5], ['lag2', 'norm_order', 5]], True)
    """
    require_whole_number(draws, name="draws", least=99, most=1_000_000)
    require_shared(skip=skip, conf_level=conf_level, seed=seed)
    if not isinstance(nulls, Mapping) or not nulls:
        raise InputError(f"{WHO} needs a mapping of null names to norm frames, as null_norms gives it.")
    own, rules = sums_by_document(fits, who=WHO, by=True), one_or_many(drop_sinks)
    real = own.document_sums()
    columns = formula_columns(own.formula)
    of_nulls: dict[str, list[dict[tuple, DocumentSums]]] = {}
    for null, entries in nulls.items():
        of_nulls[null] = []
        for entry in entries:
            who = f"{WHO}, null {null!r},"
            if isinstance(entry, pd.DataFrame):
                require(entry, ("doc", "norm", *own.by, *own.effects), who=who)
                lagged = add_lags_of(entry, columns, skip=skip, drop_sinks=rules)
                entry = LagSums.from_frame(lagged, own.formula, by=own.by, effects=own.effects, max_lag=None)
            # A frame is freed once it is summed: what stays is a few numbers a document.
            sums = sums_by_document(entry, who=who, by=True)
            if {*sums.effects} != {*own.effects}:
                raise InputError(
                    f"{who} needs the effects of the fits, {own.effects}; it has {sums.effects}. Fit it with the same "
                    "effects=, or give its norm frame."
                )
            of_nulls[null].append({one.key: one for one in sums.document_sums()})
        if not of_nulls[null]:
            raise InputError(
                f"{WHO} needs at least one frame of the null {null!r}; there is none. Iterators of null_norms "
                "can be read once; call null_norms again."
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
    docs = reduce(lambda all_docs, fit: all_docs.union(fit.labels), real, real[0].labels)
    remedy = " Split the text, or compare the coefficients alone by fitting each frame of null_norms."
    require_two(len(docs), "documents", who=WHO, where="the corpus", remedy=remedy)
    weights = document_weights(np.random.default_rng(seed), len(docs), draws)
    parts = []
    for fit in real:
        own = {
            name: [_matched(fit, one.get(fit.key), name) for one in some] for name, some in of_nulls.items()
        }
        parts += _rows(fit, own, weights[:, docs.get_indexer(fit.labels)], conf_level)
    table = pd.concat(parts, ignore_index=True)
    # The lags first, whatever else the formula has: they are what the nulls are asked about.
    table = table[table["term"] != "Intercept"].assign(_other=lambda t: ~t["term"].str.fullmatch(r"lag\d+"))
    order = table.groupby([*real[0].keys, "null"], sort=False).ngroup()
    return table.iloc[np.lexsort((table["_other"], order))].drop(columns="_other").reset_index(drop=True)


def _rows(
    fit: DocumentSums,
    nulls: NullSums,
    weights: Weights,
    conf_level: float,
) -> list[pd.DataFrame]:
    """Return the rows of one group, a table a null."""
    all_documents = excess_over(fit, nulls, np.ones((1, weights.shape[1])))
    rows = []
    for null, drawn in excess_over(fit, nulls, weights).items():
        excess, error = all_documents[null].excess[0], all_documents[null].error[0]
        # A null that repeats the frame leaves rounding, which is no excess and has no error.
        is_rounding = error <= ROUNDING * np.maximum(1.0, np.abs(fit.estimate))
        with np.errstate(invalid="ignore", divide="ignore"):
            statistic = np.where(is_rounding, 0.0, np.abs(excess) / error)
            of_draws = np.where(is_rounding, 0.0, np.abs(drawn.excess - excess) / drawn.error)
        half = np.quantile(of_draws, conf_level, axis=0, method="higher") * error
        low, high = quantile_interval(drawn.each, conf_level, axis=(0, 1))
        columns = {
            **fit.keys,
            "depth": fit.depth,
            "term": fit.names,
            "null": null,
            "estimate": fit.estimate,
            "null_estimate": fit.estimate - excess,
            "null_low": low,
            "null_high": high,
            "excess": excess,
            "std_error": error,
            "conf_low": excess - half,
            "conf_high": excess + half,
            "p_value": (1 + (of_draws >= statistic).sum(axis=0)) / (1 + len(weights)),
            "repeats": len(nulls[null]),
            "draws": len(weights),
            "n": fit.n,
            "n_docs": len(fit.labels),
        }
        rows.append(pd.DataFrame(columns))
    return rows


def excess_over(fit: DocumentSums, nulls: NullSums, weights: Weights) -> dict[str, Excess]:
    """Return the excess over every null in every draw, whose weights say how often each document counts."""
    chunks = max(1, len(weights) // max(1, CHUNK_NUMBERS // (weights.shape[1] * len(fit.names))))
    parts = [_excess(fit, nulls, chunk) for chunk in np.array_split(weights, chunks)]
    return {
        null: Excess(
            *(np.concatenate(arrays, axis=-2) for arrays in zip(*(part[null] for part in parts), strict=True))
        )
        for null in nulls
    }


def _excess(fit: DocumentSums, nulls: NullSums, weights: Weights) -> dict[str, Excess]:
    own = refit_drawn(fit, weights, who=WHO)
    own_influence = own.influence
    count = weights.sum(axis=1, keepdims=True)
    parts = {}
    for null, repeats in nulls.items():
        influence, each = own_influence, []
        for repeat in repeats:
            drawn = refit_drawn(repeat, weights, who=WHO)
            influence = influence - drawn.influence / len(repeats)
            each.append(drawn.estimate)
        variance = count / (count - 1) * np.einsum("bd,bdt->bt", weights, influence**2)
        parts[null] = Excess(own.estimate - np.mean(each, axis=0), np.sqrt(variance), np.stack(each))
    return parts


def _matched(fit: DocumentSums, other: DocumentSums | None, null: str) -> DocumentSums:
    """Return the null's sums, checked to be of the same documents, rows and terms."""
    if other is None:
        raise InputError(f"{WHO} finds no rows of {fit.where} in the null {null!r}.")
    if other.names != fit.names:
        raise InputError(f"The null {null!r} has other terms than {fit.where}: {list(other.names)}.")
    if not other.labels.equals(fit.labels):
        raise InputError(
            f"{WHO} needs the same documents in the fits and their nulls; {null!r} has others in {fit.where}."
        )
    if other.n != fit.n:
        raise InputError(
            f"{WHO} needs the same rows in the fits and their nulls; {null!r} has {other.n} in {fit.where}, which has "
            f"{fit.n}. Use the skip= and drop_sinks= of the lags that were fitted; other texts have other "
            "sinks by 'size'."
        )
    return other
