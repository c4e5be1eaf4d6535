"""The Hugging Face config that a model was made from."""

from pathlib import Path
from typing import Any

from mechreg.models.identity import is_bridge, record_of
from mechreg.models.sources import find_commit, quiet, read_config, resolve, resolve_revision
from mechreg.schema import ModelError


def config_of(model: Any) -> Any:
    """Return the Hugging Face config of a model, or of a name or folder, whose weights are then not read.

    Raises
    ------
    ModelError
        The config is not known, as of a HookedTransformer that was made elsewhere.

    Examples
    --------
    >>> config_of("mini-s").n_layer
    4
    """
    if isinstance(model, str | Path):
        with quiet():
            source, revision = resolve_revision(model)
            return read_config(source, find_commit(source, revision))
    record = record_of(model)
    if is_bridge(model):
        return model.original_model.config
    made_from = getattr(model, "_mechreg_original", None)
    original = None if made_from is None else made_from()
    if original is not None:
        return original.config
    if made_from is not None or getattr(model, "_mechreg_record", None) is None:
        raise ModelError(
            f"The Hugging Face config of {record.name} is not known; load it by name or folder with load_model, "
            "or use backend='bridge'."
        )
    with quiet():
        return read_config(resolve(record.source), record.commit)
