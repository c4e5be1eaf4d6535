"""Forward passes that leave one float per hook point, layer and token."""

from collections.abc import Iterator, Sequence
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechreg.forward import (
    Act,
    Arriving,
    Batch,
    Forward,
    Head,
    next_token_losses,
    one_late,
    padded_batches,
    token_bar,
    token_windows,
)
from mechreg.models import HOOK_POINTS, Model, dtype_of, hook_name, is_per_head, record_of
from mechreg.norms.heads import require_heads_add_up
from mechreg.norms.measures import LayerMeasures, known_measures
from mechreg.outside import any_frames
from mechreg.schema import NumericalError, require, require_names, require_shared, require_whole_numbers
from mechreg.words import token_place

# Longer batches give no more tokens per second on two cores and cost memory; shorter ones are slower.
BATCH_TOKENS = 2048


@any_frames
def window_norms(
    model: Model,
    tokens: pd.DataFrame,
    *,
    hooks: Sequence[str] = ("attn_out",),
    measures: Sequence[str] = ("norm",),
    direction: Any = None,
    batch_tokens: int = BATCH_TOKENS,
    surprisal: bool = False,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Return the norms of a token frame's rows, in its order: for each hook point "layer token" or "layer head token".

    They are float32, or float64 of a float64 model. Options are those of `extract_norms`; further measures have entries
    of their own, such as "attn_out.cos_resid". With ``surprisal`` the same passes go on to the logits, for the entry
    "surprisal": nats, "token", NaN at position 0, which nothing predicts.
    """
    hooks = known_hooks(hooks)
    further = [name for name in known_measures(measures, hooks, direction) if name != "norm"]
    require_shared(batch_tokens=batch_tokens)
    require(tokens, ("doc", "window", "position", "token_id"), who="window_norms")
    captured: dict[tuple[str, int], Tensor] = {}
    acts = _norm_acts(model, hooks, captured)
    if further:
        acts += LayerMeasures(model, hooks, further, direction, captured).acts
    run = Forward(model, acts, end="unembed" if surprisal else "acts", quick=True)
    windows = token_windows(model, tokens)
    if "result" in hooks:
        require_heads_add_up(model)
    head = Head(model) if surprisal else None
    if head is not None:
        run.end = head.end
    values = {
        name: _empty(model, hook, len(tokens))
        for hook in hooks
        for name in (hook, *(f"{hook}.{measure}" for measure in further))
    }
    surprisals = np.full(len(tokens), np.nan)

    def passes() -> Iterator[tuple[Batch, Arriving[tuple[str, int]]]]:
        for batch in padded_batches(model, tokens, batch_tokens, windows):
            hidden = run(batch.ids)
            arriving = Arriving(captured)
            if head is not None and batch.has_next.any():
                losses = next_token_losses(hidden, batch.ids, batch.mask(batch.has_next), head=head)
                surprisals[batch.rows[batch.has_next] + 1] = losses
            yield batch, arriving

    with run, token_bar(len(tokens), progress) as bar:
        for batch, arriving in one_late(passes()):
            rows, arrays = batch.rows[batch.real], arriving.arrays()
            for name, target in values.items():
                layers = np.stack([arrays[name, layer] for layer in range(len(target))])
                found = einops.rearrange(layers, "layer batch ... pos -> layer ... batch pos")[
                    ..., batch.real
                ]
                bad = ~np.isfinite(found) if name in hooks else np.isinf(found)
                if bad.any():
                    raise _not_finite(model, name, bad, tokens.iloc[rows])
                target[..., rows] = found
            bar.update(len(rows))
    if surprisal:
        bad = ~np.isfinite(surprisals) & (tokens["position"].to_numpy() > 0)
        if bad.any():
            raise _not_finite(model, "surprisal", bad, tokens)
        values["surprisal"] = surprisals
    return values


def _empty(model: Model, hook: str, n_tokens: int) -> np.ndarray:
    heads = [model.cfg.n_heads] if is_per_head(hook) else []
    return np.empty((model.cfg.n_layers, *heads, n_tokens), kept_dtype(model))


def _norm_acts(
    model: Model, hooks: Sequence[str], captured: dict[tuple[str, int], Tensor]
) -> list[tuple[str, Act]]:
    """Return the functions that keep norms; each knows its layer, since a bridge's hook name may be an alias."""

    def capture(hook: str, layer: int) -> Act:
        reduced = head_norms if is_per_head(hook) else vector_norms
        return lambda activation: captured.update({(hook, layer): reduced(activation)})

    layers = range(model.cfg.n_layers)
    return [(hook_name(hook, layer), capture(hook, layer)) for hook in hooks for layer in layers]


def kept_dtype(model: Model) -> np.dtype[Any]:
    """Return what a model's numbers are kept in: float64 of a float64 model, else float32."""
    return np.dtype("float64" if dtype_of(model) == torch.float64 else "float32")


def widened(activation: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return an activation in float32, or in float64 where it is."""
    return activation if activation.dtype == torch.float64 else activation.float()


def vector_norms(activation: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos"]:
    """Return the L2 norm over d_model of one hook point, at every token.

    Half-precision activations are squared in float32, where their sum neither overflows nor rounds.
    """
    return einops.reduce(widened(activation).square(), "batch pos d -> batch pos", "sum").sqrt()


def head_norms(activation: Float[Tensor, "batch pos head d"]) -> Float[Tensor, "batch head pos"]:
    """Return the L2 norm of every head's vector at every token, over d_head (z) or d_model (result)."""
    return einops.reduce(widened(activation).square(), "batch pos head d -> batch head pos", "sum").sqrt()


def known_hooks(hooks: str | Sequence[str]) -> list[str]:
    """Return the names of hook points, one or many, as a list, each known and given once."""
    return require_names(hooks, HOOK_POINTS, name="hooks")


def known_layers(model: Model, layers: int | Sequence[int] | None) -> list[int]:
    """Return the numbers of a model's layers that an option ``layers=`` names, all of them for None."""
    n_layers = int(model.cfg.n_layers)
    return require_whole_numbers(
        range(n_layers) if layers is None else layers, name="layers", most=n_layers - 1
    )


def _not_finite(model: Model, name: str, bad: np.ndarray, tokens: pd.DataFrame) -> NumericalError:
    """Return the error that names the first bad value: "token", "layer token" or "layer head token"."""
    *place, at = np.argwhere(bad)[0]
    where = "".join(f", {axis} {number}" for axis, number in zip(("layer", "head"), place, strict=False))
    what = f"activation of model {record_of(model).name!r}, hook {name!r}{where}"
    if name == "surprisal":
        what = f"surprisal of model {record_of(model).name!r}"
    return NumericalError(
        f"The {what}, {token_place(tokens, at)} is NaN or infinite; "
        " no norm of this run can be trusted (check the weights, or use dtype='float32')."
    )
