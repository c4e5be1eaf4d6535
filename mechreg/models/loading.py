"""Load a model: a Hugging Face model in, a TransformerLens model out whose numbers are Hugging Face's own."""

import copy
import functools
import weakref
from pathlib import Path
from typing import Any, get_args

import torch

from mechreg.models.backends import bridge_of, choose_backend, hooked_by_name, hooked_gpt2
from mechreg.models.identity import LoadRecord, input_device, is_transformer_lens_model, record_of
from mechreg.models.placing import DeviceMap, devices_of, require_device_map, require_placed, usable_device
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
    resolve,
)
from mechreg.models.verifying import raw_pass, verified
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
) -> Any:
    """Return a TransformerLens model whose numbers are Hugging Face's own, in evaluation mode, gradients off.

    Parameters
    ----------
    model : str, Path, Hugging Face model or TransformerLens model
        A hub name ("gpt2"), a folder, a miniature ("mini-s"), or a model object. A Hugging Face object is
        copied, never altered; a TransformerLens object is returned as it is, and takes no options.
    backend : {"auto", "hooked", "bridge"}
        HookedTransformer (TransformerLens 3 only) or TransformerBridge. "auto" takes hooked where it can hold
        the model and bridge elsewhere.
    processing : {"raw", "folded"}
        "folded" is TransformerLens' processing (layer norms folded, writing weights centred); it changes
        attn_out norms by several percent, and the model's name says so ("gpt2[folded]").
    dtype : str
        "float32", "float64", "bfloat16", "float16" or "bfloat16-autocast". The last keeps float32 weights and lets
        torch's autocast multiply in bfloat16; norms differ from float32's.
    device : str
        "auto" is cuda where there is one, else cpu.
    device_map : str or dict, optional
        For a model larger than one GPU: "auto", "balanced", "balanced_low_0", "sequential", or a dict of Hugging
        Face's module names and their devices, as in ``from_pretrained``. Bridge only; instead of ``device``.
    revision : str, optional
        Branch, tag or commit of the hub repository.
    tokenizer : transformers tokenizer, optional
        For a model object, or a folder without one; a copy is kept.
    name : str, optional
        What the model is called in frames; by default the hub name or the folder's.
    allow_pickle : bool
        Read weights that are there only as pickles, with torch's loader that runs no code.
    verify : bool
        Compare one pass of 16 tokens with the Hugging Face model before it is wrapped, and refuse a difference that is
        no rounding: TransformerLens computes some configurations as another model. ``record_of(model).verified`` is
        the largest relative difference.

    Returns
    -------
    transformer_lens.HookedTransformer or transformer_lens.model_bridge.TransformerBridge
        Safetensors are read where there are any, pickles only if allowed, and code of a repository never. No BOS
        is prepended unless asked for.

    Raises
    ------
    InputError
        An option has no such value or does not apply, or a folder is not there.
    ModelError
        The model could not be loaded, its weights and its config do not match, it is pickled, needs remote code, has
        parts beside its text, reads in both directions, or TransformerLens computes something else of it.

    Examples
    --------
    >>> model = load_model("mini-s")
    >>> model.cfg.n_layers, model.cfg.d_model
    (4, 64)
    """
    require_option(backend, get_args(Backend), name="backend")
    require_option(processing, get_args(Processing), name="processing")
    require_option(dtype, get_args(Dtype), name="dtype")
    given: Any = model
    if is_transformer_lens_model(given):
        options = (
            backend,
            processing,
            dtype,
            device,
            device_map,
            revision,
            tokenizer,
            name,
            allow_pickle,
            verify,
        )
        if options != ("auto", "raw", "float32", "auto", None, None, None, None, False, True):
            raise InputError(
                "A TransformerLens model is taken as it is, so load_model has no options for it; give the name, "
                "folder or Hugging Face model that it was made from."
            )
        return given

    if device_map is None:
        device = usable_device(device)
    else:
        require_device_map(device_map, device=device, backend=backend, processing=processing)
        backend = "bridge"
    torch_dtype = _torch_dtype(dtype)
    folded = processing == "folded"
    label = model_label(given, name=name) + (FOLDED_SUFFIX if folded else "")
    # Both libraries draw random weights before they load the real ones.
    with torch.random.fork_rng(), quiet():
        if isinstance(given, str | Path):
            source = resolve(given)
            commit = find_commit(source, revision)
            backend = _checked_backend(backend, source, commit, allow_pickle=allow_pickle)
            hf_model = read_weights(source, commit, torch_dtype, device_map=device_map)
            if device_map is not None:
                require_placed(hf_model, source, device_map)
            tokenizer = read_tokenizer(source, commit) if tokenizer is None else tokenizer
        else:
            source, commit = f"a {type(given).__name__} in memory", None
            _require_no_folder_options(revision, device_map)
            require_readable(given.config, source)
            backend = choose_backend(backend, given.config, source)
            hf_model = copied(given, torch_dtype, "cpu")
            # transformers says the class only when it saves a model.
            hf_model.config.architectures = hf_model.config.architectures or [type(given).__name__]
        raw = raw_pass(hf_model, source) if verify else None
        if backend == "bridge":
            model = bridge_of(hf_model, source, torch_dtype, folded=folded)
        elif hf_model.config.model_type == "gpt2":
            model = hooked_gpt2(hf_model, source, torch_dtype, folded=folded)
        else:
            model = hooked_by_name(hf_model, source, commit, torch_dtype, folded=folded)
        del hf_model
        model.eval()
        difference = None if raw is None else verified(model, raw, source, folded=folded)
        if device_map is None:
            torch.nn.Module.to(model, device)  # HookedTransformer's own .to() prints
            model.cfg.device = device
        else:
            device = devices_of(model)
            model.cfg.device = str(input_device(model))
    model.cfg.model_name = label
    model.cfg.default_prepend_bos = False
    _give_tokenizer(model, tokenizer)
    model.requires_grad_(False)
    if dtype == AUTOCAST:
        _autocast(model, device.split(":")[0])
    model._mechreg_record = LoadRecord(
        name=label,
        source=source,
        revision=revision,
        commit=commit,
        backend=backend,
        processing=processing,
        dtype=dtype,
        device=device,
        device_map=device_map,
        verified=difference,
    )
    if not isinstance(
        given, str | Path
    ):  # weakly, so that a user who lets the original go has its memory back
        model._mechreg_original = weakref.ref(given)
    return model


