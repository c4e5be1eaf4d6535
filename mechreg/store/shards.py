"""Shards: whole documents as Parquet, wide on the disk, tidy frames in memory."""

import hashlib
import itertools
import json
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mechreg.frames import TOKEN_PLACE, Norms, Series, flat, frame_of_series, series_of
from mechreg.outside import any_frames
from mechreg.schema import TOKEN_COLUMNS, InputError, one_or_many, require, require_whole_numbers
from mechreg.store.files import committed, damaged, readable

# Raise it when a reader of older runs would misread newer ones.
SCHEMA_VERSION = 4
Kind = Literal["tokens", "norms", "moments", "top", "nulls"]


def model_folder(name: str) -> str:
    """Return a file name for a model's name; distinct names stay distinct."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def shard_path(run: Path, kind: Kind, record: Mapping[str, Any], index: int, part: str = "") -> Path:
    """Return the path of a shard of a model with that record, written or not.

    The ``part``, a folder, is the hook of norms or the name of a null.
    """
    ending = "npz" if kind == "moments" else "parquet"
    name = f"{kind}-{record['config_hash']}-{index:05d}.{ending}"
    return run / kind / model_folder(record["name"]) / part / name


@any_frames
def write_norm_shard(
    values: Mapping[str, Norms],
    tokens: pd.DataFrame,
    path: Path,
    *,
    model: str,
    hook: str,
    covariates: Sequence[str] = (),
) -> Path:
    """Write the norms of one model and hook, wide: a row a token, a float32 column a layer (and head) and measure.

    A ``source`` and the ``covariates`` (as float64) of the token frame are kept beside the tokens.
    """
    require(tokens, (*TOKEN_PLACE, *covariates), who="write_norm_shard")
    series, arrays = series_of(values["norm"]), dict[str, pa.Array]()
    for measure, array in values.items():
        if array.shape[-1] != len(tokens):
            raise InputError(f"A norm shard of {len(tokens)} tokens needs as many values; got {array.shape}.")
        rows = flat(array).astype(np.float32)
        arrays |= {_column(one, measure): pa.array(row) for one, row in zip(series, rows, strict=True)}
    columns: dict[str, Any] = {"doc": pa.array(tokens["doc"].astype(str)).dictionary_encode()}
    columns |= {key: pa.array(tokens[key].to_numpy(np.int32)) for key in TOKEN_PLACE[1:]}
    columns |= {name: pa.array(tokens[name].to_numpy(np.float64)) for name in covariates}
    if "source" in tokens.columns:
        columns["source"] = pa.array(tokens["source"].astype(str)).dictionary_encode()
    columns |= arrays
    encodings = dict.fromkeys(TOKEN_PLACE[1:], "DELTA_BINARY_PACKED")
    encodings |= dict.fromkeys([*arrays, *covariates], "BYTE_STREAM_SPLIT")
    about: dict[str, Any] = {"kind": "norms", "model": model, "hook": hook, "covariates": list(covariates)}
    about |= {"series": [(one.layer, one.head) for one in series], "depths": [one.depth for one in series]}
    return _write(pa.table(columns), path, about | {"measures": list(values)}, encodings=encodings)


def read_norm_shard(
    path: Path, *, layers: Collection[int] | None = None, sources: Collection[str] | None = None
) -> pd.DataFrame:
    """Return the tidy norm frame of a shard: of these layers, all else is not read, and documents of these sources."""
    layers = None if layers is None else require_whole_numbers(layers, name="layers")
    with readable(path):
        about = _described(path, "norms")
        pairs = zip(about["series"], about["depths"], strict=True)
        every = [Series(layer, head, depth) for (layer, head), depth in pairs]
        series = [one for one in every if layers is None or one.layer in layers]
        if not series:
            have = sorted({one.layer for one in every})
            raise InputError(f"{path.name} has none of layers={sorted(layers or ())}; it has {have}.")
        measures = {name: [_column(one, name) for one in series] for name in about["measures"]}
        place = [*TOKEN_PLACE, *about["covariates"]]
        columns = [*place, *itertools.chain(*measures.values())]
        if sources is not None:
            if "source" not in dict(about["columns"]):
                raise InputError(f"{path.name} was written without sources; leave out sources=.")
            columns.append("source")
        table = _table(path, about, columns)
        if sources is not None:
            wanted = pa.array(one_or_many(sources), pa.string())
            table = table.filter(pc.is_in(table["source"].cast(pa.string()), wanted))
        values = {name: np.stack([table[one].to_numpy() for one in held]) for name, held in measures.items()}
        keys = {key: about[key] for key in ("model", "hook", "covariates")}
        return frame_of_series(table.select(place).to_pandas(), values, series, **keys)


@any_frames
def write_token_shard(tokens: pd.DataFrame, path: Path) -> Path:
    """Write a token frame with whatever annotations it has."""
    require(tokens, TOKEN_COLUMNS, who="write_token_shard")
    try:
        table = pa.Table.from_pandas(tokens.astype({"doc": "str", "token": "str"}), preserve_index=False)
    except pa.ArrowException as error:
        raise InputError(f"The tokens' annotations cannot be stored: {error.args[0]}.") from error
    return _write(table, path, {"kind": "tokens"}, encodings={})


def read_token_shard(path: Path) -> pd.DataFrame:
    """Return the token frame of a shard, with its annotations."""
    with readable(path):
        frame = _table(path, _described(path, "tokens")).to_pandas()
        docs = pd.Categorical(frame["doc"], categories=frame["doc"].unique())
        return frame.assign(doc=docs).astype(TOKEN_COLUMNS)


def write_table_shard(rows: pd.DataFrame, path: Path) -> Path:
    """Write a table of a shard: its tokens with the largest values, or a comparison with a null."""
    return _write(pa.Table.from_pandas(rows, preserve_index=False), path, {"kind": _kind(path)}, encodings={})


def read_table_shard(path: Path) -> pd.DataFrame:
    """Return what `write_table_shard` wrote."""
    with readable(path):
        return _table(path, _described(path, _kind(path))).to_pandas()


def require_whole(path: Path) -> None:
    """Refuse a shard that its own checksums find damaged: those of Parquet's pages, or of the zip file of sums."""
    with readable(path):
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                if name := archive.testzip():
                    raise damaged(path, f"the checksum of {name} is wrong")
        else:
            _table(path, _described(path, _kind(path)))


