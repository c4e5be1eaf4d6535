"""Profiles: one term's coefficient in every layer of every model, refitted on documents that all of them read.

Everything comes from each document's sums: the fit without a document, and the fit on documents drawn with
replacement, the same ones in every model and layer. So differences between models carry what their errors share.
"""

from functools import reduce
from typing import Any, NamedTuple

import einops
import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mechreg.regression import DocumentSums, LagSums
from mechreg.schema import InputError, NumericalError, among, did_you_mean, require

# With fewer, quantiles over resampled documents mean nothing: 5 documents have 126 resamples.
MIN_DOCS = 6
# Weights made at a time: they should stay in the processor's cache.
CHUNK_NUMBERS = 2**20
# Least that must be left of the design in any direction, of columns that are orthonormal in all documents.
MIN_LEFT = 1e-8


class Profiles(NamedTuple):
    """The term in all layers of all models, one after the other, on the shared documents."""

    hook: str
    layers: pd.DataFrame  # model, layer, depth, n
    docs: pd.Index
    n_unshared: dict[str, int]  # how many documents of a model some other model lacks
    estimate: Float[np.ndarray, " layers"]
    jackknife: Float[np.ndarray, "docs layers"]  # the estimate without each document, less the estimate
    draws: Float[np.ndarray, "draws layers"]  # the estimate on documents drawn anew, less the estimate

    @property
    def models(self) -> list[str]:
        """The models, in the order of the fits."""
        return list(self.layers["model"].unique())

    def rows(self, model: str) -> Int[np.ndarray, " of_model"]:
        """Where one model's layers are."""
        return np.flatnonzero((self.layers["model"] == model).to_numpy())


class _Sums(NamedTuple):
    """One layer's fit, and each document's sums in the orthonormal basis of its design."""

    model: str
    layer: int
    depth: float
    where: str
    estimate: float
    to_term: Float[np.ndarray, " terms"]  # from coefficients in the orthonormal basis
    score: Float[np.ndarray, "docs terms"]
    products: Float[np.ndarray, "docs terms terms"]
    tokens: Float[np.ndarray, " docs"]
    docs: pd.Index


def joint_profiles(fits: Any, *, term: str, hook: str | None, draws: int, seed: int, who: str) -> Profiles:
    """Return the profiles of a term, their jackknife and their joint bootstrap.

    Parameters
    ----------
    fits : LaggedFits or LagSums
    term : str
    hook : str, optional
    draws : int
    seed : int
    who : str
        Opens the messages.

    Raises
    ------
    InputError
        No such term or hook, missing layers, one model only, too few documents that all models read.
    NumericalError
        Without one document, or in one draw of documents, the terms are collinear.
    """
    solved = _solved(fits, hook, who=who)
    layers = [_sums(document, term, who=who) for document in solved]
    _require_whole_models(layers, who=who)
    docs = reduce(lambda shared, layer: shared.intersection(layer.docs), layers, layers[0].docs).sort_values()
    models = list(dict.fromkeys(layer.model for layer in layers))
    if len(docs) < MIN_DOCS:
        raise InputError(
            f"{who} resamples documents that all models read: it needs {MIN_DOCS} or more with complete rows in "
            f"every layer; {', '.join(models)} share {len(docs)}. Extract all models from the same corpus."
        )
    n_unshared = {layer.model: len(layer.docs.difference(docs)) for layer in layers}
    layers = [_on(layer, docs, who=who) for layer in layers]
    about = {
        "model": [layer.model for layer in layers],
        "layer": [layer.layer for layer in layers],
        "depth": [layer.depth for layer in layers],
        "n": [round(float(layer.tokens.sum())) for layer in layers],
    }
    return Profiles(
        hook=str(solved[0].keys["hook"]),
        layers=pd.DataFrame(about),
        docs=docs,
        n_unshared=n_unshared,
        estimate=np.array([layer.estimate for layer in layers]),
        jackknife=np.column_stack([_without_each(layer, who=who) for layer in layers]),
        draws=_drawn(layers, draws, seed, who=who),
    )


