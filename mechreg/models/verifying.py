"""Does TransformerLens compute what Hugging Face computes? One short pass of each."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechreg.models.identity import dtype_of, input_device, is_bridge
from mechreg.schema import ModelError
from mechreg.words import first_line

N_TOKENS = 16
# What rounding may do to a vector: relative errors grow with the square root of the layers; the floor is for trained
# models, whose large activations cancel. In float32, two ways of computing one model differ by 5e-7 in 3 layers of
# random weights (bfloat16: 1.3e-2), and the mildest wrong model met (a Cohere) by 3e-2.
FLOOR = 1e-4
EPSILONS = 3


@dataclass(frozen=True, kw_only=True)
class ShortPass:
    """A model's logits for a few tokens and, where its blocks are known, the vector after each block."""

    ids: Int[Tensor, "batch pos"]
    logits: Float[Tensor, "batch pos d_vocab"]
    resid_post: list[Float[Tensor, "batch pos d_model"]]


def raw_pass(hf_model: Any, source: str) -> ShortPass:
    """Return a short pass of a Hugging Face model, before anything wraps it; one that reads ahead is refused.

    The ids are random and always the same, two texts whose first halves agree.
    """
    embedding, config = hf_model.get_input_embeddings().weight, hf_model.config.get_text_config()
    n_pos = min(N_TOKENS, context_of(config) or N_TOKENS)
    ids = torch.randint(len(embedding), (2, n_pos), generator=torch.Generator().manual_seed(0))
    half = n_pos // 2
    ids[1, :half] = ids[0, :half]
    # The bridge computes attention as the eager implementation does; others only round elsewhere.
    hf_model.set_attn_implementation("eager")
    n_layers = getattr(config, "num_hidden_layers", 0)
    lists = (part for part in hf_model.modules() if isinstance(part, torch.nn.ModuleList))
    blocks: Any = next((part for part in lists if len(part) == n_layers), [])
    after: dict[int, list[Tensor]] = {}
    with ExitStack() as undo, torch.no_grad():
        for layer, block in enumerate(blocks):
            undo.enter_context(block.register_forward_hook(_keep(after, layer)))
        try:
            logits = hf_model(ids.to(embedding.device), use_cache=False).logits
        except Exception as error:  # each architecture fails in a way of its own
            raise ModelError(
                f"Hugging Face's {type(hf_model).__name__} cannot run {source} in {_name(hf_model.dtype)}: "
                f"{first_line(error)}; use dtype='float32', or look at the model's config.json."
            ) from error
    raw = ShortPass(ids=ids, logits=_wide(logits), resid_post=_residuals(after, len(blocks)))
    first, second = raw.logits[:, :half]
    if half and relative_difference(second, first) > load_tolerance(hf_model.dtype, n_layers):
        raise ModelError(
            f"{source} is not causal: a token changes the logits of those before it; mechreg reads causal language "
            "models."
        )
    return raw


def context_of(config: Any) -> int | None:
    """Return how many tokens a Hugging Face config says that a window holds, None where it does not."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)


def verified(model: Any, raw: ShortPass, source: str, *, folded: bool) -> float:
    """Return the largest relative difference between a TransformerLens model's short pass and Hugging Face's.

    Logits are compared and, unless weights were folded, the residual stream after each block.
    """
    after: dict[int, list[Tensor]] = {}
    places = {f"blocks.{layer}.hook_resid_post": layer for layer in range(len(raw.resid_post))}
    hooks = [(place, _keep(after, layer)) for place, layer in places.items() if place in model.hook_dict]
    options = {"use_cache": False} if is_bridge(model) else {}
    name, dtype = type(model).__name__, dtype_of(model)
    try:
        with torch.no_grad(), model.hooks(fwd_hooks=[] if folded else hooks):
            logits = _wide(model(raw.ids.to(input_device(model)), return_type="logits", **options))
    except Exception as error:  # each architecture fails in a way of its own
        raise ModelError(
            f"{name} cannot run {source} in {_name(dtype)}: {first_line(error)}. {_remedy(model, dtype)}"
        ) from error
    pairs = {"logits": (logits, raw.logits)}
    if folded:  # folding centres the unembedding, which softmax does not see
        pairs = {"logits": (_centred(logits), _centred(raw.logits))}
    ours = _residuals(after, len(raw.resid_post))
    pairs |= {
        f"residual stream after block {layer}": pair
        for layer, pair in enumerate(zip(ours, raw.resid_post, strict=False))
    }
    differences = {what: relative_difference(*pair) for what, pair in pairs.items()}
    most = load_tolerance(dtype, model.cfg.n_layers)
    wrong = [what for what, difference in differences.items() if not difference <= most]
    if wrong:
        raise ModelError(
            f"{name} computes {source} differently from Hugging Face: on {raw.ids.shape[1]} tokens the "
            f"{wrong[-1]} differs by {differences[wrong[-1]]:.1g} of its size, where rounding makes {most:.1g}. "
            f"{_remedy(model, torch.float32)}"
        )
    return max(differences.values())


def load_tolerance(dtype: torch.dtype, n_layers: int) -> float:
    """Return the largest relative difference that rounding makes in a model of so many layers.

    Examples
    --------
    >>> load_tolerance(torch.float32, 12), round(load_tolerance(torch.bfloat16, 12), 3)
    (0.0001, 0.081)
    """
    return max(FLOOR, EPSILONS * torch.finfo(dtype).eps * n_layers**0.5)


def relative_difference(ours: Float[Tensor, "*batch d"], theirs: Float[Tensor, "*batch d"]) -> float:
    """Return the largest distance of two vectors over the length of the second, where that is finite.

    Examples
    --------
    >>> relative_difference(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]]))
    0.75
    """
    if ours.shape != theirs.shape:
        return float("inf")
    apart = einops.reduce((ours - theirs).square(), "... d -> ...", "sum").sqrt()
    length = einops.reduce(theirs.square(), "... d -> ...", "sum").sqrt()
    finite = length.isfinite()
    ratio = torch.where(apart == 0, 0.0, apart / length)[finite]
    return float(ratio.nan_to_num(nan=torch.inf).max()) if ratio.numel() else 0.0


def _keep(after: dict[int, list[Tensor]], layer: int) -> Any:
    """Return a hook, of torch's kind or TransformerLens', that keeps a block's vectors and changes nothing."""

    def keep(*given: Any, **named: Any) -> None:
        vectors = given[0] if "hook" in named else given[-1]
        vectors = vectors[0] if isinstance(vectors, tuple | list) else vectors
        after.setdefault(layer, []).append(_wide(vectors))

    return keep


def _residuals(after: dict[int, list[Tensor]], n_layers: int) -> list[Tensor]:
    """Return one tensor a block, or none where some block did not run once."""
    is_whole = len(after) == n_layers and all(len(kept) == 1 for kept in after.values())
    return [after[layer][0] for layer in range(n_layers)] if is_whole else []


def _wide(values: Tensor) -> Tensor:
    return values.detach().double().cpu()


def _centred(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch pos d_vocab"]:
    return logits - einops.reduce(logits, "batch pos d_vocab -> batch pos 1", "mean")


def _remedy(model: Any, dtype: torch.dtype) -> str:
    other = "dtype='float32'" if dtype != torch.float32 else "another model"
    if is_bridge(model):
        return f"Use {other}, or look into this one with load_model(..., verify=False)."
    return "Use backend='bridge'."


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
