"""The vectors and norms of a raw Hugging Face model from plain forward hooks, with which all others are compared."""

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch

from mechreg.forward import pinned
from mechreg.schema import ModelError, require_option

# What Hugging Face's architectures call the parts of a block; a user's ``parts`` come first. Blocks are found by
# their attention, and a factor is a number by which a block multiplies what it adds.
PARTS = {
    "blocks": (),
    "attention": ("attn", "self_attn", "attention", "self_attention", "linear_attn"),
    "projection": ("c_proj", "o_proj", "out_proj", "dense"),
    "norm_after_attention": ("post_self_attn_layernorm", "post_attention_layernorm"),
    "norm_before_mlp": (
        *("pre_feedforward_layernorm", "pre_mlp_layernorm", "ln_2", "norm_2"),
        *("post_attention_layernorm", "final_layer_norm"),
    ),
    "mlp": ("mlp", "ffn", "fc2"),
    "norm_after_mlp": ("post_mlp_layernorm", "post_feedforward_layernorm"),
    "factor": ("residual_multiplier", "residual_scale"),
}
ADDED = {"attn_out": ("attention", "norm_after_attention"), "mlp_out": ("mlp", "norm_after_mlp")}
Parts = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What a Hugging Face block adds to its residual stream: a module's output, a factor, perhaps the stream itself."""

    module: torch.nn.Module
    name: str
    factor: float = 1.0
    holds_residual: bool = False  # Bloom's and MPT's parts add the residual stream themselves

    def __str__(self) -> str:
        times = "" if self.factor == 1 else f" x {self.factor:.3g}"
        return f"{self.name}{times}{' - residual' if self.holds_residual else ''}"

    def residual(self, args: Any, kwargs: Any) -> torch.Tensor | float:
        """Return what the module's output holds beside the addition, from the arguments of its call."""
        if not self.holds_residual:
            return 0.0
        return inspect.signature(self.module.forward).bind(*args, **kwargs).arguments["residual"]


def addition_of(block: Any, hook: str, parts: Parts | None = None) -> Addition:
    """Return what a Hugging Face block adds to its residual stream as ``attn_out`` or ``mlp_out``."""
    part, norm = ADDED[hook]
    name = _name(block, norm, parts) or _name(block, part, parts) or ""
    module = _at(block, name) if name else _part(block, part, parts)
    factor = _name(block, "factor", parts)
    return Addition(
        module=module,
        name=name,
        factor=float(_at(block, factor)) if factor else 1.0,
        holds_residual="residual" in inspect.signature(module.forward).parameters,
    )


def blocks_of(reference: Any, parts: Parts | None = None) -> torch.nn.ModuleList:
    """Return a Hugging Face model's blocks: the list of modules that have an attention, or what ``parts`` names."""
    for part in parts or ():
        require_option(part, tuple(PARTS), name="A key of parts=")
    if parts and "blocks" in parts:
        return _at(reference, parts["blocks"])
    for module in reference.modules():
        is_list = isinstance(module, torch.nn.ModuleList)
        if is_list and any(_name(block, "attention", parts) for block in module):
            return module
    raise ModelError(
        f"{type(reference).__name__} has no list of blocks with an attention called "
        f"{', '.join(PARTS['attention'])}; name both for check_model, such as "
        "parts={'blocks': 'model.layers', 'attention': 'mixer'}."
    )


@pinned()
def hugging_face_norms(
    reference: Any,
    tokens: pd.DataFrame,
    *,
    hooks: Sequence[str] = ("attn_out",),
    parts: Parts | None = None,
) -> dict[str, np.ndarray]:
    """Return the norms of a raw Hugging Face model, in evaluation mode, from plain forward hooks, in float64.

    One window at a time, with no padding and nothing of TransformerLens or `window_norms`, whose arrays it returns.
    """
    found: dict[str, list[np.ndarray]] = {hook: [] for hook in hooks}
    for vectors in hugging_face_vectors(reference, tokens, hooks, parts):
        for hook, values in vectors.items():
            found[hook].append(np.linalg.norm(values, axis=-1))
    return {hook: np.concatenate(norms, axis=-1) for hook, norms in found.items()}


