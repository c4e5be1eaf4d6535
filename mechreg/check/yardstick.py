"""The norms of a raw Hugging Face model from plain forward hooks, with which all others are compared."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch

from mechreg.forward import pinned
from mechreg.schema import ModelError

# What Hugging Face's architectures call the parts of a block, and the projection inside the attention.
PARTS = {
    "attention": ("attn", "self_attn", "attention", "self_attention"),
    "mlp": ("mlp", "ffn", "fc2"),
    "second norm": (
        "pre_feedforward_layernorm",
        "ln_2",
        "norm_2",
        "post_attention_layernorm",
        "final_layer_norm",
    ),
    "output projection": ("c_proj", "o_proj", "out_proj", "dense"),
}
# Norms after a part, of its output alone; post_attention_layernorm is one only in blocks that have both.
NORMS_AFTER = {
    "attn_out": ("post_self_attn_layernorm", "post_attention_layernorm"),
    "mlp_out": ("post_mlp_layernorm", "post_feedforward_layernorm"),
}


@pinned()
def hugging_face_norms(
    reference: Any, tokens: pd.DataFrame, *, hooks: Sequence[str] = ("attn_out",)
) -> dict[str, np.ndarray]:
    """Return the norms of a raw Hugging Face model, in evaluation mode, from plain forward hooks, in float64.

    One window at a time, with no padding and nothing of TransformerLens or `window_norms`, whose arrays it returns.

    Raises
    ------
    ModelError
        The names of the model's blocks, or of the parts that the hooks need, are unknown.

    Examples
    --------
    >>> from mechreg.corpus import tokenize
    >>> from mechreg.models import load_model, load_reference
    >>> model = load_model("mini-s")
    >>> hugging_face_norms(load_reference(model), tokenize(model, ["A short text."]))["attn_out"].shape[0]
    4
    """
    blocks, n_heads = _blocks(reference), reference.config.get_text_config().num_attention_heads
    kept: dict[tuple[str, int], np.ndarray] = {}
    handles = []
    parts: dict[str, list[np.ndarray]] = {hook: [] for hook in hooks}
    try:
        for layer, block in enumerate(blocks):
            for hook in hooks:
                handles.append(
                    _listen(block, hook, n_heads, functools.partial(kept.__setitem__, (hook, layer)))
                )
        for _, window in tokens.groupby(["doc", "window"], observed=True, sort=False):
            ids = torch.tensor(window["token_id"].to_numpy(np.int64), device=reference.device)
            with torch.no_grad():
                reference(ids.unsqueeze(0), use_cache=False)
            for hook in hooks:
                vectors = np.stack([kept[hook, layer] for layer in range(len(blocks))])
                parts[hook].append(np.linalg.norm(vectors, axis=-1))
    finally:
        for handle in handles:
            handle.remove()
    return {hook: np.concatenate(norms, axis=-1) for hook, norms in parts.items()}


def _listen(block: Any, hook: str, n_heads: int, keep: Callable[[np.ndarray], None]) -> Any:
    """Register a plain forward hook that hands on a hook point's vectors, "pos d" or "head pos d"."""

    def plain(value: Any) -> np.ndarray:
        return (value[0] if isinstance(value, tuple | list) else value)[0].double().cpu().numpy()

    def heads(z: Any) -> np.ndarray:
        return einops.rearrange(plain(z), "pos (head d_head) -> head pos d_head", head=n_heads)

    if hook == "resid_pre":
        return block.register_forward_pre_hook(
            lambda module, args, kwargs: keep(plain(args or kwargs["hidden_states"])), with_kwargs=True
        )
    if hook == "resid_post":
        return block.register_forward_hook(lambda module, args, output: keep(plain(output)))
    if hook == "resid_mid":
        has_norms_after = hasattr(block, "post_feedforward_layernorm")
        is_last = has_norms_after and not hasattr(block, "pre_feedforward_layernorm")
        part = _part(block, "mlp" if is_last else "second norm")
        return part.register_forward_pre_hook(lambda module, args: keep(plain(args)))
    if hook in NORMS_AFTER:
        return _listen_to_addition(block, hook, plain, keep)
    attention = _part(block, "attention")
    projection = _part(attention, "output projection")
    if hook == "z":
        return projection.register_forward_pre_hook(lambda module, args: keep(heads(args)))
    weight = projection.weight.detach().double().cpu().numpy()
    w_o = einops.rearrange(
        weight.T if isinstance(projection, torch.nn.Linear) else weight,  # GPT-2's Conv1D is transposed
        "(head d_head) d_model -> head d_head d_model",
        head=n_heads,
    )
    return projection.register_forward_pre_hook(lambda module, args: keep(heads(args) @ w_o))


def _listen_to_addition(block: Any, hook: str, plain: Any, keep: Callable[[np.ndarray], None]) -> Any:
    """Register a hook for the vector that a part adds to the residual stream, after the norm that may follow it."""
    names = [name for name in NORMS_AFTER[hook] if hasattr(block, name)]
    if names == ["post_attention_layernorm"] and not hasattr(block, "post_feedforward_layernorm"):
        names = []  # Llama's name for the norm before the MLP
    part = getattr(block, names[0]) if names else _part(block, "attention" if hook == "attn_out" else "mlp")
    signature = inspect.signature(part.forward)
    scale = getattr(block, "residual_multiplier", 1.0)  # Granite

    def added(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        value = plain(output)
        if "residual" in signature.parameters:  # Bloom's parts add it themselves
            value = value - plain(signature.bind(*args, **kwargs).arguments["residual"])
        keep(value * scale)

    return part.register_forward_hook(added, with_kwargs=True)


def _blocks(reference: Any) -> torch.nn.ModuleList:
    """Return a Hugging Face model's blocks: the list of modules that have an attention."""
    for module in reference.modules():
        is_list = isinstance(module, torch.nn.ModuleList) and len(module) > 0
        if is_list and any(hasattr(module[0], name) for name in PARTS["attention"]):
            return module
    raise ModelError(
        f"{type(reference).__name__} has no list of blocks with an attention called "
        f"{', '.join(PARTS['attention'])}; check_model cannot compare it."
    )


def _part(module: Any, part: str) -> Any:
    for name in PARTS[part]:
        if hasattr(module, name):
            return getattr(module, name)
    raise ModelError(
        f"{type(module).__name__} has no {part} called {', '.join(PARTS[part])}; give check_model hooks that do "
        "not need it, such as hooks=('attn_out',)."
    )
