"""The one forward engine: a model run over token ids, with functions called at hook points, each once a pass."""

import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mechreg.forward.precision import pinned
from mechreg.models import Model, fused, is_bridge, record_of
from mechreg.schema import ModelError

with warnings.catch_warnings():
    warnings.filterwarnings(
        "ignore", "IProgress not found"
    )  # a notebook without ipywidgets gets a bar of text
    from tqdm.auto import tqdm

# What is done at a hook point: looks at the activation, and may give another in its place.
Act = Callable[[Tensor], Tensor | None]
# Where a pass ends: after the last of its functions, before the unembedding, or with the logits.
End = Literal["acts", "unembed", "logits"]

_guard = threading.Lock()
_locks: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()
_points: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()


class Forward:
    """Forward passes of one model, with functions called at hook points within the ``with`` block only.

    Inside the block the thread has the model to itself (others wait), and torch's defaults apply (`pinned`).

    ``acts`` are names of hook points, such as "blocks.0.hook_resid_post", and the functions called there, in this
    order; the model goes on with a tensor that a function returns. ``end`` is "logits", "unembed" (gives what the
    unembedding would have read), or "acts", after the last function; but then the first pass goes through all blocks,
    so that a function called twice is noticed. ``quick`` is attention by torch's kernel wherever nothing reads its
    scores (`mechreg.models.fused`). A ModelError says that dropout is on, that the model reads in both directions, or
    that it lacks a hook point.

    Examples
    --------
    >>> from mechreg import load_model
    >>> model, seen = load_model("mini-s"), []
    >>> acts = [("blocks.0.hook_resid_post", lambda stream: seen.append(tuple(stream.shape)))]
    >>> with Forward(model, acts) as run:
    ...     run(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 64])
    """

    def __init__(
        self, model: Model, acts: Iterable[tuple[str, Act]] = (), *, end: End = "unembed", quick: bool = False
    ) -> None:
        self.model, self.name, self.acts = model, record_of(model).name, list(acts)
        self.end, self.quick, self.is_first, self.running = end, quick, True, False
        dropouts = active_dropouts(model)
        if dropouts:
            raise ModelError(
                f"{self.name} is in training mode, so that dropout ({dropouts[0]} and {len(dropouts) - 1} more) "
                "makes its numbers random; call model.eval() first."
            )
        if getattr(model.cfg, "attention_dir", "causal") != "causal":
            raise ModelError(f"{self.name} reads in both directions; mechreg reads causal language models.")
        self.points = _hook_points(model)
        missing = [place for place, _ in self.acts if place not in self.points]
        if missing:
            raise ModelError(
                f"{self.name} has no hook point {missing[0]!r} ({len(missing)} of {len(self.acts)} are missing); "
                "describe_model lists those it has."
            )

    def __enter__(self) -> "Forward":
        with ExitStack() as undo:
            undo.enter_context(lock_of(self.model))
            undo.enter_context(pinned())
            # Gated off by default: TransformerLens lists the hook point and never fires it.
            if not self.model.cfg.use_attn_result and any("hook_result" in place for place, _ in self.acts):
                try:
                    self.model.set_use_attn_result(True)
                except NotImplementedError as error:  # of attention that it cannot split
                    raise ModelError(f"{self.name} has no hook 'result': {error}") from error
                undo.callback(self.model.set_use_attn_result, False)
            for i, (place, act) in enumerate(self.acts):
                point = self.points[place]
                point.add_hook(self._counted(i, act), level=self)
                undo.callback(point.remove_hooks, level=self)
            if self.quick:
                undo.enter_context(fused(self.model))
            if self.end != "logits":
                undo.callback(self.model.unembed.register_forward_pre_hook(self._stop).remove)
            self.undo = undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.undo.__exit__(*error)

    def __call__(self, ids: Int[Tensor, "batch pos"], *, restart: tuple[int, Tensor] | None = None) -> Tensor:
        """Return the logits, what the unembedding would have read, or an empty tensor, as ``end`` says.

        ``restart`` is a block, and the residual stream before it, from which a HookedTransformer goes on. A ModelError
        says that a function was not called exactly once, or with other positions.
        """
        self.fired, self.shape = [0] * len(self.acts), ids.shape
        self.whole = self.end != "acts" or self.is_first
        self.is_first = False
        options: dict[str, Any] = {} if restart is None else {"start_at_layer": restart[0]}
        if is_bridge(self.model):
            options["use_cache"] = False
        elif getattr(self.model.tokenizer, "padding_side", "right") == "left":
            # HookedTransformer would take leading BOS ids for padding, and move all positions.
            options["attention_mask"] = torch.ones_like(ids)
        self.running = True
        try:
            with torch.inference_mode():
                result = self.model(ids if restart is None else restart[1], return_type="logits", **options)
        except _Stop as stop:
            result = stop.hidden
        finally:
            self.running = False
        for (place, _), times in zip(self.acts, self.fired, strict=True):
            if times != 1:
                raise ModelError(
                    f"{self.name}: the hook point {place!r} fired {'not at all' if times == 0 else f'{times} times'} "
                    "in one forward pass; it must fire once."
                )
        return result

    def _counted(self, i: int, act: Act) -> Any:
        place = self.acts[i][0]
        axis = 2 if place.endswith(("hook_pattern", "hook_attn_scores")) else 1  # batch head query key

        def fire(activation: Tensor, hook: Any = None) -> Tensor | None:
            self.fired[i] += 1
            if (activation.shape[0], activation.shape[axis]) != self.shape:
                raise ModelError(
                    f"{self.name}: the hook point {place!r} gave {activation.shape[axis]} positions for "
                    f"{self.shape[1]} tokens."
                )
            replaced = act(activation)
            if not self.whole and all(self.fired):
                raise _Stop(torch.empty(0))
            return replaced

        return fire

    def _stop(self, module: Any, inputs: Any) -> None:
        if self.running:  # not where a `Head` asks for logits between two passes
            raise _Stop(inputs[0])


def _hook_points(model: Model) -> dict[str, Any]:
    """Return a model's hook points by name; cached, because a bridge looks up its thousand aliases on every access."""
    with _guard:
        if model not in _points:
            _points[model] = dict(model.hook_dict)
        return _points[model]


def active_dropouts(model: Model) -> list[str]:
    """Return the names of the dropout modules that are switched on."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.training and module.p > 0
    ]


def lock_of(model: Model) -> Any:
    """Return the lock of a model: its hooks and switches affect every thread."""
    with _guard:
        return _locks.setdefault(model, threading.RLock())


def token_bar(total: int, progress: bool) -> Any:
    """Return a bar of tokens on standard error, which shows only where that is a terminal."""
    return tqdm(total=total, unit="tok", unit_scale=True, disable=None if progress else True)


class _Stop(Exception):
    """Raised in a forward pass once everything asked for has been computed."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden
