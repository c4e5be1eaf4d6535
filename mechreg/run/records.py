"""What a run records of a model: everything that determines its numbers, and facts about it for the provenance."""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from mechreg import store
from mechreg.models import describe_model, record_of, special_ids, tokenizer_hash, weight_hash
from mechreg.run.preflight import Survey
from mechreg.spec import Spec

_LIBRARIES = ("torch", "transformers", "transformer-lens")
_FACTS = (
    *("name", "source", "revision", "commit", "backend", "processing", "dtype", "device"),
    *("quantization", "file_hash", "verified"),
)
_CONFIG_FACTS = ("weights_sha256", "tokenizer_sha256", "hooks", "prepend_bos")


def new_record(
    model: Any, spec_name: str, spec: Spec, survey: Survey, *, batch_tokens: int, shard_tokens: int
) -> dict[str, Any]:
    """Return the record of a model, by the name that the spec gives it, before its shards are planned."""
    known, cfg = record_of(model), model.cfg
    config = {
        **identity_of(model),
        "hooks": list(spec.hooks),
        "measures": list(spec.measures),
        "corpus": survey.sha256,
        **survey.tags,
        "prepend_bos": spec.prepend_bos,
        "batch_tokens": batch_tokens,
        "shard_tokens": shard_tokens,
        "schema_version": store.SCHEMA_VERSION,
    }
    facts = {key: getattr(known, key) for key in _FACTS} | {key: config[key] for key in _CONFIG_FACTS}
    facts |= {"blocks": int(cfg.n_layers), "heads": int(cfg.n_heads), "d_model": int(cfg.d_model)}
    facts["special_ids"] = special_ids(model)
    facts["parameters"] = int(describe_model(model).parameters["parameters"].iloc[-1])
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    record: dict[str, Any] = {"name": known.name, "spec_name": spec_name, "config_hash": digest}
    return record | {"config": config, "facts": facts}


def identity_of(model: Any) -> dict[str, Any]:
    """Return everything about a model that determines its results."""
    record = record_of(model)
    return {
        "backend": record.backend,
        "processing": record.processing,
        "dtype": record.dtype,
        "device": record.device.split(":")[0],
        "weights_sha256": weight_hash(model),
        "tokenizer_sha256": tokenizer_hash(model),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def record_of_spec(run: Path, spec_name: str) -> dict[str, Any] | None:
    """Return the record of a model by the name that the spec gives it."""
    return next((r for r in store.open_run(run).records.values() if r["spec_name"] == spec_name), None)
