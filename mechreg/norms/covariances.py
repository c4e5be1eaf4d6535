"""Covariances of vectors, and of vectors with those before them, summed at the hook: no vector is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechreg.forward import Batch, visit
from mechreg.models import HOOK_POINTS, is_per_head, load_model, record_of
from mechreg.norms.covariates import token_frame
from mechreg.norms.reduction import BATCH_TOKENS, known_hooks, known_layers
from mechreg.schema import (
    InputError,
    require_names,
    require_shared,
    require_whole_number,
    require_whole_numbers,
)

Effect = Literal["window", "position"]
PENALTIES = 10.0 ** np.arange(-6, 2.5, 0.5)  # of the regressors' mean variance


class Moments(NamedTuple):
    """Sums over the tokens of each fold, of a vector and those before it side by side."""

    products: Float[np.ndarray, "fold row row"]
    levels: Float[np.ndarray, "fold position column"]  # the number of tokens, then the sums of the vectors

    def of(self, folds: Sequence[int] | None = None) -> "Moments":
        """Return the sums over some folds, all by default, as one fold."""
        chosen = slice(None) if folds is None else list(folds)
        return Moments(*(part[chosen].sum(axis=0, keepdims=True) for part in self))


@dataclass(frozen=True, kw_only=True, repr=False)
class VectorCovariances:
    """What `vector_covariances` returns: sums of products by layer and by fold of documents."""

    model: str
    hook: str
    lags: tuple[int, ...]
    n_layers: int
    n_docs: int
    d_model: int
    moments: Mapping[int, Moments]

    def __repr__(self) -> str:
        return f"VectorCovariances({self.model}, {self.hook}: layers {list(self.moments)}, lags {list(self.lags)})"

    def effective_dimension(self) -> pd.DataFrame:
        """Return by layer the participation ratio of the covariance's eigenvalues, (sum)^2 / sum of squares.

        It is between 1 (one direction) and d_model (all alike); with n independent tokens its inverse is too large by
        about 1 / n (Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement").
        """
        rows = []
        for layer, moments in self.moments.items():
            own = _about(moments.of(), moments.of())[: self.d_model, : self.d_model]
            ratio = np.trace(own) ** 2 / np.square(own).sum()
            rows.append(self._place(layer) | {"d_model": self.d_model, "effective_dimension": ratio})
        return pd.DataFrame(rows)

    def explained(self) -> pd.DataFrame:
        """Return by layer the share of the vectors' variance that a vector autoregression on those before explains.

        ``in_sample`` is of least squares on all tokens, which grows with d_model * lags / n whatever the text says.
        ``held_out`` is of documents that had no part in the regression: ridge, its ``penalty`` (in units of the
        regressors' mean variance) chosen in folds of the other documents alone; 0 is as good as their mean, and a
        worse forecast is below 0. NaN without folds.
        """
        rows = []
        for layer, moments in self.moments.items():
            errors, total = _errors(moments.of(), moments.of(), np.zeros(1), self.d_model)
            held_out, penalty = _held_out(moments, self.d_model)
            shares = {"in_sample": 1 - errors[0] / total, "held_out": held_out, "penalty": penalty}
            rows.append(self._place(layer) | {"lags": len(self.lags)} | shares)
        return pd.DataFrame(rows)

    def _place(self, layer: int) -> dict[str, Any]:
        place = {"model": self.model, "hook": self.hook, "layer": layer}
        n = int(self.moments[layer].levels[..., 0].sum())
        return place | {"depth": (layer + 0.5) / self.n_layers, "n": n, "n_docs": self.n_docs}


def vector_covariances(
    model: Any,
    documents: Any,
    *,
    hook: str = "attn_out",
    layers: int | Sequence[int] | None = None,
    lags: int | Sequence[int] = (1,),
    skip: int = 1,
    effects: Effect | Sequence[Effect] = (),
    folds: int = 4,
    batch_tokens: int = BATCH_TOKENS,
) -> VectorCovariances:
    """Return covariances of one hook point's vectors and of those before them, of one pass over any corpus.

    Memory is ``folds * ((lags + 1) * d_model)^2`` float64 numbers a layer, however many tokens there are; effects of
    positions take ``folds * (lags + 1) * d_model`` more for each.

    Parameters
    ----------
    model, documents, batch_tokens
        As for `extract_norms`, of one model; `shuffle_tokens` gives a token frame in which order says nothing.
    hook : str
        One that has one vector a token.
    layers : int or sequence of int, optional
    lags : int or sequence of int
        How many tokens back; they do not cross a window.
    skip : int
        So many first positions of each window are neither outcome nor lag.
    effects : sequence of str
        What is taken off every vector first: the mean of its "window", then that of its "position" over windows
        (of documents that are not held out). Without them most of what the vectors share with those before is levels.
    folds : int
        Documents are dealt into so many, 3 or more, to forecast each from the others; 1 keeps no folds.

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
    lags = tuple(require_whole_numbers(lags, name="lags", least=1))
    require_shared(skip=skip, batch_tokens=batch_tokens)
    effects = require_names(effects, get_args(Effect), name="effects", least=0)
    require_whole_number(folds, name="folds")
    chosen, tokens = known_layers(model, layers), token_frame(model, documents)
    doc, docs = pd.factorize(tokens["doc"])
    if folds == 2 or len(docs) < folds:
        raise InputError(f"folds must be 1, or 3 to the number of documents, {len(docs)}; got {folds}.")
    fold, position, first = doc % folds, tokens["position"].to_numpy(), skip + max(lags)
    if not np.bincount(fold[position >= first], minlength=folds).all():
        raise InputError(f"A fold of documents has no token with {first} before it; give longer documents.")
    summed = _Sums(lags, effects, first=first, fold=fold, shape=(folds, int(position.max()) + 1))
    point = HOOK_POINTS[hook].place
    visit(model, tokens, point, summed.add, layers=chosen, batch_tokens=batch_tokens, quick=True)
    moments = {layer: Moments(*(part.numpy(force=True) for part in summed.sums[layer])) for layer in chosen}
    about: dict[str, Any] = {"model": record_of(model).name, "hook": hook, "lags": lags, "n_docs": len(docs)}
    about |= {"n_layers": int(model.cfg.n_layers), "d_model": int(model.cfg.d_model)}
    return VectorCovariances(**about, moments=moments)


class _Sums:
    """The sums of every layer."""

    def __init__(
        self,
        lags: tuple[int, ...],
        effects: list[Effect],
        *,
        first: int,
        fold: np.ndarray,
        shape: tuple[int, int],
    ) -> None:
        self.lags, self.effects, self.first, self.fold, self.shape = (0, *lags), effects, first, fold, shape
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, layer: int, vectors: Float[Tensor, "batch pos d_model"], batch: Batch) -> None:
        """Add a batch's vectors."""
        first, end, device = self.first, vectors.shape[1], vectors.device
        if end <= first:
            return
        there = torch.from_numpy(batch.real[:, first:]).to(device)
        fold = torch.from_numpy(self.fold[batch.rows[:, first:]]).to(device)
        beside = torch.cat([vectors[:, first - lag : end - lag] for lag in self.lags], dim=2).double()
        if "window" in self.effects:
            weights = there.double() / there.sum(dim=1, keepdim=True).clamp(min=1)
            means = einops.einsum(beside, weights, "batch pos row, batch pos -> batch row")
            beside = beside - einops.rearrange(means, "batch row -> batch 1 row")
        position = torch.arange(end - first, device=device) * ("position" in self.effects)
        position = einops.repeat(position, "pos -> batch pos", batch=len(beside))
        products, levels = self._of(layer, beside)
        for at in range(self.shape[0]):
            counted = there & (fold == at)
            rows = beside[counted]
            products[at] += einops.einsum(rows, rows, "token row, token column -> row column")
            counts = torch.cat([torch.ones_like(rows[:, :1]), rows], dim=1)
            levels[at].index_add_(0, position[counted], counts)

    def _of(self, layer: int, beside: Float[Tensor, "batch pos row"]) -> tuple[Tensor, Tensor]:
        """Return a layer's sums, which are zero at first."""
        if layer not in self.sums:
            (folds, longest), width = self.shape, beside.shape[2]
            positions = longest if "position" in self.effects else 1
            shapes = ((folds, width, width), (folds, positions, 1 + width))
            products, levels = (beside.new_zeros(shape) for shape in shapes)
            self.sums[layer] = products, levels
        return self.sums[layer]


def _about(part: Moments, centre: Moments) -> Float[np.ndarray, "row row"]:
    """Return the products of deviations from another part's means, by position where there are positions."""
    n, sums = part.levels[0, :, 0], part.levels[0, :, 1:]
    known, of_centre = centre.levels[0, :, :1], centre.levels[0, :, 1:]
    # A position that the other part does not have has its mean over all positions.
    mean = np.where(known > 0, of_centre / np.maximum(known, 1), of_centre.sum(axis=0) / known.sum())
    crossed = sums.T @ mean
    return part.products[0] - crossed - crossed.T + (n * mean.T) @ mean


def _errors(
    train: Moments, test: Moments, penalties: Float[np.ndarray, " penalties"], d_model: int
) -> tuple[Float[np.ndarray, " penalties"], float]:
    """Return the squared errors over test's tokens of regressions on train's, and of train's mean."""
    own, other = _about(train, train), _about(test, train)
    values, basis = np.linalg.eigh(own[d_model:, d_model:])
    along, crossed = basis.T @ own[d_model:, :d_model], basis.T @ other[d_model:, :d_model]
    squares = (basis.T @ other[d_model:, d_model:] @ basis) * (along @ along.T)
    products, total = (along * crossed).sum(axis=1), float(np.trace(other[:d_model, :d_model]))
    known = values > 1e-10 * values.max()  # the others are rounding
    errors = []
    for penalty in penalties:
        shrunk = np.where(known, 1 / np.where(known, values + penalty * values.mean(), 1), 0)
        errors.append(total - 2 * shrunk @ products + shrunk @ squares @ shrunk)
    return np.array(errors), total


def _held_out(moments: Moments, d_model: int) -> tuple[float, float]:
    """Return the share of variance explained in folds by regressions on the others, and the median penalty."""
    folds = range(len(moments.products))
    if len(folds) < 3:
        return np.nan, np.nan
    left, total = 0.0, 0.0
    chosen: list[float] = []
    for held in folds:
        rest = [at for at in folds if at != held]
        inner = sum(
            _errors(moments.of([at for at in rest if at != tried]), moments.of([tried]), PENALTIES, d_model)[
                0
            ]
            for tried in rest
        )
        best = int(np.argmin(inner))
        errors, of_mean = _errors(moments.of(rest), moments.of([held]), PENALTIES[[best]], d_model)
        left, total = left + errors[0], total + of_mean
        chosen.append(PENALTIES[best])
    return 1 - left / total, float(np.median(chosen))
