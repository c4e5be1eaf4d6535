"""Where a model's weights are: on one device, or split over several by a device map."""

from collections.abc import Mapping
from typing import Any

import torch

from mechreg.schema import Backend, InputError, ModelError, Processing
from mechreg.words import first_line

# A name that accelerate knows, a device for everything, or Hugging Face's module names with their devices.
DeviceMap = str | Mapping[str, str | int]


def usable_device(device: str) -> str:
    """Return the device that a name stands for, after checking that it is here and holds numbers."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("meta"):
        raise InputError("device='meta' stores no data; use 'cpu'.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={device!r} cannot be used here ({first_line(error)}); try 'cpu'."
        ) from error
    return device


def require_device_map(
    device_map: DeviceMap, *, device: str = "auto", backend: Backend = "auto", processing: Processing = "raw"
) -> None:
    """Check that the other options are compatible with a device map; transformers checks the map itself."""
    if device != "auto":
        raise InputError(
            f"device={device!r} and device_map={device_map!r} both say where the weights go; give one."
        )
    if backend == "hooked":
        raise ModelError(
            "HookedTransformer is moved to one device as a whole and cannot take a device_map; use backend='bridge'."
        )
    if processing != "raw":
        raise InputError("device_map needs processing='raw': folding needs all weights on one device.")


def require_placed(hf_model: Any, source: str, device_map: DeviceMap) -> None:
    """Check where the weights are: what a map leaves out, or has no room for, is on the CPU or the disk."""
    modules = {name for name, _ in hf_model.named_modules()}
    for key in device_map if isinstance(device_map, Mapping) else ():
        if key not in modules:
            raise ModelError(
                f"device_map has the key {key!r}, and {source} has no such module; keys are names such as "
                f'"{next(name for name in modules if name.endswith(".0"))}", and "" is all the rest.'
            )
    places = {str(place) for place in getattr(hf_model, "hf_device_map", {}).values()}
    places |= {str(parameter.device) for parameter in hf_model.parameters()}
    kinds = {"cuda" if place.isdigit() else place.split(":")[0] for place in places}
    if kinds & {"disk", "meta"} or len(kinds) > 1:
        raise ModelError(
            f"With this device_map the weights of {source} are on {', '.join(sorted(places))}, and TransformerBridge "
            "would read past what is not on a GPU; name every part in the map, use more GPUs, or dtype='bfloat16'."
        )


def devices_of(model: Any) -> str:
    """Return the devices of all weights, in order."""
    return ",".join(sorted({str(parameter.device) for parameter in model.parameters()}))
