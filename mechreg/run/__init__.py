"""A spec carried out: shards made, tables and figures written; what is there already is not made again."""

from mechreg.models import DeviceMap
from mechreg.norms import BATCH_TOKENS
from mechreg.run.carry_out import carry_out, run_spec
from mechreg.run.preflight import Survey
from mechreg.run.refit_stored import run_moments
from mechreg.run.shards import SHARD_TOKENS, Shard, ShardMaker, make_shard, missing_shards

__all__ = [
    "BATCH_TOKENS",
    "SHARD_TOKENS",
    "DeviceMap",
    "Shard",
    "ShardMaker",
    "Survey",
    "carry_out",
    "make_shard",
    "missing_shards",
    "run_moments",
    "run_spec",
]
