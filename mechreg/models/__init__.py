"""Models: load one, look at it, and know what was loaded; the only module that imports TransformerLens."""

from mechreg.models.backends import hooked_transformer_class
from mechreg.models.describing import ModelDescription, describe_model
from mechreg.models.fused import fused
from mechreg.models.identity import (
    HOOK_POINTS,
    LoadRecord,
    input_device,
    is_bridge,
    is_transformer_lens_model,
    record_of,
    special_ids,
    tokenizer_hash,
    weight_hash,
)
from mechreg.models.loading import (
    config_of,
    load_model,
    load_reference,
    model_label,
    require_loadable,
)
from mechreg.models.placing import DeviceMap
from mechreg.models.protocol import Model
from mechreg.models.verifying import load_tolerance, relative_difference

__all__ = [
    "HOOK_POINTS",
    "DeviceMap",
    "LoadRecord",
    "Model",
    "ModelDescription",
    "config_of",
    "describe_model",
    "fused",
    "hooked_transformer_class",
    "input_device",
    "is_bridge",
    "is_transformer_lens_model",
    "load_model",
    "load_reference",
    "load_tolerance",
    "model_label",
    "record_of",
    "relative_difference",
    "require_loadable",
    "special_ids",
    "tokenizer_hash",
    "weight_hash",
]
