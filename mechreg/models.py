"""Models: load one, look at it, and know what was loaded; the only module that imports TransformerLens."""

import contextlib
import copy
import hashlib
import importlib.metadata
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch

from mechreg import miniatures
from mechreg.schema import FOLDED_SUFFIX, InputError, ModelError, did_you_mean, require_option

Backend = Literal["auto", "hooked", "bridge"]
Processing = Literal["raw", "folded"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]
GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")

# Name of a hook -> where TransformerLens has it, its axes, in the order in which a block computes them.
HOOK_POINTS = {
    "resid_pre": ("hook_resid_pre", "batch pos d_model"),
    "z": ("attn.hook_z", "batch pos head d_head"),
    "result": ("attn.hook_result", "batch pos head d_model"),
    "attn_out": ("hook_attn_out", "batch pos d_model"),
    "resid_mid": ("hook_resid_mid", "batch pos d_model"),
    "mlp_out": ("hook_mlp_out", "batch pos d_model"),
    "resid_post": ("hook_resid_post", "batch pos d_model"),
}


@dataclass(frozen=True, kw_only=True)
class LoadRecord:
    """What was loaded, and how; kept on the model, written to a run's provenance."""

    name: str
    source: str
    revision: str | None
    commit: str | None
    backend: str
    processing: str
    dtype: str
    device: str
    # The user's own Hugging Face model, if that is what was loaded: check_model compares with it.
    original: Any = None


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The architecture at a glance; printing it shows all of it."""

    architecture: dict[str, Any]
    parameters: pd.DataFrame
    hook_points: pd.DataFrame

    def __str__(self) -> str:
        width = max(len(key) for key in self.architecture)
        lines = [f"{key:<{width}}  {_shown(value)}" for key, value in self.architecture.items()]
        parameters = self.parameters.to_string(index=False, formatters={"parameters": "{:,}".format})
        return "\n".join([*lines, "", parameters, "", self.hook_points.to_string(index=False)])


def load_model(
    name_or_path_or_hf_model: Any,
    *,
    backend: Backend = "auto",
    processing: Processing = "raw",
    dtype: Dtype = "float32",
    device: str = "auto",
    revision: str | None = None,
    tokenizer: Any = None,
    name: str | None = None,
) -> Any:
    """Return a TransformerLens model whose numbers are Hugging Face's own, in evaluation mode.

    Parameters
    ----------
    name_or_path_or_hf_model : str, Path, Hugging Face model or TransformerLens model
        A hub name ("gpt2"), a folder, a miniature ("mini-s"), or a model object. A Hugging Face object is
        copied, never altered; a TransformerLens object is returned as it is.
    backend : {"auto", "hooked", "bridge"}
        HookedTransformer (TransformerLens 3 only) or TransformerBridge. "auto" takes hooked where it can hold
        the model and bridge elsewhere.
    processing : {"raw", "folded"}
        "folded" is TransformerLens' processing (layer norms folded, writing weights centred); it changes
        attn_out norms by several percent, and the model's name says so ("gpt2[folded]").
    dtype : {"float32", "float64", "bfloat16", "float16"}
    device : str
        "auto" is cuda where there is one, else cpu.
    revision : str, optional
        Branch, tag or commit of the hub repository.
    tokenizer : transformers tokenizer, optional
        For a model object, or a folder without one.
    name : str, optional
        What the model is called in frames; by default the hub name or the folder's.

    Returns
    -------
    transformer_lens.HookedTransformer or transformer_lens.model_bridge.TransformerBridge

    Raises
    ------
    InputError
        An option has no such value, or a folder is not there.
    ModelError
        The model cannot be had, is incomplete, needs remote code, or does not fit the backend.

    Examples
    --------
    >>> model = load_model("mini-s")
    >>> model.cfg.n_layers, model.cfg.d_model
    (4, 64)
    """
    require_option(backend, get_args(Backend), name="backend")
    require_option(processing, get_args(Processing), name="processing")
    require_option(dtype, get_args(Dtype), name="dtype")
    if is_transformer_lens_model(name_or_path_or_hf_model):
        return name_or_path_or_hf_model

    device = _device(device)
    torch_dtype = getattr(torch, dtype)
    with torch.random.fork_rng(), _quiet():  # both libraries draw random weights before they load the real ones
        original = None
        if isinstance(name_or_path_or_hf_model, torch.nn.Module):
            original = name_or_path_or_hf_model
            source = str(getattr(original.config, "_name_or_path", "") or type(original).__name__)
            config = original.config
            hf_model: Any = None
        elif isinstance(name_or_path_or_hf_model, str | Path):
            source = _resolve(name_or_path_or_hf_model)
            config = _read_config(source, revision)
        else:
            raise InputError(
                "load_model needs a hub name, a folder, a miniature's name or a model object; "
                f"got {type(name_or_path_or_hf_model).__name__}."
            )
        backend = _choose_backend(backend, config, source, original)
        if original is not None:
            hf_model = copy.deepcopy(original).to(torch_dtype)
        elif backend == "hooked" and config.model_type != "gpt2":
            hf_model = None  # TransformerLens' own route loads and converts by hub name
        else:
            hf_model = _read_weights(source, revision, torch_dtype)
        if tokenizer is None:
            tokenizer = _read_tokenizer(source, revision) if original is None else None
        else:
            tokenizer = copy.deepcopy(tokenizer)  # TransformerLens sets padding and BOS on the object it is given

        label = name or (Path(source).name if Path(source).is_dir() else source)
        if processing == "folded":
            label += FOLDED_SUFFIX
        commit = getattr(config, "_commit_hash", None)
        if backend == "bridge":
            model = _bridge(hf_model, source, torch_dtype, tokenizer, folded=processing == "folded")
        elif hf_model is not None:
            model = _hooked_gpt2(hf_model, label, torch_dtype, tokenizer, folded=processing == "folded")
        else:
            model = _hooked_by_name(source, revision, torch_dtype, folded=processing == "folded")
        del hf_model
        # Hooked's own .to() prints; the plain one of torch moves the same tensors.
        torch.nn.Module.to(model, device)
    model.cfg.device = device
    model.cfg.model_name = label
    model.cfg.default_prepend_bos = False
    model.eval().requires_grad_(False)
    model._mechreg_record = LoadRecord(
        name=label,
        source=source,
        revision=revision,
        commit=commit,
        backend=backend,
        processing=processing,
        dtype=dtype,
        device=device,
        original=original,
    )
    return model


def is_transformer_lens_model(model: object) -> bool:
    """Return whether an object has what mechreg uses of TransformerLens: ``run_with_hooks`` and ``cfg``."""
    return hasattr(model, "run_with_hooks") and hasattr(model, "cfg")


def record_of(model: Any) -> LoadRecord:
    """Return what is known of a model: its load record, or for a model made elsewhere what it shows itself.

    Raises
    ------
    InputError
        The object is not a TransformerLens model.

    Examples
    --------
    >>> record_of(load_model("mini-s", backend="bridge")).backend
    'bridge'
    """
    if not is_transformer_lens_model(model):
        raise InputError(
            f"A TransformerLens model is needed; got {type(model).__name__}. Use load_model(...) first."
        )
    record = getattr(model, "_mechreg_record", None)
    if record is not None:
        return record
    folded = has_processed_weights(model)
    name = str(getattr(model.cfg, "model_name", None) or "model")
    parameter = next(iter(model.parameters()))
    return LoadRecord(
        name=name + FOLDED_SUFFIX if folded and not name.endswith(FOLDED_SUFFIX) else name,
        source=str(getattr(model.cfg, "tokenizer_name", None) or name),
        revision=None,
        commit=None,
        backend="bridge" if hasattr(model, "original_model") else "hooked",
        processing="folded" if folded else "raw",
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
    )


def has_processed_weights(model: Any) -> bool:
    """Return whether a model's weights were centred, as TransformerLens' defaults do.

    Centring makes every output row of W_O sum to zero over d_model, which no training does; the test needs no
    memory of how the model was loaded (``ProcessWeights.center_writing_weights`` in TransformerLens).
    """
    blocks = getattr(model, "blocks", [])
    if not len(blocks) or not hasattr(blocks[0], "attn") or not hasattr(blocks[0].attn, "W_O"):
        return False
    w_o = blocks[0].attn.W_O.detach().float()
    return bool(w_o.mean(dim=-1).abs().max() < 1e-3 * w_o.abs().mean())


def load_reference(model: Any) -> Any:
    """Return the raw Hugging Face model that a model was made from, loaded again, for comparison.

    Raises
    ------
    ModelError
        Where it came from is not known or not to be had; pass the Hugging Face model to the check instead.
    """
    record = record_of(model)
    if record.original is not None:
        # A model in training mode would drop out; the user's own must not be switched under them.
        return copy.deepcopy(record.original).to(getattr(torch, record.dtype)).eval()
    with torch.random.fork_rng(), _quiet():
        source = _resolve(record.source)
        reference = _read_weights(source, record.revision, getattr(torch, record.dtype))
    return reference.to(record.device).eval()


def describe_model(model: Any) -> ModelDescription:
    """Return a model's architecture, its parameters by component and its hook points with their shapes.

    Parameters
    ----------
    model : str, Path or model
        Anything that `load_model` takes.

    Examples
    --------
    >>> describe_model("mini-s").architecture["blocks"]
    4
    """
    model = load_model(model)
    cfg, record = model.cfg, record_of(model)
    architecture = {
        "model": record.name,
        "class": type(model).__name__,
        "blocks": cfg.n_layers,
        "d_model": cfg.d_model,
        "heads": cfg.n_heads,
        "d_head": cfg.d_head,
        "context": cfg.n_ctx,
        "vocabulary": cfg.d_vocab,
        "activation": cfg.act_fn,
        "processing": record.processing,
        "dtype": record.dtype,
    }
    sizes = {"batch": "batch", "pos": "pos", "head": cfg.n_heads, "d_head": cfg.d_head, "d_model": cfg.d_model}
    rows = []
    for hook, (place, axes) in HOOK_POINTS.items():
        if f"blocks.0.{place}" in model.hook_dict:
            shape = " x ".join(str(sizes[axis]) for axis in axes.split())
            rows.append({"hook": hook, "hook_point": f"blocks.{{layer}}.{place}", "shape": shape})
    return ModelDescription(
        architecture=architecture,
        parameters=_count_parameters(model),
        hook_points=pd.DataFrame(rows),
    )


def weight_hash(model: Any) -> str:
    """Return the SHA-256 of all weights, by name: two models with the same hash have the same numbers."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.named_parameters()):
        digest.update(key.encode())
        # Bytes, so that bfloat16, which numpy does not know, is hashed too.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_hash(model: Any) -> str | None:
    """Return the SHA-256 of the tokenizer's vocabulary and rules, or None where there is no tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    plain = copy.deepcopy(backend)
    plain.no_padding()
    plain.no_truncation()
    return hashlib.sha256(plain.to_str().encode()).hexdigest()


def hooked_transformer_class() -> Any | None:
    """Return HookedTransformer where the installed TransformerLens has it, else None (removed in 4.0)."""
    import transformer_lens

    return getattr(transformer_lens, "HookedTransformer", None)


def _choose_backend(backend: str, config: Any, source: str, original: Any) -> Backend:
    hooked_exists = hooked_transformer_class() is not None
    is_gpt2 = config.model_type == "gpt2"
    held_by_hooked = is_gpt2 or (original is None and not Path(source).is_dir())
    if is_gpt2 and getattr(config, "add_cross_attention", False):
        raise ModelError(f"{source}: a GPT-2 with cross-attention is not a language model of one text.")
    if backend == "hooked" and not hooked_exists:
        version = importlib.metadata.version("transformer-lens")
        raise ModelError(
            f"backend='hooked' needs TransformerLens 3, and {version} is installed, which has no "
            "HookedTransformer; use backend='bridge', or pip install 'transformer-lens<4'."
        )
    if backend == "hooked" and not held_by_hooked:
        raise ModelError(
            f"HookedTransformer cannot hold {source!r}, a local {config.model_type} model; "
            "use backend='bridge'."
        )
    if backend == "auto":
        backend = "hooked" if hooked_exists and held_by_hooked else "bridge"
    if backend == "bridge" and is_gpt2 and not getattr(config, "scale_attn_weights", True):
        # TransformerBridge always divides the scores by sqrt(d_head); the numbers would be another model's.
        raise ModelError(
            f"{source!r} has scale_attn_weights=false, which TransformerBridge ignores; "
            "use backend='hooked' (TransformerLens 3)."
        )
    return backend  # type: ignore[return-value]


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={device!r} cannot be used here ({_first_line(error)}); try 'cpu'.") from error
    return device


def _resolve(source: str | Path) -> str:
    """Return a folder's path or a hub name."""
    text = str(source)
    if text in miniatures.NAMES:
        return str(miniatures.folder(text))
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"The folder {text!r} has no config.json; it is not a Hugging Face model.")
        return str(path.resolve())
    if isinstance(source, Path) or path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise InputError(f"There is no model folder {text!r}.")
    if path.exists():
        raise InputError(f"{text!r} is a file; load_model needs the folder that holds config.json.")
    return text


