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
from mechreg.regression import DocumentSums, LagSums, formula_columns
from mechreg.regression.drawn import moved_without_each, refit_drawn, refit_to
from mechreg.schema import InputError, one_value, require_option
from mechreg.universality.bands import Estimates
from mechreg.universality.pairs import require_documents

WHO = "compare_profiles"
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
    """Return the profiles of a term, their jackknife and their joint bootstrap."""
    fits = sums.document_sums()
    hook = one_value((fit.keys["hook"] for fit in fits), hook, name="hook", who=WHO)
    fits = [fit for fit in fits if fit.keys["hook"] == hook]
    _require_term(fits, term)
    # A formula with the layer below has no coefficient in the first layer.
    _require_whole_models(fits, first=1 if lags_among(formula_columns(sums.formula))[1] else 0)
    docs = reduce(lambda shared, fit: shared.intersection(fit.labels), fits, fits[0].labels).sort_values()
    n_unshared = {str(fit.keys["model"]): len(fit.labels.difference(docs)) for fit in fits}
    require_documents(len(docs), [*n_unshared], of="with complete rows in every layer", who=WHO)
    fits = [refit_to(fit, docs, who=WHO) for fit in fits]
    at = [fit.names.index(term) for fit in fits]
    layers = [{**fit.keys, "depth": fit.depth, "n": fit.n} for fit in fits]
    estimates = Estimates(
        np.array([fit.estimate[place] for fit, place in zip(fits, at, strict=True)]),
        np.column_stack(
            [moved_without_each(fit, who=WHO) @ fit.to_terms[i] for fit, i in zip(fits, at, strict=True)]
        ),
        _drawn(fits, at, draws, seed),
    )
    return Profiles(
        str(hook), pd.DataFrame(layers, columns=["model", "layer", "depth", "n"]), docs, n_unshared, estimates
    )


def depth_bins(
    n_layers: int, bins: int, *, begin: Fraction = Fraction(0)
) -> Float[np.ndarray, "bins layers"]:
    """Return the weights that average a model's layers into equal slices of the depth from ``begin`` to 1.

    Layer l stands for the depths from l / n_layers to (l + 1) / n_layers; a layer that lies in two slices counts in
    each by the part that does. So every layer counts, the mean over depth stays what it was, and nothing is
    interpolated between layers or beyond the first and last. Each row sums to 1.
    """
    # In units of 1 / (bins * n_layers * denominator), so that edges are whole numbers.
    a, b = begin.numerator, begin.denominator
    low = einops.rearrange((a * bins + (b - a) * np.arange(bins)) * n_layers, "bins -> bins 1")
    layers = einops.rearrange(np.arange(n_layers) * bins * b, "layers -> 1 layers")
    width = (b - a) * n_layers
    overlap = np.minimum(low + width, layers + bins * b) - np.maximum(low, layers)
    return np.maximum(overlap, 0) / width


def n_layers_of(layer: int, depth: float) -> int:
    """Return how many layers a model has, of which one has this depth."""
    return round((layer + 0.5) / depth)


def _require_term(fits: list[DocumentSums], term: str) -> None:
    for fit in fits:
        require_option(term, fit.names, name="term")
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
        n_layers = n_layers_of(layers[0], own[0].depth)
        missing = sorted(set(range(first, n_layers)) - set(layers))
        if missing:
            raise InputError(
                f"{WHO} needs all {n_layers} layers of {model}; it lacks {missing}. Extract all layers."
            )


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
            moved = refit_drawn(fit, weights, who=WHO).moved
            drawn[chunk, layer] = moved @ fit.to_terms[at[layer]]
    return drawn
