"""Visits: the activations of one hook point over a token frame, batch by batch."""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd
from torch import Tensor

from mechreg.forward.batches import Batch, Window, padded_batches
from mechreg.forward.passes import Act, Forward, token_bar
from mechreg.models import Model

# What is done with a layer's activation in a batch.
Look = Callable[[int, Tensor, Batch], None]


def visit(
    model: Model,
    tokens: pd.DataFrame,
    point: str,
    look: Look,
    *,
    batch_tokens: int,
    layers: Iterable[int] | None = None,
    windows: Sequence[Window] | None = None,
    quick: bool = False,
    progress: bool = False,
) -> None:
    """Call a function with every layer, or some, and its activation at a point such as "hook_resid_post"."""
    batch: Batch

    def looking(layer: int) -> Act:
        return lambda activation: look(layer, activation, batch)

    numbers = range(int(model.cfg.n_layers)) if layers is None else layers
    acts = [(f"blocks.{layer}.{point}", looking(layer)) for layer in numbers]
    with Forward(model, acts, end="acts", quick=quick) as run, token_bar(len(tokens), progress) as bar:
        for batch in padded_batches(model, tokens, batch_tokens, windows):
            run(batch.ids)
            bar.update(int(batch.real.sum()))
