"""The only place that writes results: Parquet shards, tables, provenance; a file is whole or not there."""

from mechreg.store.files import (
    committed,
    digest_of,
    in_reach,
    is_whole,
    read_json,
    seal,
    write_json,
    write_table,
    write_text,
)
from mechreg.store.folder import (
    SET_ASIDE,
    open_run_folder,
    provenance,
    read_record,
    record_model,
    require_same_model,
    set_aside_damaged,
    write_manifest,
)
from mechreg.store.reading import Run, open_run, stacked
from mechreg.store.shards import (
    SCHEMA_VERSION,
    model_folder,
    read_norm_shard,
    read_token_shard,
    shard_path,
    write_norm_shard,
    write_token_shard,
)

__all__ = [
    "SCHEMA_VERSION",
    "SET_ASIDE",
    "Run",
    "committed",
    "digest_of",
    "in_reach",
    "is_whole",
    "model_folder",
    "open_run",
    "open_run_folder",
    "provenance",
    "read_json",
    "read_norm_shard",
    "read_record",
    "read_token_shard",
    "record_model",
    "require_same_model",
    "seal",
    "set_aside_damaged",
    "shard_path",
    "stacked",
    "write_json",
    "write_manifest",
    "write_norm_shard",
    "write_table",
    "write_text",
    "write_token_shard",
]
