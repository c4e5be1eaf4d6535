"""The only place that writes results: Parquet shards, tables, provenance; a file is whole or not there."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import einops
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mechreg.schema import NORM_COLUMNS, TOKEN_COLUMNS, InputError, require
from mechreg.spec import Spec, write_spec

# Raise it when a reader of older runs would misread newer ones.
SCHEMA_VERSION = 1
_TOKEN_PLACE = ("doc", "window", "position", "token_id")
_VALUE = re.compile(r"layer_(\d+)(?:_head_(\d+))?")


@contextlib.contextmanager
def committed(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and put what was written at ``path`` in one step.

    A kill at any moment leaves the old file or the new one, never a part: the rename is the commit.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "table.csv"
    >>> with committed(file) as temporary:
    ...     _ = temporary.write_text("a,b")
    >>> file.read_text()
    'a,b'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{os.getpid()}-{path.name}"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(text: str, path: Path) -> Path:
    """Write a text file in one step and return its path."""
    with committed(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_table(frame: pd.DataFrame, path: Path) -> Path:
    """Write a frame as .csv or .parquet, by the path's ending, and return the path.

    Raises
    ------
    InputError
        Another ending.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"write_table writes .csv or .parquet; got {path.name!r}.")
    with committed(path) as temporary:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False, compression="zstd")
    return path


def model_folder(name: str) -> str:
    """Return a file name for a model's name; distinct names stay distinct.

    Examples
    --------
    >>> model_folder("gpt2"), model_folder("org/model").startswith("org-model-")
    ('gpt2', True)
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def shard_path(run: Path, kind: str, model: str, hook: str | None, config_hash: str, index: int) -> Path:
    """Return where a shard of ``kind`` ("norms", "tokens") is or will be."""
    folder = run / kind / model_folder(model)
    return (folder / hook if hook else folder) / f"{kind}-{config_hash}-{index:05d}.parquet"


def write_norm_shard(norms: pd.DataFrame, path: Path) -> Path:
    """Write the norm frame of one model and hook, wide: a row a token, a float32 column a layer (and head).

    Raises
    ------
    InputError
        Several models or hooks, or layers that do not have the same tokens in the same order.
    """
    require(norms, NORM_COLUMNS, who="write_norm_shard")
    if norms["model"].nunique() != 1 or norms["hook"].nunique() != 1:
        raise InputError("A norm shard holds one model and one hook; write a shard for each.")
    keys = ["layer", "head"] if "head" in norms.columns else ["layer"]
    series = norms[keys].drop_duplicates().to_dict("records")
    names = ["_".join(f"{key}_{value}" for key, value in entry.items()) for entry in series]
    rows, odd = divmod(len(norms), len(series))
    tokens = norms.iloc[:rows]
    place = norms[[*_TOKEN_PLACE]].assign(doc=pd.factorize(norms["doc"])[0]).to_numpy()
    if (
        odd
        or not (
            einops.rearrange(place, "(series token) key -> series token key", token=rows) == place[:rows]
        ).all()
    ):
        raise InputError("Every layer of a norm shard must have the same tokens in the same order.")
    values = einops.rearrange(
        norms["norm"].to_numpy(np.float32), "(series token) -> series token", token=rows
    )
    columns: dict[str, Any] = {"doc": pa.array(tokens["doc"].astype(str)).dictionary_encode()}
    columns |= {key: pa.array(tokens[key].to_numpy(np.int32)) for key in _TOKEN_PLACE[1:]}
    columns |= dict(zip(names, map(pa.array, values), strict=True))
    about = {
        "schema_version": SCHEMA_VERSION,
        "model": str(norms["model"].iloc[0]),
        "hook": str(norms["hook"].iloc[0]),
        "depths": dict(zip(names, norms["depth"].iloc[::rows].tolist(), strict=True)),
    }
    _write_parquet(
        pa.table(columns).replace_schema_metadata({"mechreg": json.dumps(about)}),
        path,
        encodings=dict.fromkeys(_TOKEN_PLACE[1:], "DELTA_BINARY_PACKED")
        | dict.fromkeys(names, "BYTE_STREAM_SPLIT"),
    )
    return path


def read_norm_shard(path: Path, *, layers: list[int] | None = None) -> pd.DataFrame:
    """Return the tidy norm frame of a shard; with ``layers`` only those are read from the disk.

    Raises
    ------
    InputError
        Not a norm shard of this schema version.
    """
    schema = pq.read_schema(path)
    about = json.loads((schema.metadata or {}).get(b"mechreg", b"{}"))
    if about.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path.name} is not a norm shard of schema version {SCHEMA_VERSION}; "
            "it was written by another version of mechreg or by something else."
        )
    series = {}
    for name in schema.names:
        match = _VALUE.fullmatch(name)
        if match and (layers is None or int(match[1]) in layers):
            series[name] = (int(match[1]), None if match[2] is None else int(match[2]))
    table = pq.read_table(path, columns=[*_TOKEN_PLACE, *series])
    doc = table.column("doc").to_pandas().astype("category")
    columns: dict[str, Any] = {
        key: pd.Categorical.from_codes(
            np.zeros(len(table) * len(series), np.int8), dtype=pd.CategoricalDtype([about[key]])
        )
        for key in ("model", "hook")
    }
    columns |= {
        "layer": np.repeat([layer for layer, _ in series.values()], len(table)),
    }
    if any(head is not None for _, head in series.values()):
        columns["head"] = np.repeat([head for _, head in series.values()], len(table)).astype(np.int16)
    columns["depth"] = np.repeat([about["depths"][name] for name in series], len(table))
    columns["doc"] = pd.Categorical.from_codes(np.tile(doc.cat.codes, len(series)), dtype=doc.dtype)
    for key in _TOKEN_PLACE[1:]:
        columns[key] = np.tile(table.column(key).to_numpy(), len(series))
    columns["norm"] = np.concatenate([table.column(name).to_numpy() for name in series])
    return pd.DataFrame(columns).astype(NORM_COLUMNS)


def write_token_shard(tokens: pd.DataFrame, path: Path) -> Path:
    """Write a token frame with whatever annotations it has."""
    require(tokens, TOKEN_COLUMNS, who="write_token_shard")
    frame = tokens.astype({"doc": "str", "token": "str"})
    _write_parquet(pa.Table.from_pandas(frame, preserve_index=False), path, encodings={})
    return path


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


def open_run_folder(out: Path, spec: Spec) -> Path:
    """Make the run folder, or take up one of the same spec, and write the spec into it.

    Raises
    ------
    InputError
        The folder holds a run of another spec, or something that is not a run, or cannot be written.
    """
    file = out / "spec.toml"
    text = write_spec(spec)
    if file.exists():
        if file.read_text(encoding="utf-8") != text:
            raise InputError(f"{str(out)!r} holds a run of another spec; give another --out, or remove it.")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{str(out)!r} is there and is not a run folder; give another --out.")
    else:
        try:
            write_text(text, file)
        except OSError as error:
            raise InputError(
                f"{str(out)!r} cannot be written: {error.strerror}; give another --out."
            ) from error
    return out


def _write_parquet(table: pa.Table, path: Path, *, encodings: dict[str, str]) -> None:
    with committed(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=3,
            column_encoding=encodings or None,
            use_dictionary=[name for name in table.column_names if name not in encodings],
        )


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