def _read_config(source: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    with _explained(source):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source!r} is an encoder-decoder; mechreg reads causal language models.")
    return config


def _read_weights(source: str, revision: str | None, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    with _explained(source):
        hf_model, report = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
        )
    lacking = sorted(str(key) for key in report["missing_keys"])
    if lacking or report.get("mismatched_keys"):
        wrong = lacking or sorted(str(key) for key in report["mismatched_keys"])
        raise ModelError(
            f"The weights of {source!r} are incomplete or of another shape than its config says: "
            f"{', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}."
        )
    return hf_model


def _read_tokenizer(source: str, revision: str | None) -> Any:
    """Return the tokenizer, or None for a folder that has none: transformers would make up an empty one."""
    from transformers import AutoTokenizer

    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in TOKENIZER_FILES):
        return None
    with _explained(source):
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)


def _bridge(hf_model: Any, source: str, dtype: torch.dtype, tokenizer: Any, *, folded: bool) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    # The bridge computes attention itself and wants the explicit mask that only eager attention is given.
    hf_model.set_attn_implementation("eager")
    bridge = TransformerBridge.boot_transformers(
        source, hf_model=hf_model, tokenizer=tokenizer or _stand_in_tokenizer(), dtype=dtype, device="cpu"
    )
    if tokenizer is None:
        bridge.tokenizer = None
    if folded:
        bridge.enable_compatibility_mode()
    return bridge


