"""Edits of a vector: scale it, turn it, replace it, or give it another norm."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechreg.interventions.clean import CleanRun
from mechreg.interventions.seeding import directions
from mechreg.models import record_of
from mechreg.outside import to_pandas
from mechreg.schema import (
    TOKEN_KEYS,
    InputError,
    NumericalError,
    require,
    require_number,
    require_option,
    require_whole_number,
)

# Vectors in float64, their rows in the token frame, the layer -> the vectors after the edit.
Apply = Callable[[Tensor, np.ndarray, int], Tensor]
# Which tokens of each layer an edit can change; None is all of them.
Reach = dict[int, Bool[np.ndarray, " tokens"]]
Replacement = Literal["zero", "mean", "resample"]


@dataclass(frozen=True)
class Scale:
    """The vector times ``factor``: its size changes, its direction does not; 1 changes nothing.

    Examples
    --------
    >>> Scale(0.5).dose
    0.5
    """

    factor: float | int
    name: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        require_number(self.factor, name="The factor of Scale", example=0.5)

    @property
    def dose(self) -> float:
        """The factor."""
        return float(self.factor)

    def bind(self, clean: CleanRun) -> tuple[Apply, Reach | None]:
        """Return the function of vectors, and the tokens it can change."""
        return (lambda vectors, rows, layer: vectors * self.factor), None


@dataclass(frozen=True)
class Rotate:
    """The vector turned by ``angle`` degrees in a random plane that contains it; its norm does not change.

    The plane belongs to the seed, the document, the position and the layer: it is the same for every angle,
    and does not depend on batches. 180 turns the vector around.

    Examples
    --------
    >>> Rotate(30, seed=1).dose
    30.0
    """

    angle: float | int
    seed: int = 0
    name: ClassVar[str] = "rotate"

    def __post_init__(self) -> None:
        require_number(self.angle, name="The angle of Rotate, in degrees,", example=30)
        require_whole_number(self.seed, name="seed", least=0)

    @property
    def dose(self) -> float:
        """The angle in degrees."""
        return float(self.angle)

    def bind(self, clean: CleanRun) -> tuple[Apply, Reach | None]:
        """Return the function of vectors, and the tokens it can change."""

        def turn(vectors: Tensor, rows: np.ndarray, layer: int) -> Tensor:
            options: Any = {"seed": self.seed, "purpose": "rotate", "layer": layer}
            drawn = directions(clean.tokens, rows, vectors.shape[1], **options)
            return rotated(vectors, torch.from_numpy(drawn).to(vectors.device), float(self.angle))

        return turn, None


@dataclass(frozen=True)
class Ablate:
    """The vector replaced: by zeros, by the corpus' mean at that layer, or by another document's vector.

    ``"mean"`` is over the clean vectors of all tokens; ``"resample"`` draws a token of another document for
    every token, by the seed of `intervene`.

    Examples
    --------
    >>> Ablate("mean").name
    'ablate_mean'
    """

    replacement: Replacement = "zero"
    dose: ClassVar[float] = float("nan")  # a vector is replaced or it is not

    def __post_init__(self) -> None:
        require_option(self.replacement, get_args(Replacement), name="Ablate's replacement")

    @property
    def name(self) -> str:
        """The name of the edit, with the replacement."""
        return f"ablate_{self.replacement}"

    def bind(self, clean: CleanRun) -> tuple[Apply, Reach | None]:
        """Return the function of vectors, and the tokens it can change."""
        # Read now: within the edited pass the clean run would be edited too.
        if self.replacement == "zero":
            return (lambda vectors, rows, layer: torch.zeros_like(vectors)), None
        if self.replacement == "mean":
            means = clean.means
            return (lambda vectors, rows, layer: means[layer].expand_as(vectors)), None
        pool = clean.donor_pool
        return (lambda vectors, rows, layer: clean.donors(pool, rows, layer)), None


@dataclass(frozen=True, eq=False)
class SetNorm:
    """The vector stretched or shrunk to a norm of its own for every token; its direction does not change.

    Parameters
    ----------
    values : pandas.DataFrame, array or function
        A frame of doc, window, position, layer, norm: tokens without a row, or with NaN, are left as they are.
        If it has model or hook, only the rows of the model and hook that are edited are taken. An array of
        layer x token, in the order of the token frame, NaN likewise. Or a function of a frame with one layer's clean
        norms (the token frame's columns, layer, norm) that gives the new norms.
    dose : float
        The value of the column ``dose``.

    Examples
    --------
    >>> SetNorm(lambda clean: clean["norm"].clip(upper=10.0), dose=10.0).dose
    10.0
    """

    values: Any
    dose: float | int = float("nan")
    name: ClassVar[str] = "set_norm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", to_pandas(self.values))
        if isinstance(self.values, pd.DataFrame):
            require(self.values, (*TOKEN_KEYS, "layer", "norm"), who="SetNorm")
        elif not callable(self.values) and np.ndim(self.values) != 2:
            raise InputError(
                "SetNorm needs a frame of doc, window, position, layer and norm, an array of layer x token, or a "
                f"function of a frame of clean norms; got {type(self.values).__name__}."
            )

    def bind(self, clean: CleanRun) -> tuple[Apply, Reach | None]:
        """Return the function of vectors, and the tokens it can change."""
        wanted = self._wanted(clean)
        for layer, values in wanted.items():
            bad = ~np.isnan(values) & ~(np.isfinite(values) & (values >= 0))
            if bad.any():
                raise InputError(
                    f"SetNorm needs norms of 0 or more, all finite; got {values[int(bad.argmax())]} in layer {layer}."
                )

        def resize(vectors: Tensor, rows: np.ndarray, layer: int) -> Tensor:
            norms = _norms(vectors)
            if not bool((norms > 0).all()):
                place = clean.tokens.iloc[int(rows[int((norms <= 0).int().argmax())])]
                raise NumericalError(
                    f"SetNorm needs a direction, and the vector of layer {layer}, document {place['doc']!r}, window "
                    f"{place['window']}, position {place['position']} is zero."
                )
            target = torch.from_numpy(wanted[layer][rows]).to(vectors)
            return vectors * einops.rearrange(target / norms, "rows -> rows 1")

        return resize, {layer: ~np.isnan(values) for layer, values in wanted.items()}

    def _wanted(self, clean: CleanRun) -> dict[int, Float[np.ndarray, " tokens"]]:
        """Return the norm of every token in each layer, NaN where it is left as it is."""
        if isinstance(self.values, pd.DataFrame):
            return _from_frame(self.values, clean)
        n_tokens = len(clean.tokens)
        if not callable(self.values):
            array = np.asarray(self.values, dtype="float64")
            shape = (int(clean.model.cfg.n_layers), n_tokens)
            if array.shape != shape:
                raise InputError(f"SetNorm needs an array of layer x token, {shape}; got {array.shape}.")
            return {layer: array[layer] for layer in clean.layers}
        wanted = {}
        for layer in clean.layers:
            frame = clean.tokens.assign(layer=layer, norm=clean.norms[layer])
            wanted[layer] = np.asarray(self.values(frame), dtype="float64")
            if wanted[layer].shape != (n_tokens,):
                raise InputError(
                    f"SetNorm's function must give one norm for each of {n_tokens} tokens; got shape "
                    f"{wanted[layer].shape}."
                )
        return wanted


class Surprise(SetNorm):
    """Norms set so many residual standard deviations from their predictions: what `surprise_edits` gives."""

    name: ClassVar[str] = "surprise"


Edit = Scale | Rotate | Ablate | SetNorm


def rotated(
    vectors: Float[Tensor, "rows d_model"], drawn: Float[Tensor, "rows d_model"], degrees: float
) -> Float[Tensor, "rows d_model"]:
    """Return vectors turned by an angle towards the orthogonal part of the drawn ones; zeros stay zeros."""
    norms = einops.rearrange(_norms(vectors), "rows -> rows 1")
    unit = vectors / torch.where(norms > 0, norms, 1.0)
    upright = drawn
    for _ in range(2):  # once more, since a drawn vector that is nearly parallel leaves few digits
        along = einops.rearrange(einops.einsum(upright, unit, "rows d, rows d -> rows"), "rows -> rows 1")
        upright = upright - along * unit
        upright = upright / einops.rearrange(_norms(upright), "rows -> rows 1")
    angle = math.radians(degrees)
    return math.cos(angle) * vectors + math.sin(angle) * norms * upright


def moved_at_random(
    vectors: Float[Tensor, "rows d_model"],
    edited: Float[Tensor, "rows d_model"],
    drawn: Float[Tensor, "rows d_model"],
) -> Float[Tensor, "rows d_model"]:
    """Return vectors moved as far as an edit moved them, in the direction of the drawn ones."""
    size = _norms(edited - vectors) / _norms(drawn)
    return vectors + einops.rearrange(size, "rows -> rows 1") * drawn


def _norms(vectors: Float[Tensor, "rows d_model"]) -> Float[Tensor, " rows"]:
    return einops.reduce(vectors.square(), "rows d_model -> rows", "sum").sqrt()


def _from_frame(frame: pd.DataFrame, clean: CleanRun) -> dict[int, Float[np.ndarray, " tokens"]]:
    """Return a frame's norms by layer, in the order of the token frame."""
    for key, edited in (("model", record_of(clean.model).name), ("hook", clean.hook)):
        if key in frame.columns:
            have = sorted(frame[key].astype("str").unique())
            frame = frame[frame[key].astype("str") == edited]
            if frame.empty:
                raise InputError(f"SetNorm's frame has no rows of the {key} {edited!r}; it has {have}.")
    frame = frame[frame["norm"].notna()].astype({"doc": "str"})
    keys = pd.MultiIndex.from_frame(clean.tokens[[*TOKEN_KEYS]].astype({"doc": "str"}))
    wanted = {layer: np.full(len(clean.tokens), np.nan) for layer in clean.layers}
    for layer, values in wanted.items():
        part = frame[frame["layer"] == layer]
        if part.duplicated([*TOKEN_KEYS]).any():
            raise InputError(
                f"SetNorm needs one norm for each token; the frame has two for one token in layer {layer}."
            )
        at: Int[np.ndarray, " rows"] = keys.get_indexer(pd.MultiIndex.from_frame(part[[*TOKEN_KEYS]]))
        part, at = part[at >= 0], at[at >= 0]
        if "token_id" in part and (clean.tokens["token_id"].to_numpy()[at] != part["token_id"]).any():
            raise InputError(
                "SetNorm's frame has other token ids at these places; give the frame of these texts."
            )
        values[at] = part["norm"].to_numpy(dtype="float64")
    if all(np.isnan(values).all() for values in wanted.values()):
        raise InputError("SetNorm's frame has no norm for any of these documents' tokens in these layers.")
    return wanted
