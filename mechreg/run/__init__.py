"""A spec carried out: shards made, tables and figures written; what is there already is not made again."""

from mechreg.models import DeviceMap as DeviceMap
from mechreg.norms import BATCH_TOKENS as BATCH_TOKENS
from mechreg.run.carry_out import carry_out as carry_out
from mechreg.run.carry_out import run_spec as run_spec
from mechreg.run.preflight import Survey as Survey
from mechreg.run.refit_stored import run_moments as run_moments
from mechreg.run.shards import SHARD_TOKENS as SHARD_TOKENS
from mechreg.run.shards import Shard as Shard
from mechreg.run.shards import ShardMaker as ShardMaker
from mechreg.run.shards import make_shard as make_shard
from mechreg.run.shards import missing_shards as missing_shards
