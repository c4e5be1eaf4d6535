"""Load a model: a Hugging Face model in, a TransformerLens model out whose numbers are Hugging Face's own."""

import copy
import functools
import inspect
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from mechreg.models.backends import bridge_of, choose_backend, hooked_by_name, hooked_gpt2
from mechreg.models.gguf import facts_of, is_gguf
from mechreg.models.identity import LoadRecord, input_device, is_bridge, is_transformer_lens_model, record_of
from mechreg.models.naming import resolve
from mechreg.models.placing import DeviceMap, devices_of, require_device_map, usable_device
from mechreg.models.protocol import Model
from mechreg.models.sources import (
    copied,
    find_commit,
    quiet,
    read_config,
    read_tokenizer,
    read_weights,
    require_no_adapter,
    require_readable,
    require_safe_weights,
)
from mechreg.models.verifying import context_of, raw_pass, verified
from mechreg.outside import visible
from mechreg.schema import (
    AUTOCAST,
    FOLDED_SUFFIX,
    Backend,
    Dtype,
    InputError,
    ModelError,
    Processing,
    require_option,
)


def load_model(
    model: Any,
    *,
    backend: Backend = "auto",
    processing: Processing = "raw",
    dtype: Dtype = "float32",
    device: str = "auto",
    device_map: DeviceMap | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    name: str | None = None,
    allow_pickle: bool = False,
    verify: bool = True,
) -> Model:
    """Return a TransformerLens model whose numbers are Hugging Face's own, in evaluation mode, gradients off.

    Parameters
    ----------
    model : str, Path, Hugging Face model or TransformerLens model
        A hub name ("gpt2", "org/model@step1000"), a folder, a .gguf file (extra ``mechreg[gguf]``; dequantized to
        float32, and the conversion kept in a cache), a miniature ("mini-s"), or a model object. A Hugging Face object
        is copied, never altered; a TransformerLens object is returned as it is, and takes no options.
    backend : {"auto", "hooked", "bridge"}
        HookedTransformer (TransformerLens 3 only) or TransformerBridge. "auto" takes hooked where it can hold
        the model and bridge elsewhere.
    processing : {"raw", "folded"}
        "folded": layer norms folded, writing weights centred. It changes attn_out norms by several percent and the
        model's name ("gpt2[folded]").
    dtype : str
        "float32", "float64", "bfloat16", "float16", or "bfloat16-autocast": float32 weights, products in bfloat16.
    device : str
        "auto" is cuda where there is one, else cpu.
    device_map : str or dict, optional
        For a model larger than one GPU, as in ``from_pretrained``: "auto", "balanced", or a dict of Hugging Face's
        module names and their devices. Bridge only; instead of ``device``.
    revision : str, optional
        Branch, tag or commit of the hub repository, where the name has none.
    tokenizer : transformers tokenizer, optional
        For a model object, or a folder without one; a copy is kept.
    name : str, optional
        What the model is called in frames; by default the hub name or the folder's.
    allow_pickle : bool
        Read weights that are there only as pickles, with torch's loader that runs no code.
    verify : bool
        Compare one pass of 16 tokens with the Hugging Face model and refuse a difference larger than rounding:
        TransformerLens computes some configurations as another model.

    Returns
    -------
    transformer_lens.HookedTransformer or transformer_lens.model_bridge.TransformerBridge
        Safetensors are read where there are any, pickles only if allowed, and code of a repository never. No BOS
        is prepended unless asked for.

    Raises
    ------
    InputError, ModelError
        An option has no such value or does not apply; a model that could not be loaded, whose weights and config do not
        match, that is pickled, needs remote code, has parts beside its text, reads in both directions, or that
        TransformerLens computes differently.

    Examples
    --------
    >>> model = load_model("mini-s")
    >>> model.cfg.n_layers, model.cfg.d_model
    (4, 64)
    """
    options = {key: value for key, value in locals().items() if key != "model"}
    require_option(backend, get_args(Backend), name="backend")
    require_option(processing, get_args(Processing), name="processing")
    require_option(dtype, get_args(Dtype), name="dtype")
    if is_transformer_lens_model(model):
        _refuse_options(options)
        return model

    device, backend = _placed(device, device_map, backend, processing)
    torch_dtype, folded = _torch_dtype(dtype), processing == "folded"
    label = model_label(model, name=name) + (FOLDED_SUFFIX if folded else "")
    # Both libraries draw random weights before they load the real ones.
    with torch.random.fork_rng(), quiet():
        if isinstance(model, str | Path):
            source, revision = resolve(model, revision)
            commit = find_commit(source, revision)
            backend = _checked_backend(backend, source, commit, allow_pickle=allow_pickle)
            hf_model = read_weights(source, commit, torch_dtype, device_map=device_map)
            tokenizer = read_tokenizer(source, commit) if tokenizer is None else tokenizer
        else:
            source, commit = f"a {type(model).__name__} in memory", None
            backend, hf_model = _copied_model(model, source, backend, torch_dtype, revision, device_map)
        config, raw = hf_model.config.get_text_config(), raw_pass(hf_model, source) if verify else None
        lens = _wrapped(hf_model, source, commit, backend, torch_dtype, folded=folded)
        del hf_model  # folded weights are copies
        difference = None if raw is None else verified(lens, raw, source, folded=folded)
        device = _settled(lens, device, device_map)
    _made_ready(lens, label, config, tokenizer)
    if dtype == AUTOCAST:
        _autocast(lens, device.split(":")[0])
    lens._mechreg_record = LoadRecord(
        name=label, source=source, revision=revision, commit=commit, backend=backend, processing=processing,
        dtype=dtype, device=device, device_map=device_map, verified=difference,
    )  # fmt: skip
    if of_file := facts_of(source):  # a converted GGUF file, given itself or as the folder of its conversion
        about = {"quantization": of_file.get("quantization"), "file_hash": of_file.get("sha256")}
        source = str(Path(model).expanduser().resolve())
        lens._mechreg_record = replace(lens._mechreg_record, source=source, **about)
    if not isinstance(model, str | Path):
        lens._mechreg_original = weakref.ref(model)  # so that a user can free the original's memory
    return lens


