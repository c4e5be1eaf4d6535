"""Run folders: one spec, one process at a time, the same models all along, and a manifest of what is there."""

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mechreg.schema import InputError
from mechreg.spec import Spec, write_spec
from mechreg.store.files import (
    TEMPORARY,
    digest_of,
    in_reach,
    is_whole,
    read_json,
    seal,
    write_json,
    write_text,
)
from mechreg.store.shards import SCHEMA_VERSION, model_folder

KINDS = ("tokens", "norms", "moments")
SET_ASIDE = "set-aside"
_LOCK = ".lock"
_RECORD: dict[str, type] = {"name": str, "spec_name": str, "config_hash": str, "config": dict, "facts": dict}
_PLAN: dict[str, type] = {
    **dict.fromkeys(("shards", "tokens", "windows", "documents", "longest"), int),
    "streamed": bool,
    "problems": list,
}
_IN_WORDS = {
    "weights_sha256": "The hash of the weights",
    "tokenizer_sha256": "The hash of the tokenizer",
    "corpus": "The hash of the corpus",
    "tagger": "The tagger",
    "tags_sha256": "The hash of the corpus's tags",
    "annotations_sha256": "The hash of the corpus's sources and annotations",
    "versions": "The libraries' versions",
}
log = logging.getLogger("mechreg")


@contextlib.contextmanager
def open_run_folder(out: Path, spec: Spec) -> Iterator[Path]:
    """Make the run folder, or take up one of the same spec, and keep other processes out of it meanwhile.

    What a killed process left half written is removed.

    Raises
    ------
    InputError
        The folder holds a run of another spec, or something that is not a run, cannot be written, or another
        process is working in it.
    """
    file, text = out / "spec.toml", write_spec(spec)
    _require_ours(out, text)
    with in_reach(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError(
                f"Another process is working in {str(out)!r}; wait until it has ended, or give another --out."
            ) from error
    try:
        _require_ours(out, text)
        if not file.exists():
            write_text(text, file)
        for left in out.rglob(f"{TEMPORARY}*"):
            with in_reach(left):
                left.unlink(missing_ok=True)
        yield out
    finally:
        lock.release()


def set_aside_damaged(run: Path) -> list[Path]:
    """Return the shards that are no longer what was written, moved out of the way so that they are made again."""
    damaged = []
    for kind in KINDS:
        for path in sorted((run / kind).rglob(f"{kind}-*")):
            if is_whole(path):
                continue
            name = "-".join(path.relative_to(run / kind).parts)
            with in_reach(run / SET_ASIDE):
                (run / SET_ASIDE).mkdir(exist_ok=True)
                number = sum(1 for other in (run / SET_ASIDE).iterdir() if other.name.endswith(name))
                os.replace(path, run / SET_ASIDE / f"{number}-{name}")
            log.warning(
                "%s is damaged (its checksum is not that of what was written); it is moved to %s and made again",
                path.relative_to(run),
                run / SET_ASIDE / f"{number}-{name}",
            )
            damaged.append(path)
    return damaged


def record_model(run: Path, record: Mapping[str, Any]) -> None:
    """Write what is known of a model of the run: its name, its ``config``, and later its plan.

    Raises
    ------
    InputError
        As `require_same_model`.
    """
    require_same_model(run, record["name"], record["config"])
    write_json(dict(record), _record_path(run, record["name"]))


def require_same_model(run: Path, model: str, config: Mapping[str, Any]) -> None:
    """Check that what a model's numbers hang on is what it was when the run was begun.

    Raises
    ------
    InputError
        Names what differs: weights, corpus, batch size, ...
    """
    known = read_record(run, model)
    if known is None:
        return
    then = known["config"]
    for key, now in config.items():
        if then.get(key) != now:
            raise InputError(
                f"{_IN_WORDS.get(key, key)} of {model!r} was {_short(then.get(key))} when {str(run)!r} was begun and "
                f"is {_short(now)} now; bring back what it was, or give another --out."
            )


def read_record(run: Path, model: str) -> dict[str, Any] | None:
    """Return what `record_model` wrote of a model, or None.

    Raises
    ------
    InputError
        A damaged record.
    """
    try:
        return checked_record(_record_path(run, model))
    except FileNotFoundError:
        return None


def checked_record(path: Path) -> dict[str, Any]:
    """Return the record in a file; one that lacks what every record has is refused."""
    record = read_json(path)
    parts: list[tuple[Any, dict[str, type]]] = [(record, _RECORD)]
    if "plan" in record:
        parts.append((record["plan"], _PLAN))
    for part, kinds in parts:
        for key, kind in kinds.items():
            if not isinstance(part, dict) or not isinstance(part.get(key), kind):
                raise InputError(
                    f"{str(path)!r} is damaged: {key!r} must be there as {kind.__name__}; remove it, and the same "
                    "`mechreg run` makes it again."
                )
    if not re.fullmatch("[0-9a-f]{16}", record["config_hash"]):  # a part of file names
        raise InputError(
            f"{str(path)!r} is damaged: its config_hash is none; remove it, and the same `mechreg run` makes it again."
        )
    return record


def write_manifest(run: Path, spec: Spec, tables: list[str]) -> Path:
    """Write ``_manifest.json``: the schema version, the spec's hash, and the checksum of every shard and table.

    It is written last and made of what is there, so that it is the same after any interruption; times are in
    provenance.json. Its name begins with "_" so that readers of folders leave it out.
    """
    sealed = sorted(path for kind in KINDS for path in (run / kind).rglob(f"{kind}-*"))
    files = {
        **{path: seal(path).read_text(encoding="utf-8").split()[0] for path in sealed},
        **{run / name: digest_of(run / name) for name in tables},
    }
    records = sorted((run / "models").glob("*.json"))
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "spec_sha256": spec.digest(),
        "models": {record["name"]: record["config_hash"] for record in map(checked_record, records)},
        "files": {
            path.relative_to(run).as_posix(): {"sha256": digest, "bytes": path.stat().st_size}
            for path, digest in files.items()
        },
    }
    return write_json(manifest, run / "_manifest.json")


