"""Heads: whether what ``result`` reads is what each head adds to the residual stream."""

import einops
import torch
from jaxtyping import Float
from torch import Tensor

from mechreg.forward import Act, Forward
from mechreg.models import Model, hook_name, input_device, is_wide, record_of
from mechreg.schema import ModelError


def require_heads_add_up(model: Model) -> None:
    """Check that the heads' results add up to attn_out, but for one constant vector, the bias."""
    totals: dict[int, Tensor] = {}
    apart: dict[int, float] = {}

    def add(layer: int) -> Act:
        def act(heads: Float[Tensor, "1 pos head d_model"]) -> None:
            totals[layer] = einops.reduce(heads.double(), "1 pos head d_model -> pos d_model", "sum")

        return act

    def compare(layer: int) -> Act:
        def act(attn_out: Float[Tensor, "1 pos d_model"]) -> None:
            whole = einops.rearrange(attn_out.double(), "1 pos d_model -> pos d_model")
            rest, whole = (part - part[:1] for part in (whole - totals[layer], whole))
            apart[layer] = float(rest.norm() / whole.norm().clamp(min=1e-30))

        return act

    acts = [
        (hook_name(hook, layer), act(layer))
        for layer in range(int(model.cfg.n_layers))
        for hook, act in (("result", add), ("attn_out", compare))
    ]
    n = min(5, int(model.cfg.n_ctx))
    ids = torch.arange(1, n + 1, device=input_device(model)) % int(model.cfg.d_vocab)
    with Forward(model, acts, end="acts") as run:
        run(einops.rearrange(ids, "pos -> 1 pos"))
    largest = max(apart, key=lambda layer: apart[layer])
    if apart[largest] > (1e-3 if is_wide(model) else 0.1):
        raise ModelError(
            f"{record_of(model).name} changes what its heads add before it reaches the residual stream (a norm or a "
            f"factor after the attention: in layer {largest} their sum differs from attn_out by "
            f"{apart[largest]:.0%}), so 'result' is not what each head adds; use the hooks 'z' or 'attn_out'."
        )
