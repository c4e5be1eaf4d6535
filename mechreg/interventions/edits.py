"""Edits of a vector: scale it, turn it, take a direction out of it, or put another in its place."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechreg.forward import Window, token_windows
from mechreg.interventions.clean import CleanRun
from mechreg.interventions.passes import Site
from mechreg.interventions.seeding import directions
from mechreg.models import is_per_head
from mechreg.norms import as_numbers, token_frame
from mechreg.schema import InputError, require_number, require_option, require_whole_number

# Vectors in float64, their rows in the token frame, the site -> the vectors after the edit.
Apply = Callable[[Tensor, np.ndarray, Site], Tensor]
# Which tokens of each site an edit can change; None is all of them.
Reach = dict[Site, Bool[np.ndarray, " tokens"]]
Replacement = Literal["zero", "mean", "resample"]
Align = Literal["exact", "start", "end"]


class Bound(NamedTuple):
    """An edit of one model and corpus. ``prepare`` is called with a batch's rows before its passes."""

    apply: Apply
    reach: Reach | None = None
    prepare: Callable[[Int[np.ndarray, " rows"]], None] | None = None


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

    def bind(self, clean: CleanRun) -> Bound:
        """Return the edit bound to a model and corpus."""
        return Bound(lambda vectors, rows, site: vectors * self.factor)


@dataclass(frozen=True, eq=False)
class Rotate:
    """The vector turned by ``angle`` degrees; its norm does not change.

    It turns in a random plane that contains it, which belongs to the seed, the document, the position and the layer:
    it is the same for every angle, and does not depend on batches. 180 reverses the vector. With ``towards``, a
    direction as in `Project`, it turns in the plane of both, and past the direction where the angle is larger.

    Examples
    --------
    >>> Rotate(30, seed=1).dose, Rotate(30, towards=1).name
    (30.0, 'rotate_towards')
    """

    angle: float | int
    seed: int = 0
    towards: Any = None

    def __post_init__(self) -> None:
        require_number(self.angle, name="The angle of Rotate, in degrees,", example=30)
        require_whole_number(self.seed, name="seed", least=0)

    @property
    def name(self) -> str:
        """The name of the edit."""
        return "rotate" if self.towards is None else "rotate_towards"

    @property
    def dose(self) -> float:
        """The angle in degrees."""
        return float(self.angle)

    def bind(self, clean: CleanRun) -> Bound:
        """Return the edit bound to a model and corpus."""
        units = None if self.towards is None else _units(self.towards, clean, who="Rotate's towards=")

        def turn(vectors: Tensor, rows: np.ndarray, site: Site) -> Tensor:
            if units is None:
                options: Any = {"seed": self.seed, "purpose": "rotate", "site": site}
                other = torch.from_numpy(directions(clean.tokens, rows, vectors.shape[1], **options))
            else:
                other = units[site].expand_as(vectors)
            return rotated(vectors, other.to(vectors.device), float(self.angle))

        return Bound(turn)


@dataclass(frozen=True, eq=False)
class Project:
    """The vector's component along a direction times ``factor``; 0 takes it out, 1 changes nothing.

    Parameters
    ----------
    direction : int or array
        A principal component of the clean vectors of these documents, 1 for the first, computed at each layer (and
        head), its sign such that its largest entry is positive; or a vector of d_model (d_head at z), one for all
        layers, or "layer d", or "layer head d". Its length does not matter.
    factor : float

    Examples
    --------
    >>> Project(1).dose
    0.0
    """

    direction: Any
    factor: float | int = 0.0
    name: ClassVar[str] = "project"

    def __post_init__(self) -> None:
        require_number(self.factor, name="The factor of Project", example=0.0)

    @property
    def dose(self) -> float:
        """The factor."""
        return float(self.factor)

    def bind(self, clean: CleanRun) -> Bound:
        """Return the edit bound to a model and corpus."""
        units = _units(self.direction, clean, who="Project")

        def project(vectors: Tensor, rows: np.ndarray, site: Site) -> Tensor:
            unit = units[site].to(vectors.device)
            along = einops.einsum(vectors, unit, "rows d, d -> rows")
            return vectors + (self.factor - 1) * einops.einsum(along, unit, "rows, d -> rows d")

        return Bound(project)


