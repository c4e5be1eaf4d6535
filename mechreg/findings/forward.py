"""Forward passes over a token frame, with functions called at hook points; each must be called once a pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechreg.findings.finding import Settings
from mechreg.interventions.clean import padded
from mechreg.models import is_bridge, record_of
from mechreg.norms import active_dropouts, batches, next_token_losses, token_windows
from mechreg.schema import InputError, ModelError

# What is done at a hook point: looks at the activation, and may give another in its place.
Act = Callable[[Tensor], Tensor | None]
Batch = tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]
# What is done with one block's activation in one batch, of which some tokens are real.
Look = Callable[[int, Tensor, Bool[Tensor, "batch pos"]], None]


def batches_of(model: Any, tokens: pd.DataFrame, settings: Settings) -> Iterator[Batch]:
    """Yield token ids with right padding, which no real token sees, and which of them are real."""
    windows = token_windows(model, tokens)
    with tqdm(
        total=len(tokens), unit="tok", unit_scale=True, disable=None if settings.progress else True
    ) as bar:
        for batch in batches(windows, settings.batch_tokens):
            ids, _, real = padded(model, tokens, batch)
            yield ids, real.to(ids.device)
            bar.update(sum(window.length for window in batch))


def forward(
    model: Any, ids: Int[Tensor, "batch pos"], acts: Mapping[str, Act], *, logits: bool = True
) -> Float[Tensor, "batch pos d_vocab"] | None:
    """Return the logits of one pass, or None without them, with each function called at its hook point.

    Parameters
    ----------
    model : TransformerLens model
    ids : tensor
    acts : mapping of str to function
        Names of hook points, such as "blocks.0.hook_resid_post". Where a function returns a tensor, the model
        goes on with that.
    logits : bool
        Without them the pass ends before the unembedding.

    Raises
    ------
    ModelError
        A hook point is not there, did not fire exactly once, or dropout is on.

    Examples
    --------
    >>> from mechreg import load_model
    >>> model, seen = load_model("mini-s"), []
    >>> act = lambda activation: seen.append(tuple(activation.shape))
    >>> forward(model, torch.tensor([[1, 2, 3]]), {"blocks.0.hook_resid_post": act}, logits=False)
    >>> seen
    [(1, 3, 64)]
    """
    name = record_of(model).name
    dropouts = active_dropouts(model)
    if dropouts:
        raise ModelError(
            f"{name} is in training mode, so that dropout makes its numbers random; call model.eval() first."
        )
    for place in acts:
        if place not in model.hook_dict:
            raise ModelError(f"{name} has no hook point {place!r}; describe_model lists those it has.")
    fired = dict.fromkeys(acts, 0)

    def counted(place: str, act: Act) -> Any:
        def fire(activation: Tensor, hook: Any = None) -> Tensor | None:
            fired[place] += 1
            return act(activation)

        return fire

    options: dict[str, Any] = {}
    if is_bridge(model):
        options["use_cache"] = False
    elif getattr(model.tokenizer, "padding_side", "right") == "left":
        # HookedTransformer would take leading BOS ids for padding, and move all positions.
        options["attention_mask"] = torch.ones_like(ids)
    given = None
    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode())
        undo.enter_context(
            model.hooks(fwd_hooks=[(place, counted(place, act)) for place, act in acts.items()])
        )
        if not logits:
            undo.callback(model.unembed.register_forward_pre_hook(_stop).remove)
        with suppress(_Stop):
            given = model(ids, return_type="logits", **options)
    for place, times in fired.items():
        if times != 1:
            raise ModelError(
                f"{name}: the hook point {place!r} fired {'not at all' if times == 0 else f'{times} times'} in one "
                "forward pass; it must fire once."
            )
    return given


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
        As `forward`.

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
        acts = {f"blocks.{layer}.{point}": looking(layer, real) for layer in range(int(model.cfg.n_layers))}
        forward(model, ids, acts, logits=False)


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
    total, count = 0.0, 0
    for ids, real in batches_of(model, tokens, settings):
        has_next = torch.zeros_like(real)
        has_next[:, :-1] = real[:, 1:]
        if has_next.any():
            found = forward(model, ids, acts)
            assert found is not None
            losses = next_token_losses(found, ids, has_next)
            total, count = total + float(np.sum(losses)), count + len(losses)
    if not count:
        raise InputError("A next-token loss needs a window of at least two tokens; there is none.")
    return total / count


class _Stop(Exception):
    """Raised in a forward pass once all that is wanted is there."""


def _stop(module: Any, inputs: Any) -> None:
    raise _Stop
