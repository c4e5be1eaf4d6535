"""Precision: passes compute in torch's own defaults, whatever the caller set, which is restored afterwards."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

_guard = threading.Lock()
_users = 0
_before = ExitStack()

# Settings of the whole process that change a half-precision product's digits, and torch's own defaults of them.
_SWITCHES = {
    "allow_fp16_reduced_precision_reduction": True,
    "allow_bf16_reduced_precision_reduction": True,
    "allow_fp16_accumulation": False,
}


@contextmanager
def pinned() -> Iterator[None]:
    """Compute as torch does by default, within the ``with`` block only.

    No autocast but the model's own, float32 products in float32, new tensors float32 on the CPU. The process's
    settings are restored when the last block of all threads ends.
    """
    with ExitStack() as undo:
        _pin_process()
        undo.callback(_unpin_process)
        for kind in {"cpu", *(("cuda",) if torch.cuda.is_available() else ())}:
            undo.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != torch.device("cpu"):  # a function mode slows every call down
            undo.enter_context(torch.device("cpu"))
        yield


def _pin_process() -> None:
    global _users, _before
    with _guard:
        _users += 1
        if _users > 1:
            return
        with ExitStack() as undo:
            undo.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
            _set_products(undo)
            matmul = torch.backends.cuda.matmul
            for name, value in _SWITCHES.items():
                if hasattr(matmul, name):
                    undo.callback(setattr, matmul, name, getattr(matmul, name))
                    setattr(matmul, name, value)
            _before = undo.pop_all()


def _set_products(undo: ExitStack) -> None:
    """Compute float32 products in float32: no TF32, no bfloat16."""
    for backend in ("cuda", "mkldnn"):  # torch 2.9 has one setting per backend in addition to the old one
        place: Any = getattr(getattr(torch.backends, backend), "matmul", None)
        if hasattr(place, "fp32_precision"):
            undo.callback(setattr, place, "fp32_precision", place.fp32_precision)
    with suppress(RuntimeError):  # torch refuses to read it where a caller has set the new ones
        undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")


def _unpin_process() -> None:
    global _users
    with _guard:
        _users -= 1
        if _users == 0:
            _before.close()