def _kind(path: Path) -> str:
    return path.name.partition("-")[0]


def _column(series: Series, measure: str) -> str:
    name = f"layer_{series.layer}" + ("" if series.head is None else f"_head_{series.head}")
    return name if measure == "norm" else f"{measure}_{name}"


def _write(table: pa.Table, path: Path, about: dict[str, Any], *, encodings: dict[str, str]) -> Path:
    columns = _columns_of(table.schema)
    about = {"schema_version": SCHEMA_VERSION, **about, "columns": columns, "rows": len(table)}
    about["check"] = _check(about)
    with committed(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata({"mechreg": json.dumps(about)}),
            temporary,
            compression="zstd",
            compression_level=3,
            column_encoding=encodings or None,
            write_page_checksum=True,
            use_dictionary=[name for name in table.column_names if name not in encodings],
        )
    return path


def _described(path: Path, kind: str) -> dict[str, Any]:
    """Return what the footer of a shard says of it; a ValueError where that is not what was written."""
    with open(path, "rb") as file:
        if file.read(4) != b"PAR1":  # which no reader of Parquet looks at
            raise ValueError("it does not begin as a Parquet file does")
    schema = pq.read_schema(path)
    about = json.loads((schema.metadata or {}).get(b"mechreg", b"{}"))
    is_kind = isinstance(about, dict) and about.get("kind") == kind
    if not is_kind or about.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"it is not a {kind.removesuffix('s')} shard of schema version {SCHEMA_VERSION}: another version of "
            "mechreg or something else wrote it"
        )
    if about.get("check") != _check(about) or about["columns"] != _columns_of(schema):
        raise ValueError("its description is not what was written")
    return about


def _table(path: Path, about: dict[str, Any], columns: Sequence[str] | None = None) -> pa.Table:
    """Return columns of a shard, all by default; every page is held to its checksum, and they to their number."""
    table = pq.read_table(path, columns=columns, page_checksum_verification=True)
    if len(table) != about["rows"]:
        raise ValueError(f"it has {len(table)} rows in place of {about['rows']}")
    return table


def _columns_of(schema: pa.Schema) -> list[list[str]]:
    """Return names and types; how long a text may be is Arrow's own matter, and Parquet does not keep it."""
    return [[field.name, str(field.type).replace("large_string", "string")] for field in schema]


def _check(about: dict[str, Any]) -> str:
    """Return the hash of a shard's description: the pages of a Parquet file have checksums, its footer has none."""
    described = {key: value for key, value in about.items() if key != "check"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