def _stand_in_tokenizer() -> Any:
    """Return a tokenizer only to boot a bridge with: given none, it would go and look for one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({end: 0}, unk_token=end)), eos_token=end)


def _hooked_gpt2(hf_model: Any, name: str, dtype: torch.dtype, tokenizer: Any, *, folded: bool) -> Any:
    """Return a HookedTransformer of any GPT2Config, its weights views of the Hugging Face tensors.

    TransformerLens' own loader copies them twice and refuses unknown names; views cost no memory, and the
    attention then multiplies by the very matrices of Hugging Face.
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
        model_name=name,
        init_weights=False,
        device="cpu",
        dtype=dtype,
    )
    model = HookedTransformer(hooked_config, tokenizer, move_to_device=False)
    for block, hf_block in zip(model.blocks, hf_model.transformer.h, strict=True):
        block.mlp.act_fn = hf_block.mlp.act  # any activation of Hugging Face, TransformerLens knows a few
    model.cfg.act_fn = config.activation_function
    state = {key: tensor.detach() for key, tensor in convert_gpt2_weights(hf_model, hooked_config).items()}
    if folded:
        # Processing works in place, and W_U is the transpose of W_E.
        state = {key: tensor.clone() for key, tensor in state.items()}
        model.load_and_process_state_dict(state)
    else:
        report = model.load_state_dict(state, strict=False, assign=True)
        lacking = [key for key in report.missing_keys if not key.endswith(("b_U", "mask", "IGNORE"))]
        if lacking or report.unexpected_keys:
            raise ModelError(f"{name}: HookedTransformer did not take {lacking + report.unexpected_keys}.")
    return model


