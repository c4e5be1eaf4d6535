"""Shards: whole documents as Parquet, wide on the disk, tidy frames in memory."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import einops
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mechreg.schema import NORM_COLUMNS, TOKEN_COLUMNS, InputError, require
from mechreg.store.files import committed, readable

# Raise it when a reader of older runs would misread newer ones.
SCHEMA_VERSION = 2
Kind = Literal["tokens", "norms", "moments"]
_TOKEN_PLACE = ("doc", "window", "position", "token_id")
_VALUE = re.compile(r"layer_(\d+)(?:_head_(\d+))?")


def model_folder(name: str) -> str:
    """Return a file name for a model's name; distinct names stay distinct.

    Examples
    --------
    >>> model_folder("gpt2"), model_folder("org/model").startswith("org-model-")
    ('gpt2', True)
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def shard_path(run: Path, kind: Kind, model: str, hook: str | None, config_hash: str, index: int) -> Path:
    """Return where a shard is or will be; only norms have a folder a hook."""
    folder = run / kind / model_folder(model)
    ending = "npz" if kind == "moments" else "parquet"
    return (folder / hook if hook else folder) / f"{kind}-{config_hash}-{index:05d}.{ending}"


def write_norm_shard(norms: pd.DataFrame, path: Path, *, sources: pd.Series | None = None) -> Path:
    """Write the norm frame of one model and hook, wide: a row a token, a float32 column a layer (and head).

    Parameters
    ----------
    norms : pandas.DataFrame
        Columns of tokens beside the norm frame's own (``surprisal``) are kept once.
    path : Path
    sources : pandas.Series, optional
        The source of every document, by its id; a column of the shard.

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
    extra = _token_values(norms, rows)
    columns |= {name: pa.array(values) for name, values in extra.items()}
    if sources is not None:
        columns["source"] = pa.array(tokens["doc"].astype(str).map(sources).astype(str)).dictionary_encode()
    columns |= dict(zip(names, map(pa.array, values), strict=True))
    about = {
        "schema_version": SCHEMA_VERSION,
        "model": str(norms["model"].iloc[0]),
        "hook": str(norms["hook"].iloc[0]),
        "of_tokens": list(extra),
        "depths": dict(zip(names, norms["depth"].iloc[::rows].tolist(), strict=True)),
    }
    about["check"] = _check(about)
    _write_parquet(
        pa.table(columns).replace_schema_metadata({"mechreg": json.dumps(about)}),
        path,
        encodings=dict.fromkeys(_TOKEN_PLACE[1:], "DELTA_BINARY_PACKED")
        | dict.fromkeys([*names, *extra], "BYTE_STREAM_SPLIT"),
    )
    return path


def _token_values(norms: pd.DataFrame, rows: int) -> dict[str, np.ndarray]:
    """Return the numbers that tokens have beside their norms, the same in every layer."""
    found = {}
    for name in (column for column in norms.columns if column not in (*NORM_COLUMNS, "head")):
        values = einops.rearrange(
            norms[name].to_numpy(np.float64), "(series token) -> series token", token=rows
        )
        if not ((values == values[0]) | (np.isnan(values) & np.isnan(values[0]))).all():
            raise InputError(f"The column {name!r} of a norm shard must be the same in every layer.")
        found[str(name)] = values[0]
    return found


def read_norm_shard(
    path: Path, *, layers: Collection[int] | None = None, sources: Collection[str] | None = None
) -> pd.DataFrame:
    """Return the tidy norm frame of a shard; with ``layers`` only those are read from the disk.

    Parameters
    ----------
    path : Path
    layers : collection of int, optional
    sources : str or collection of str, optional
        Documents of these sources only.

    Raises
    ------
    InputError
        Options that are none, a shard without the sources that are asked for, or one that could not be read.
    DamagedError
        Not a norm shard of this schema version, or not as it was written.
    """
    require_layers(layers)
    with readable(path, sealed=True):
        return _norm_frame(path, layers, [sources] if isinstance(sources, str) else sources)


def require_layers(layers: object) -> None:
    """Refuse what does not name layers."""
    listed = isinstance(layers, Collection) and not isinstance(layers, str | bytes | Mapping)
    if layers is None or (listed and all(isinstance(one, Integral) for one in layers)):  # type: ignore[attr-defined]
        return
    raise InputError(f"layers must be a list of whole numbers, such as [0, 3]; got {layers!r}.")


def _norm_frame(path: Path, layers: Collection[int] | None, sources: Collection[str] | None) -> pd.DataFrame:
    schema = pq.read_schema(path)
    about = json.loads((schema.metadata or {}).get(b"mechreg", b"{}"))
    if not isinstance(about, dict) or about.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"it is not a norm shard of schema version {SCHEMA_VERSION}: another version of mechreg or something else "
            "wrote it"
        )
    names = [name for name in schema.names if name not in (*_TOKEN_PLACE, "source")]
    if about.get("check") != _check(about) or names != [*about["of_tokens"], *about["depths"]]:
        raise ValueError("its description is not what was written")
    series = {}
    for name in schema.names:
        match = _VALUE.fullmatch(name)
        if match and (layers is None or int(match[1]) in layers):
            series[name] = (int(match[1]), None if match[2] is None else int(match[2]))
    extra = about["of_tokens"]
    if sources is not None and "source" not in schema.names:
        raise InputError(f"{path.name} was written without sources, so sources= cannot be asked for.")
    if not series:
        have = [int(match[1]) for name in schema.names if (match := _VALUE.fullmatch(name))]
        raise InputError(
            f"{path.name} has none of layers={sorted(layers or ())}; it has {sorted(set(have))}."
        )
    table = pq.read_table(
        path,
        columns=[*_TOKEN_PLACE, *extra, *series],
        filters=None if sources is None else [("source", "in", list(sources))],
        page_checksum_verification=True,
    )
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
    columns |= {name: np.tile(table.column(name).to_numpy(), len(series)) for name in extra}
    return pd.DataFrame(columns).astype(NORM_COLUMNS)


def write_token_shard(tokens: pd.DataFrame, path: Path) -> Path:
    """Write a token frame with whatever annotations it has.

    Raises
    ------
    InputError
        A column of things of several kinds, which Parquet cannot hold.
    """
    require(tokens, TOKEN_COLUMNS, who="write_token_shard")
    frame = tokens.astype({"doc": "str", "token": "str"})
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except pa.ArrowException as error:
        raise InputError(f"The tokens' annotations cannot be stored: {error.args[0]}.") from error
    _write_parquet(table, path, encodings={})
    return path


def read_token_shard(path: Path) -> pd.DataFrame:
    """Return the token frame of a shard, with its annotations.

    Raises
    ------
    InputError
        Not a token shard, a damaged one, or one that could not be read.
    """
    with readable(path, sealed=True):
        frame = pq.read_table(path, page_checksum_verification=True).to_pandas()
        docs = pd.Categorical(frame["doc"], categories=frame["doc"].unique())
        return frame.assign(doc=docs).astype(TOKEN_COLUMNS)


def _check(about: dict[str, Any]) -> str:
    """Return the hash of a shard's description: the pages of a Parquet file have checksums, its footer has none."""
    told = {key: value for key, value in about.items() if key != "check"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _write_parquet(table: pa.Table, path: Path, *, encodings: dict[str, str]) -> None:
    with committed(path, sealed=True) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=3,
            column_encoding=encodings or None,
            write_page_checksum=True,
            use_dictionary=[name for name in table.column_names if name not in encodings],
        )
