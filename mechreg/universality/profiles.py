"""Profiles: one term's coefficient in every layer of every model, refitted on documents that all of them read.

Everything comes from each document's sums: the fit without a document, and the fit on documents drawn with
replacement, the same ones in every model and layer. So differences between models carry what their errors share.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import reduce
from typing import NamedTuple

import einops
import numpy as np
import pandas as pd
from jaxtyping import Float

from mechreg.lags import lags_among
from mechreg.regression import DocumentSums, LagSums, formula_columns, solve_sums
from mechreg.schema import InputError, NumericalError, among, did_you_mean
from mechreg.universality.bands import Estimates

WHO = "compare_profiles"
# With fewer, quantiles over resampled documents mean nothing: 5 documents have 126 resamples.
MIN_DOCS = 6
# Weights made at a time: they should stay in the processor's cache.
CHUNK_NUMBERS = 2**20


class Profiles(NamedTuple):
    """The term in all layers of all models, one after the other, on the shared documents."""

    hook: str
    layers: pd.DataFrame  # model, layer, depth, n
    docs: pd.Index
    n_unshared: dict[str, int]  # how many documents of a model some other model lacks
    estimates: Estimates

    def each(self) -> Iterator[tuple[str, pd.DataFrame, Estimates]]:
        """Give every model with its layers and its profile, in the order of the fits."""
        for model, rows in self.layers.groupby("model", sort=False):
            yield str(model), rows, self.estimates.at(rows.index.to_numpy())


def joint_profiles(sums: LagSums, *, term: str, hook: str | None, draws: int, seed: int) -> Profiles:
    """Return the profiles of a term, their jackknife and their joint bootstrap.

    Raises
    ------
    InputError
        No such term or hook, missing layers, one model only, too few documents that all models read.
    NumericalError
        Without one document, or in one draw of documents, the terms are collinear.
    """
    fits = _of_one_hook(sums.document_sums(), hook)
    _require_term(fits, term)
    # A formula with the layer below has no coefficient in the first layer.
    _require_whole_models(fits, first=1 if lags_among(formula_columns(sums.formula))[1] else 0)
    docs = reduce(lambda shared, fit: shared.intersection(fit.labels), fits, fits[0].labels).sort_values()
    n_unshared = {str(fit.keys["model"]): len(fit.labels.difference(docs)) for fit in fits}
    if len(docs) < MIN_DOCS:
        raise InputError(
            f"{WHO} resamples documents that all models read: it needs {MIN_DOCS} or more with complete rows in "
            f"every layer; {', '.join(n_unshared)} share {len(docs)}. Extract all models from the same corpus."
        )
    fits = [_refitted(fit, docs) for fit in fits]
    at = [fit.names.index(term) for fit in fits]
    layers = [{**fit.keys, "depth": fit.depth, "n": fit.n} for fit in fits]
    estimates = Estimates(
        np.array([fit.estimate[place] for fit, place in zip(fits, at, strict=True)]),
        np.column_stack([_without_each(fit) @ fit.to_terms[i] for fit, i in zip(fits, at, strict=True)]),
        _drawn(fits, at, draws, seed),
    )
    return Profiles(
        str(fits[0].keys["hook"]),
        pd.DataFrame(layers, columns=["model", "layer", "depth", "n"]),
        docs,
        n_unshared,
        estimates,
    )


def depth_bins(
    n_layers: int, bins: int, *, begin: Fraction = Fraction(0)
) -> Float[np.ndarray, "bins layers"]:
    """Return the weights that average a model's layers into equal slices of the depth from ``begin`` to 1.

    Layer l stands for the depths from l / n_layers to (l + 1) / n_layers; a layer that lies in two slices counts in
    each by the part that does. So every layer counts, the mean over depth stays what it was, and nothing is
    interpolated between layers or beyond the first and last. Each row sums to 1.

    Examples
    --------
    >>> depth_bins(4, 2)
    array([[0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5]])
    >>> depth_bins(3, 2) * 3
    array([[2., 1., 0.],
           [0., 1., 2.]])
    """
    # In units of 1 / (bins * n_layers * denominator), so that edges are whole numbers.
    a, b = begin.numerator, begin.denominator
    low = einops.rearrange((a * bins + (b - a) * np.arange(bins)) * n_layers, "bins -> bins 1")
    layers = einops.rearrange(np.arange(n_layers) * bins * b, "layers -> 1 layers")
    width = (b - a) * n_layers
    overlap = np.minimum(low + width, layers + bins * b) - np.maximum(low, layers)
    return np.maximum(overlap, 0) / width


def _of_one_hook(fits: list[DocumentSums], hook: str | None) -> list[DocumentSums]:
    hooks = list(dict.fromkeys(str(fit.keys["hook"]) for fit in fits))
    listed = ", ".join(map(repr, hooks))
    if hook is None and len(hooks) > 1:
        raise InputError(f"{WHO} compares one hook at a time; there are {listed}. Choose with hook=.")
    if hook is not None and not among(hook, hooks):
        raise InputError(
            f"{WHO} has no fits of the hook {hook!r}; there are {listed}.{did_you_mean(hook, hooks)}"
        )
    return [fit for fit in fits if hook is None or fit.keys["hook"] == hook]


def _require_term(fits: list[DocumentSums], term: str) -> None:
    for fit in fits:
        if not among(term, fit.names):
            raise InputError(
                f"{WHO} finds no term {term!r}; the formula has {list(fit.names)}.{did_you_mean(term, fit.names)}"
            )
        if np.isnan(fit.depth):
            raise InputError(f"{WHO} needs the depth of every layer; {fit.where} has none.")


def _require_whole_models(fits: list[DocumentSums], *, first: int) -> None:
    """Check that there are two models or more, and every layer of each once, from the first that has a coefficient."""
    models: dict[str, list[DocumentSums]] = {}
    for fit in fits:
        models.setdefault(str(fit.keys["model"]), []).append(fit)
    if len(models) < 2:
        raise InputError(f"{WHO} compares models; there is one, {next(iter(models))}. Fit two in one frame.")
    for model, own in models.items():
        layers = [int(fit.keys["layer"]) for fit in own]
        if len(set(layers)) < len(layers):
            raise InputError(
                f"{WHO} needs one fit a layer; {model} has several, maybe one for each head. Keep one head."
            )
        n_layers = round((layers[0] + 0.5) / own[0].depth)
        missing = sorted(set(range(first, n_layers)) - set(layers))
        if missing:
            raise InputError(
                f"{WHO} needs all {n_layers} layers of {model}; it lacks {missing}. Extract all layers."
            )


def _refitted(fit: DocumentSums, docs: pd.Index) -> DocumentSums:
    """Return the layer refitted on some of its documents."""
    sums = fit.sums[fit.labels.get_indexer(docs)]
    part = fit._replace(sums=sums, labels=docs)
    if len(docs) == len(fit.labels):
        return part
    moved = solve_sums(part.products.sum(axis=0), part.scores.sum(axis=0))
    if np.isnan(moved).any():
        raise NumericalError(
            f"{WHO} fits the shared documents; in {fit.where} they make the terms collinear."
        )
    to_residuals = np.eye(sums.shape[-1])  # of the new coefficients: e - moved'q
    to_residuals[-2, :-2] = -moved
    return part._replace(
        estimate=fit.estimate + fit.to_terms @ moved, sums=to_residuals @ sums @ to_residuals.T
    )


def _without_each(fit: DocumentSums) -> Float[np.ndarray, "docs terms"]:
    """Return by how much the coefficients of q move when each document is left out."""
    moved = solve_sums(fit.products.sum(axis=0) - fit.products, -fit.scores)
    if np.isnan(moved).any():
        at = int(np.isnan(moved).any(axis=1).argmax())
        raise NumericalError(
            f"{WHO} fits without each document in turn; in {fit.where} the terms are collinear without "
            f"{fit.labels[at]}. Leave a term out."
        )
    return moved


def _drawn(
    fits: list[DocumentSums], at: list[int], draws: int, seed: int
) -> Float[np.ndarray, "draws layers"]:
    """Return by how much the term moves in each layer on documents drawn with replacement."""
    count, rng = len(fits[0].labels), np.random.default_rng(seed)
    drawn = np.empty((draws, len(fits)))
    step = max(1, CHUNK_NUMBERS // count)
    for begin in range(0, draws, step):
        chunk = slice(begin, min(draws, begin + step))
        chosen = rng.integers(0, count, (chunk.stop - chunk.start, count))
        weights = np.stack([np.bincount(row, minlength=count) for row in chosen]).astype(np.float64)
        for layer, fit in enumerate(fits):
            moved = solve_sums(np.tensordot(weights, fit.products, axes=1), weights @ fit.scores)
            if np.isnan(moved).any():
                raise NumericalError(
                    f"{WHO} draws documents with replacement; in {fit.where} a draw makes the terms collinear, "
                    "since too few documents tell them apart. Leave a term out, or use more documents."
                )
            drawn[chunk, layer] = moved @ fit.to_terms[at[layer]]
    return drawn
