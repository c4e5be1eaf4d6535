"""A spec carried out: shards made, tables and figures written; what is there already is not made again."""

from mechreg.run.carry_out import carry_out, run_spec
from mechreg.run.refit import run_moments
from mechreg.run.shards import SHARD_TOKENS, Shard, ShardMaker, make_shard, missing_shards

__all__ = [
    "SHARD_TOKENS",
    "Shard",
    "ShardMaker",
    "carry_out",
    "make_shard",
    "missing_shards",
    "run_moments",
    "run_spec",
]
