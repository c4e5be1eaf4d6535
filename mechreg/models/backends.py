"""A Hugging Face model in, a HookedTransformer or a TransformerBridge of the same numbers out."""

import importlib.metadata
from typing import Any

import torch

from mechreg.models.sources import quiet
from mechreg.schema import Backend, ModelError
from mechreg.words import first_line


def hooked_transformer_class() -> Any | None:
    """Return HookedTransformer where the installed TransformerLens has it, else None (removed in 4.0)."""
    try:
        with quiet():
            from transformer_lens import HookedTransformer
    except ImportError:
        return None
    return HookedTransformer


def choose_backend(backend: Backend, config: Any, source: str) -> Backend:
    """Return "hooked" or "bridge", or refuse the requested one with the reason."""
    hooked_exists = hooked_transformer_class() is not None
    is_gpt2 = config.model_type == "gpt2"
    if backend == "hooked" and not hooked_exists:
        raise ModelError(
            f"backend='hooked' needs TransformerLens 3, and {importlib.metadata.version('transformer-lens')} is "
            "installed, which has no HookedTransformer; use backend='bridge', or pip install 'transformer-lens<4'."
        )
    held_by_hooked = is_gpt2
    if hooked_exists and not is_gpt2:
        from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

        held_by_hooked = source in OFFICIAL_MODEL_NAMES
    if backend == "hooked" and not held_by_hooked:
        raise ModelError(
            f"HookedTransformer cannot hold {source}, a {config.model_type} model (it holds any GPT-2, and other "
            "architectures by the hub names that TransformerLens lists); use backend='bridge'."
        )
    if backend == "auto":
        backend = "hooked" if hooked_exists and held_by_hooked else "bridge"
    if backend == "bridge" and not getattr(config, "scale_attn_weights", True):
        # TransformerBridge always divides the scores by sqrt(d_head); a GPT-2 or GPT-BigCode would be another model.
        remedy = "use backend='hooked' (TransformerLens 3)" if is_gpt2 else "use another model"
        raise ModelError(f"{source} has scale_attn_weights=false, which TransformerBridge ignores; {remedy}.")
    return backend


def bridge_of(hf_model: Any, source: str, dtype: torch.dtype, *, folded: bool) -> Any:
    """Return a TransformerBridge around a Hugging Face model, which it takes over."""
    from transformer_lens.model_bridge import TransformerBridge

    # The bridge computes attention itself and wants the explicit mask that only eager attention is given.
    hf_model.set_attn_implementation("eager")
    try:
        bridge = TransformerBridge.boot_transformers(
            source, hf_model=hf_model, tokenizer=_stand_in_tokenizer(), dtype=dtype, device="cpu"
        )
    except Exception as error:  # each architecture's adapter fails in a way of its own
        reason = first_line(error).split(" Available architectures")[0]  # a list of two hundred
        raise ModelError(
            f"TransformerBridge cannot hold {source}, a {hf_model.config.model_type} model: {reason}"
        ) from error
    if folded:
        bridge.enable_compatibility_mode()
    return bridge


def hooked_gpt2(hf_model: Any, source: str, dtype: torch.dtype, *, folded: bool) -> Any:
    """Return a HookedTransformer of any GPT2Config, its weights views of the Hugging Face tensors.

    TransformerLens' own loader copies them twice and refuses unknown names.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = hf_model.config
    hooked_config = HookedTransformerConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_ctx=config.n_positions,
        n_heads=config.n_head,
        d_head=config.n_embd // config.n_head,
        d_mlp=config.n_inner or 4 * config.n_embd,
        d_vocab=config.vocab_size,
        eps=config.layer_norm_epsilon,
        act_fn="gelu_new",
        use_attn_scale=config.scale_attn_weights,
        scale_attn_by_inverse_layer_idx=config.scale_attn_by_inverse_layer_idx,
        normalization_type="LN",
        positional_embedding_type="standard",
        original_architecture="GPT2LMHeadModel",
        model_name=source,
        init_weights=False,
        device="cpu",
        dtype=dtype,
    )
    model = HookedTransformer(hooked_config, move_to_device=False)
    for block, hf_block in zip(model.blocks, hf_model.transformer.h, strict=True):
        block.mlp.act_fn = hf_block.mlp.act  # TransformerLens knows only a few of Hugging Face's activations
    model.cfg.act_fn = config.activation_function
    state = {key: tensor.detach() for key, tensor in convert_gpt2_weights(hf_model, hooked_config).items()}
    if folded:
        # Processing works in place, and W_U is the transpose of W_E.
        model.load_and_process_state_dict({key: tensor.clone() for key, tensor in state.items()})
        return model
    report = model.load_state_dict(state, strict=False, assign=True)
    lacking = [key for key in report.missing_keys if not key.endswith(("b_U", "mask", "IGNORE"))]
    if lacking or report.unexpected_keys:
        raise ModelError(f"{source}: HookedTransformer did not take {lacking + report.unexpected_keys}.")
    return model


def hooked_by_name(
    hf_model: Any, source: str, commit: str | None, dtype: torch.dtype, *, folded: bool
) -> Any:
    """Return TransformerLens' own conversion of a hub model that is not a GPT-2."""
    from transformer_lens import HookedTransformer

    load = HookedTransformer.from_pretrained if folded else HookedTransformer.from_pretrained_no_processing
    try:
        model = load(
            source,
            hf_model=hf_model,
            tokenizer=_stand_in_tokenizer(),
            dtype=dtype,
            device="cpu",
            revision=commit,
        )
    except Exception as error:  # each architecture's conversion fails in a way of its own
        raise ModelError(
            f"HookedTransformer cannot hold {source} ({first_line(error)}); use backend='bridge'."
        ) from error
    require_same_windows(hf_model.config, model.cfg, source)
    return model


def require_same_windows(config: Any, cfg: Any, source: str) -> None:
    """Check that a HookedTransformer's blocks look as far back as Hugging Face's, which a short pass cannot show."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * cfg.n_layers
    theirs = [bool(window) and kind == "sliding_attention" for kind in kinds]
    ours = [kind == "local" for kind in cfg.attn_types] if cfg.use_local_attn else [False] * cfg.n_layers
    if window and window < cfg.n_ctx and any(theirs) and (ours != theirs or cfg.window_size != window):
        raise ModelError(
            f"{source} has {sum(theirs)} blocks that look back only {window} tokens, which HookedTransformer does not "
            "represent; use backend='bridge'."
        )


def _stand_in_tokenizer() -> Any:
    """Return a tokenizer to build a model with: TransformerLens would load the real one again, of any revision."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({end: 0}, unk_token=end)), eos_token=end
    )
