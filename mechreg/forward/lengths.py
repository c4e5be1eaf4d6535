"""Lengths at which a model computes in another way, from its configuration."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mechreg.models import Model

# Kinds of rotary frequencies that Hugging Face chooses by the longest window of a batch.
BY_LENGTH = ("longrope", "dynamic")


def named_lengths(model: Model) -> dict[str, int]:
    """Return the lengths that a model's configuration names: of rotary frequencies, of attention, of the context."""
    named = {f"rope ({kind})": length for kind, length in _rope_lengths(model)}
    for config in _configs(model):
        for name in ("sliding_window", "attention_chunk_size", "window_size"):
            length = getattr(config, name, None)
            if type(length) is int and length > 0:
                named[name.replace("_", " ")] = length
    return named | {"context": int(model.cfg.n_ctx)}


def side_of(model: Model) -> Callable[[int], int]:
    """Return the function that gives one number to all lengths that may share a batch.

    Hugging Face chooses the rotary frequencies of "longrope" and "dynamic" by the longest window of a batch, padding
    included; a shorter one beside it would be computed with frequencies that are not its own.
    """
    switches = {length for kind, length in _rope_lengths(model) if kind in BY_LENGTH}
    return lambda length: sum(length > switch for switch in switches)


def _rope_lengths(model: Model) -> Iterator[tuple[str, int]]:
    """Yield the kind and the length of every set of rotary frequencies."""
    for config in _configs(model):
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        if not isinstance(rope, Mapping):
            continue
        for one in (rope, *(part for part in rope.values() if isinstance(part, Mapping))):
            kind = one.get("rope_type", one.get("type"))
            length = one.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            if kind == "dynamic":  # counted from the context itself
                length = getattr(config, "max_position_embeddings", None)
            if kind is not None and type(length) is int:
                yield str(kind), length


def _configs(model: Model) -> list[Any]:
    """Return Hugging Face's configuration, of a bridge or of a raw model, in a list; a HookedTransformer has none."""
    config = getattr(getattr(model, "original_model", model), "config", None)
    return [] if config is None else [config]