def _refuse_options(options: dict[str, Any]) -> None:
    """Refuse an option that differs from `load_model`'s default: a TransformerLens model is returned as it is."""
    defaults = {name: option.default for name, option in inspect.signature(load_model).parameters.items()}
    # Options are strings and booleans, or None by default: an array is not compared.
    given = [
        f"{name}="
        for name, value in options.items()
        if value is not defaults[name] and not (isinstance(value, str) and value == defaults[name])
    ]
    if given:
        raise InputError(
            f"load_model takes no options for a TransformerLens model, which it returns as it is; got "
            f"{', '.join(given)}. Give the name, folder or Hugging Face model that it was made from."
        )


def _placed(
    device: str, device_map: DeviceMap | None, backend: Backend, processing: Processing
) -> tuple[str, Backend]:
    """Return the device and the backend, after the checks of both; a device map needs the bridge."""
    if device_map is None:
        return usable_device(device), backend
    require_device_map(device_map, device=device, backend=backend, processing=processing)
    return device, "bridge"


def _made_ready(model: Any, label: str, config: Any, tokenizer: Any) -> None:
    """Give a model its name, context and tokenizer; no BOS is prepended, and no gradients are kept."""
    # An MPT's context is not known to the bridge.
    model.cfg.n_ctx = min(model.cfg.n_ctx, context_of(config) or model.cfg.n_ctx)
    model.cfg.model_name = label
    model.cfg.default_prepend_bos = False
    _give_tokenizer(model, tokenizer)
    model.requires_grad_(False)


def _settled(model: Any, device: str, device_map: DeviceMap | None) -> str:
    """Return the devices that a model is on, after it was moved where no map did that."""
    if device_map is None:
        torch.nn.Module.to(model, device)  # HookedTransformer's own .to() prints
        model.cfg.device = device
        return device
    model.cfg.device = str(input_device(model))
    return devices_of(model)


def _copied_model(
    model: Any, source: str, backend: Backend, dtype: torch.dtype, revision: str | None, device_map: Any
) -> tuple[Backend, Any]:
    """Return the backend for a Hugging Face object, and a copy of the object."""
    if revision is not None:
        raise InputError("revision= is for hub names only; a model object has no revisions.")
    if device_map is not None:
        raise InputError("device_map= is for names and folders; a model object is copied to one device.")
    require_readable(model.config, source)
    backend = choose_backend(backend, model.config, source)
    hf_model = copied(model, dtype, "cpu")
    # transformers names the class only when it saves a model.
    hf_model.config.architectures = hf_model.config.architectures or [type(model).__name__]
    return backend, hf_model


def _wrapped(
    hf_model: Any, source: str, commit: str | None, backend: Backend, dtype: torch.dtype, *, folded: bool
) -> Any:
    """Return the TransformerLens model of a Hugging Face model, in evaluation mode."""
    if backend == "bridge":
        model = bridge_of(hf_model, source, dtype, folded=folded)
    elif hf_model.config.model_type == "gpt2":
        model = hooked_gpt2(hf_model, source, dtype, folded=folded)
    else:
        model = hooked_by_name(hf_model, source, commit, dtype, folded=folded)
    return model.eval()


