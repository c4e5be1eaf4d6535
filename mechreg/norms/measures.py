"""Measures of an update beside its norm: its size and direction against the stream, other tokens and other parts."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import einops
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechreg.forward import Act
from mechreg.models import HOOK_POINTS, WHOLE_HOOKS, Model, hook_name, is_per_head, record_of
from mechreg.schema import InputError, RunMeasure, require_names

MEASURES: tuple[str, ...] = (*get_args(RunMeasure), "projection")
_UPDATES = ("result", "attn_out", "mlp_out")
# The hooks at which each measure is defined.
_HOOKS_OF = {
    "norm": tuple(HOOK_POINTS),
    "relative": _UPDATES,
    "cos_resid": _UPDATES,
    "cos_previous": tuple(HOOK_POINTS),
    "cos_layer_below": WHOLE_HOOKS,
    "cos_mlp": _UPDATES,
    "step": WHOLE_HOOKS,
    "projection": (*WHOLE_HOOKS, "result"),
}
Heads = Float[Tensor, "batch head pos d"]  # one head at hook points that have none


def known_measures(measures: str | Sequence[str], hooks: Sequence[str], direction: Any) -> list[str]:
    """Return the names of measures, after checking that each is known and defined at every hook."""
    names = require_names(measures, MEASURES, name="measures", least=0)
    for measure in names:
        for hook in hooks:
            if hook not in _HOOKS_OF[measure]:
                raise InputError(
                    f"The measure {measure!r} exists for the hooks {', '.join(_HOOKS_OF[measure])}; got {hook!r}. "
                    "Extract that hook in a separate call."
                )
    if ("projection" in names) != (direction is not None):
        raise InputError(
            "The measure 'projection' and direction= belong together: give a vector of d_model numbers, or a dict of "
            "one by layer."
        )
    return names


def as_numbers(values: Any) -> np.ndarray:
    """Return numbers, such as a tensor on any device, as an array in float64; an empty one where they are none."""
    values = values.detach().cpu().double() if isinstance(values, Tensor) else values  # NumPy has no bfloat16
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty(0)


class LayerMeasures:
    """Reduces the vectors of one layer and batch to measures, once all of the required vectors have arrived.

    ``captured`` gets an entry (hook.measure, layer) for each; the layer's vectors are then let go.
    """

    def __init__(
        self,
        model: Model,
        hooks: Sequence[str],
        measures: Sequence[str],
        direction: Any,
        captured: dict[tuple[str, int], Tensor],
    ) -> None:
        self.hooks, self.measures, self.captured = hooks, measures, captured
        self.has_mid = "blocks.0.hook_resid_mid" in model.hook_dict  # parallel blocks have none
        self.directions = {} if direction is None else _unit_directions(model, direction)
        wanted = {point for hook in hooks for measure in measures for point in self._points(hook, measure)}
        self.points = [hook for hook in HOOK_POINTS if hook in wanted]
        self.acts = [
            (hook_name(point, layer), self._hold(point, layer))
            for point in self.points
            for layer in range(model.cfg.n_layers)
        ]
        self.held: dict[str, Tensor] = {}
        self.below: dict[str, Tensor] = {}

    def _points(self, hook: str, measure: str) -> tuple[str, ...]:
        """Return the hook points that a measure of a hook needs."""
        if measure in ("relative", "cos_resid"):
            return hook, self._stream(hook)
        if measure == "cos_mlp":
            return hook, _other(hook)
        return ("resid_pre", "resid_post") if measure == "step" else (hook,)

    def _stream(self, hook: str) -> str:
        """Return the stream that an update is added to."""
        return "resid_mid" if hook == "mlp_out" and self.has_mid else "resid_pre"

    def _hold(self, point: str, layer: int) -> Act:
        def hold(vectors: Tensor) -> None:
            self.held[point] = _heads(vectors)
            if len(self.held) == len(self.points):
                for hook in self.hooks:
                    for measure in self.measures:
                        value = self._measured(hook, measure, layer)
                        one = value if is_per_head(hook) else value[:, 0]
                        self.captured[f"{hook}.{measure}", layer] = one
                self.below = dict(self.held) if "cos_layer_below" in self.measures else {}
                self.held.clear()

        return hold

    def _measured(self, hook: str, measure: str, layer: int) -> Float[Tensor, "batch head pos"]:
        held = self.held
        if measure == "step":
            return _length(held["resid_post"] - held["resid_pre"])
        vectors = held[hook]
        if measure == "relative":
            return _over(_length(vectors), _length(held[self._stream(hook)]))
        if measure == "cos_resid":
            return _cosine(vectors, held[self._stream(hook)])
        if measure == "cos_mlp":
            return _cosine(vectors, held[_other(hook)])
        if measure == "cos_previous":
            along = _cosine(vectors[:, :, 1:], vectors[:, :, :-1])
            return torch.nn.functional.pad(along, (1, 0), value=torch.nan)
        if measure == "cos_layer_below" and layer > 0:
            return _cosine(vectors, self.below[hook].to(vectors.device))
        if measure == "projection" and layer in self.directions:
            return vectors @ self.directions[layer].to(vectors)
        return torch.full_like(vectors[..., 0], torch.nan)


def _other(hook: str) -> str:
    return "attn_out" if hook == "mlp_out" else "mlp_out"


def _heads(vectors: Tensor) -> Heads:
    """Return a copy, in float32 or float64: some models go on to change a tensor in place."""
    wide = vectors.to(vectors.dtype if vectors.dtype == torch.float64 else torch.float32, copy=True)
    if wide.ndim == 4:
        return einops.rearrange(wide, "batch pos head d -> batch head pos d")
    return einops.rearrange(wide, "batch pos d -> batch 1 pos d")


def _length(vectors: Heads) -> Float[Tensor, "batch head pos"]:
    return einops.reduce(vectors.square(), "batch head pos d -> batch head pos", "sum").sqrt()


def _cosine(vectors: Heads, others: Float[Tensor, "batch other pos d"]) -> Float[Tensor, "batch head pos"]:
    product = einops.reduce(vectors * others, "batch head pos d -> batch head pos", "sum")
    return _over(product, _length(vectors) * _length(others))


def _over(
    numbers: Float[Tensor, "batch head pos"], lengths: Float[Tensor, "batch other pos"]
) -> Float[Tensor, "batch head pos"]:
    """Return quotients, NaN where a length is 0, infinite where it is not finite."""
    quotient = torch.where(lengths > 0, numbers / lengths, torch.nan)
    return torch.where(lengths.isfinite(), quotient, torch.inf)


def _unit_directions(model: Model, direction: Any) -> dict[int, Tensor]:
    """Return a direction by layer, of length 1 and in float64, after checking what the user gave."""
    layers, width = range(model.cfg.n_layers), int(model.cfg.d_model)
    given = direction if isinstance(direction, Mapping) else dict.fromkeys(layers, direction)
    units = {}
    for layer, vector in given.items():
        numbers = as_numbers(vector)
        length = np.linalg.norm(numbers)
        if layer not in layers or numbers.shape != (width,) or not 0 < length < np.inf:
            raise InputError(
                f"direction= must be {width} numbers for {record_of(model).name}, finite and not all 0, or a dict of "
                f"them by layer, 0 to {layers[-1]}; got {numbers.shape} for layer {layer!r}."
            )
        units[layer] = torch.from_numpy(numbers / length)
    return units
