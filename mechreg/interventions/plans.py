"""Plans: one edit or control at one layer, with the tokens that it changes and those that it can reach."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechreg.interventions.clean import CleanRun
from mechreg.interventions.draws import directions, generator
from mechreg.interventions.edits import Apply, Edit, Reach, moved_at_random
from mechreg.interventions.places import offsets, others
from mechreg.interventions.tallies import Tally
from mechreg.schema import InputError


@dataclass(frozen=True)
class Plan:
    """One edit or control at one layer (or at several together), and where its effects are summed."""

    layers: tuple[int, ...]
    edit: Edit
    control: str
    apply: Apply
    masks: dict[int, Bool[np.ndarray, " tokens"]]
    offset: Int[np.ndarray, " tokens"]
    effects: Tally
    cleans: Tally

    @property
    def reached(self) -> Bool[np.ndarray, " tokens"]:
        """The tokens that the edit can reach."""
        return self.offset >= 0


def plan_of(
    clean: CleanRun,
    n_layers: int,
    edited: Bool[np.ndarray, " tokens"],
    layers: tuple[int, ...],
    edit: Edit,
    bound: tuple[Apply, Reach | None],
    control: str,
    max_offset: int,
) -> Plan:
    """Return a plan, with the tokens that are edited in each layer.

    Raises
    ------
    InputError
        It would change no token.
    """
    tokens, seed = clean.tokens, clean.seed
    apply, reach = bound
    where = others(tokens, edited, seed=seed) if control == "other_position" else edited
    if control == "other_layer":
        (layer,) = layers
        masks = _other_layers(tokens, where, layer, n_layers, seed=seed)
    else:
        masks = dict.fromkeys(layers, where)
    if reach is not None:
        masks = {layer: mask & reach[layer] for layer, mask in masks.items()}
    masks = {layer: mask for layer, mask in masks.items() if mask.any()}
    if not masks:
        raise InputError(
            f"{edit.name} at layer {', '.join(map(str, layers))}"
            f"{'' if control == 'none' else f', control {control!r}'}, changes no token: no chosen position has a "
            "value. Choose other positions=, layers= or values."
        )
    if control == "random_direction":
        apply = _in_random_direction(apply, tokens, seed)
    offset = offsets(tokens["position"].to_numpy(np.int64), np.logical_or.reduce(list(masks.values())))
    shape = (tokens["doc"].nunique(), 3 + n_layers, max_offset)
    return Plan(layers, edit, control, apply, masks, offset, Tally(*shape), Tally(*shape))


def _in_random_direction(apply: Apply, tokens: pd.DataFrame, seed: int) -> Apply:
    def move(vectors: Tensor, rows: np.ndarray, layer: int) -> Tensor:
        options: Any = {"seed": seed, "purpose": "random_direction", "layer": layer}
        drawn = torch.from_numpy(directions(tokens, rows, vectors.shape[1], **options)).to(vectors.device)
        return moved_at_random(vectors, apply(vectors, rows, layer), drawn)

    return move


def _other_layers(
    tokens: pd.DataFrame, edited: Bool[np.ndarray, " tokens"], layer: int, n_layers: int, *, seed: int
) -> dict[int, Bool[np.ndarray, " tokens"]]:
    """Return the edited tokens of each layer but one, a layer drawn for each window."""
    free = [other for other in range(n_layers) if other != layer]
    start = np.arange(len(tokens)) - tokens["position"].to_numpy(np.int64)
    drawn = np.full(len(tokens), -1)
    for first in np.unique(start):
        draw = generator(seed, "other_layer", tokens["doc"].iat[first], tokens["window"].iat[first], layer)
        drawn[start == first] = free[int(draw.integers(len(free)))]
    return {other: edited & (drawn == other) for other in free}
