"""Hook points: the places in a block whose vectors are read or edited, and the shape of what is there."""

from typing import NamedTuple


class HookPoint(NamedTuple):
    """Where TransformerLens has a hook point in a block, and the axes of its activation."""

    place: str
    axes: str


# In the order in which a block computes them.
HOOK_POINTS = {
    "resid_pre": HookPoint("hook_resid_pre", "batch pos d_model"),
    "z": HookPoint("attn.hook_z", "batch pos head d_head"),
    "result": HookPoint("attn.hook_result", "batch pos head d_model"),
    "attn_out": HookPoint("hook_attn_out", "batch pos d_model"),
    "resid_mid": HookPoint("hook_resid_mid", "batch pos d_model"),
    "mlp_out": HookPoint("hook_mlp_out", "batch pos d_model"),
    "resid_post": HookPoint("hook_resid_post", "batch pos d_model"),
}


def hook_name(hook: str, layer: int) -> str:
    """Return TransformerLens' name of a hook point in a layer, such as "blocks.0.hook_attn_out"."""
    return f"blocks.{layer}.{HOOK_POINTS[hook].place}"


def is_per_head(hook: str) -> bool:
    """Return whether a hook point has a vector for every head: z and result."""
    return "head" in HOOK_POINTS[hook].axes.split()


# The hook points with one vector for each token.
WHOLE_HOOKS = tuple(hook for hook in HOOK_POINTS if not is_per_head(hook))
