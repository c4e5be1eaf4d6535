"""Where a model's weights are: on one device, or split over several by a device map."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from mechreg.models.explaining import first_line
from mechreg.schema import Backend, InputError, ModelError, Processing

# A name that accelerate knows, a device for everything, or Hugging Face's module names with their devices.
DeviceMap = str | Mapping[str, str | int]
SPLITS = ("auto", "balanced", "balanced_low_0", "sequential")


def usable_device(device: str) -> str:
    """Return the device that a name stands for, which is there and holds numbers.

    Raises
    ------
    InputError
        It is not here.

    Examples
    --------
    >>> usable_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("meta"):
        raise InputError("device='meta' holds no numbers; try 'cpu'.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={device!r} cannot be used here ({first_line(error)}); try 'cpu'."
        ) from error
    return device


def require_device_map(
    device_map: DeviceMap,
    *,
    device: str = "auto",
    backend: Backend = "auto",
    processing: Processing = "raw",
) -> None:
    """Check all that can be known of a device map before a model is loaded.

    Raises
    ------
    InputError
        Something else than a name or a dict, a device that is not here or holds no numbers, CPU and GPUs mixed,
        or an option that does not go with it.
    ModelError
        A backend that cannot split a model, or accelerate is not installed.

    Examples
    --------
    >>> require_device_map({"": "cpu"})
    """
    if device != "auto":
        raise InputError(
            f"device={device!r} and device_map={device_map!r} both say where the weights go; give one."
        )
    if backend == "hooked":
        raise ModelError(
            "HookedTransformer is moved to one device as a whole and cannot take a device_map; use backend='bridge'."
        )
    if processing != "raw":
        raise InputError(
            "device_map goes with processing='raw': weights are folded where all are on one device."
        )
    if importlib.util.find_spec("accelerate") is None:
        raise ModelError("device_map needs the library accelerate: pip install accelerate.")
    if isinstance(device_map, str):
        if device_map in SPLITS:
            return
        targets: list[Any] = [device_map]
    elif isinstance(device_map, Mapping) and device_map:
        targets = list(device_map.values())
    else:
        raise InputError(
            f"device_map must be one of {', '.join(map(repr, SPLITS))}, a device, or a dict of module names and "
            f"devices that is not empty; got {device_map!r}."
        )
    kinds = set()
    for target in targets:
        name = f"cuda:{target}" if type(target) is int else target
        if not isinstance(name, str) or name == "auto":
            raise InputError(
                f"A device in device_map is a GPU's number or a name such as 'cuda:1'; got {target!r}."
            )
        if name in ("disk", "meta"):
            raise InputError(
                f"device_map puts weights on {name!r}, past which TransformerBridge would read; name devices that hold "
                "all of them, or use dtype='bfloat16'."
            )
        try:
            kinds.add(torch.device(usable_device(name)).type)
        except InputError as error:
            known = f", or one of {', '.join(SPLITS)}" if isinstance(device_map, str) else ""
            raise InputError(f"device_map={device_map!r}: {str(error).rstrip('.')}{known}.") from error
    if len(kinds) > 1:
        raise InputError(
            f"device_map mixes {' and '.join(sorted(kinds))}, and weights on the CPU would then be moved in and out "
            "past TransformerBridge; put all on GPUs or all on the CPU."
        )


def require_placed(hf_model: Any, source: str, device_map: DeviceMap) -> None:
    """Check where the weights of a model came to be: what a map leaves out, or has no room for, is on the CPU or disk.

    Raises
    ------
    ModelError
        Weights that are not on devices of one kind, or a key of the map that is no module of the model.
    """
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
    """Return the devices of all weights, in order.

    Examples
    --------
    >>> devices_of(torch.nn.Linear(2, 2))
    'cpu'
    """
    return ",".join(sorted({str(parameter.device) for parameter in model.parameters()}))
