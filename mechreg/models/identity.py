"""Identifying a model: its load record, its hook points, and the hashes that tell two models apart."""

import copy
import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from mechreg.schema import AUTOCAST, FOLDED_SUFFIX, InputError


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
    device: str  # all of them, where a device map splits the model
    device_map: Any = None
    quantization: str | None = None  # of a GGUF file, such as "Q4_1"; its weights are then dequantized
    file_hash: str | None = None  # the GGUF file's SHA-256
    verified: float | None = None  # largest relative difference to Hugging Face on a few tokens


def is_transformer_lens_model(model: object) -> bool:
    """Return whether an object has what mechreg needs of TransformerLens: ``run_with_cache`` and ``cfg``."""
    return hasattr(model, "run_with_cache") and hasattr(model, "cfg")


def is_bridge(model: Any) -> bool:
    """Return whether a TransformerLens model is a TransformerBridge, which runs a Hugging Face model inside."""
    return hasattr(model, "original_model")


def input_device(model: Any) -> torch.device:
    """Return the device that token ids must be on: the embedding's, where a model is split over several."""
    return next(iter(getattr(model, "embed", model).parameters())).device


def dtype_of(model: Any) -> torch.dtype:
    """Return what a model's weights are in: those of its first parameter."""
    return next(iter(model.parameters())).dtype


def is_wide(model: Any) -> bool:
    """Return whether a model computes in float32 or float64 throughout; one may have been cast after it was loaded."""
    are_wide = all(weight.dtype in (torch.float32, torch.float64) for weight in model.parameters())
    return are_wide and record_of(model).dtype != AUTOCAST


def record_of(model: Any) -> LoadRecord:
    """Return a model's load record, or for a model made elsewhere what the model itself shows."""
    if not is_transformer_lens_model(model):
        raise InputError(
            f"A TransformerLens model is needed; got {type(model).__name__}. Use load_model(...) first."
        )
    record = getattr(model, "_mechreg_record", None)
    if record is not None:
        return record
    folded = _has_centred_weights(model)
    name = str(getattr(model.cfg, "model_name", None) or type(model).__name__)
    parameter = next(iter(model.parameters()))
    return LoadRecord(
        name=name + FOLDED_SUFFIX if folded and not name.endswith(FOLDED_SUFFIX) else name,
        source=str(getattr(model.cfg, "tokenizer_name", None) or name),
        revision=None,
        commit=None,
        backend="bridge" if is_bridge(model) else "hooked",
        processing="folded" if folded else "raw",
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
    )


def weight_hash(model: Any) -> str:
    """Return the SHA-256 of all weights and their names."""
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


def special_ids(model: Any) -> list[int]:
    """Return the ids of the tokenizer's special tokens (BOS, EOS, chat marks), none where there is no tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    return sorted(getattr(tokenizer, "all_special_ids", []))


def _has_centred_weights(model: Any) -> bool:
    """Return whether writing weights were centred: every row of W_O then sums to zero, which no training does."""
    blocks = getattr(model, "blocks", [])
    if not len(blocks) or not hasattr(blocks[0], "attn") or not hasattr(blocks[0].attn, "W_O"):
        return False
    w_o = blocks[0].attn.W_O.detach().float()
    return bool(w_o.mean(dim=-1).abs().max() < 1e-3 * w_o.abs().mean())
