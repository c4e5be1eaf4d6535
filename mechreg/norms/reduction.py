"""Forward passes that leave one float per hook point, layer and token."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechreg.models import HOOK_POINTS, fused, input_device, is_bridge, record_of
from mechreg.norms.batches import Window, batches, token_windows
from mechreg.norms.next_token import batch_losses
from mechreg.norms.transfer import Arriving, one_late, to_device
from mechreg.schema import InputError, ModelError, NumericalError, require, require_option

# Longer batches give no more tokens per second on two cores and cost memory; shorter ones are slower.
BATCH_TOKENS = 2048


def window_norms(
    model: Any,
    tokens: pd.DataFrame,
    *,
    hooks: Sequence[str] = ("attn_out",),
    batch_tokens: int = BATCH_TOKENS,
    surprisal: bool = False,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Return the norms of a token frame's rows, an array for each hook point: the frame's rows in its order.

    Parameters
    ----------
    model : TransformerLens model
    tokens : pandas.DataFrame
        What `tokenize` gives: doc, window, position, token_id.
    hooks, batch_tokens, progress
        As in `extract_norms`.
    surprisal : bool
        The same passes go on to the logits, and give every token's surprisal under the entry "surprisal".

    Returns
    -------
    dict of str to numpy.ndarray
        "layer token", or "layer head token" for z and result; float32, or float64 of a float64 model. Surprisal
        is "token", in nats and float64, NaN at position 0, which nothing predicts.

    Raises
    ------
    InputError, ModelError, NumericalError
        As in `extract_norms`.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> window_norms(model, tokenize(model, ["Once upon a time."]))["attn_out"].shape[0]
    4
    """
    hooks = known_hooks(hooks)
    require(tokens, ("doc", "window", "position", "token_id"), who="window_norms")
    dropouts = active_dropouts(model)
    if dropouts:
        raise ModelError(
            f"{record_of(model).name} is in training mode, so that dropout ({dropouts[0]} and "
            f"{len(dropouts) - 1} more) makes its numbers random; call model.eval() first."
        )
    windows = token_windows(model, tokens)
    ids = tokens["token_id"].to_numpy(np.int64)
    cfg, parameter = model.cfg, next(iter(model.parameters()))
    dtype = np.float64 if parameter.dtype == torch.float64 else np.float32
    values = {
        hook: np.empty((cfg.n_layers, *([cfg.n_heads] if is_per_head(hook) else []), len(ids)), dtype)
        for hook in hooks
    }
    surprisals = np.full(len(ids), np.nan)
    with (
        _ReducedRun(model, hooks, logits=surprisal) as run,
        tqdm(total=len(ids), unit="tok", unit_scale=True, disable=None if progress else True) as bar,
    ):

        def passes() -> Iterator[tuple[list[Window], Arriving[tuple[str, int]]]]:
            for batch in batches(windows, batch_tokens):
                # Right padding: with causal attention no real token can see it, so it needs no mask.
                padded = np.zeros((len(batch), batch[0].length), np.int64)
                for row, window in enumerate(batch):
                    padded[row, : window.length] = ids[window.rows]
                batch_ids = to_device(padded, input_device(model))
                arriving = Arriving(run.norms(batch_ids))
                if run.logits is not None:
                    losses = batch_losses(run.logits, batch_ids, [window.length for window in batch])
                    for row, window in enumerate(batch):
                        surprisals[window.rows][1:] = losses[row, : window.length - 1]
                yield batch, arriving

        for batch, arriving in one_late(passes()):
            for (hook, layer), norms in arriving.arrays().items():
                for row, window in enumerate(batch):
                    real = norms[row, ..., : window.length]
                    if not np.isfinite(real).all():
                        raise _not_finite(model, hook, layer, real, tokens.iloc[window.rows])
                    values[hook][layer, ..., window.rows] = real
            bar.update(sum(window.length for window in batch))
    if surprisal:
        _require_finite_surprisal(model, surprisals, tokens)
        values["surprisal"] = surprisals
    return values


