"""The frozen spec of a run, read from TOML; the file is the record of the run."""

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mechreg.schema import InputError, did_you_mean, require_option

CHOICES = {
    "cov": ("auto", "nonrobust", "hc0", "hc1", "hc2", "hc3", "hac", "crv1", "crv3"),
    "backend": ("auto", "hooked", "bridge"),
    "processing": ("raw", "folded"),
    "dtype": ("float32", "float64", "bfloat16", "float16"),
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a run does; every key but ``models`` and ``corpus`` has a default.

    Examples
    --------
    >>> Spec(models=("mini-s",), corpus="demo").formula
    'log_norm ~ lag1 + lag2'
    """

    models: tuple[str, ...]
    corpus: str
    name: str = "run"
    hooks: tuple[str, ...] = ("attn_out",)
    lags: tuple[int, ...] = (1, 2)
    skip: int = 1
    formula: str = "log_norm ~ lag1 + lag2"
    cov: str = "auto"
    backend: str = "auto"
    processing: str = "raw"
    dtype: str = "float32"
    prepend_bos: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("models", "hooks", "lags"):
            value = getattr(self, key)
            kind = int if key == "lags" else str
            if not isinstance(value, tuple) or not value or not all(type(entry) is kind for entry in value):
                raise InputError(f"{key} must be a list of at least one {kind.__name__}; got {value!r}.")
        for field in fields(self):
            if field.name in ("models", "hooks", "lags"):
                continue
            value = getattr(self, field.name)
            if type(value) is not field.type:
                raise InputError(f"{field.name} must be a {field.type.__name__}; got {value!r}.")  # type: ignore[union-attr]
        for key, options in CHOICES.items():
            require_option(getattr(self, key), options, name=key)
        if not self.name or "/" in self.name or "\\" in self.name or self.name.startswith("."):
            raise InputError(f"name must be usable as a folder's name; got {self.name!r}.")
        if self.skip < 0:
            raise InputError(f"skip must be 0 or more; got {self.skip}.")

    def digest(self) -> str:
        """Return the SHA-256 of all keys, which tells two specs apart."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def read_spec(path: str | Path) -> Spec:
    """Return the spec in a TOML file; relative paths in it are relative to the file.

    Raises
    ------
    InputError
        No such file, not TOML, an unknown key, a value of the wrong kind; before any work is done.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "spec.toml"
    >>> _ = file.write_text('models = ["mini-s"]\\ncorpus = "demo"\\n')
    >>> read_spec(file).models
    ('mini-s',)
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"The spec {str(path)!r} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The spec {str(path)!r} is not TOML: {error}.") from error
    known = [field.name for field in fields(Spec)]
    for key in table:
        if key not in known:
            raise InputError(
                f"The spec {str(path)!r} has an unknown key {key!r}; keys are {', '.join(known)}."
                f"{did_you_mean(key, known)}"
            )
    for key in ("models", "corpus"):
        if key not in table:
            raise InputError(f"The spec {str(path)!r} needs the key {key!r}.")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    try:
        spec = Spec(**values)
    except InputError as error:
        raise InputError(f"The spec {str(path)!r}: {error}") from error
    folder = path.resolve().parent
    models = tuple(_beside(folder, name) if (folder / name).is_dir() else name for name in spec.models)
    corpus = spec.corpus
    if corpus != "demo" and not corpus.startswith("datasets:"):
        corpus = _beside(folder, corpus)
    return Spec(**(asdict(spec) | {"models": models, "corpus": corpus}))


def write_spec(spec: Spec) -> str:
    """Return a spec as TOML, every key written out.

    Examples
    --------
    >>> write_spec(Spec(models=("mini-s",), corpus="demo")).splitlines()[0]
    'models = ["mini-s"]'
    """
    # JSON's strings, numbers, booleans and lists of them are TOML's.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in asdict(spec).items())


def _beside(folder: Path, path: str) -> str:
    return str(folder / Path(path).expanduser())
