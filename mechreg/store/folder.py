"""Run folders: one spec, one process at a time, the same models all along, and a manifest of what is there."""

import contextlib
import errno
import functools
import importlib.metadata
import json
import logging
import os
import re
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from mechreg.schema import InputError
from mechreg.spec import Spec, write_spec
from mechreg.store.files import (
    TEMPORARY,
    DamagedError,
    damaged,
    digest_of,
    in_reach,
    is_stale,
    is_there,
    read_json,
    readable,
    require_kinds,
    require_name,
    write_json,
    write_text,
)
from mechreg.store.shards import SCHEMA_VERSION, model_folder, require_whole

KINDS = ("tokens", "norms", "moments", "top", "nulls")
SET_ASIDE = "set-aside"
_LOCK = ".lock"
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

_RECORD: dict[str, type] = {"name": str, "spec_name": str, "config_hash": str, "config": dict, "facts": dict}
# A shard holds a document at least, a document a window, a window a token.
_COUNTS = ("shards", "documents", "windows", "tokens")
_PLAN: dict[str, type] = dict.fromkeys((*_COUNTS, "longest"), int) | {"streamed": bool, "problems": list}
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
    """Create the run folder, or resume one of the same spec, and lock out other processes meanwhile."""
    file, text = out / "spec.toml", write_spec(spec)
    _require_ours(out, text)
    with in_reach(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = _locked(out)
    try:
        _require_ours(out, text)
        require_no_links(out)
        if not file.exists():
            write_text(text, file)
        for temporary in _below(out, TEMPORARY)[1]:
            with in_reach(temporary), contextlib.suppress(FileNotFoundError):
                if is_stale(temporary):
                    temporary.unlink()
        yield out
    finally:
        lock.release()


def _locked(out: Path) -> BaseFileLock:
    """Return the lock of a run folder, held and with its owner's name in it."""
    path = out / _LOCK
    lock: BaseFileLock = FileLock(path, timeout=0)
    was_there = is_there(path)
    with in_reach(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning that flock is unavailable
        try:
            try:
                lock.acquire()
            except (OSError, NotImplementedError) as error:
                if isinstance(error, OSError) and error.errno not in _NO_FLOCK:
                    raise
                if not was_there:  # the file left by the attempt would look like a lock
                    path.unlink(missing_ok=True)
                lock = SoftFileLock(path, timeout=0)
                lock.acquire()
        except Timeout as error:
            message = (
                f"Another process is working in {str(out)!r}{_owner(path)}; wait until it has ended, or give another "
                "--out."
            )
            if not isinstance(lock, FileLock):  # where the system has locks, it frees those of the dead
                message += f" If that process has died, delete {str(path)!r}; this disk has no locks that end with it."
            raise InputError(message) from error
    if isinstance(lock, FileLock):  # the other kind has its owner in it
        with contextlib.suppress(OSError):
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
    return lock


def _owner(lock: Path) -> str:
    """Return who holds a lock and since when, as far as its file says."""
    try:
        pid, host = lock.read_text(encoding="utf-8", errors="replace").splitlines()[:2]
        minutes = max(0, time.time() - lock.stat().st_mtime) / 60
    except (OSError, ValueError):
        return ""
    age = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
    return f" (process {pid} on {host}, for {age})"


def require_no_links(run: Path) -> None:
    """Refuse a run folder in which a folder is a link: what is written below it would be outside."""
    for path in _below(run)[0]:
        if path.is_symlink():
            raise InputError(
                f"{str(path)!r} is a link to {os.readlink(path)!r}, and a run writes into its own folder only; replace "
                "the link with the folder itself, or remove it."
            )


def _below(folder: Path, prefix: str = "") -> tuple[list[Path], list[Path]]:
    """Return the folders and the files below one whose names begin so; one that cannot be read is refused."""

    def refuse(error: OSError) -> None:
        raise error

    with readable(folder):
        walked = list(os.walk(folder, onerror=refuse)) if is_there(folder) else []
    folders = [Path(at) / name for at, names, _ in walked for name in names if name.startswith(prefix)]
    return folders, sorted(
        Path(at) / name for at, _, names in walked for name in names if name.startswith(prefix)
    )


def shards_of_run(run: Path) -> list[Path]:
    """Return the files of all shards of a run."""
    return [path for kind in KINDS for path in _below(run / kind, f"{kind}-")[1]]


def damaged_shards(run: Path) -> dict[Path, str]:
    """Return the shards that are not what was written by the manifest's hashes or their own checksums, and why."""
    hashes, found = {}, {}
    with contextlib.suppress(DamagedError):
        hashes = manifest_files(run)
    for path in shards_of_run(run):
        written = hashes.get(path.relative_to(run).as_posix())
        try:
            if written is None:
                require_whole(path)
            else:
                require_hash(path, written)
        except DamagedError as error:
            found[path] = str(error)
    return found


def set_aside_damaged(run: Path) -> None:
    """Move damaged shards to ``set-aside/``, each with a warning, so that they are made again."""
    aside = run / SET_ASIDE
    for path, reason in damaged_shards(run).items():
        name = "-".join(path.relative_to(run).parts[1:])
        with in_reach(aside):
            aside.mkdir(exist_ok=True)
            earlier = [other for other in aside.iterdir() if other.name.partition("-")[2] == name]
            target = aside / f"{len(earlier)}-{name}"
            os.replace(path, target)
        log.warning("%s It was moved to %s.", reason, target)


def record_model(run: Path, record: Mapping[str, Any]) -> None:
    """Write what is known of a model of the run: its name, its ``config``, and later its plan."""
    require_same_model(run, record["name"], record["config"])
    write_json(dict(record), _record_path(run, record["name"]))


def require_same_model(run: Path, model: str, config: Mapping[str, Any]) -> None:
    """Check that everything that determines a model's numbers is as it was when the run was begun."""
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
    """Return what `record_model` wrote of a model, or None."""
    path = _record_path(run, model)
    return checked_record(path) if is_there(path) else None


def checked_record(path: Path) -> dict[str, Any]:
    """Return the record in a file; one that lacks what every record has, or plans what cannot be, is refused."""
    record = read_json(path)
    require_kinds(path, record, _RECORD)
    require_kinds(path, record["config"], {"batch_tokens": int})
    if not re.fullmatch("[0-9a-f]{16}", record["config_hash"]):  # a part of file names
        raise damaged(path, "its config_hash is not a hash")
    if "plan" in record:
        require_kinds(path, plan := record["plan"], _PLAN)
        counts = [0, *(plan[key] for key in _COUNTS)]
        if counts != sorted(counts):
            raise damaged(path, f"it plans {plan['shards']} shards of {plan['documents']} documents")
    return record


def read_provenance(run: Path) -> dict[str, Any]:
    """Return what provenance.json of a finished run holds; one without what every run records is refused."""
    path = run / "provenance.json"
    if not is_there(path):
        raise InputError(f"{str(run)!r} is not the folder of a finished run; mechreg run makes one.")
    facts = read_json(path)
    require_kinds(path, facts, {"spec_hash": str, "models": list, "corpus": dict})
    require_kinds(path, facts["corpus"], {"sha256": str})
    for model in facts["models"]:
        require_kinds(path, model, {"name": str, "hooks": list, "tokens": int})
    return facts


def write_manifest(run: Path, spec: Spec, tables: list[str]) -> Path:
    """Write ``_manifest.json``, the same after any interruption: the SHA-256 of spec, shards and tables.

    Its name begins with "_" so that readers of folders leave it out.
    """
    files = [run / "spec.toml", *sorted(shards_of_run(run)), *(run / name for name in tables)]
    records = map(checked_record, sorted((run / "models").glob("*.json")))
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "spec_sha256": spec.digest(),
        "models": {record["name"]: record["config_hash"] for record in records},
        "files": {
            path.relative_to(run).as_posix(): {"sha256": digest_of(path), "bytes": path.stat().st_size}
            for path in files
        },
    }
    return write_json(manifest, run / "_manifest.json")


def manifest_files(run: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in the manifest; none where the run has not ended."""
    path = run / "_manifest.json"
    files = read_json(path).get("files") if is_there(path) else {}
    if not isinstance(files, dict):
        raise damaged(path, "it lists no files")
    for entry in files.values():
        require_kinds(path, entry, {"sha256": str})
    return {name: entry["sha256"] for name, entry in files.items()}


def require_hash(path: Path, written: str) -> None:
    """Refuse a file whose SHA-256 is not the one in the manifest."""
    with readable(path):
        if digest_of(path) != written:
            raise damaged(path, "its checksum is not that of what was written")


def provenance(spec: Spec, models: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """Return what a run was made from: spec, models, all packages' versions, git commit, the given facts."""
    return {
        "schema_version": SCHEMA_VERSION,
        "spec_hash": spec.digest(),
        "models": models,
        **facts,
        "git_commit": _git_commit(),
        "packages": _packages(),
    }


@functools.cache  # half a second
def _packages() -> dict[str, str]:
    found = [(dist.metadata, dist.version) for dist in importlib.metadata.distributions()]
    return dict(sorted((about["Name"].lower(), version) for about, version in found if about["Name"]))


def _record_path(run: Path, model: str) -> Path:
    return run / "models" / f"{model_folder(model)}.json"


def _require_ours(out: Path, text: str) -> None:
    """Check that a folder is not there, is empty, or holds a run of this spec."""
    file = out / "spec.toml"
    require_name(out)

    try:
        if file.exists():
            if file.read_bytes() != text.encode():
                raise InputError(
                    f"{str(out)!r} holds a run of another spec; give another --out, or remove it."
                )
        elif out.exists():
            # A run that was killed as it began has left no more than these.
            names = os.listdir(out) if out.is_dir() else ["a file"]
            if not all(name == _LOCK or name.startswith(TEMPORARY) for name in names):
                raise InputError(f"{str(out)!r} exists and is not a run folder; give another --out.")
    except OSError as error:
        raise InputError(
            f"{str(out)!r} cannot be read: {error.strerror or error}; give another --out."
        ) from error


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _git_commit() -> str | None:
    """Return the commit of the folder that the run is started in; this runs none of the repository's hooks."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
