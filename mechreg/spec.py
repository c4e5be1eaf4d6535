"""The frozen spec of a run, read from TOML; the file is the record of the run."""

import glob
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, no_type_check

from mechreg.formulas import formula_columns
from mechreg.schema import (
    DEFAULT_COV,
    MAX_LAGS,
    Backend,
    Cov,
    Dtype,
    Effect,
    Hook,
    InputError,
    Keep,
    Null,
    Processing,
    RunMeasure,
    did_you_mean,
    require_option,
    require_path,
)
from mechreg.sinks import sink_rules

OWN_TAGS = "corpus"  # the tagger of documents whose words have tags
_IN_WORDS: dict[type, str] = {str: "a string", int: "a whole number", bool: "true or false"}


@no_type_check  # it takes more than its fields hold, and checks all of it itself
@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a run does; every key but ``models`` and ``corpus`` has a default.

    ``models``, ``hooks``, ``measures``, ``lags``, ``drop_sinks``, ``effects`` and ``nulls`` take one entry or a list;
    models and the corpus may be paths. Where the formula's outcome is a measure other than the norm, ``lag1``, ... are
    its lags.

    ``tagger`` says where parts of speech come from, which the tokens then have as ``pos``: "none", "corpus" (.conllu,
    the demo, or documents with ``words``), or a spaCy pipeline by its name or folder. ``top_tokens`` is how many tokens
    with the largest values are kept of every measure, hook and layer (`Run.top_tokens`). ``nulls`` are those of
    `null_norms` that every coefficient is compared with (nulls.csv, as `compare_to_nulls` gives it).

    Raises
    ------
    InputError
        A value of the wrong kind, or one that no run can use.

    Examples
    --------
    >>> Spec(models=("mini-s",), corpus="demo").formula
    'log_norm ~ lag1 + lag2'
    """

    models: tuple[str, ...]
    corpus: str
    name: str = "run"
    hooks: tuple[Hook, ...] = ("attn_out",)
    measures: tuple[RunMeasure, ...] = ("norm",)
    lags: tuple[int, ...] = (1, 2)
    skip: int = 1
    drop_sinks: tuple[str, ...] = ()
    formula: str = "log_norm ~ lag1 + lag2"
    effects: tuple[Effect, ...] = ()
    cov: Cov = DEFAULT_COV
    backend: Backend = "auto"
    processing: Processing = "raw"
    dtype: Dtype = "float32"
    prepend_bos: bool = False
    tagger: str = "none"
    allow_pickle: bool = False
    keep: Keep = "norms"
    top_tokens: int = 0
    nulls: tuple[Null, ...] = ()

    def __new__(cls, **values: Any) -> "Spec":  # noqa: D102
        _require_keys(cls, values)  # before Python's own TypeError, which suggests nothing
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _plain(getattr(self, field.name), field.type)
            if field.default != () or value != ():  # only what is empty by default may be
                _check_field(field.name, value, field.type)
            object.__setattr__(self, field.name, value)  # it is frozen for others
        if not re.fullmatch(r"\w[\w .+-]{0,59}", self.name):
            raise InputError(
                "name must be usable as a folder's name: at most 60 letters, digits and . _ + -, beginning with "
                f"a letter or digit; got {self.name!r}."
            )
        for key in ("models", "hooks", "measures", "lags", "drop_sinks", "effects", "nulls"):
            entries = getattr(self, key)
            if len(set(entries)) < len(entries):
                raise InputError(f"{key} must be distinct; got {list(entries)}.")
        if min(self.lags) < 1:
            raise InputError(f"lags must be 1 or more (1 is the token before); got {list(self.lags)}.")
        if len(self.lags) > MAX_LAGS:
            raise InputError(f"lags must be at most {MAX_LAGS}: each is a column; got {len(self.lags):,}.")
        formula_columns(self.formula)  # it is refused here, before a model is loaded for it
        for key in ("skip", "top_tokens"):
            if getattr(self, key) < 0:
                raise InputError(f"{key} must be 0 or more; got {getattr(self, key)}.")
        for rule in sink_rules(self.drop_sinks):
            if rule.kind not in ("size", "token_id", "position", "special"):
                raise InputError(
                    "drop_sinks of a run must be 'size', 'size>12', 'special', 'token_id=0' or 'position=1', one or "
                    f"several; got {rule.kind!r}."
                )
            if rule.kind == "size" and self.keep == "moments":
                raise InputError(
                    "keep = 'moments' sees every token once, and drop_sinks = 'size' needs each layer's median first; "
                    "use keep = 'norms', or 'special', 'token_id=0' or 'position=1'."
                )

    def digest(self) -> str:
        """Return the SHA-256 of all keys, which tells two specs apart."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def read_spec(path: str | Path) -> Spec:
    """Return the spec in a TOML file; relative paths in it are relative to the file.

    A model or tagger is taken for a path where it begins with "." or "~" or is a folder beside the file; the corpus
    always, unless it is "demo" or begins with "datasets:". Both may lead out of the folder (``../texts/*.txt``):
    what a run reads is its user's choice, and it is only read. What it writes stays in its run folder: ``name`` is
    a plain name below ``runs/``, and no key of a spec, only --out, can move that.

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
    require_path(path, name="read_spec's file")
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # may block forever
        raise InputError(f"The spec {str(path)!r} is a pipe or a device; give a TOML file.")
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"The spec {str(path)!r} is not UTF-8 text; save it as UTF-8.") from error
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"The spec {str(path)!r} cannot be read: {reason}.") from error
    try:
        spec = parse_spec(text)
    except InputError as error:
        raise InputError(f"The spec {str(path)!r}: {error}") from error
    return spec_beside(spec, Path(path).resolve().parent)


def spec_beside(spec: Spec, folder: Path) -> Spec:
    """Return a spec whose relative paths are relative to a folder."""
    return replace(
        spec,
        models=tuple(_model_beside(folder, model) for model in spec.models),
        corpus=_corpus_beside(folder, spec.corpus),
        tagger=spec.tagger if spec.tagger in ("none", OWN_TAGS) else _model_beside(folder, spec.tagger),
    )


def parse_spec(text: str) -> Spec:
    """Return the spec that a TOML text is, its paths as they stand."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not TOML: {error}.") from error
    for field in fields(Spec):
        if field.default is MISSING and field.name not in table:
            _require_keys(Spec, table)  # a misspelt key also counts as missing, so look for one first
            raise InputError(f"The key {field.name!r} is required.")
    return Spec(**table)


