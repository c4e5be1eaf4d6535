"""A token frame run through a model batch by batch: shown to a function, or its mean loss."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechreg.findings.finding import Settings
from mechreg.forward import Act, Forward, Head, batches, next_token_losses, padded, token_windows
from mechreg.schema import InputError

Batch = tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]
# What is done with one block's activation in one batch, of which some tokens are real.
Look = Callable[[int, Tensor, Bool[Tensor, "batch pos"]], None]


def batches_of(model: Any, tokens: pd.DataFrame, settings: Settings) -> Iterator[Batch]:
    """Yield token ids with right padding, which no real token sees, and which of them are real."""
    windows = token_windows(model, tokens)
    with tqdm(
        total=len(tokens), unit="tok", unit_scale=True, disable=None if settings.progress else True
    ) as bar:
        for batch in batches(model, windows, settings.batch_tokens):
            ids, _, real = padded(model, tokens, batch)
            yield ids, torch.from_numpy(real).to(ids.device)
            bar.update(sum(window.length for window in batch))


def watch(model: Any, tokens: pd.DataFrame, point: str, look: Look, settings: Settings) -> None:
    """Show a function the activation of every block at one hook point, batch by batch.

    Parameters
    ----------
    model : TransformerLens model
    tokens : pandas.DataFrame
    point : str
        The hook point's name in a block, such as "hook_resid_post".
    look : function
        Of the block's number, the activation, and which tokens are real.
    settings : Settings

    Raises
    ------
    ModelError
        As `Forward`.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model, seen = load_model("mini-s"), []
    >>> look = lambda layer, stream, real: seen.append((layer, int(real.sum())))
    >>> watch(model, tokenize(model, ["A cat."]), "hook_resid_post", look, Settings())
    >>> [layer for layer, _ in seen]
    [0, 1, 2, 3]
    """

    def looking(layer: int, real: Bool[Tensor, "batch pos"]) -> Act:
        return lambda activation: look(layer, activation, real)

    for ids, real in batches_of(model, tokens, settings):
        acts = [(f"blocks.{layer}.{point}", looking(layer, real)) for layer in range(int(model.cfg.n_layers))]
        with Forward(model, acts) as run:
            run(ids)


def mean_loss(model: Any, tokens: pd.DataFrame, acts: Mapping[str, Act], settings: Settings) -> float:
    """Return the mean next-token cross-entropy in nats over all tokens that have a next one in their window.

    Raises
    ------
    InputError
        No window has two tokens.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> 0 < mean_loss(model, tokenize(model, ["Once upon a time."]), {}, Settings()) < 12
    True
    """
    total, count, head = 0.0, 0, Head(model)
    for ids, real in batches_of(model, tokens, settings):
        has_next = torch.zeros_like(real)
        has_next[:, :-1] = real[:, 1:]
        if has_next.any():
            with Forward(model, acts.items(), end=head.end) as run:
                losses = next_token_losses(run(ids), ids, has_next, head=head)
            total, count = total + float(np.sum(losses)), count + len(losses)
    if not count:
        raise InputError("A next-token loss needs a window of at least two tokens; there is none.")
    return total / count
