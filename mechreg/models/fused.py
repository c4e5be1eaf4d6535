"""Attention by one kernel, for as long as nobody reads its scores."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import einops
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mechreg.models.identity import is_bridge, is_wide
from mechreg.models.protocol import Model

# Settings of a bridge by which it computes more than Hugging Face's module does.
_SWITCHES = ("use_attn_result", "use_split_qkv_input", "use_attn_in")


@contextmanager
def fused(model: Model) -> Iterator[None]:
    """Compute attention by torch's ``scaled_dot_product_attention``, within the ``with`` block only.

    That is what Hugging Face itself takes by default; TransformerLens computes scores, mask and softmax one by one, so
    that they can be hooked. A bridge's attention is then Hugging Face's own module, whose parts are the bridge's, so
    that hook_z and hook_attn_out fire; a HookedTransformer's gives queries and keys to the kernel in place of its
    scores. A model's own way is left where scores, patterns or anything else that the kernel skips is hooked, where a
    method was replaced or projections changed, and where Hugging Face has no such kernel (softcapping, attention
    sinks). In float32 and float64 a GPT-2's GELU is torch's too, which is the same to rounding. Padding must be on the
    right.
    """
    with ExitStack() as undo:
        if is_bridge(model):
            _fuse_bridge(model, undo)
            _fuse_norms(model, undo)
        else:
            for block in model.blocks:
                _fuse_hooked(block.attn, undo)
        if is_wide(model):
            _fuse_gelu(model, undo)
        yield


def _fuse_gelu(model: Model, undo: ExitStack) -> None:
    """Put torch's GELU in its tanh form in the place of ``gelu_new`` (Hendrycks and Gimpel 2016, section 2)."""
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is NewGELUActivation and not _is_hooked(child):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
                undo.callback(setattr, module, name, child)


def _fuse_norms(model: Model, undo: ExitStack) -> None:
    """Leave out what a bridge's norms compute beside Hugging Face's own result, for hooks that nobody uses."""
    from transformer_lens.model_bridge.generalized_components import NormalizationBridge

    norms = (module for module in model.modules() if isinstance(module, NormalizationBridge))
    for norm in norms:
        is_known = type(norm).forward is NormalizationBridge.forward and not _is_replaced(norm)
        if is_known and not _is_hooked(norm.hook_scale) and not _is_hooked(norm.hook_normalized):
            _make_native(norm, undo)


def _make_native(part: Any, undo: ExitStack) -> None:
    """Let a part of a bridge be Hugging Face's module between the bridge's first and last hook."""
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    # Not by setattr, which a bridge hands on to the module that it wraps.
    vars(part)["forward"] = functools.partial(GeneralizedComponent.forward, part)
    undo.callback(vars(part).pop, "forward")


def _fuse_bridge(model: Model, undo: ExitStack) -> None:
    """Let all attentions be Hugging Face's own, or none: they share one mask."""
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    hf_model = model.original_model
    attentions = [module for module in model.modules() if isinstance(module, AttentionBridge)]
    can_change = getattr(hf_model, "_can_set_attn_implementation", bool)()
    if not attentions or not can_change or not all(map(_may_be_native, attentions)):
        return
    before = hf_model.config._attn_implementation
    if getattr(hf_model.config, "attn_logit_softcapping", None):  # which the kernel may silently ignore
        return
    try:
        hf_model.set_attn_implementation("sdpa")
    except ValueError:  # Hugging Face has no kernel for this model
        return
    undo.callback(hf_model.set_attn_implementation, before)
    for attention in attentions:
        native = attention.original_component
        for name, part in _wrappers(attention).items():
            undo.callback(setattr, native, name, getattr(native, name))
            setattr(native, name, part)
        _make_native(attention, undo)


def _wrappers(attention: Any) -> dict[str, Any]:
    """Return the bridge's parts that wrap a part of Hugging Face's attention but are not in its place, by its name."""
    wrapping = {id(getattr(part, "original_component", None)): part for part in attention.children()}
    native = attention.original_component.named_children()
    return {name: wrapping[id(part)] for name, part in native if id(part) in wrapping}


def _may_be_native(attention: Any) -> bool:
    """Return whether Hugging Face's module computes what a bridge's does, and fires all that is hooked."""
    from transformer_lens.model_bridge import generalized_components as kinds

    is_known = isinstance(attention, kinds.PositionEmbeddingsAttentionBridge) or type(attention).forward in (
        kinds.AttentionBridge.forward,
        kinds.JointQKVAttentionBridge.forward,
    )
    is_more = any(getattr(attention.config, name, False) for name in _SWITCHES)
    if not is_known or is_more or _is_replaced(attention):
        return False
    native = attention.original_component
    fired = {id(module) for part in (native, *_wrappers(attention).values()) for module in part.modules()}
    fired |= {id(attention), id(attention.hook_in), id(attention.hook_out)}
    unheard = (module for module in attention.modules() if id(module) not in fired)
    return not any(map(_is_hooked, unheard)) and _has_native_projections(attention)


def _has_native_projections(attention: Any) -> bool:
    """Return whether the queries, keys and values that a bridge split from one matrix are still that matrix's."""
    native = {weight.untyped_storage().data_ptr() for weight in attention.original_component.parameters()}
    if all(weight.untyped_storage().data_ptr() in native for weight in attention.parameters()):
        return True
    with torch.device("meta"):  # no random numbers for weights that are replaced at once
        again = attention.split_qkv_matrix(attention.original_component)
    return all(
        torch.equal(ours, theirs)
        for part, split in zip((attention.q, attention.k, attention.v), again, strict=True)
        for ours, theirs in zip(part.parameters(), split.parameters(), strict=True)
    )


def _fuse_hooked(attention: Any, undo: ExitStack) -> None:
    """Save a HookedTransformer's queries and keys instead of scoring them, and use them where values are mixed."""
    try:
        from transformer_lens.components import Attention, GroupedQueryAttention
    except ImportError:  # TransformerLens 4
        return
    cfg, kind = attention.cfg, type(attention)
    is_plain = cfg.positional_embedding_type in ("standard", "rotary") and attention.attn_type == "global"
    is_causal = (attention._attention_dir_override or cfg.attention_dir) == "causal"
    is_plain &= is_causal and not cfg.use_attention_sinks and not cfg.attn_scores_soft_cap > 0
    if not is_plain or kind not in (Attention, GroupedQueryAttention) or _is_replaced(attention):
        return
    if _is_hooked(attention.hook_attn_scores) or _is_hooked(attention.hook_pattern):
        return
    held: list[Tensor] = []

    def hold(q: Tensor, k: Tensor) -> Tensor:
        held[:] = q, k
        return q.new_zeros(1, 1, 1, 1)

    def mix(v: Tensor, pattern: Tensor) -> Tensor:
        q, k, v = (
            einops.rearrange(part, "batch pos head d_head -> batch head pos d_head") for part in (*held, v)
        )
        scale, is_grouped = 1 / float(attention.attn_scale), q.shape[1] != v.shape[1]
        z = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=is_grouped)
        held.clear()
        return attention.hook_z(einops.rearrange(z, "batch head pos d_head -> batch pos head d_head"))

    steps = {"calculate_attention_scores": hold, "calculate_z_scores": mix}
    for name, step in (steps | {"apply_causal_mask": lambda scores, *rest: scores}).items():
        setattr(attention, name, step)
        undo.callback(delattr, attention, name)


def _is_hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_replaced(attention: Any) -> bool:
    """Return whether a method of the class has been overridden on the instance, for example to change the mask."""
    return any(callable(value) and hasattr(type(attention), name) for name, value in vars(attention).items())
