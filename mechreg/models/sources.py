"""Where a model comes from: a folder, a miniature or the hub, read with transformers and nothing executed."""

import contextlib
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from mechreg.models.explaining import explained
from mechreg.models.placing import require_placed
from mechreg.schema import ModelError

MOST_LAYERS = 10_000  # transformers would build blocks for days
SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_OTHER_PART = re.compile(r"(vision|audio|image|video|speech)\w*_config")
OWN_PARTS = {"text_config", "attn_config", "ffn_config"}  # sub-configs that a text-only model may have
OLD_BUFFERS = {"masked_bias", "causal_mask", "inv_freq", "position_ids"}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


def find_commit(source: str, revision: str | None) -> str | None:
    """Return the commit of a hub name's revision, from which everything is then read; None for a folder."""
    if os.path.isdir(source):
        return None
    from transformers.utils import cached_file

    with explained(source, revision=revision):
        config = cached_file(source, "config.json", revision=revision, local_files_only=not _hub_answers())
        if config is None:
            raise OSError("its repository does not appear to have a config.json")
        return Path(config).parent.name  # snapshots/<commit>/...


def _hub_answers() -> bool:
    """Return whether the hub's machine takes connections, as far as can be seen; its client tries for a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies():
        return True
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname, hub.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


def read_config(source: str, commit: str | None) -> Any:
    """Return a model's config, and refuse one that needs code of its own or is not a causal model's."""
    from transformers import AutoConfig

    with explained(source):
        config = AutoConfig.from_pretrained(source, revision=commit, trust_remote_code=False)
    for part in (config, *vars(config).values()):
        attention = getattr(part, "_attn_implementation", None)
        if attention not in (None, "eager", "sdpa"):  # others come from the hub, as code of anyone's
            raise ModelError(
                f"The config.json of {source!r} asks for the attention {attention!r}, which may be code from the hub, "
                "which mechreg does not execute; remove the key, or write 'eager' or 'sdpa'."
            )
    if getattr(config, "auto_map", None):
        # transformers would quietly take its own class of that type, which may compute something else.
        raise ModelError(
            f"{source!r} names code of its own to run (auto_map), which mechreg does not execute; use a model of an "
            "architecture that transformers has."
        )
    require_readable(config, source)
    layers = getattr(config, "num_hidden_layers", 1)
    if not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
        raise ModelError(
            f"The config.json of {source!r} says that the model has {layers!r} layers; it must be a whole number "
            f"from 1 to {MOST_LAYERS}."
        )
    return config


def require_readable(config: Any, source: str) -> None:
    """Check that a model reads text alone, from left to right; for other parts TransformerLens installs packages."""
    from transformers import PretrainedConfig

    architecture = (getattr(config, "architectures", None) or [""])[0]
    nested = {key: part for key, part in vars(config).items() if isinstance(part, PretrainedConfig)}
    plain = {key for key, part in vars(config).items() if part and _OTHER_PART.fullmatch(key)}  # a dict, say
    other = sorted({*getattr(config, "sub_configs", ()), *nested, *plain} - OWN_PARTS)
    if other:
        raise ModelError(
            f"{source!r} is a {architecture or config.model_type} with parts beside its text ({', '.join(other)}); "
            "mechreg reads text-only models: save its language model separately, or use another model."
        )
    if getattr(config, "is_encoder_decoder", False) or "MaskedLM" in architecture:
        raise ModelError(
            f"{source!r} is a {architecture or 'encoder-decoder'}; mechreg reads causal language models."
        )
    for part in (config, *nested.values()):
        for key, is_ahead in (("is_causal", False), ("use_bidirectional_attention", True)):
            value = getattr(part, key, None)
            if value == is_ahead or value == "all":
                raise ModelError(
                    f"The config of {source!r} says {key}={value!r}, so the model reads in both directions; mechreg "
                    "reads causal language models."
                )
    if config.model_type == "gpt2" and getattr(config, "add_cross_attention", False):
        raise ModelError(f"{source!r} is a GPT-2 with cross-attention; mechreg reads models of one text.")


def require_no_adapter(source: str, commit: str | None) -> None:
    """Check that no adapter lies beside the weights: it would be ignored."""
    from transformers.utils import cached_file

    with explained(source):
        adapter = cached_file(
            source, "adapter_config.json", revision=commit, _raise_exceptions_for_missing_entries=False
        )
    if adapter is not None:
        raise ModelError(
            f"{source!r} has an adapter (adapter_config.json), which would be ignored; merge it into the weights with "
            "peft's merge_and_unload and save that model, or remove the file."
        )


def require_safe_weights(source: str, commit: str | None, *, allow_pickle: bool) -> None:
    """Check, without a download, that weights are safetensors, or pickles that the caller allows."""
    if allow_pickle:
        return
    with explained(source):
        if any(_has(source, file, commit) for file in SAFE_WEIGHTS):
            return
        pickled = next((file for file in PICKLED_WEIGHTS if _has(source, file, commit)), None)
    if pickled is not None:
        raise ModelError(
            f"The weights of {source!r} are a pickle ({pickled}), a kind of file that can carry commands; convert "
            "them to safetensors, or allow it with allow_pickle=True (--allow-pickle, in a spec allow_pickle = true): "
            "torch then reads it with its safe loader."
        )


def _has(source: str, file: str, commit: str | None) -> bool:
    """Return whether a folder or repository has a file; unlike transformers' has_file, a failing hub raises."""
    if os.path.isdir(source):
        return os.path.isfile(os.path.join(source, file))
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

    if isinstance(try_to_load_from_cache(source, file, revision=commit), str):
        return True
    try:
        get_hf_file_metadata(hf_hub_url(source, file, revision=commit))
    except (EntryNotFoundError, OfflineModeIsEnabled):
        return False
    return True


