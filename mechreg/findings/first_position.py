"""The residual stream at position 0: its mean vector after every block, beside what the other positions have."""

from dataclasses import dataclass
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechreg.findings.finding import Settings
from mechreg.findings.forward import watch
from mechreg.forward import Act
from mechreg.schema import InputError


@dataclass(frozen=True)
class FirstPosition:
    """Statistics of resid_post in every block, over windows: ``mean`` and ``magnitude`` are those of position 0.

    ``elsewhere`` is the largest magnitude at any other position; ``median`` the mean over windows of the median
    magnitude over all of a window's positions and dimensions.
    """

    mean: Float[np.ndarray, "layer d_model"]
    magnitude: Float[np.ndarray, "layer d_model"]
    elsewhere: Float[np.ndarray, "layer d_model"]
    median: Float[np.ndarray, " layer"]

    @property
    def dimension(self) -> int:
        """The dimension with the largest mean in any block."""
        return int(np.abs(self.mean).max(axis=0).argmax())


def emerges(sizes: Float[np.ndarray, " layer"]) -> int:
    """Return the first block after which a dimension has half of its largest size.

    Examples
    --------
    >>> emerges(np.array([0.1, 2.0, 3.0, 0.5]))
    1
    """
    return int((sizes >= sizes.max() / 2).argmax())


def first_position(model: Any, tokens: pd.DataFrame, settings: Settings) -> FirstPosition:
    """Return the statistics of position 0 and of the others, from one pass over the token frame.

    Raises
    ------
    InputError
        No window has two tokens.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> first_position(model, tokenize(model, ["Once upon a time."]), Settings()).mean.shape
    (4, 64)
    """
    if int(tokens["position"].max()) < 1:
        raise InputError(
            "Position 0 is compared with the others, and no window has two tokens; give more text."
        )
    n_layers, d_model = int(model.cfg.n_layers), int(model.cfg.d_model)
    mean, magnitude, elsewhere = np.zeros((3, n_layers, d_model))
    median, n = np.zeros(n_layers), int((tokens["position"] == 0).sum())

    def look(layer: int, stream: Tensor, real: Bool[Tensor, "batch pos"]) -> None:
        first = stream[:, 0].double()
        mean[layer] += einops.reduce(first, "batch d_model -> d_model", "sum").cpu().numpy()
        magnitude[layer] += einops.reduce(first.abs(), "batch d_model -> d_model", "sum").cpu().numpy()
        lengths = einops.reduce(real.long(), "batch pos -> batch", "sum")
        for row, length in zip(stream.float().abs(), lengths.tolist(), strict=True):
            median[layer] += float(row[:length].median())
            if length > 1:
                largest = einops.reduce(row[1:length], "pos d_model -> d_model", "max")
                elsewhere[layer] = np.maximum(elsewhere[layer], largest.cpu().numpy())

    watch(model, tokens, "hook_resid_post", look, settings)
    return FirstPosition(mean / n, magnitude / n, elsewhere, median / n)


def setting(dimensions: list[int], values: Float[np.ndarray, " dimensions"]) -> Act:
    """Return what sets some dimensions at position 0 to given values, and leaves everything else alone.

    Examples
    --------
    >>> setting([1], np.array([5.0]))(torch.zeros(1, 2, 2)).tolist()
    [[[0.0, 5.0], [0.0, 0.0]]]
    """

    def act(stream: Tensor) -> Tensor:
        changed = stream.clone()
        changed[:, 0, dimensions] = torch.from_numpy(values).to(changed)
        return changed

    return act