def write_spec(spec: Spec) -> str:
    """Return a spec as TOML, every key written out."""
    # JSON's strings, whole numbers, booleans and lists of them are TOML's, but for one character.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in asdict(spec).items()]
    return "".join(lines).replace("\x7f", "\\u007f")


def _require_keys(kind: type, keys: Iterable[str]) -> None:
    known = [field.name for field in fields(kind)]
    for key in keys:
        if key not in known:
            raise InputError(
                f"There is no key {key!r}; keys are {', '.join(known)}.{did_you_mean(key, known)}"
            )


def _plain(value: Any, kind: Any) -> Any:
    """Return a value as a spec holds it: paths as text, NumPy's numbers as Python's, one or several as a tuple."""
    if get_origin(kind) is tuple:
        if isinstance(value, str | os.PathLike | Integral) and not isinstance(value, bool):
            value = (value,)
        listed = isinstance(value, list | tuple | range)
        return tuple(_plain(entry, None) for entry in value) if listed else value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _check_field(name: str, value: object, kind: Any) -> None:
    """Check a value against its annotation: a type, a Literal, or a tuple of either."""
    if get_origin(kind) is not tuple:
        _check_kind(value, kind, name=name)
    elif not isinstance(value, tuple) or not value:
        got = list(value) if isinstance(value, tuple) else value
        raise InputError(f"{name} must be a list of at least one entry; got {got!r}.")
    else:
        for entry in value:
            _check_kind(entry, get_args(kind)[0], name=f"every entry of {name}")


def _check_kind(value: object, kind: Any, *, name: str) -> None:
    if get_origin(kind) is Literal:
        require_option(value, get_args(kind), name=name)
    elif type(value) is not kind:  # not isinstance: True is no whole number here
        came = list(value) if isinstance(value, tuple) else value
        raise InputError(f"{name} must be {_IN_WORDS[kind]}; got {came!r}.")
    elif value == "":
        raise InputError(f"{name} must not be empty.")


def _model_beside(folder: Path, model: str) -> str:
    path = os.path.join(folder, os.path.expanduser(model))
    is_here = os.path.isdir(path) or (path.endswith(".gguf") and os.path.isfile(path))
    return path if model.startswith((".", "~")) or is_here else model


def _corpus_beside(folder: Path, corpus: str) -> str:
    if corpus == "demo" or corpus.startswith("datasets:"):
        return corpus
    # The corpus may be a glob, the folder is none; without UTF-8 mode the folder's name has half characters.
    text = os.fsencode(glob.escape(str(folder))).decode("utf-8", "surrogateescape")
    return os.path.join(text, os.path.expanduser(corpus))
