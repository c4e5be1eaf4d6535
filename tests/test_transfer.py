"""Copies to and from a GPU, with stand-ins for its memory and events, since the machine of the tests has none.

Tolerance: none, what is copied must be the same bits. The stand-in's copies are made only when an event that was
recorded after them is waited for, as late as a GPU may make them: whoever reads earlier reads -1.
"""

import numpy as np
import pytest
import torch

import mechreg as mr
from mechreg.forward import padded_batches, transfer
from mechreg.norms import reduction


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def device(self):
        return torch.device("cuda", 0)


class Stream:
    """Copies that were asked for and not made yet, and how often somebody waited for them."""

    def __init__(self):
        self.copies, self.waits = [], 0


@pytest.fixture
def stream(monkeypatch):
    """A GPU's stream; tensors of the class above are copied by it."""
    stream, empty = Stream(), torch.empty

    class Pinned(torch.Tensor):
        def copy_(self, other, *, non_blocking):
            assert non_blocking
            stream.copies.append((self.as_subclass(torch.Tensor), other.as_subclass(torch.Tensor)))
            return self

    class Event:
        def record(self, on):
            self.copies, stream.copies = stream.copies, []

        def synchronize(self):
            stream.waits += 1
            for host, gpu in self.copies:
                host.copy_(gpu)

    def pinned(*shape, pin_memory=False, **options):
        return (
            empty(*shape, **options).fill_(-1.0).as_subclass(Pinned)
            if pin_memory
            else empty(*shape, **options)
        )

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda gpu: gpu)
    monkeypatch.setattr(torch, "empty", pinned)
    return stream


def test_nothing_is_read_before_it_is_there(stream):
    layers = {("attn_out", layer): torch.full((2, 3), float(layer)).as_subclass(OnGpu) for layer in range(4)}
    arriving = transfer.Arriving(layers)
    assert [float(host.numpy().mean()) for host in arriving._host.values()] == [-1] * 4
    assert [float(array.mean()) for array in arriving.arrays().values()] == [0, 1, 2, 3]
    assert stream.waits == 1  # one for all layers


def test_one_late_begins_the_next_before_it_gives_the_last():
    told = []

    def begun():
        for item in range(3):
            told.append(f"begin {item}")
            yield item

    for item in transfer.one_late(begun()):
        told.append(f"use {item}")
    assert told == ["begin 0", "begin 1", "use 0", "begin 2", "use 1", "use 2"]
    assert list(transfer.one_late(iter([]))) == []


def test_norms_that_come_from_a_gpu_are_the_same(tiny, make_windows, monkeypatch, backend, stream):
    model = mr.load_model(str(tiny), backend=backend)
    windows = make_windows([7, 30, 1, 12, 30, 5, 64])
    options = {"hooks": ("attn_out", "z"), "batch_tokens": 64}
    expected = reduction.window_norms(model, windows, **options)
    assert stream.waits == 0  # a CPU's norms are there
    reduced = reduction.vector_norms, reduction.head_norms
    monkeypatch.setattr(reduction, "vector_norms", lambda a: reduced[0](a).as_subclass(OnGpu))
    monkeypatch.setattr(reduction, "head_norms", lambda a: reduced[1](a).as_subclass(OnGpu))
    got = reduction.window_norms(model, windows, **options)
    for hook, norms in expected.items():
        np.testing.assert_array_equal(got[hook], norms)
    assert stream.waits == len(list(padded_batches(model, windows, 64)))


def test_a_batch_to_a_gpu_is_pinned_and_nobody_waits(monkeypatch):
    told = []

    class Batch(torch.Tensor):
        def pin_memory(self):
            told.append("pinned")
            return self

        def to(self, device, *, non_blocking=False):
            told.append((str(device), non_blocking))
            return self

    monkeypatch.setattr(torch, "from_numpy", lambda array: torch.tensor(array).as_subclass(Batch))
    transfer.to_device(np.arange(3), torch.device("cuda", 1))
    assert told == ["pinned", ("cuda:1", True)]
    transfer.to_device(np.arange(3), torch.device("cpu"))
    assert told[2:] == [("cpu", False)]
