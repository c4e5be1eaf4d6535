"""Forward passes, clean and edited: every edited pass has the shape and order of its clean one, so bits compare."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mechreg.forward import Act, Forward, Head
from mechreg.models import HOOK_POINTS, is_bridge, record_of
from mechreg.norms import vector_norms
from mechreg.schema import InputError, require_option

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
    """What one forward pass gave: a norm for each layer and token, what `Head` reads, and where to restart."""

    norms: Float[np.ndarray, "layer batch pos"]
    hidden: Shaped[Tensor, "batch pos d"] | None
    restarts: Mapping[int, Float[Tensor, "batch pos d_model"]]


class Passes:
    """Forward passes of one model with edits at one hook point and norms taken at another.

    Norms are what a layer computed, before the edit of that very place. An edited HookedTransformer restarts
    from the residual stream of the clean pass, at the first edited layer; a bridge cannot and runs whole.

    Parameters
    ----------
    model : TransformerLens model
    hook, norm_hook : str
    norms, logits : bool
        What is wanted of a pass; norms that are not are NaN.
    """

    def __init__(
        self, model: Any, *, hook: str, norm_hook: str, norms: bool = True, logits: bool = True
    ) -> None:
        for name, value in (("hook", hook), ("norm_hook", norm_hook)):
            require_option(value, EDITABLE, name=name)
        self.model, self.hook, self.norm_hook, self.norms = model, hook, norm_hook, norms
        self.name, self.n_layers = record_of(model).name, int(model.cfg.n_layers)
        if is_bridge(model) and hook == "resid_mid":
            # There it is an alias of the layer norm's input: the residual stream would go past the edit.
            raise InputError(
                "On a TransformerBridge hook_resid_mid is only what the second layer norm reads, so an edit there "
                "would not reach the residual stream; use backend='hooked', or edit attn_out or resid_pre."
            )
        used = (hook, norm_hook) if norms else (hook,)
        Forward(model, [(place, lambda activation: None) for name in used for place in self._places(name)])
        self.head = Head(model) if logits else None
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
        norms = np.full((self.n_layers, *tokens.shape), np.nan) if clean is None else clean.norms.copy()
        restarts: dict[int, Tensor] = {}

        def take(layer: int) -> Act:
            def act(activation: Tensor) -> None:
                norms[layer] = vector_norms(activation).double().cpu().numpy()

            return act

        def keep(layer: int) -> Act:
            return lambda activation: restarts.update({layer: activation.clone()})

        running = range(start, self.n_layers) if self.norms else ()
        acts = [(self._places(self.norm_hook)[i], take(i)) for i in running]
        acts += [(self._places("resid_pre")[i], keep(i)) for i in restart_at]
        acts += [(self._places(self.hook)[i], _replace(edit)) for i, edit in edits.items()]
        with Forward(self.model, acts, end="unembed" if self.head is None else self.head.end) as run:
            hidden = run(tokens, restart=None if stream is None else (start, stream))
        return Outcome(norms, None if self.head is None else hidden, restarts)

    def _places(self, hook: str) -> list[str]:
        return [f"blocks.{layer}.{HOOK_POINTS[hook][0]}" for layer in range(self.n_layers)]


def _replace(edit: Edited) -> Act:
    def act(activation: Tensor) -> Tensor:
        # Where a model is split, on this layer's device.
        changed, mask = activation.clone(), edit.mask.to(activation.device)
        changed[mask] = edit.change(activation[mask].double()).to(activation.dtype)
        return changed

    return act
