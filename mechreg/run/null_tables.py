"""A run against its nulls: a stored table for each model and null."""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from mechreg import store
from mechreg.nulls import compare_to_nulls, null_norms
from mechreg.nulls.null_norms import READ_AGAIN
from mechreg.regression import LagSums
from mechreg.run.refit_stored import lagged_norms, with_special
from mechreg.run.tables import Tables
from mechreg.schema import MechregError, Null
from mechreg.spec import Spec

log = logging.getLogger("mechreg")


def nulls_of(
    run: Path, spec: Spec, record: dict[str, Any], tables: Tables, load: Callable[[], Any], *, progress: bool
) -> pd.DataFrame:
    """Return what `compare_to_nulls` gives of one model, with a ``note`` where it is of a sample.

    Each null is a file of its own, made once; one that cannot be made is named in a warning, and the run completes.
    ``load`` gives the model, where one is needed.
    """

    @cache
    def own() -> LagSums:
        return sums(tables.norms)

    def sums(norms: pd.DataFrame) -> LagSums:
        lagged = lagged_norms(norms, tables.tokens, spec, record)
        return LagSums.from_frame(lagged, spec.formula, effects=spec.effects, max_lag=None)

    def compared(null: Null, model: Any) -> pd.DataFrame:
        made = null_norms(
            with_special(tables.norms, record),
            model,
            nulls=null,
            skip=spec.skip,
            drop_sinks=spec.drop_sinks,
            batch_tokens=record["config"]["batch_tokens"],
            progress=progress,
        )
        table = compare_to_nulls(own(), {null: map(sums, made[null])})
        note = f"The numbers of {record['name']} come from {tables.sample}." if tables.sample else ""
        return table.assign(note=note)

    parts = []
    for null in spec.nulls:
        path = store.shard_path(run, "nulls", record, 0, null)
        if not store.is_there(path):
            model = load() if null in READ_AGAIN else ()
            try:
                table = compared(null, model)
            except MechregError as error:
                log.warning("The null %s of %s is missing: %s", null, record["name"], error)
                continue
            store.write_table_shard(table, path)
        parts.append(store.read_table_shard(path))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
