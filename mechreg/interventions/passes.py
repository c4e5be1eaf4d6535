"""Forward passes, clean and edited: every edited pass has the shape and order of its clean one, so bits compare."""

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechreg.models import HOOK_POINTS, is_bridge, record_of
from mechreg.norms import active_dropouts, vector_norms
from mechreg.schema import InputError, ModelError, require_option

# Hook points with one vector of d_model for each token.
EDITABLE = tuple(hook for hook, (_, axes) in HOOK_POINTS.items() if axes == "batch pos d_model")
# Vectors in float64, in the order of the mask's rows, to their replacements.
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Edited:
    """What is done at one layer: which vectors of the batch are changed, and how."""

    mask: Bool[Tensor, "batch pos"]
    change: Change


@dataclass(frozen=True)
class Outcome:
    """What one forward pass gave: a norm for each layer and token, logits where wanted, and where to restart."""

    norms: Float[np.ndarray, "layer batch pos"]
    logits: Float[Tensor, "batch pos d_vocab"] | None
    restarts: Mapping[int, Float[Tensor, "batch pos d_model"]]


class Passes:
    """Forward passes of one model with edits at one hook point and norms taken at another.

    Norms are what a layer computed, before the edit of that very place. An edited HookedTransformer restarts
    from the residual stream of the clean pass, at the first edited layer; a bridge cannot and runs whole.

    Parameters
    ----------
    model : TransformerLens model
    hook, norm_hook : str
    logits : bool
        Without them a pass ends before the unembedding.
    """

    def __init__(self, model: Any, *, hook: str, norm_hook: str, logits: bool = True) -> None:
        for name, value in (("hook", hook), ("norm_hook", norm_hook)):
            require_option(value, EDITABLE, name=name)
        self.model, self.hook, self.norm_hook, self.logits = model, hook, norm_hook, logits
        self.name, self.n_layers = record_of(model).name, int(model.cfg.n_layers)
        dropouts = active_dropouts(model)
        if dropouts:
            raise ModelError(
                f"{self.name} is in training mode, so that dropout ({dropouts[0]} and {len(dropouts) - 1} more) "
                "makes its numbers random; call model.eval() first."
            )
        if getattr(model.cfg, "attention_dir", "causal") != "causal":
            raise ModelError(f"{self.name} reads in both directions; mechreg reads causal language models.")
        if is_bridge(model) and hook == "resid_mid":
            # There it is an alias of the layer norm's input: the residual stream would go past the edit.
            raise InputError(
                "On a TransformerBridge hook_resid_mid is only what the second layer norm reads, so an edit there "
                "would not reach the residual stream; use backend='hooked', or edit attn_out or resid_pre."
            )
        for name in (hook, norm_hook):
            lacking = [place for place in self._places(name) if place not in model.hook_dict]
            if lacking:
                raise ModelError(
                    f"{self.name} has no hook point {lacking[0]!r} ({len(lacking)} of {self.n_layers} are not "
                    "there); describe_model lists those it has."
                )
        self.can_restart = (
            not is_bridge(model) and getattr(model.cfg, "positional_embedding_type", "") != "shortformer"
        )

    def clean(self, tokens: Int[Tensor, "batch pos"], *, restart_at: Collection[int] = ()) -> Outcome:
        """Return the pass without an edit, which keeps what edits at the layers ``restart_at`` can start from."""
        return self._run(tokens, edits={}, restart_at=restart_at if self.can_restart else ())

    def edited(
        self, tokens: Int[Tensor, "batch pos"], edits: Mapping[int, Edited], clean: Outcome | None = None
    ) -> Outcome:
        """Return the pass with the edits of some layers; where it restarts, the norms below are the clean pass's.

        Raises
        ------
        ModelError
            An edit did not fire once, or a layer's norms were not computed once.
        """
        return self._run(tokens, edits=edits, clean=clean)

    def _run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        edits: Mapping[int, Edited],
        restart_at: Collection[int] = (),
        clean: Outcome | None = None,
    ) -> Outcome:
        start = min(edits, default=0)
        stream = None if clean is None else clean.restarts.get(start)
        if stream is None:
            start = 0
        counts: dict[tuple[str, int], int] = {}
        norms = np.full((self.n_layers, *tokens.shape), np.nan) if clean is None else clean.norms.copy()
        restarts: dict[int, Tensor] = {}

        def counted(what: str, layer: int, act: Callable[[Tensor], Tensor | None]) -> Any:
            counts[what, layer] = 0

            def fire(activation: Tensor, hook: Any = None) -> Tensor | None:
                counts[what, layer] += 1
                if activation.shape[:2] != tokens.shape:
                    raise ModelError(
                        f"{self.name}: the hook point of {what} in layer {layer} gave {activation.shape[1]} "
                        f"positions for {tokens.shape[1]} tokens."
                    )
                return act(activation)

            return fire

        def take(layer: int) -> Callable[[Tensor], None]:
            def act(activation: Tensor) -> None:
                norms[layer] = vector_norms(activation).double().cpu().numpy()

            return act

        def keep(layer: int) -> Callable[[Tensor], None]:
            return lambda activation: restarts.update({layer: activation.clone()})

        running = range(start, self.n_layers)
        hooks = [
            (self._places(self.norm_hook)[i], counted(f"norms ({self.norm_hook})", i, take(i)))
            for i in running
        ]
        hooks += [(self._places("resid_pre")[i], counted("resid_pre", i, keep(i))) for i in restart_at]
        hooks += [
            (self._places(self.hook)[i], counted(f"the edit ({self.hook})", i, _replace(edit)))
            for i, edit in edits.items()
        ]
        options: dict[str, Any] = {} if stream is None else {"start_at_layer": start}
        if is_bridge(self.model):
            options["use_cache"] = False
        elif getattr(self.model.tokenizer, "padding_side", "right") == "left":
            # HookedTransformer would take leading BOS ids for padding, and move all positions.
            options["attention_mask"] = torch.ones_like(tokens)
        logits = None
        with ExitStack() as undo:
            undo.enter_context(torch.inference_mode())
            undo.enter_context(self.model.hooks(fwd_hooks=hooks))
            if not self.logits:
                undo.callback(self.model.unembed.register_forward_pre_hook(_stop).remove)
            with suppress(_Stop):
                logits = self.model(tokens if stream is None else stream, return_type="logits", **options)
        for (what, layer), times in counts.items():
            if times != 1:
                raise ModelError(
                    f"{self.name}: {what} in layer {layer} fired {'not at all' if times == 0 else f'{times} times'} "
                    "in one forward pass; every one must fire once."
                )
        return Outcome(norms, logits, restarts)

    def _places(self, hook: str) -> list[str]:
        return [f"blocks.{layer}.{HOOK_POINTS[hook][0]}" for layer in range(self.n_layers)]


def _replace(edit: Edited) -> Callable[[Tensor], Tensor]:
    def act(activation: Tensor) -> Tensor:
        changed, mask = (
            activation.clone(),
            edit.mask.to(activation.device),
        )  # where a model is split: this layer's
        changed[mask] = edit.change(activation[mask].double()).to(activation.dtype)
        return changed

    return act


class _Stop(Exception):
    """Raised in a forward pass once all that is wanted is there."""


def _stop(module: Any, inputs: Any) -> None:
    raise _Stop