def vector_norms(activation: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos"]:
    """Return the L2 norm over d_model of one hook point, at every token.

    Half-precision activations are squared in float32, where their sum neither overflows nor rounds.

    Examples
    --------
    >>> vector_norms(torch.ones(1, 2, 4))
    tensor([[2., 2.]])
    """
    wide = activation if activation.dtype == torch.float64 else activation.float()
    return einops.reduce(wide.square(), "batch pos d -> batch pos", "sum").sqrt()


def head_norms(activation: Float[Tensor, "batch pos head d"]) -> Float[Tensor, "batch head pos"]:
    """Return the L2 norm of every head's vector at every token, over d_head (z) or d_model (result).

    Examples
    --------
    >>> head_norms(torch.ones(1, 3, 2, 4)).shape
    torch.Size([1, 2, 3])
    """
    wide = activation if activation.dtype == torch.float64 else activation.float()
    return einops.reduce(wide.square(), "batch pos head d -> batch head pos", "sum").sqrt()


def active_dropouts(model: Any) -> list[str]:
    """Return the names of the dropout modules that are switched on.

    Examples
    --------
    >>> from mechreg import load_model
    >>> active_dropouts(load_model("mini-s"))
    []
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.training and module.p > 0
    ]


def known_hooks(hooks: Sequence[str]) -> list[str]:
    """Return the names of hook points as a list, each known and given once.

    Raises
    ------
    InputError
        Lists the right names.

    Examples
    --------
    >>> known_hooks("attn_out")
    ['attn_out']
    """
    hooks = [hooks] if isinstance(hooks, str) else list(hooks)
    for hook in hooks:
        require_option(hook, list(HOOK_POINTS), name="hooks")
    if not hooks or len(set(hooks)) < len(hooks):
        raise InputError(f"hooks must name at least one hook point, each once; got {hooks}.")
    return hooks


def is_per_head(hook: str) -> bool:
    """Return whether a hook point has a vector for every head.

    Examples
    --------
    >>> is_per_head("z"), is_per_head("attn_out")
    (True, False)
    """
    return "head" in HOOK_POINTS[hook][1].split()


class _Stop(Exception):
    """Raised in a forward pass once all that is wanted is there."""


class _ReducedRun:
    """Forward passes with a hook at every wanted hook point, each leaving one float per token.

    The hooks are on the model within the ``with`` block only. They know their layer from a closure: on a
    bridge a hook point's own name may be an alias of the one that was asked for.
    """

    def __init__(self, model: Any, hooks: Sequence[str], *, logits: bool = False) -> None:
        self.model, self.name = model, record_of(model).name
        self.wants_logits, self.logits = logits, None
        self.wanted = [(hook, layer) for hook in hooks for layer in range(model.cfg.n_layers)]
        self.places = {key: f"blocks.{key[1]}.{HOOK_POINTS[key[0]][0]}" for key in self.wanted}
        lacking = [place for place in self.places.values() if place not in model.hook_dict]
        if lacking:
            raise ModelError(
                f"{self.name} has no hook point {lacking[0]!r} ({len(lacking)} of {len(self.places)} are not "
                "there); describe_model lists those it has."
            )
        if getattr(model.cfg, "attention_dir", "causal") != "causal":
            raise ModelError(f"{self.name} reads in both directions; mechreg reads causal language models.")
        # Gated off by default: TransformerLens lists the hook point and never fires it.
        self.split_heads = "result" in hooks and not model.cfg.use_attn_result
        self.seen_whole = False

    def __enter__(self) -> "_ReducedRun":
        with ExitStack() as undo:
            if self.split_heads:
                try:
                    self.model.set_use_attn_result(True)
                except (
                    NotImplementedError
                ) as error:  # what TransformerLens raises of attention that it cannot split
                    raise ModelError(f"{self.name} has no hook 'result': {error}") from error
                undo.callback(self.model.set_use_attn_result, False)
            undo.enter_context(fused(self.model))
            hooks = [(place, self._capture(key)) for key, place in self.places.items()]
            undo.enter_context(self.model.hooks(fwd_hooks=hooks))
            self.undo = undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.undo.__exit__(*error)

    def norms(self, tokens: Int[Tensor, "batch pos"]) -> dict[tuple[str, int], Tensor]:
        """Return the norms at every (hook, layer), "batch pos" or "batch head pos", of one forward pass."""
        if not self.seen_whole:
            # Once, two tokens go through all blocks, so that a block that runs twice is seen to; after that
            # each pass ends at the last hook point wanted.
            with self.model.unembed.register_forward_pre_hook(_stop):
                self._forward(tokens[:1, :2], whole=True)
            self.seen_whole = True
        return self._forward(tokens, whole=False)

    def _forward(self, tokens: Int[Tensor, "batch pos"], *, whole: bool) -> dict[tuple[str, int], Tensor]:
        self.captured: dict[tuple[str, int], Tensor] = {}
        self.fired = dict.fromkeys(self.wanted, 0)
        self.whole = whole
        options: dict[str, Any] = {}
        if is_bridge(self.model):
            options["use_cache"] = False
        elif getattr(self.model.tokenizer, "padding_side", "right") == "left":
            # HookedTransformer would take leading BOS ids for padding, and move all positions.
            options["attention_mask"] = torch.ones_like(tokens)
        with torch.inference_mode(), suppress(_Stop):
            output = self.model(tokens, return_type="logits" if self.wants_logits else None, **options)
            self.logits = output if self.wants_logits else None
        for (hook, layer), times in self.fired.items():
            if times != 1:
                raise ModelError(
                    f"{self.name}: the hook point {hook!r} of layer {layer} fired "
                    f"{'not at all' if times == 0 else f'{times} times'} in one forward pass; every layer must "
                    "fire once."
                )
            if self.captured[hook, layer].shape[-1] != tokens.shape[1]:
                raise ModelError(
                    f"{self.name}: the hook point {hook!r} of layer {layer} gave "
                    f"{self.captured[hook, layer].shape[-1]} positions for {tokens.shape[1]} tokens."
                )
        return self.captured

    def _capture(self, key: tuple[str, int]) -> Any:
        reduced = head_norms if is_per_head(key[0]) else vector_norms

        def capture(activation: Tensor, hook: Any = None) -> None:
            self.fired[key] += 1
            self.captured[key] = reduced(activation)
            if len(self.captured) == len(self.wanted) and not (self.whole or self.wants_logits):
                raise _Stop

        return capture


def _stop(module: Any, inputs: Any) -> None:
    raise _Stop


def _require_finite_surprisal(model: Any, surprisals: np.ndarray, tokens: pd.DataFrame) -> None:
    bad = ~np.isfinite(surprisals) & (tokens["position"].to_numpy() > 0)
    if bad.any():
        token = tokens.iloc[int(bad.argmax())]
        raise NumericalError(
            f"The surprisal of model {record_of(model).name!r}, document {token['doc']!r}, window {token['window']}, "
            f"position {token['position']} is NaN or infinite (check the weights, or use dtype='float32')."
        )


def _not_finite(model: Any, hook: str, layer: int, norms: np.ndarray, tokens: pd.DataFrame) -> NumericalError:
    """Return the error that names the first NaN or infinite norm of a window, "pos" or "head pos"."""
    place = np.argwhere(~np.isfinite(norms))[0]
    token = tokens.iloc[int(place[-1])]
    head = f", head {place[0]}" if is_per_head(hook) else ""
    return NumericalError(
        f"The activation of model {record_of(model).name!r}, hook {hook!r}, layer {layer}{head}, document "
        f"{token['doc']!r}, window {token['window']}, position {token['position']} is NaN or infinite; "
        "no norm of this run can be trusted (check the weights, or use dtype='float32')."
    )