def _hooked_by_name(source: str, revision: str | None, dtype: torch.dtype, *, folded: bool) -> Any:
    """Return TransformerLens' own conversion of a hub model that is not a GPT-2."""
    from transformer_lens import HookedTransformer

    load = HookedTransformer.from_pretrained if folded else HookedTransformer.from_pretrained_no_processing
    with _explained(source):
        extra = {} if revision is None else {"revision": revision}
        return load(source, dtype=dtype, device="cpu", default_prepend_bos=False, **extra)


def _count_parameters(model: Any) -> pd.DataFrame:
    """Return the parameters per component, a tensor that serves twice (W_E and W_U) counted once."""
    kinds = {
        "token embedding": r"wte|embed\.W_E|embed_tokens|embed_in",
        "position embedding": r"wpe|W_pos|pos_embed",
        "attention": r"attn|attention",
        "mlp": r"mlp",
        "layer norms": r"ln_?\d|ln_f|norm",
        "unembedding": r"lm_head|unembed|embed_out",
    }
    counts = dict.fromkeys([*kinds, "other"], 0)
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for key, tensor in model.named_parameters():
        identity = (tensor.data_ptr(), tuple(sorted(tensor.shape)))
        # TransformerLens adds an unembedding bias of zeros, and the bridge keeps a joint qkv beside q, k and v.
        is_added = re.search(r"unembed\.b_U$|lm_head.*bias$", key) and not bool(tensor.any())
        if identity in seen or is_added or ".qkv." in key:
            continue
        seen.add(identity)
        part = re.sub(r"_original_component|original_component", "", key)
        kind = next((kind for kind, pattern in kinds.items() if re.search(pattern, part)), "other")
        counts[kind] += tensor.numel()
    rows = [{"component": kind, "parameters": count} for kind, count in counts.items() if count]
    rows.append({"component": "total", "parameters": sum(counts.values())})
    return pd.DataFrame(rows)


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn what the libraries raise while loading into one sentence with a remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = _first_line(error)
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source!r} needs code from its repository to run, which mechreg does not execute."
            ) from error
        if Path(source).is_dir():
            raise ModelError(f"The model folder {source!r} cannot be loaded: {reason}") from error
        hint = did_you_mean(source, [*miniatures.NAMES, *GPT2_NAMES])
        raise ModelError(
            f"{source!r} is no folder and no miniature, and could not be loaded from the Hugging Face hub: "
            f"{reason} Check the name and the network, or give a local folder.{hint}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' prints off standard output, and their progress bars and deprecation notes away."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
