"""Run folders: one spec, one process at a time, the same models all along, and a manifest of what is there."""

import contextlib
import errno
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
    damaged,
    digest_of,
    in_reach,
    is_stale,
    is_there,
    is_whole,
    read_json,
    readable,
    require_kinds,
    require_name,
    seal,
    write_json,
    write_text,
)
from mechreg.store.shards import SCHEMA_VERSION, model_folder

KINDS = ("tokens", "norms", "moments")
SET_ASIDE = "set-aside"
_LOCK = ".lock"
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


_HARMLESS = re.compile(  # settings of a repository
    r"core\.(repositoryformatversion|filemode|bare|logallrefupdates|ignorecase|precomposeunicode|symlinks|autocrlf)"
    r"|(branch|user|gui|pull|push|gc)\..*|remote\..*\.(url|pushurl|fetch)|submodule\..*\.(url|active)|http\..*\.extraheader"
)
_RECORD: dict[str, type] = {"name": str, "spec_name": str, "config_hash": str, "config": dict, "facts": dict}
_CONFIG: dict[str, type] = {"batch_tokens": int}
# A shard holds a document at least, a document a window, a window a token.
_COUNTS = ("shards", "documents", "windows", "tokens")
_PLAN: dict[str, type] = {
    **dict.fromkeys((*_COUNTS, "longest"), int),
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

    What a killed process left half written is removed; what another is writing is left alone.

    Raises
    ------
    InputError
        The folder holds a run of another spec, or something that is not a run, a link that leads out of it, cannot
        be written, or another process is working in it.
    """
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
        for left in _files(out, TEMPORARY):
            with in_reach(left), contextlib.suppress(FileNotFoundError):
                if is_stale(left):
                    left.unlink()
        yield out
    finally:
        lock.release()


def _locked(out: Path) -> BaseFileLock:
    """Return the lock of a run folder, held and with its owner's name in it."""
    path = out / _LOCK
    lock: BaseFileLock = FileLock(path, timeout=0)
    was_there = is_there(path)
    with in_reach(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no flock here
        try:
            try:
                lock.acquire()
            except (OSError, NotImplementedError) as error:
                if isinstance(error, OSError) and error.errno not in _NO_FLOCK:
                    raise
                if not was_there:  # what the attempt left would be taken for a lock
                    path.unlink(missing_ok=True)
                lock = SoftFileLock(path, timeout=0)
                lock.acquire()
        except Timeout as error:
            # Where the system has locks, it frees those of the dead.
            freed = isinstance(lock, FileLock)
            dead = (
                "" if freed else f" If that process has died, delete {str(path)!r}; this disk does not tell."
            )
            raise InputError(
                f"Another process is working in {str(out)!r}{_owner(path)}; wait until it has ended, or give another "
                f"--out.{dead}"
            ) from error
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
    """Refuse a run folder in which a folder is a link: what is written below it would be outside.

    Raises
    ------
    InputError
        Names the link and where it leads.
    """
    with readable(run):
        for place, folders, _ in os.walk(run, onerror=_raise):
            for path in (Path(place) / name for name in folders):
                if path.is_symlink():
                    raise InputError(
                        f"{str(path)!r} is a link to {os.readlink(path)!r}, and a run writes into its own folder "
                        "alone; put the folder itself in the link's place, or remove the link."
                    )


def _files(folder: Path, prefix: str) -> list[Path]:
    """Return the files below a folder whose name begins so; a folder that cannot be read is refused, not empty."""
    with readable(folder):
        walked = os.walk(folder, onerror=_raise) if is_there(folder) else ()
        return sorted(Path(at) / name for at, _, names in walked for name in names if name.startswith(prefix))


def _raise(error: OSError) -> None:
    raise error


def sealed_files(run: Path) -> list[Path]:
    """Return all shards of a run, whatever they are of."""
    return [path for kind in KINDS for path in _files(run / kind, f"{kind}-")]


def is_shard(run: Path, path: Path) -> bool:
    """Return whether a file is a shard of a run, which can be made again."""
    return any(path.is_relative_to(run / kind) and path.name.startswith(f"{kind}-") for kind in KINDS)


def set_aside_damaged(run: Path) -> None:
    """Move the shards that are no longer what was written out of the way, so that they are made again."""
    for path in sealed_files(run):
        if not is_whole(path):
            set_aside(run, path, "its checksum is not that of what was written")


def set_aside(run: Path, path: Path, said: str) -> None:
    """Move a damaged shard out of the way and say so.

    Raises
    ------
    InputError
        The same bytes have been set aside before: to make them once more changes nothing.
    """
    name, aside = "-".join(path.relative_to(run).parts[1:]), run / SET_ASIDE
    with in_reach(aside):
        aside.mkdir(exist_ok=True)
        before = [other for other in aside.iterdir() if other.name.partition("-")[2] == name]
    with readable(path):
        digest = digest_of(path)
        if is_whole(path) and digest in map(digest_of, before):
            raise InputError(
                f"{str(path)!r} was made again, came out the same, and cannot be used ({said}); its maker is at fault "
                "and not the disk. Look at the versions of mechreg and its libraries, and at the machine's memory."
            )
    to = aside / f"{len(before)}-{name}"
    with in_reach(to):
        os.replace(path, to)
    log.warning("%s is damaged (%s); it is moved to %s and made again", path.relative_to(run), said, to)


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
    path = _record_path(run, model)
    return checked_record(path) if is_there(path) else None


def checked_record(path: Path) -> dict[str, Any]:
    """Return the record in a file; one that lacks what every record has, or plans what cannot be, is refused."""
    record = read_json(path)
    require_kinds(path, record, _RECORD)
    require_kinds(path, record["config"], _CONFIG)
    if not re.fullmatch("[0-9a-f]{16}", record["config_hash"]):  # a part of file names
        raise damaged(path, "its config_hash is none")
    if "plan" in record:
        require_kinds(path, plan := record["plan"], _PLAN)
        counts = [0, *(plan[key] for key in _COUNTS)]
        if counts != sorted(counts):
            raise damaged(path, f"it plans {plan['shards']} shards of {plan['documents']} documents")
    return record


def read_provenance(run: Path) -> dict[str, Any]:
    """Return what provenance.json of a finished run holds; one without what every run records is refused.

    Raises
    ------
    InputError
        None, or a damaged one.
    """
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
    """Write ``_manifest.json``: the schema version, the spec's hash, and the checksum of every shard and table.

    It is written last and made of what is there, so that it is the same after any interruption; times are in
    provenance.json. Its name begins with "_" so that readers of folders leave it out.
    """
    files = {}
    for path in sorted(sealed_files(run)):
        with readable(seal(path)):
            files[path] = seal(path).read_text(encoding="utf-8").split()[0]
    files |= {run / name: digest_of(run / name) for name in tables}
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
    require_name(out)
    try:
        if file.exists():
            if file.read_bytes() != text.encode():
                raise InputError(
                    f"{str(out)!r} holds a run of another spec; give another --out, or remove it."
                )
        elif out.exists() and (not out.is_dir() or any(not _is_our_start(path) for path in out.iterdir())):
            raise InputError(f"{str(out)!r} is there and is not a run folder; give another --out.")
    except OSError as error:
        raise InputError(
            f"{str(out)!r} cannot be read: {error.strerror or error}; give another --out."
        ) from error


def _is_our_start(path: Path) -> bool:
    """Return whether a file may be all that there is of a run that was killed as it began."""
    return path.name == _LOCK or path.name.startswith(TEMPORARY)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _git(*arguments: str) -> str:
    safe = ("--no-optional-locks", "-c", "core.hooksPath=/dev/null")
    return subprocess.run(
        ["git", *safe, *arguments], capture_output=True, text=True, check=True, timeout=10
    ).stdout


def _git_commit() -> str | None:
    """Return the commit of the folder that the run is started in, "+changes" where files differ from it.

    A repository's own settings may name commands that git runs to compare files (a monitor, filters): where there are
    any but those listed as harmless, files are not compared, and the commit ends in "+unknown".
    """
    try:
        head = _git("rev-parse", "HEAD").strip()
        settings = [
            line.split("\t", 1)
            for line in _git("config", "--list", "--show-scope", "--name-only").splitlines()
        ]
        if not all(_HARMLESS.fullmatch(key) for scope, key in settings if scope in ("local", "worktree")):
            return f"{head}+unknown"
        state = _git("status", "--porcelain", "-uno", "--ignore-submodules=all")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if state.strip() else "")