def provenance(spec: Spec, models: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """Return what a run was made from: spec, models, all packages' versions, git commit, the given facts."""
    packages = sorted(
        {
            (dist.metadata["Name"].lower(), dist.version)
            for dist in importlib.metadata.distributions()
            if dist.metadata["Name"]
        }
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "spec_hash": spec.digest(),
        "models": models,
        **facts,
        "git_commit": _git_commit(),
        "packages": dict(packages),
    }


def _record_path(run: Path, model: str) -> Path:
    return run / "models" / f"{model_folder(model)}.json"


def _require_ours(out: Path, text: str) -> None:
    """Check that a folder is not there, is empty, or holds a run of this spec."""
    file = out / "spec.toml"
    if "\0" in str(out):  # for Path that is merely not there
        raise InputError(
            f"{str(out)!r} holds a null character, which no folder's name can; give another --out."
        )
    try:
        if file.exists():
            if file.read_text(encoding="utf-8") != text:
                raise InputError(
                    f"{str(out)!r} holds a run of another spec; give another --out, or remove it."
                )
        elif out.exists() and (not out.is_dir() or any(not _is_our_start(path) for path in out.iterdir())):
            raise InputError(f"{str(out)!r} is there and is not a run folder; give another --out.")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no folder can have
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(out)!r} cannot be read: {reason}; give another --out.") from error


def _is_our_start(path: Path) -> bool:
    """Return whether a file may be all that there is of a run that was killed as it began."""
    return path.name == _LOCK or path.name.startswith(TEMPORARY)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _git_commit() -> str | None:
    """Return the commit of the folder that the run is started in, "+changes" where files differ from it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        state = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if state.stdout.strip() else "")