@dataclass(frozen=True)
class Ablate:
    """The vector replaced: by zeros, by the corpus' mean at that layer, or by another document's vector.

    ``"mean"`` is over the clean vectors of all tokens; ``"resample"`` draws a token of another document for
    every token, by the seed of `intervene`. `Patch` takes the vectors of documents that you give.

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

    def bind(self, clean: CleanRun) -> Bound:
        """Return the edit bound to a model and corpus."""
        # Read now: within the edited pass the clean run would be edited too.
        if self.replacement == "zero":
            return Bound(lambda vectors, rows, site: torch.zeros_like(vectors))
        if self.replacement == "mean":
            means = clean.means
            return Bound(lambda vectors, rows, site: means[site].expand_as(vectors))
        pool = clean.donor_pool
        return Bound(lambda vectors, rows, site: clean.donors(pool, rows, site))


@dataclass(frozen=True, eq=False)
class Patch:
    """The vector of another document at the same position in its place.

    Parameters
    ----------
    source : documents
        As many as are edited, in the same order; anything that `intervene` takes as documents.
    share : float
        How much of the way to the other vector: the dose.
    align : {"exact", "start", "end"}
        "exact" refuses documents of unequal length. "start" counts positions from the first token of a window, "end"
        from the last; tokens without a partner are left as they are.

    Examples
    --------
    >>> Patch(["The cat sat on the mat."]).dose
    1.0
    """

    source: Any
    share: float | int = 1.0
    align: Align = "exact"
    name: ClassVar[str] = "patch"

    def __post_init__(self) -> None:
        require_number(self.share, name="The share of Patch", example=1.0)
        require_option(self.align, get_args(Align), name="align")

    @property
    def dose(self) -> float:
        """The share."""
        return float(self.share)

    def bind(self, clean: CleanRun) -> Bound:
        """Return the edit of a model and corpus; vectors are read batch by batch."""
        source = replace(clean, tokens=token_frame(clean.model, self.source).reset_index(drop=True))
        windows = token_windows(source.model, source.tokens)
        names, own = source.tokens["doc"].unique(), clean.tokens["doc"].unique()
        if isinstance(self.source, list | tuple) and len(names) < len(self.source) and [*names] != [*own]:
            raise InputError(
                "Patch takes sources in the order of the documents, and some of the sources have no token; leave them "
                "out, and the documents at their places."
            )
        partner = _partners(clean, source.tokens, windows, self.align)
        starts = np.array([window.start for window in windows])
        order: list[Int[np.ndarray, " rows"]] = []
        held: dict[Site, Float[Tensor, "rows d"]] = {}

        def prepare(rows: Int[np.ndarray, " rows"]) -> None:
            wanted = partner[rows]
            numbers = np.unique(np.searchsorted(starts, wanted[wanted >= 0], side="right") - 1)
            parts: dict[Site, list[Tensor]] = {}
            order.clear()

            def keep(site: Site, at: np.ndarray, vectors: Tensor) -> None:
                parts.setdefault(site, []).append(vectors.to(clean.dtype))
                if site == clean.sites[0]:
                    order.append(at)

            source.visit(keep, [windows[number] for number in numbers])
            held.clear()
            held.update({site: torch.cat(some) for site, some in parts.items()})

        def patch(vectors: Tensor, rows: np.ndarray, site: Site) -> Tensor:
            have = np.concatenate(order)
            sorted_rows = np.argsort(have)
            at = sorted_rows[np.searchsorted(have, partner[rows], sorter=sorted_rows)]
            return torch.lerp(vectors, held[site][torch.from_numpy(at)].to(vectors), float(self.share))

        return Bound(patch, dict.fromkeys(clean.sites, partner >= 0), prepare)


def rotated(
    vectors: Float[Tensor, "rows d"], other: Float[Tensor, "rows d"], degrees: float
) -> Float[Tensor, "rows d"]:
    """Return vectors turned by an angle towards the orthogonal part of the other ones; zeros stay zeros."""
    norms = einops.rearrange(_norms(vectors), "rows -> rows 1")
    unit = vectors / torch.where(norms > 0, norms, 1.0)
    upright = other
    for _ in range(2):  # once more, since a vector that is nearly parallel leaves few digits
        along = einops.rearrange(einops.einsum(upright, unit, "rows d, rows d -> rows"), "rows -> rows 1")
        upright = upright - along * unit
        upright = upright / einops.rearrange(_norms(upright), "rows -> rows 1")
    angle = math.radians(degrees)
    return math.cos(angle) * vectors + math.sin(angle) * norms * upright


def moved_at_random(
    vectors: Float[Tensor, "rows d"], edited: Float[Tensor, "rows d"], drawn: Float[Tensor, "rows d"]
) -> Float[Tensor, "rows d"]:
    """Return vectors moved as far as an edit moved them, in the direction of the drawn ones."""
    size = _norms(edited - vectors) / _norms(drawn)
    return vectors + einops.rearrange(size, "rows -> rows 1") * drawn


def _norms(vectors: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
    return einops.reduce(vectors.square(), "rows d -> rows", "sum").sqrt()


def _units(direction: Any, clean: CleanRun, *, who: str) -> dict[Site, Float[Tensor, " d"]]:
    """Return a direction at every site as a unit vector: a principal component by number, or what an array says."""
    cfg = clean.model.cfg
    width = int(cfg.d_head if clean.hook == "z" else cfg.d_model)
    if isinstance(direction, int | np.integer) and not isinstance(direction, bool):
        require_whole_number(direction, name=f"{who}: the principal component", most=width, least=1)
        if direction >= len(clean.tokens):
            raise InputError(
                f"{who}: principal component {direction} needs {direction + 1} tokens or more; the documents have "
                f"{len(clean.tokens)}."
            )
        return {site: components[int(direction) - 1] for site, components in clean.components.items()}
    array = as_numbers(direction)
    layers, heads = int(cfg.n_layers), int(cfg.n_heads)
    shapes = [(width,), (layers, width), *([(layers, heads, width)] if is_per_head(clean.hook) else [])]
    if array.shape not in shapes:
        got = array.shape if array.ndim and array.size else type(direction).__name__
        raise InputError(
            f"{who} needs a principal component by its number, or a direction of shape "
            f"{' or '.join(map(str, shapes))}; got {got}."
        )
    units = {}
    for site in clean.sites:
        vector = array if array.ndim == 1 else array[(site.layer, site.head)[: array.ndim - 1]]
        length = float(np.linalg.norm(vector))
        if not (np.isfinite(length) and length > 0):
            raise InputError(f"{who} needs finite directions that are not zero; layer {site} has none.")
        units[site] = torch.from_numpy(vector / length)
    return units


def _partners(
    clean: CleanRun, source: pd.DataFrame, theirs: list[Window], align: Align
) -> Int[np.ndarray, " tokens"]:
    """Return the source's row for every row, -1 where it has none."""
    own = token_windows(clean.model, clean.tokens)
    counts, their_counts = (
        part.groupby("doc", sort=False, observed=True)["window"].nunique().tolist()
        for part in (clean.tokens, source)
    )
    if counts != their_counts:
        raise InputError(
            "Patch needs a source for every document, in the same order and of as many windows; the documents have "
            f"{counts[:20]} windows and the source has {their_counts[:20]}."
        )
    partner = np.full(len(clean.tokens), -1)
    for window, other in zip(own, theirs, strict=True):
        if align == "exact" and window.length != other.length:
            raise InputError(
                f"Patch takes vectors by position, and document {clean.tokens['doc'].iat[window.start]!r} has "
                f"{window.length} tokens where its source has {other.length}; give prompts of equal length, or "
                "align='start' or 'end' (--align)."
            )
        n = min(window.length, other.length)
        skip = (window.length - n, other.length - n) if align == "end" else (0, 0)
        first = window.start + skip[0]
        partner[first : first + n] = np.arange(n) + other.start + skip[1]
    return partner