def hugging_face_vectors(
    reference: Any, tokens: pd.DataFrame, hooks: Sequence[str], parts: Parts | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yield, window by window, each hook point's vectors: "layer pos d", or "layer head pos d" for z and result."""
    blocks, n_heads = blocks_of(reference, parts), reference.config.get_text_config().num_attention_heads
    kept: dict[tuple[str, int], np.ndarray] = {}
    handles = []
    try:
        for layer, block in enumerate(blocks):
            for hook in hooks:

                def keep(vectors: np.ndarray, key: tuple[str, int] = (hook, layer)) -> None:
                    kept[key] = vectors

                handles.append(_listen(block, hook, n_heads, keep, parts))
        for _, window in tokens.groupby(["doc", "window"], observed=True, sort=False):
            ids = torch.tensor(window["token_id"].to_numpy(np.int64), device=reference.device)
            with torch.no_grad():
                reference(ids.unsqueeze(0), use_cache=False)
            yield {hook: np.stack([kept[hook, layer] for layer in range(len(blocks))]) for hook in hooks}
    finally:
        for handle in handles:
            handle.remove()


def read_by_norms(
    reference: Any, window: pd.DataFrame, parts: Parts | None = None
) -> list[dict[str, np.ndarray]]:
    """Return by layer what each norm of a block reads, where blocks end in a norm of the stream itself; else nothing.

    So do the first Transformers: BERT, GPT, OPT-350m. There the block's output is no sum.
    """
    blocks, read = blocks_of(reference, parts), []
    with ExitStack() as undo, torch.no_grad():
        for block in blocks:
            inputs: dict[str, np.ndarray] = {}
            made: list[torch.Tensor] = []

            def hear(
                _: Any, args: Any, output: Any, name: str, inputs: Any = inputs, made: Any = made
            ) -> None:
                inputs[name] = _plain(args)
                made.append(output)

            def end(module: Any, args: Any, output: Any, inputs: Any = inputs, made: Any = made) -> None:
                last = output[0] if isinstance(output, tuple | list) else output
                if any(tensor.data_ptr() == last.data_ptr() for tensor in made):
                    read.append(inputs)

            for name, module in block.named_modules():
                if "norm" in type(module).__name__.lower():
                    handle = module.register_forward_hook(functools.partial(hear, name=name))
                    undo.callback(handle.remove)
            undo.callback(block.register_forward_hook(end).remove)
        ids = torch.tensor(window["token_id"].to_numpy(np.int64), device=reference.device)
        reference(ids.unsqueeze(0), use_cache=False)
    return read if len(read) == len(blocks) else []


def _listen(
    block: Any, hook: str, n_heads: int, keep: Callable[[np.ndarray], None], parts: Parts | None
) -> Any:
    """Register a plain forward hook that hands on a hook point's vectors, "pos d" or "head pos d"."""

    def heads(z: Any) -> np.ndarray:
        return einops.rearrange(_plain(z), "pos (head d_head) -> head pos d_head", head=n_heads)

    def before(module: Any, args: Any, kwargs: Any) -> None:
        keep(_plain(args or kwargs["hidden_states"]))

    if hook == "resid_pre":
        return block.register_forward_pre_hook(before, with_kwargs=True)
    if hook == "resid_post":
        return block.register_forward_hook(lambda module, args, output: keep(_plain(output)))
    if hook == "resid_mid":
        norm = _name(block, "norm_before_mlp", parts)
        part = _at(block, norm) if norm else _part(block, "mlp", parts)
        return part.register_forward_pre_hook(before, with_kwargs=True)
    if hook in ADDED:
        addition = addition_of(block, hook, parts)

        def added(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            residual = addition.residual(args, kwargs)
            held = _plain(residual) if isinstance(residual, torch.Tensor) else residual
            keep((_plain(output) - held) * addition.factor)

        return addition.module.register_forward_hook(added, with_kwargs=True)
    projection = _part(_part(block, "attention", parts), "projection", parts)
    if hook == "z":
        return projection.register_forward_pre_hook(lambda module, args: keep(heads(args)))
    if hook != "result":
        raise NotImplementedError(f"The raw hook for {hook!r} has no place in a block of Hugging Face's.")
    weight = projection.weight.detach().double().cpu().numpy()
    w_o = einops.rearrange(
        weight.T if isinstance(projection, torch.nn.Linear) else weight,  # GPT-2's Conv1D is transposed
        "(head d_head) d_model -> head d_head d_model",
        head=n_heads,
    )
    return projection.register_forward_pre_hook(lambda module, args: keep(heads(args) @ w_o))


def _plain(value: Any) -> np.ndarray:
    """Return the vectors of the only text of a batch; a module may give a tuple that begins with them."""
    vectors = value[0] if isinstance(value, tuple | list) else value
    flat = einops.rearrange(vectors.detach(), "... d -> (...) d")  # OPT's MLP reads tokens without a batch
    return flat.double().cpu().numpy()


def _name(module: Any, part: str, parts: Parts | None) -> str | None:
    """Return what a module calls a part, None where it has none."""
    if parts and part in parts:
        return parts[part]
    for name in PARTS[part]:
        # Llama's name for the norm before the MLP is the norm after the attention in blocks that have these.
        others = ("pre_feedforward_layernorm", "pre_mlp_layernorm", "post_feedforward_layernorm")
        is_after = any(hasattr(module, other) for other in others)
        if name == "post_attention_layernorm" and is_after != (part == "norm_after_attention"):
            continue
        if getattr(module, name, None) is not None:
            return name
    return None


def _part(module: Any, part: str, parts: Parts | None) -> Any:
    name = _name(module, part, parts)
    if name is None:
        raise ModelError(
            f"{type(module).__name__} has no {part} called {', '.join(PARTS[part])}; name it with "
            f"parts={{{part!r}: ...}}, or give check_model hooks that do not need it, such as hooks=('attn_out',)."
        )
    return _at(module, name)


def _at(module: Any, name: str) -> Any:
    """Return what a dotted name leads to."""
    try:
        return operator.attrgetter(name)(module)
    except AttributeError as error:
        names = ", ".join(child for child, _ in module.named_children())
        raise ModelError(
            f"parts= names {name!r}, and {type(module).__name__} has no such part; it has {names}."
        ) from error
