"""Plans: one edit or control at one site, and the tokens that it changes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechreg.forward import Window
from mechreg.interventions.clean import CleanRun
from mechreg.interventions.edits import Ablate, Apply, Bound, Patch, Project, Rotate, Scale, moved_at_random
from mechreg.interventions.passes import Site
from mechreg.interventions.positions import others
from mechreg.interventions.seeding import directions, generator
from mechreg.interventions.set_norm import SetNorm
from mechreg.schema import InputError

Edit = Scale | Rotate | Project | Ablate | Patch | SetNorm


@dataclass
class Targets:
    """The tokens that are edited and those that controls take in their place, for all edits and layers."""

    clean: CleanRun
    windows: Sequence[Window]  # all of the token frame's, in its order
    edited: Bool[np.ndarray, " tokens"]
    n_layers: int
    drawn: dict[int, np.ndarray] = field(default_factory=dict)  # another layer for each window, by layer

    @cached_property
    def others(self) -> Bool[np.ndarray, " tokens"]:
        """As many other tokens of each window."""
        return others(self.clean.tokens, self.windows, self.edited, seed=self.clean.seed)

    @cached_property
    def window_of(self) -> Int[np.ndarray, " tokens"]:
        """The number of every token's window."""
        return np.repeat(np.arange(len(self.windows)), [window.length for window in self.windows])

    def other_layers(self, layer: int) -> Int[np.ndarray, " windows"]:
        """Return a layer other than this one for each window, drawn at random."""
        if layer not in self.drawn:
            free = [other for other in range(self.n_layers) if other != layer]
            starts = [window.start for window in self.windows]
            places = self.clean.tokens[["doc", "window"]].iloc[starts].itertuples(index=False)
            draws = (generator(self.clean.seed, "other_layer", *place, layer) for place in places)
            self.drawn[layer] = np.array([free[int(draw.integers(len(free)))] for draw in draws])
        return self.drawn[layer]


@dataclass(frozen=True)
class Plan:
    """One edit or control at one site, or at several together."""

    sites: tuple[Site, ...]
    edit: Edit
    control: str
    bound: Bound
    targets: Targets

    def __str__(self) -> str:
        return f"{self.edit.name} {self.edit.dose:g}, layer {'; '.join(map(str, self.sites))}"

    def masks(self, rows: Any = slice(None)) -> dict[Site, Bool[np.ndarray, "*rows"]]:
        """Return which of some rows of the token frame are edited, by site; no site without any."""
        targets, reach = self.targets, self.bound.reach
        where = (targets.others if self.control == "other_position" else targets.edited)[rows]
        if self.control == "other_layer":
            (site,) = self.sites
            drawn = targets.other_layers(site.layer)[targets.window_of[rows]]
            layers = np.unique(drawn[where])
            masks = {site._replace(layer=int(layer)): where & (drawn == layer) for layer in layers}
        else:
            masks = dict.fromkeys(self.sites, where)
        if reach is not None:
            masks = {site: mask & reach[site][rows] for site, mask in masks.items()}
        return {site: mask for site, mask in masks.items() if mask.any()}


def plan_of(targets: Targets, sites: tuple[Site, ...], edit: Edit, bound: Bound, control: str) -> Plan:
    """Return a plan; raise InputError if it would change no token."""
    if control == "random_direction":
        bound = bound._replace(apply=_in_random_direction(bound.apply, targets.clean))
    plan = Plan(sites, edit, control, bound, targets)
    if not plan.masks():
        raise InputError(
            f"{plan}{'' if control == 'none' else f', control {control!r}'}, changes no token: no chosen position has "
            "a value. Choose other positions=, layers= or values."
        )
    return plan


def _in_random_direction(apply: Apply, clean: CleanRun) -> Apply:
    def move(vectors: Tensor, rows: np.ndarray, site: Site) -> Tensor:
        options: Any = {"seed": clean.seed, "purpose": "random_direction", "site": site}
        drawn = directions(clean.tokens, rows, vectors.shape[1], **options)
        return moved_at_random(
            vectors, apply(vectors, rows, site), torch.from_numpy(drawn).to(vectors.device)
        )

    return move