def model_label(model: Any, *, name: str | None = None) -> str:
    """Return what a model is called in frames, before it is loaded or after; ``name`` where it is given.

    Control characters in it are shown as symbols.
    """
    if is_transformer_lens_model(model):
        return record_of(model).name
    if isinstance(model, str | Path):
        if is_gguf(model):
            return visible(name or Path(model).stem)
        source, revision = resolve(model)
        own_name = Path(source).name if Path(source).is_dir() else source
        return visible(name or (own_name if revision is None else f"{own_name}@{revision}"))
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise InputError(
            "load_model needs a hub name, a folder, a miniature's name, a Hugging Face causal language model "
            f"(one with its lm_head) or a TransformerLens model; got {type(model).__name__}."
        )
    return visible(name or Path(model.config._name_or_path or type(model).__name__).name)


def require_loadable(
    *models: str | Path,
    backend: Backend = "auto",
    processing: Processing = "raw",
    device: str = "auto",
    device_map: DeviceMap | None = None,
    allow_pickle: bool = False,
) -> None:
    """Check all that can be known of models without their weights, and that no two have one name."""
    require_option(backend, get_args(Backend), name="backend")
    _, backend = _placed(device, device_map, backend, processing)
    labels: dict[str, str | Path] = {}
    for model in models:
        label = model_label(model)
        if label in labels:
            raise InputError(
                f"The models {str(labels[label])!r} and {str(model)!r} are both called {label!r}, and their norms "
                "would be mixed; rename one of the folders."
            )
        labels[label] = model
        with quiet():
            source, revision = resolve(model)
            _checked_backend(backend, source, find_commit(source, revision), allow_pickle=allow_pickle)


def load_reference(model: Any, original: Any = None) -> Any:
    """Return the raw Hugging Face model that a model was made from: a copy of ``original``, or loaded again."""
    record = record_of(model)
    dtype = _torch_dtype(record.dtype)
    original = _made_from(model) if original is None else original
    if original is not None:
        return copied(original, dtype, record.device)
    with torch.random.fork_rng(), quiet():
        source = resolve(record.source)[0]
        reference = read_weights(source, record.commit, dtype, device_map=record.device_map)
    return reference if record.device_map is not None else reference.to(record.device)


def config_of(model: Any) -> Any:
    """Return the Hugging Face config of a model, or of a name or folder, whose weights are then not read."""
    if isinstance(model, str | Path):
        with quiet():
            source, revision = resolve(model)
            return read_config(source, find_commit(source, revision))
    record = record_of(model)
    original = model.original_model if is_bridge(model) else _made_from(model)
    if original is not None:
        return original.config
    if getattr(model, "_mechreg_record", None) is None:
        raise ModelError(
            f"The Hugging Face config of {record.name} is not known; load it by name or folder with load_model, "
            "or use backend='bridge'."
        )
    with quiet():
        return read_config(resolve(record.source)[0], record.commit)


def _made_from(model: Any) -> Any:
    """Return the Hugging Face object that a model was made from, None where it was made from a name."""
    made_from = getattr(model, "_mechreg_original", None)
    original = None if made_from is None else made_from()
    if made_from is not None and original is None:
        raise ModelError(
            f"The Hugging Face model that {record_of(model).name} was made from is gone from memory."
        )
    return original


def _checked_backend(backend: Backend, source: str, commit: str | None, *, allow_pickle: bool) -> Backend:
    """Return the backend of a folder or hub name, after all that can be known without its weights is checked."""
    backend = choose_backend(backend, read_config(source, commit), source)
    require_no_adapter(source, commit)
    require_safe_weights(source, commit, allow_pickle=allow_pickle)
    return backend


def _torch_dtype(dtype: str) -> torch.dtype:
    """Return the dtype of the weights."""
    return torch.float32 if dtype == AUTOCAST else getattr(torch, dtype)


def _autocast(model: Any, device_type: str) -> None:
    """Let every forward pass of a model, whoever runs it, multiply in bfloat16."""
    forward = model.forward

    @functools.wraps(forward)
    def cast(*args: Any, **options: Any) -> Any:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return forward(*args, **options)

    model.forward = cast


def _give_tokenizer(model: Any, tokenizer: Any) -> None:
    """Put a copy of the tokenizer on the model, with what TransformerLens' own methods need of it."""
    model.tokenizer = None  # given one in another's place, the bridge loads it again and cuts d_vocab to it
    if tokenizer is None:
        return
    model.tokenizer = tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = tokenizer.encode("a")
    model.cfg.tokenizer_prepends_bos = len(ids) > 1 and ids[0] == tokenizer.bos_token_id
    model.cfg.tokenizer_appends_eos = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
