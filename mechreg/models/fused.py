"""The forward pass of a GPT-2 by torch's fused kernels, for as long as norms are read."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import einops
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from mechreg.models.identity import record_of
from mechreg.models.protocol import Model
from mechreg.schema import AUTOCAST


@contextmanager
def fused(model: Model) -> Iterator[None]:
    """Compute a GPT-2's GELU and attention by one kernel each, within the ``with`` block only.

    Both are what the model computes, rounded elsewhere: torch's GELU in its tanh form is GPT-2's ``gelu_new``
    (Hendrycks and Gimpel 2016, section 2), and ``scaled_dot_product_attention`` is the attention that Hugging Face
    itself takes by default. TransformerLens computes scores, mask and softmax one by one, so that they can be hooked;
    where one of them is hooked or a method of the attention replaced, in half precision, where rounding is not small,
    and in any other architecture, the model's own way is left as it is.

    Parameters
    ----------
    model : TransformerLens model
        Of texts that need no attention mask: right padding, or none.

    Examples
    --------
    >>> from mechreg import load_model
    >>> model = load_model("mini-s")
    >>> ids = torch.arange(20).reshape(1, 20)
    >>> plain = model(ids)
    >>> with fused(model):
    ...     torch.allclose(model(ids), plain, atol=1e-4)
    True
    """
    with ExitStack() as undo:
        names = (getattr(model.cfg, key, None) for key in ("original_architecture", "architecture"))
        # The weights' own dtype: a model may have been cast after it was loaded.
        is_wide = all(weight.dtype in (torch.float32, torch.float64) for weight in model.parameters())
        if "GPT2LMHeadModel" in names and is_wide and record_of(model).dtype != AUTOCAST:
            for module in list(model.modules()):
                _fuse_gelu(module, undo)
            for block in model.blocks:
                _fuse_attention(block.attn, undo)
        yield


def _fuse_gelu(module: Any, undo: ExitStack) -> None:
    from transformers.activations import NewGELUActivation

    for name, child in list(module.named_children()):
        if type(child) is NewGELUActivation and not child._forward_hooks and not child._forward_pre_hooks:
            setattr(module, name, torch.nn.GELU(approximate="tanh"))
            undo.callback(setattr, module, name, child)


def _fuse_attention(attention: Any, undo: ExitStack) -> None:
    points = (attention.hook_attn_scores, attention.hook_pattern)
    if any(point._forward_hooks or point._forward_pre_hooks for point in points):
        return
    if any(callable(value) and hasattr(type(attention), name) for name, value in vars(attention).items()):
        return  # someone has put a method of their own, such as another mask, in the place of the class's
    method, function = _hooked_attention(attention) or _bridge_attention(attention) or (None, None)
    if method is not None:
        setattr(attention, method, function)
        undo.callback(delattr, attention, method)


def _hooked_attention(attention: Any) -> tuple[str, Callable[..., Tensor]] | None:
    """Return what takes the place of forward in a HookedTransformer's attention, None where nothing may."""
    try:
        from transformer_lens.components import Attention
    except ImportError:  # TransformerLens 4
        return None
    if type(attention) is not Attention:
        return None
    cfg: Any = attention.cfg
    if cfg.use_attn_result or cfg.load_in_4bit or cfg.use_attention_sinks or cfg.use_logn_attn:
        return None
    if cfg.positional_embedding_type != "standard" or cfg.attn_scores_soft_cap > 0:
        return None
    if cfg.clip_qkv is not None or attention._attention_dir_override is not None:
        return None

    def forward(
        query_input: Float[Tensor, "batch pos *head d_model"],
        key_input: Float[Tensor, "batch pos *head d_model"],
        value_input: Float[Tensor, "batch pos *head d_model"],
        **options: Any,
    ) -> Float[Tensor, "batch pos d_model"]:
        q, k, v = (
            einops.rearrange(part, "batch pos head d_head -> batch head pos d_head")
            for part in attention.calculate_qkv_matrices(query_input, key_input, value_input)
        )
        z = scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / float(attention.attn_scale))
        z = attention.hook_z(einops.rearrange(z, "batch head pos d_head -> batch pos head d_head"))
        return linear(
            einops.rearrange(z, "batch pos head d_head -> batch pos (head d_head)"),
            einops.rearrange(attention.W_O, "head d_head d_model -> d_model (head d_head)"),
            attention.b_O,
        )

    return "forward", forward


def _bridge_attention(attention: Any) -> tuple[str, Callable[..., tuple[Tensor, None]]] | None:
    """Return what takes the place of a bridge's reconstruction of attention, None where nothing may."""
    from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge

    if type(attention) is not JointQKVAttentionBridge or getattr(attention.config, "use_attn_result", False):
        return None
    if getattr(attention, "_reorder_and_upcast_attn", False):
        return None
    n_heads, layer = attention.config.n_heads, attention._layer_idx
    by_layer = getattr(attention.config, "scale_attn_by_inverse_layer_idx", False) and layer is not None

    def reconstruct(
        q: Float[Tensor, "batch pos *width"],
        k: Float[Tensor, "batch pos *width"],
        v: Float[Tensor, "batch pos *width"],
        **options: Any,
    ) -> tuple[Float[Tensor, "batch pos d_model"], None]:
        q, k, v, n_batch, n_pos, d_head = attention._reshape_qkv_to_heads(q, k, v, n_heads, n_heads)
        scale = d_head**-0.5 / (layer + 1 if by_layer else 1)
        z = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        z = attention._reshape_attn_output(z, n_batch, n_pos, n_heads, d_head)
        return attention._apply_output_projection(z), None

    return "_reconstruct_attention", reconstruct
