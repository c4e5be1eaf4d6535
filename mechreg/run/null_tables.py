"""A run against its nulls: which of them a spec can have, and a stored table for each model and null."""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from mechreg import store
from mechreg.corpus import COVARIATES
from mechreg.nulls import compare_to_nulls, null_norms
from mechreg.regression import LagSums, formula_columns
from mechreg.run.refit_stored import lagged_norms, with_special
from mechreg.run.tables import Tables
from mechreg.run.tokens import TAG_COLUMNS
from mechreg.schema import InputError, MechregError, Null, RunMeasure
from mechreg.sinks import sink_rules
from mechreg.spec import Spec

READ_AGAIN = ("token_order", "random_weights")  # nulls for which a model reads the texts again
_OF_PASSES = {*get_args(RunMeasure), "surprisal"} - {"norm"}  # what the passes of a run give beside norms
_OF_TOKENS = {"token", "token_id", *TAG_COLUMNS, *COVARIATES} - {
    "distance"
}  # what a token takes with it to another place
log = logging.getLogger("mechreg")


def require_nulls(spec: Spec, documents: int, *, is_split: bool) -> None:
    """Refuse, before any work, nulls that cannot be made for a spec's regression, or of models on several devices."""
    if not spec.nulls:
        return
    outcome, *others = formula_columns(spec.formula)
    if documents < 2:
        raise InputError(
            f"nulls are compared over documents drawn again, of two or more; the corpus has {documents}. Leave nulls "
            "out, or split the text."
        )
    if outcome in _OF_PASSES:
        raise InputError(
            f"nulls are of norms, and the outcome of {spec.formula!r} is {outcome!r}; leave nulls out, or use log_norm."
        )
    for null in spec.nulls:
        lacking = _OF_PASSES if null in READ_AGAIN else set[str]()
        lacking = lacking | _OF_TOKENS if null == "token_order" else lacking
        if column := next((name for name in (*others, *spec.effects) if name in lacking), None):
            raise InputError(
                f"The null {null!r} reads other texts or other weights, of which the run has no {column!r}; leave that "
                "null, or that term or effect, out."
            )
        if null != "norm_order" and any(rule.kind == "size" for rule in sink_rules(spec.drop_sinks)):
            raise InputError(
                f"The null {null!r} has norms of other sizes, so that drop_sinks = 'size' would leave out other "
                "tokens; use 'special', 'token_id=0' or 'position=1', or nulls = ['norm_order'] alone."
            )
        if null == "random_weights" and is_split:
            raise InputError(
                "The null 'random_weights' is made on one device; leave it, or --device-map, out."
            )


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

    def compared(null: Null) -> pd.DataFrame:
        made = null_norms(
            with_special(tables.norms, record),
            load() if null in READ_AGAIN else (),
            nulls=null,
            skip=spec.skip,
            drop_sinks=spec.drop_sinks,
            batch_tokens=record["config"]["batch_tokens"],
            progress=progress,
        )
        table = compare_to_nulls(own(), {null: map(sums, made[null])})
        return table.assign(note=f"These numbers come from {tables.sample}." if tables.sample else "")

    parts = []
    for null in spec.nulls:
        path = store.shard_path(run, "nulls", record, 0, null)
        if not store.is_there(path):
            try:
                store.write_table_shard(compared(null), path)
            except MechregError as error:
                log.warning("The null %s of %s is missing: %s", null, record["name"], error)
                continue
        parts.append(store.read_table_shard(path))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