def model_label(model: Any, *, name: str | None = None) -> str:
    """Return what a model is called in frames, before it is loaded or after.

    Parameters
    ----------
    model : str, Path or model
        Anything that `load_model` takes.
    name : str, optional
        Taken instead, where it is given.

    Raises
    ------
    InputError
        Not something that `load_model` takes, or a folder that is not there.

    Examples
    --------
    >>> model_label("mini-s")
    'mini-s'
    """
    if is_transformer_lens_model(model):
        return record_of(model).name
    if isinstance(model, str | Path):
        source = resolve(model)
        return name or (Path(source).name if Path(source).is_dir() else source)
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise InputError(
            "load_model needs a hub name, a folder, a miniature's name, a Hugging Face causal language model "
            f"(one with its lm_head) or a TransformerLens model; got {type(model).__name__}."
        )
    return name or Path(model.config._name_or_path or type(model).__name__).name


def require_loadable(
    *models: str | Path,
    backend: Backend = "auto",
    processing: Processing = "raw",
    device: str = "auto",
    device_map: DeviceMap | None = None,
    allow_pickle: bool = False,
) -> None:
    """Check all that can be known of models without their weights: they are there, and the backend can hold them.

    No two may have one name, which would mix their norms.

    Raises
    ------
    InputError, ModelError
        As in `load_model`.

    Examples
    --------
    >>> require_loadable("mini-s")
    """
    require_option(backend, get_args(Backend), name="backend")
    if device_map is None:
        usable_device(device)
    else:
        require_device_map(device_map, device=device, backend=backend, processing=processing)
        backend = "bridge"
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
            source = resolve(model)
            _checked_backend(backend, source, find_commit(source, None), allow_pickle=allow_pickle)


def load_reference(model: Any, original: Any = None) -> Any:
    """Return the raw Hugging Face model that a model was made from, loaded or copied again, for comparison.

    Parameters
    ----------
    model : TransformerLens model
    original : transformers model, optional
        Where it is known: a copy of it is returned.

    Raises
    ------
    ModelError
        Where it came from is not known or not to be had; pass the Hugging Face model to the check instead.

    Examples
    --------
    >>> type(load_reference(load_model("mini-s"))).__name__
    'GPT2LMHeadModel'
    """
    record = record_of(model)
    dtype = _torch_dtype(record.dtype)
    made_from = getattr(model, "_mechreg_original", None)
    if original is None and made_from is not None:
        original = made_from()
        if original is None:
            raise ModelError(f"The Hugging Face model that {record.name} was made from is gone from memory.")
    if original is not None:
        return copied(original, dtype, record.device)
    with torch.random.fork_rng(), quiet():
        source = resolve(record.source)
        reference = read_weights(source, record.commit, dtype, device_map=record.device_map)
    return reference if record.device_map is not None else reference.to(record.device)


def _checked_backend(backend: Backend, source: str, commit: str | None, *, allow_pickle: bool) -> Backend:
    """Return the backend of a folder or hub name, after all that can be known without its weights is checked."""
    backend = choose_backend(backend, read_config(source, commit), source)
    require_no_adapter(source, commit)
    require_safe_weights(source, commit, allow_pickle=allow_pickle)
    return backend


def _require_no_folder_options(revision: str | None, device_map: DeviceMap | None) -> None:
    if revision is not None:
        raise InputError("revision= is for hub names; a model object is what it is.")
    if device_map is not None:
        raise InputError("device_map= is for names and folders; a model object is copied to one device.")


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