def read_weights(source: str, commit: str | None, dtype: torch.dtype, *, device_map: Any = None) -> Any:
    """Return the Hugging Face model of a folder or hub name, in evaluation mode, on the CPU or as the map says.

    Pickles are read only without safetensors, by torch's loader that runs no code (transformers 5's default).
    """
    from transformers import AutoModelForCausalLM

    with explained(source, device_map), _no_conversion_request():
        hf_model, report = AutoModelForCausalLM.from_pretrained(
            source,
            revision=commit,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused just below, by name
            device_map=device_map,
        )
    if device_map is not None:
        require_placed(hf_model, source, device_map)
    wrong = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if wrong:  # transformers fills them with random numbers
        raise ModelError(
            f"The weights of {source!r} are incomplete or of another shape than its config says: {_first(wrong)}; save "
            "or download the model again."
        )
    unused = [key for key in sorted(report["unexpected_keys"]) if _is_of_the_model(key, hf_model)]
    if unused:  # transformers ignores them
        raise ModelError(
            f"The weights of {source!r} hold more than its config says: {_first(unused)} would be ignored; give it the "
            "config.json of these weights, or save or download the model again."
        )
    return hf_model.eval()


def _is_of_the_model(key: str, hf_model: Any) -> bool:
    """Return whether an unexpected key is a weight that numbers depend on: no other task's head, no saved buffer."""
    models = (hf_model, hf_model.base_model)
    parts = {name: module for model in models for name, module in model.named_modules()}
    buffers = {name for model in models for name, _ in model.named_buffers()}
    module, _, leaf = key.rpartition(".")
    is_mask = leaf == "bias" and any(True for _ in parts.get(module, torch.nn.Identity()).children())
    return key.split(".")[0] in parts and not is_mask and key not in buffers and leaf not in OLD_BUFFERS


def _first(keys: list[str]) -> str:
    return f"{', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"


def copied(hf_model: Any, dtype: torch.dtype, device: str | torch.device) -> Any:
    """Return a copy of a user's Hugging Face model, in evaluation mode and without their hooks."""
    copy = deepcopy(hf_model).to(device=device, dtype=dtype).eval()
    for module in copy.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copy


def read_tokenizer(source: str, commit: str | None) -> Any:
    """Return the tokenizer, None without its files: transformers would invent an empty one."""
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    with explained(source):
        options = {"revision": commit, "_raise_exceptions_for_missing_entries": False}
        if not any(cached_file(source, file, **options) for file in TOKENIZER_FILES):
            return None
        return AutoTokenizer.from_pretrained(source, revision=commit, trust_remote_code=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' prints off standard output, silence their bars and notes, and undo the globals they set."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "IProgress not found"
        )  # a notebook without ipywidgets gets a bar of text
        from transformers.utils import logging as transformers_logging

    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    environment = set(os.environ)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # which TransformerLens sets on import, and leaves
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for key in set(os.environ) - environment:
            del os.environ[key]
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _no_conversion_request() -> Iterator[None]:
    """Keep transformers from asking the hub, in a background thread, to convert a repository's pickles."""
    key = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(key)
    os.environ[key] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before
