"""Files that are whole or not there."""

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import socket
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from errno import EINVAL
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from mechreg.outside import for_csv, from_csv
from mechreg.schema import InputError
from mechreg.words import first_line

TEMPORARY = ".tmp-"
TABLES = (".csv", ".parquet")  # how the name of a table may end
_STALE_SECONDS = 24 * 3600  # after this long, another machine's temporary file is assumed to be abandoned
_OWNER = re.compile(re.escape(TEMPORARY) + "([0-9a-f]{8})-([0-9]+)-")
# What readers raise for a file with damaged content.
_CONTENT = (
    *(pa.ArrowException, ValueError, KeyError, EOFError, RecursionError, zlib.error, zipfile.BadZipFile),
    *(OSError, IndexError, NotImplementedError),
)


class DamagedError(InputError):
    """A file of a run that is not what was written."""


@contextlib.contextmanager
def committed(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, then move it to ``path``: a kill at any moment leaves the old or the new."""
    with in_reach(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            _synced(temporary)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # a drive that is gone: the first error says so
                temporary.unlink(missing_ok=True)
        _synced(path.parent)


def _synced(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """Return a name that no other writer has: of this machine, this process and this moment."""
    return path.parent / f"{TEMPORARY}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}-{path.name}"


@functools.cache
def _machine() -> str:
    """Return an identifier of this machine (or container) since it was booted."""
    parts = [socket.gethostname()]
    for about in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(about) if "ns" in about else Path(about).read_text(encoding="ascii"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def is_stale(temporary: Path) -> bool:
    """Return whether the writer of a temporary file is dead: known on its own machine, by its age elsewhere."""
    owner = _OWNER.match(temporary.name)
    if owner and owner[1] == _machine():
        try:
            os.kill(int(owner[2]), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:  # another user's
            pass
        return False
    return time.time() - temporary.lstat().st_mtime > _STALE_SECONDS


@contextlib.contextmanager
def in_reach(path: Path) -> Iterator[None]:
    """Turn an OSError raised while writing ``path`` into one sentence with a remedy."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be written: {error.strerror or error}. Make room or bring the drive "
            "back, and the same command continues from what was written; or give another --out."
        ) from error


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into one sentence: it could not be read, or what it holds is damaged."""
    try:
        yield
    except InputError:  # a caller's
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, EINVAL):  # as of what a file holds
            raise unreadable(path, error) from error
        if not isinstance(error, _CONTENT) or isinstance(error, MemoryError):
            raise
        raise damaged(path, error) from error


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error for a file that the system could not read."""
    return InputError(
        f"{str(path)!r} could not be read ({error.strerror or error}), and nothing was changed; look at its drive and "
        "permissions, and give the same command again."
    )


def remove(path: Path) -> None:
    """Remove a file; there may be none."""
    with in_reach(path):
        path.unlink(missing_ok=True)


def damaged(path: Path, reason: object) -> DamagedError:
    """Return the error for a file whose content is not what was written."""
    return DamagedError(
        f"{str(path)!r} is damaged ({first_line(reason)}); remove it, and `mechreg run` with the same spec and --out "
        "makes it again."
    )


def is_there(path: Path) -> bool:
    """Return whether a file is there; one that cannot be read is an error, not a missing file."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return True


def require_name(path: Path) -> None:
    """Refuse a name that no file can have, or that this process cannot write in UTF-8."""
    if "\0" in str(path):  # Path takes it for a missing file
        raise InputError(f"{str(path)!r} holds a null character, which no name can; give another --out.")
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"The name {str(path)!r} is not in the encoding that this process uses; set PYTHONUTF8=1, or give "
            "another --out."
        ) from error


def check_place(path: Path, *, endings: tuple[str, ...] = ()) -> None:
    """Refuse a place for a file where none can be written, before the work whose result it is for."""
    if endings and path.suffix not in endings:
        raise InputError(f"--out must end in {' or '.join(endings)}; got {str(path)!r}.")
    require_name(path)
    with in_reach(path):
        with contextlib.suppress(FileNotFoundError):
            os.lstat(_temporary(path))  # a name that is too long, or below a file
        if path.is_dir():
            raise InputError(f"--out names a file; {str(path)!r} is a folder.")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run."""
    with readable(path):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise damaged(path, f"it holds a {type(value).__name__}")
        return value


def require_kinds(path: Path, part: Any, kinds: Mapping[str, type]) -> None:
    """Refuse a part of a JSON file that is not an object with these keys and types."""
    for key, kind in kinds.items():
        value = part.get(key) if isinstance(part, dict) else None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise damaged(path, f"{key!r} must be of type {kind.__name__}")


def read_table(path: Path) -> pd.DataFrame:
    """Return a table of a run, .csv or .parquet."""
    with readable(path):
        return from_csv(pd.read_csv(path)) if path.suffix == ".csv" else pd.read_parquet(path)


def write_text(text: str, path: Path) -> Path:
    """Write a text file in one step and return its path."""
    with committed(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(value: Any, path: Path) -> Path:
    """Write a JSON file in one step and return its path."""
    return write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)


def write_table(frame: pd.DataFrame, path: Path) -> Path:
    """Write a frame as .csv or .parquet, by the path's ending, and return the path."""
    if path.suffix not in TABLES:
        raise InputError(f"write_table writes .csv or .parquet; got {path.name!r}.")
    with committed(path) as temporary:
        if path.suffix == ".csv":
            for_csv(frame).to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False, compression="zstd")
    return path