def depth_bins(n_layers: int, bins: int) -> Float[np.ndarray, "bins layers"]:
    """Return the weights that average a model's layers into equal slices of its depth; each row sums to 1.

    Layer l stands for the depths from l / n_layers to (l + 1) / n_layers; a layer that lies in two slices counts in
    each by the part that does. So every layer counts, the mean over depth stays what it was, and nothing is
    interpolated between layers or beyond the first and last.

    Examples
    --------
    >>> depth_bins(4, 2)
    array([[0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5]])
    >>> depth_bins(3, 2) * 3
    array([[2., 1., 0.],
           [0., 1., 2.]])
    """
    # In units of 1 / (bins * n_layers), so that edges are whole numbers.
    begins = einops.rearrange(np.arange(bins) * n_layers, "bins -> bins 1")
    layers = einops.rearrange(np.arange(n_layers) * bins, "layers -> 1 layers")
    overlap = np.minimum(begins + n_layers, layers + bins) - np.maximum(begins, layers)
    return np.maximum(overlap, 0) / n_layers


def _solved(fits: Any, hook: str | None, *, who: str) -> list[DocumentSums]:
    """Return the document sums of all fits of one hook."""
    if getattr(fits, "by", ()):
        raise InputError(
            f"{who} compares one profile of each model; these fits are by {list(fits.by)}. Fit the rows of one value: "
            "fit_lagged(lagged[lagged['pos'] == 'NOUN'])."
        )
    if isinstance(fits, LagSums):
        if fits.cluster != "doc":
            raise InputError(
                f"{who} resamples documents: it needs LagSums(cluster='doc'); got {fits.cluster!r}."
            )
        solved = fits.document_sums()
        chosen = _one_hook([str(fit.keys["hook"]) for fit in solved], hook, who=who)
        return [fit for fit in solved if fit.keys["hook"] == chosen]
    frame, formula = getattr(fits, "_frame", None), getattr(fits, "formula", None)
    if frame is None or formula is None:
        remedy = " Fit it first: fit_lagged(lagged)." if isinstance(fits, pd.DataFrame) else ""
        raise InputError(f"{who} needs what fit_lagged gives, or LagSums; got {type(fits).__name__}.{remedy}")
    require(frame, ("hook", "depth", "doc"), who=who)
    hooks = [str(name) for name in frame["hook"].unique()]
    chosen = _one_hook(hooks, hook, who=who)
    if len(hooks) > 1:
        frame = frame[frame["hook"] == chosen]
    return LagSums.from_frame(frame, formula, cluster="doc", max_lag=None).document_sums()


def _one_hook(hooks: list[str], hook: str | None, *, who: str) -> str:
    have = list(dict.fromkeys(hooks))
    listed = ", ".join(repr(name) for name in have)
    if hook is None and len(have) > 1:
        raise InputError(f"{who} compares one hook at a time; there are {listed}. Choose with hook=.")
    if hook is not None and not among(hook, have):
        raise InputError(
            f"{who} has no fits of the hook {hook!r}; there are {listed}.{did_you_mean(hook, have)}"
        )
    return have[0] if hook is None else hook


def _sums(document: DocumentSums, term: str, *, who: str) -> _Sums:
    names, k = list(document.names), len(document.names)
    if not among(term, names):
        raise InputError(
            f"{who} finds no term {term!r}; the formula gives {names}.{did_you_mean(term, names)}"
        )
    if np.isnan(document.depth):
        raise InputError(f"{who} needs the depth of every layer; {document.where} has none.")
    at = names.index(term)
    return _Sums(
        model=str(document.keys["model"]),
        layer=int(document.keys["layer"]),
        depth=document.depth,
        where=document.where,
        estimate=float(document.estimate[at]),
        to_term=document.to_terms[at],
        score=document.sums[:, :k, k],
        products=document.sums[:, :k, :k],
        tokens=document.sums[:, -1, -1],
        docs=document.labels,
    )


