"""Files that are whole or not there, and the checksum that tells whether one still is what was written."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mechreg.outside import for_csv, from_csv
from mechreg.schema import InputError

TEMPORARY = ".tmp-"
TABLES = (".csv", ".parquet")  # how the name of a table may end


@contextlib.contextmanager
def committed(path: Path, *, sealed: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to, and put what was written at ``path`` in one step.

    A kill at any moment leaves the old file or the new one, never a part: the rename is the commit. Where it is
    to be ``sealed``, its checksum is there before it is.

    Raises
    ------
    InputError
        The disk is full, gone, or not to be written to.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "table.csv"
    >>> with committed(file) as temporary:
    ...     _ = temporary.write_text("a,b")
    >>> file.read_text()
    'a,b'
    """
    with in_reach(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            if sealed:
                write_text(f"{digest_of(temporary)}  {path.relative_to(_top(path)).as_posix()}\n", seal(path))
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # a drive that is gone: the first error says so
                temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _temporary(path: Path) -> Path:
    return path.parent / f"{TEMPORARY}{os.getpid()}-{path.name}"


@contextlib.contextmanager
def in_reach(path: Path) -> Iterator[None]:
    """Turn what the system says while ``path`` is in use into one sentence with a remedy."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be read or written: {error.strerror or error}. Make room or bring the drive "
            "back, and the same command goes on from what is there; or give another --out."
        ) from error


def check_place(path: Path, *, endings: tuple[str, ...] = ()) -> None:
    """Refuse a place for a file where none can be written, before the work whose result it is for.

    Raises
    ------
    InputError
        Another ending, a name that no file can have, a folder, or a place whose folder cannot be made or written to.
    """
    if endings and path.suffix not in endings:
        raise InputError(f"--out must end in {' or '.join(endings)}; got {str(path)!r}.")
    if "\0" in str(path):
        raise InputError(
            f"{str(path)!r} holds a null character, which no file's name can; give another --out."
        )
    with in_reach(path):
        with contextlib.suppress(FileNotFoundError):
            os.lstat(_temporary(path))  # a name that is too long, or below a file
        if path.is_dir():
            raise InputError(f"--out names a file; {str(path)!r} is a folder.")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass


def seal(path: Path) -> Path:
    """Return where the checksum of a file is, in the form that ``sha256sum --check`` reads in the run folder.

    Shards' are in a folder of their own: polars refuses a folder of Parquet files in which there are others.

    Examples
    --------
    >>> seal(Path("run/norms/gpt2/attn_out/norms-1a2b-00000.parquet")).as_posix()
    'run/checksums/norms/gpt2/attn_out/norms-1a2b-00000.parquet.sha256'
    """
    return _top(path) / "checksums" / f"{path.relative_to(_top(path))}.sha256"


def _top(path: Path) -> Path:
    """Return the run folder of a shard, the folder itself of any other file."""
    kind = path.name.split("-")[0]
    up = {"norms": 2, "tokens": 1, "moments": 1}.get(kind)
    is_shard = up is not None and len(path.parents) > up + 1 and path.parents[up].name == kind
    return path.parents[up + 1] if is_shard and up is not None else path.parent


def is_whole(path: Path) -> bool:
    """Return whether a sealed file is there and holds, bit for bit, what was written."""
    try:
        return seal(path).read_text(encoding="utf-8").split()[:1] == [digest_of(path)]
    except (OSError, UnicodeDecodeError):
        return False


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run.

    Raises
    ------
    InputError
        A damaged file, or one that cannot be read.
    FileNotFoundError
        There is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        said = f"it holds a {type(value).__name__}"
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        said = getattr(error, "strerror", None) or str(error)
    raise InputError(
        f"{str(path)!r} is damaged or cannot be read ({said}); remove it, and the same `mechreg run` makes it again."
    )


def read_table(path: Path) -> pd.DataFrame:
    """Return a table of a run, .csv or .parquet.

    Raises
    ------
    InputError
        None, a damaged file, or one that cannot be read.
    """
    try:
        return from_csv(pd.read_csv(path)) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:  # Arrow and pandas have errors of many kinds
        said = (
            (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip().splitlines()[0]
        )
        raise InputError(
            f"{str(path)!r} is damaged or cannot be read ({said.rstrip('.')}); the same `mechreg run` makes it again."
        ) from error


def write_text(text: str, path: Path) -> Path:
    """Write a text file in one step and return its path."""
    with committed(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(value: Any, path: Path) -> Path:
    """Write a JSON file in one step and return its path."""
    return write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)


def write_table(frame: pd.DataFrame, path: Path) -> Path:
    """Write a frame as .csv or .parquet, by the path's ending, and return the path.

    Raises
    ------
    InputError
        Another ending.
    """
    if path.suffix not in TABLES:
        raise InputError(f"write_table writes .csv or .parquet; got {path.name!r}.")
    with committed(path) as temporary:
        if path.suffix == ".csv":
            for_csv(frame).to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False, compression="zstd")
    return path
