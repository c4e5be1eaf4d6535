"""What a model's name means: a folder, a .gguf file, a miniature, or a hub name with its revision; fast to import."""

import functools
import importlib.util
import os
import re
import runpy
from pathlib import Path
from typing import Any

from mechreg import miniatures
from mechreg.models.gguf import converted, is_gguf
from mechreg.schema import InputError, ModelError

_AT_REVISION = re.compile(r"(\w[\w.-]*(?:/[\w.-]+)?)@([\w./+-]+)")  # a hub name, its branch, tag or commit


def resolve(model: str | Path, revision: str | None = None) -> tuple[str, str | None]:
    """Return a folder's absolute path, of a .gguf file that of its conversion, or a hub name in full; the revision.

    The revision may stand in the name: "org/model@step1000".
    """
    place, revision = find_place(model, revision)
    return str(converted(place) if is_gguf(place) else place), revision


def find_place(model: str | Path, revision: str | None = None) -> tuple[str | Path, str | None]:
    """Return the folder or .gguf file that a name means, or the name of a hub model in full, and the revision."""
    found = _AT_REVISION.fullmatch(str(model))
    if found is not None and not os.path.exists(model):
        if revision is not None:
            raise InputError(
                f"{str(model)!r} has its revision in its name; leave out the other one, {revision!r}."
            )
        model, revision = found[1], found[2]
    path = _path_of(model)
    if path is None:
        aliases = _transformer_lens_aliases().items()
        return next((name for name, others in aliases if model in others), str(model)), revision
    if revision is not None:
        raise InputError(
            f"{str(model)!r} is on this machine, and only models on the hub have revisions; leave out {revision!r}."
        )
    return path, None


def _path_of(model: str | Path) -> Path | None:
    """Return the folder or .gguf file that a name means, None for a hub name."""
    text = str(model)
    if not 0 < len(text.strip()) <= 1000:
        length = f"{len(text)} characters long" if text.strip() else "empty"
        raise InputError(
            f"The name of a model is {length}; give a hub name, a folder or a miniature such as 'mini-s'."
        )
    if is_gguf(text):
        return Path(text)
    is_miniature = text in miniatures.NAMES
    path = miniatures.folder(text) if is_miniature else Path(text).expanduser()
    if os.path.isdir(path):  # not path.is_dir(), which raises where a name is too long for the file system
        if not os.path.isfile(path / "config.json"):
            raise ModelError(
                f"The folder {str(path)!r} has no config.json, so it is not a Hugging Face model; give the folder that "
                "save_pretrained wrote."
            )
        return path.resolve()
    is_file = text.endswith(".gguf")
    looks_like_a_path = path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or is_file
    if is_miniature or isinstance(model, Path) or looks_like_a_path:
        raise InputError(
            f"There is no model {'file' if is_file else 'folder'} {str(path)!r}; check the path, or give a hub name "
            "such as 'gpt2' or 'org/model'."
        )
    if os.path.exists(path):
        raise InputError(
            f"{text!r} is a file; load_model needs the folder that holds config.json, or a .gguf file."
        )
    return None


@functools.cache
def _transformer_lens_aliases() -> dict[str, list[str]]:
    """Return TransformerLens' own names of hub models, from its file: importing the package takes seconds."""
    package: Any = importlib.util.find_spec("transformer_lens")
    return runpy.run_path(str(Path(package.origin).with_name("supported_models.py")))["MODEL_ALIASES"]
