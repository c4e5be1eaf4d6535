"""Covariances of vectors, and of vectors with those before them, summed at the hook: no vector is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechreg.forward import Act, Batch, Forward, padded_batches
from mechreg.models import HOOK_POINTS, load_model, record_of
from mechreg.norms.covariates import token_frame
from mechreg.norms.measures import is_per_head
from mechreg.norms.reduction import BATCH_TOKENS, known_hooks
from mechreg.schema import InputError, one_or_many, require_option, require_whole_number

Products = Float[np.ndarray, "row row"]  # of (1, vector, vector before it, ...), summed over tokens
PENALTIES = 10.0 ** np.arange(-6, 2.5, 0.5)  # of the regressors' mean variance


@dataclass(frozen=True, kw_only=True, repr=False)
class VectorCovariances:
    """What `vector_covariances` returns: sums of products by layer and by fold of documents."""

    model: str
    hook: str
    lags: tuple[int, ...]
    n_layers: int
    n_docs: int
    sums: Mapping[int, Float[np.ndarray, "fold row row"]]

    def __repr__(self) -> str:
        return (
            f"VectorCovariances({self.model}, {self.hook}: layers {list(self.sums)}, lags {list(self.lags)})"
        )

    def effective_dimension(self) -> pd.DataFrame:
        """Return by layer the participation ratio of the covariance's eigenvalues, (sum)^2 / sum of squares.

        It is between 1 (one direction) and d_model (all alike); with n independent tokens its inverse is too large by
        about 1 / n (Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement").
        """
        rows = []
        for layer, folds in self.sums.items():
            whole, d_model = folds.sum(axis=0), self._d_model(folds)
            own = _about(whole, whole)[:d_model, :d_model]
            ratio = np.trace(own) ** 2 / np.square(own).sum()
            rows.append(self._place(layer) | {"d_model": d_model, "effective_dimension": ratio})
        return pd.DataFrame(rows)

    def explained(self) -> pd.DataFrame:
        """Return by layer the share of the vectors' variance that a vector autoregression on those before explains.

        ``in_sample`` is of least squares on all tokens, which grows with d_model * lags / n whatever the text says.
        ``held_out`` is of documents that had no part in the regression: ridge, its ``penalty`` (in units of the
        regressors' mean variance) chosen in folds of the other documents alone; 0 is as good as their mean, and a
        worse forecast is below 0. NaN without folds.
        """
        rows = []
        for layer, folds in self.sums.items():
            whole, d_model = folds.sum(axis=0), self._d_model(folds)
            errors, total = _errors(whole, whole, np.zeros(1), d_model)
            held_out, penalty = _held_out(folds, d_model)
            shares = {"in_sample": 1 - errors[0] / total, "held_out": held_out, "penalty": penalty}
            rows.append(self._place(layer) | {"lags": len(self.lags)} | shares)
        return pd.DataFrame(rows)

    def _d_model(self, folds: np.ndarray) -> int:
        return (folds.shape[-1] - 1) // (len(self.lags) + 1)

    def _place(self, layer: int) -> dict[str, Any]:
        place = {"model": self.model, "hook": self.hook, "layer": layer}
        n = int(self.sums[layer][:, 0, 0].sum())
        return place | {"depth": (layer + 0.5) / self.n_layers, "n": n, "n_docs": self.n_docs}


def vector_covariances(
    model: Any,
    documents: Any,
    *,
    hook: str = "attn_out",
    layers: int | Sequence[int] | None = None,
    lags: int | Sequence[int] = (1,),
    skip: int = 1,
    folds: int = 4,
    batch_tokens: int = BATCH_TOKENS,
) -> VectorCovariances:
    """Return covariances of one hook point's vectors and of those before them, of one pass over any corpus.

    Memory is ``folds * ((lags + 1) * d_model)^2`` float64 numbers a layer, however many tokens there are.

    Parameters
    ----------
    model : model, name or path
    documents : documents frame, list of str, path, or token frame
        `shuffle_tokens` gives a token frame in which order says nothing.
    hook : str
        One that has one vector a token.
    layers : int or sequence of int, optional
    lags : int or sequence of int
        How many tokens back; they do not cross a window.
    skip : int
        So many first positions of each window are neither outcome nor lag.
    folds : int
        Documents are dealt into so many, 3 or more, to forecast each from the others; 1 keeps no folds.
    batch_tokens : int

    Raises
    ------
    InputError, ModelError
        As `extract_norms`; no such layer; fewer documents than folds, or no token with all of its lags.

    Examples
    --------
    >>> from mechreg import read_corpus
    >>> covariances = vector_covariances("mini-s", read_corpus("demo").iloc[:8], layers=[0, 3])
    >>> covariances.effective_dimension()["effective_dimension"].between(1, 64).tolist()
    [True, True]
    >>> covariances.explained()[["layer", "lags", "n_docs"]].values.tolist()
    [[0, 1, 8], [3, 1, 8]]
    """
    model, hook = load_model(model), known_hooks([hook])[0]
    if is_per_head(hook):
        raise InputError(
            f"vector_covariances needs a hook of one vector a token; {hook!r} has one for every head."
        )
    lags = tuple(int(lag) for lag in one_or_many(lags))
    for lag in lags:
        require_whole_number(lag, name="lags")
    require_whole_number(skip, name="skip", least=0)
    require_whole_number(folds, name="folds")
    require_whole_number(batch_tokens, name="batch_tokens")
    everything = range(model.cfg.n_layers)
    chosen = list(everything) if layers is None else one_or_many(layers)
    for layer in chosen:
        require_option(layer, everything, name="layers")
    tokens = token_frame(model, documents)
    doc, docs = pd.factorize(tokens["doc"])
    if folds == 2 or len(docs) < folds:
        raise InputError(f"folds must be 1, or 3 to the number of documents, {len(docs)}; got {folds}.")
    summed = _Sums(
        lags, first=skip + max(lags), folds=doc % folds, n_folds=folds, width=int(model.cfg.d_model)
    )
    acts = [(f"blocks.{layer}.{HOOK_POINTS[hook][0]}", summed.act(layer)) for layer in chosen]
    with Forward(model, acts, end="acts", quick=True) as run:
        for summed.batch in padded_batches(model, tokens, batch_tokens):
            run(summed.batch.ids)
    sums = {layer: summed.sums[layer].numpy(force=True) for layer in chosen}
    if not all((of_layer[:, 0, 0] > 0).all() for of_layer in sums.values()):
        raise InputError(
            f"A fold of documents has no token with {max(lags)} others before it; give longer documents."
        )
    about: dict[str, Any] = {"model": record_of(model).name, "hook": hook, "lags": lags, "n_docs": len(docs)}
    return VectorCovariances(**about, n_layers=int(model.cfg.n_layers), sums=sums)


class _Sums:
    """The sums of products of every layer, by fold; ``batch`` is the one that goes through the model."""

    batch: Batch

    def __init__(
        self, lags: tuple[int, ...], *, first: int, folds: np.ndarray, n_folds: int, width: int
    ) -> None:
        self.lags, self.first, self.folds = (0, *lags), first, folds
        self.shape = (n_folds, 1 + width * len(self.lags), 1 + width * len(self.lags))
        self.sums: dict[int, Tensor] = {}

    def act(self, layer: int) -> Act:
        def add(vectors: Float[Tensor, "batch pos d_model"]) -> None:
            if layer not in self.sums:
                self.sums[layer] = torch.zeros(self.shape, dtype=torch.float64, device=vectors.device)
            end, fold = vectors.shape[1], self.folds[self.batch.rows]
            for at in range(self.shape[0]):
                counted = torch.from_numpy((self.batch.real & (fold == at))[:, self.first :]).to(
                    vectors.device
                )
                parts = [vectors[:, self.first - lag : end - lag][counted] for lag in self.lags]
                rows = torch.cat([torch.ones_like(parts[0][:, :1]), *parts], dim=1).double()
                self.sums[layer][at] += einops.einsum(rows, rows, "token row, token column -> row column")

        return add


def _about(products: Products, centre: Products) -> Float[np.ndarray, "number number"]:
    """Return the products of deviations from the mean of another sum."""
    mean, n = centre[0, 1:] / centre[0, 0], products[0, 0]
    crossed = np.outer(products[0, 1:], mean)
    return products[1:, 1:] - crossed - crossed.T + n * np.outer(mean, mean)


def _errors(
    train: Products, test: Products, penalties: Float[np.ndarray, " penalties"], d_model: int
) -> tuple[Float[np.ndarray, " penalties"], float]:
    """Return the squared errors over test's tokens of regressions on train's, and of train's mean."""
    own, other = _about(train, train), _about(test, train)
    values, basis = np.linalg.eigh(own[d_model:, d_model:])
    along, crossed = basis.T @ own[d_model:, :d_model], basis.T @ other[d_model:, :d_model]
    squares = (basis.T @ other[d_model:, d_model:] @ basis) * (along @ along.T)
    products, total = (along * crossed).sum(axis=1), float(np.trace(other[:d_model, :d_model]))
    errors = []
    for penalty in penalties:
        known = values > 1e-10 * values.max()  # the others are rounding
        shrunk = np.zeros_like(values)
        shrunk[known] = 1 / (values[known] + penalty * values.mean())
        errors.append(total - 2 * shrunk @ products + shrunk @ squares @ shrunk)
    return np.array(errors), total


def _held_out(folds: Float[np.ndarray, "fold row row"], d_model: int) -> tuple[float, float]:
    """Return the share of variance explained in folds by regressions on the others, and the median penalty."""
    if len(folds) < 3:
        return np.nan, np.nan
    errors, total = 0.0, 0.0
    chosen: list[float] = []
    for held in range(len(folds)):
        rest = np.delete(folds, held, axis=0)
        inner = [
            _errors(np.delete(rest, at, axis=0).sum(axis=0), rest[at], PENALTIES, d_model)[0]
            for at in range(len(rest))
        ]
        best = int(np.sum(inner, axis=0).argmin())
        found, of_mean = _errors(rest.sum(axis=0), folds[held], PENALTIES[[best]], d_model)
        errors, total = errors + found[0], total + of_mean
        chosen.append(PENALTIES[best])
    return 1 - errors / total, float(np.median(chosen))
