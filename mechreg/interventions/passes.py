"""Forward passes, clean and edited: every edited pass has the shape and order of its clean one, so bits compare."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mechreg.forward import Act, Forward, Head
from mechreg.models import HOOK_POINTS, Model, is_bridge, record_of
from mechreg.norms import vector_norms
from mechreg.schema import InputError, require_option

# Hook points with one vector of d_model for each token.
EDITABLE = tuple(hook for hook, (_, axes) in HOOK_POINTS.items() if axes == "batch pos d_model")
# Vectors in float64, in the order of the mask's rows, to their replacements.
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Edited:
    """An edit of one layer in one batch: which vectors are changed, and how."""

    mask: Bool[Tensor, "batch pos"]
    change: Change


@dataclass(frozen=True)
class Outcome:
    """The results of one pass: the norm of every layer and token, what `Head` reads, and where to restart."""

    norms: Float[np.ndarray, "layer batch pos"]
    hidden: Shaped[Tensor, "batch pos d"] | None
    restarts: Mapping[int, Float[Tensor, "batch pos d_model"]]


class Passes:
    """Forward passes of one model with edits at one hook point, which give ``norms`` at another, ``logits``, or both.

    Norms are what a layer computed, before the edit of that very place. An edited HookedTransformer restarts
    from the residual stream of the clean pass, at the first edited layer; a bridge cannot and runs whole.
    """

    def __init__(
        self, model: Model, *, hook: str, norm_hook: str, norms: bool = True, logits: bool = True
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

    def run(
        self,
        ids: Int[Tensor, "batch pos"],
        edits: Mapping[int, Edited] | None = None,
        clean: Outcome | None = None,
        *,
        restart_at: Collection[int] = (),
    ) -> Outcome:
        """Return a pass with the edits of some layers; one without keeps what passes that ``restart_at`` layers need.

        Where the edited pass restarts from the clean one, the norms below are the clean pass's.
        """
        edits = edits or {}
        start = min(edits, default=0)
        stream = None if clean is None else clean.restarts.get(start)
        first = 0 if stream is None else start
        norms = np.full((self.n_layers, *ids.shape), np.nan) if clean is None else clean.norms.copy()
        restarts: dict[int, Tensor] = {}

        def take(layer: int) -> Act:
            def act(activation: Tensor) -> None:
                norms[layer] = vector_norms(activation).double().cpu().numpy()

            return act

        def keep(layer: int) -> Act:
            return lambda activation: restarts.update({layer: activation.clone()})

        running = range(first, self.n_layers) if self.norms else ()
        acts = [(self._places(self.norm_hook)[i], take(i)) for i in running]
        acts += [(self._places("resid_pre")[i], keep(i)) for i in (restart_at if self.can_restart else ())]
        acts += [(self._places(self.hook)[i], _replace(edit)) for i, edit in edits.items()]
        with Forward(self.model, acts, end="unembed" if self.head is None else self.head.end) as forward:
            hidden = forward(ids, restart=None if stream is None else (first, stream))
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
