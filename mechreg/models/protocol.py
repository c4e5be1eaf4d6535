"""The part of TransformerLens' interface that the rooms above read and run: both kinds of model have it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class Model(Protocol):
    """A HookedTransformer, a TransformerBridge, or anything of the same shape."""

    cfg: Any

    @property
    def hook_dict(self) -> Mapping[str, Any]:
        """The hook points by name, such as "blocks.0.hook_attn_out"."""

    def hooks(self, fwd_hooks: Any = ...) -> AbstractContextManager[Any]:
        """Attach functions to hook points within a ``with`` block."""

    def __call__(self, input: Any, **options: Any) -> Any:
        """Run the model over token ids."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield the weights."""

    def modules(self) -> Iterator[torch.nn.Module]:
        """Yield all modules."""

    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Yield all modules with their names."""

    if TYPE_CHECKING:  # modules in modules, which `isinstance` does not see
        blocks: Any
        unembed: Any
        tokenizer: Any
        set_use_attn_result: Any

        def __getattr__(self, name: str) -> Any:
            """Whatever else TransformerLens gives, such as ``to_tokens`` and ``run_with_cache``."""
