"""A GGUF file as a plain Hugging Face model folder: read by transformers, dequantized, and kept."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mechreg.schema import MechregError, ModelError
from mechreg.words import first_line

FACTS = "mechreg.json"  # what a converted folder says of the file that it was made from


def is_gguf(source: str | Path) -> bool:
    """Return whether a name is that of a GGUF file that is there."""
    return str(source).endswith(".gguf") and os.path.isfile(Path(source).expanduser())


def converted(file: str | Path) -> Path:
    """Return the folder of a GGUF file's plain model in the cache, converted the first time.

    The cache is ``mechreg/gguf`` in ``$XDG_CACHE_HOME`` (by default ``~/.cache``): a folder for each content of a file
    and version of transformers, which may be deleted at any time.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = importlib.metadata.version("transformers")
    folder = home / "mechreg" / "gguf" / f"{_sha256(Path(file).expanduser())}-transformers-{version}"
    if not (folder / FACTS).exists():
        convert(file, folder)
    return folder


def convert(file: str | Path, folder: str | Path) -> None:
    """Write a GGUF file's model, dequantized to float32, and its tokenizer as a plain Hugging Face folder.

    The folder appears at once and whole, and holds ``mechreg.json`` with the file's name, hash and quantization.
    """
    file, folder = Path(file).expanduser(), Path(folder)
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{str(file)!r} is a GGUF file, and the package that reads them is not installed; "
            "pip install 'mechreg[gguf]'."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        facts = {"file": file.name, "sha256": _sha256(file), "quantization": _quantization(file)}
        hf_model, tokenizer = _read(file)
        hf_model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / FACTS).write_text(json.dumps(facts, indent=1))
        if not (folder / FACTS).exists():  # another process may have converted it first
            os.replace(temporary, folder)
    except MechregError:
        raise
    except OSError as error:
        raise ModelError(f"{str(file)!r} could not be converted: {first_line(error)}.") from error
    except Exception as error:  # the reader fails on damaged files in many ways
        raise ModelError(_sentence(error, file)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def facts_of(source: str) -> dict[str, Any]:
    """Return what a converted folder says of its GGUF file; nothing for any other source."""
    try:
        facts = json.loads(Path(source, FACTS).read_text())
    except (OSError, ValueError):
        facts = None
    return facts if isinstance(facts, dict) else {}


def _read(file: Path) -> tuple[Any, Any]:
    """Return the Hugging Face model of a GGUF file as one that was never quantized, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    quantized, report = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, output_loading_info=True, **place
    )
    missing = sorted(report["missing_keys"])
    if missing:  # transformers fills them with random numbers
        raise ModelError(
            f"{str(file)!r} lacks weights of its architecture ({', '.join(missing[:3])}); download it again, or use "
            "the original model."
        )
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # with it no model can be saved
    plain = type(quantized)(config)
    plain.load_state_dict(quantized.state_dict())
    return plain, AutoTokenizer.from_pretrained(file.parent, **place)


def _quantization(file: Path) -> str:
    """Return what a GGUF file says of its quantization, such as Q4_1; else the types of its tensors."""
    import gguf

    reader = gguf.GGUFReader(file)
    field = reader.get_field("general.file_type")
    if field is not None:
        return gguf.LlamaFileType(int(field.contents())).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return ", ".join(sorted({tensor.tensor_type.name for tensor in reader.tensors}))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sentence(error: Exception, file: Path) -> str:
    reason = first_line(error).rstrip(":")
    if "is not supported yet" in reason or isinstance(error, NotImplementedError):
        return (
            f"transformers does not read {str(file)!r}: {reason}; use a GGUF file of another architecture or "
            "quantization (Q8_0, say), or the original model."
        )
    return (
        f"The GGUF file {str(file)!r} could not be read ({reason}); it may be cut short or damaged: download it "
        "again."
    )
