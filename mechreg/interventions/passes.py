"""Forward passes, clean and edited: every edited pass has the shape and order of its clean one, so bits compare."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mechreg.forward import Act, Forward, Head
from mechreg.models import HOOK_POINTS, WHOLE_HOOKS, Model, hook_name, is_bridge, record_of
from mechreg.norms import vector_norms
from mechreg.schema import InputError, require_option

# Vectors in float64, in the order of the mask's rows, to their replacements.
Change = Callable[[Tensor], Tensor]


class Site(NamedTuple):
    """A layer, and a head of it where a hook point has one vector for each head."""

    layer: int
    head: int = -1

    def __str__(self) -> str:
        return f"{self.layer}" if self.head < 0 else f"{self.layer}, head {self.head}"

    def of(self, activation: Shaped[Tensor, "batch pos ..."]) -> Shaped[Tensor, "batch pos d"]:
        """Return the site's own part of what its layer gave, as a view."""
        return activation if self.head < 0 else activation[:, :, self.head]


@dataclass(frozen=True)
class Edited:
    """An edit of one site in one batch: which vectors are changed, and how."""

    mask: Bool[Tensor, "batch pos"]
    change: Change


@dataclass(frozen=True)
class Outcome:
    """The results of one pass: norms, what `Head` reads, where to restart, and what later passes are held against.

    ``distances`` are the norms of differences from the clean pass.
    """

    norms: Float[np.ndarray, "layer batch pos"]
    distances: Float[np.ndarray, "layer batch pos"]
    hidden: Shaped[Tensor, "batch pos d"] | None
    restarts: Mapping[int, Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)
    kept: Mapping[tuple[str, int], Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)


class Passes:
    """Forward passes of one model with edits at one hook point, which give ``norms`` at another, ``logits``, or both.

    Norms are what a layer computed, before the edit of that very place. An edited HookedTransformer restarts
    from the residual stream of the clean pass, at the first edited layer; a bridge cannot and runs whole.
    """

    def __init__(
        self,
        model: Model,
        *,
        hook: str,
        norm_hook: str,
        norms: bool = True,
        logits: bool = True,
        distances: bool = False,
        direct: bool = False,
    ) -> None:
        require_option(hook, (*HOOK_POINTS,), name="hook")
        require_option(norm_hook, WHOLE_HOOKS, name="norm_hook")
        self.model, self.hook, self.norm_hook, self.norms = model, hook, norm_hook, norms
        self.distances, self.direct = distances, direct
        self.name, self.n_layers = record_of(model).name, int(model.cfg.n_layers)
        if is_bridge(model) and hook == "resid_mid":
            # There it is an alias of the layer norm's input: the residual stream would go past the edit.
            raise InputError(
                "On a TransformerBridge hook_resid_mid is only what the second layer norm reads, so an edit there "
                "would not reach the residual stream; use backend='hooked', or edit attn_out or resid_pre."
            )
        used = (hook, *([norm_hook] if norms else []), *(["attn_out"] if direct else []))
        Forward(model, [(place, lambda activation: None) for name in used for place in self._places(name)])
        self.head = Head(model) if logits else None
        self.can_restart = (
            not is_bridge(model) and getattr(model.cfg, "positional_embedding_type", "") != "shortformer"
        )

    def run(
        self,
        ids: Int[Tensor, "batch pos"],
        edits: Mapping[Site, Edited] | None = None,
        clean: Outcome | None = None,
        *,
        restart_at: Collection[int] = (),
        frozen: bool = False,
    ) -> Outcome:
        """Return a pass with the edits of some sites; one without keeps what passes that ``restart_at`` layers need.

        Where the edited pass restarts from the clean one, the norms below are the clean pass's. In a ``frozen`` one
        the attention of later layers adds what it added in the clean pass.
        """
        edits = edits or {}
        start = min((site.layer for site in edits), default=0)
        stream = None if clean is None else clean.restarts.get(start)
        first = 0 if stream is None else start
        norms = np.full((self.n_layers, *ids.shape), np.nan) if clean is None else clean.norms.copy()
        distances = np.zeros(norms.shape)
        restarts: dict[int, Tensor] = {}
        kept: dict[tuple[str, int], Tensor] = {}

        def take(layer: int) -> Act:
            def act(activation: Tensor) -> None:
                norms[layer] = vector_norms(activation).double().cpu().numpy()
                if self.distances and clean is not None:
                    moved = activation - clean.kept[self.norm_hook, layer]
                    distances[layer] = vector_norms(moved).double().cpu().numpy()

            return act

        def keep(hook: str, layer: int) -> Act:
            return lambda activation: kept.update({(hook, layer): activation.clone()})

        def restart(layer: int) -> Act:
            return lambda activation: restarts.update({layer: activation.clone()})

        running = range(first, self.n_layers) if self.norms else ()
        acts = [(self._places(self.norm_hook)[i], take(i)) for i in running]
        acts += [(self._places("resid_pre")[i], restart(i)) for i in (restart_at if self.can_restart else ())]
        if clean is None:
            hooks = {*([self.norm_hook] if self.distances else []), *(["attn_out"] if self.direct else [])}
            acts += [(self._places(name)[i], keep(name, i)) for name in hooks for i in range(self.n_layers)]
        elif frozen:
            later = range(start + (self.hook != "resid_pre"), self.n_layers)
            acts += [(self._places("attn_out")[i], _put(clean.kept["attn_out", i])) for i in later]
        acts += [(self._places(self.hook)[site.layer], _replace(site, edit)) for site, edit in edits.items()]
        with Forward(self.model, acts, end="unembed" if self.head is None else self.head.end) as forward:
            hidden = forward(ids, restart=None if stream is None else (first, stream))
        return Outcome(norms, distances, None if self.head is None else hidden, restarts, kept)

    def _places(self, hook: str) -> list[str]:
        return [hook_name(hook, layer) for layer in range(self.n_layers)]


def _put(still: Float[Tensor, "batch pos d_model"]) -> Act:
    return lambda activation: still.to(activation)


def _replace(site: Site, edit: Edited) -> Act:
    def act(activation: Tensor) -> Tensor:
        # Where a model is split, on this layer's device.
        changed, mask = activation.clone(), edit.mask.to(activation.device)
        own = site.of(changed)
        own[mask] = edit.change(own[mask].double()).to(activation.dtype)
        return changed

    return act
