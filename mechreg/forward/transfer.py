"""Between the host and a GPU: batches go over pinned, norms come back while the next batch is computed."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; a GPU reads it from pinned memory while the host goes on."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    # torch keeps the pinned memory until the copy out of it is done.
    return tensor.pin_memory().to(device, non_blocking=True)


def one_late(begun: Iterator[Item]) -> Iterator[Item]:
    """Yield an iterator's items one step late, each after the next one has been started."""
    before: list[Item] = []
    for item in begun:
        yield from before
        before = [item]
    yield from before


class Arriving(Generic[Key]):
    """Tensors on their way to the host: from a GPU they come while it and the host go on with other work."""

    def __init__(self, tensors: Mapping[Key, Tensor]) -> None:
        self._host: dict[Key, Tensor] = {}
        self._copied: list[Any] = []
        gpus = set()
        for key, tensor in tensors.items():
            if tensor.device.type == "cuda":
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                self._host[key] = host.copy_(tensor, non_blocking=True)
                gpus.add(tensor.device)
            else:
                self._host[key] = tensor.cpu()
        for gpu in gpus:  # one for all copies from a GPU: they are done in order
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(gpu))
            self._copied.append(event)

    def arrays(self) -> dict[Key, np.ndarray]:
        """Return all of them as arrays, once they have arrived."""
        for event in self._copied:
            event.synchronize()
        return {key: tensor.numpy() for key, tensor in self._host.items()}