def _require_whole_models(layers: list[_Sums], *, who: str) -> None:
    """Check that there are two models or more, and every layer of each once."""
    found: dict[str, list[_Sums]] = {}
    for layer in layers:
        found.setdefault(layer.model, []).append(layer)
    if len(found) < 2:
        raise InputError(
            f"{who} compares models; there is one, {next(iter(found))}. Fit two or more in one frame."
        )
    for model, own in found.items():
        numbers = [layer.layer for layer in own]
        if len(set(numbers)) < len(numbers):
            raise InputError(
                f"{who} needs one fit a layer; {model} has several, maybe one for each head. Keep one head."
            )
        n_layers = round((own[0].layer + 0.5) / own[0].depth)
        missing = sorted(set(range(n_layers)) - set(numbers))
        if missing:
            raise InputError(
                f"{who} needs all {n_layers} layers of {model}; it lacks {missing}. Extract all layers."
            )


def _on(layer: _Sums, docs: pd.Index, *, who: str) -> _Sums:
    """Return the layer refitted on some of its documents."""
    at = layer.docs.get_indexer(docs)
    score, products, tokens = layer.score[at], layer.products[at], layer.tokens[at]
    if len(at) == len(layer.docs):
        return layer._replace(score=score, products=products, tokens=tokens, docs=docs)
    whole = products.sum(axis=0)
    if np.linalg.eigvalsh(whole)[0] < MIN_LEFT:
        raise NumericalError(
            f"{who} fits the shared documents; in {layer.where} they make the terms collinear."
        )
    moved = np.linalg.solve(whole, score.sum(axis=0))
    return layer._replace(
        estimate=layer.estimate + float(layer.to_term @ moved),
        score=score - products @ moved,
        products=products,
        tokens=tokens,
        docs=docs,
    )


def _without_each(layer: _Sums, *, who: str) -> Float[np.ndarray, " docs"]:
    """Return by how much the term moves when each document is left out."""
    left = layer.products.sum(axis=0) - layer.products
    least = np.linalg.eigvalsh(left)[:, 0]
    if least.min() < MIN_LEFT:
        raise NumericalError(
            f"{who} fits without each document in turn; in {layer.where} the terms are collinear without "
            f"{layer.docs[int(least.argmin())]}. Leave a term out."
        )
    return -_solved_each(left, layer.score) @ layer.to_term


def _drawn(layers: list[_Sums], draws: int, seed: int, *, who: str) -> Float[np.ndarray, "draws layers"]:
    """Return by how much the term moves in each layer on documents drawn with replacement."""
    count, rng = len(layers[0].docs), np.random.default_rng(seed)
    moved = np.empty((draws, len(layers)))
    step = max(1, CHUNK_NUMBERS // count)
    for begin in range(0, draws, step):
        chunk = slice(begin, min(draws, begin + step))
        size = chunk.stop - chunk.start
        begin_of = einops.rearrange(count * np.arange(size), "draw -> draw 1")
        drawn = einops.rearrange(begin_of + rng.integers(0, count, (size, count)), "draw doc -> (draw doc)")
        times = np.bincount(drawn, minlength=size * count).astype(np.float64)
        weights = einops.rearrange(times, "(draw doc) -> draw doc", draw=size)
        for at, layer in enumerate(layers):
            whole = np.tensordot(weights, layer.products, axes=1)
            if np.linalg.eigvalsh(whole)[:, 0].min() < MIN_LEFT:
                raise NumericalError(
                    f"{who} draws documents with replacement; in {layer.where} a draw makes the terms collinear, "
                    "since too few documents tell them apart. Leave a term out, or use more documents."
                )
            moved[chunk, at] = _solved_each(whole, weights @ layer.score) @ layer.to_term
    return moved


def _solved_each(
    products: Float[np.ndarray, "systems terms terms"], scores: Float[np.ndarray, "systems terms"]
) -> Float[np.ndarray, "systems terms"]:
    """Return the solution of each system of normal equations."""
    columns = einops.rearrange(scores, "systems terms -> systems terms 1")
    return einops.rearrange(np.linalg.solve(products, columns), "systems terms 1 -> systems terms")
