"""Regressions from stored norms, shard by shard: what the tables of a run larger than memory come from."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pandas as pd

from mechreg import store
from mechreg.lags import add_lags_of, lags_among
from mechreg.regression import LagSums, formula_columns
from mechreg.regression.design import NeedsAllRows
from mechreg.regression.results import CLUSTERED, usual_lags
from mechreg.run.sample import series_per_layer
from mechreg.schema import TOKEN_KEYS, InputError, RunMeasure, one_or_many
from mechreg.sinks import sink_rules
from mechreg.spec import Spec

# Rows of norms that are read together, where one layer has fewer.
MOST_ROWS = 10_000_000


class Lagging(NamedTuple):
    """What the lagged frames of a regression are made by; a `Spec` has these too."""

    formula: str
    skip: int
    drop_sinks: str | Sequence[str]


def run_moments(
    run: str | Path,
    formula: str | None = None,
    *,
    skip: int | None = None,
    drop_sinks: str | Sequence[str] | None = None,
    models: str | Sequence[str] | None = None,
    hooks: str | Sequence[str] | None = None,
    effects: str | Sequence[str] | None = None,
    cluster: str | None = "doc",
    max_lag: int | None = 1,
) -> LagSums:
    """Return the sums of a regression over what a run stored, read a shard at a time; no model is loaded.

    Parameters
    ----------
    run : str or Path
        A run folder. With ``keep = "moments"`` the answer is the sums that it kept, of its own regression.
    formula : str, optional
        Of lags, tokens' columns and ``source``. With functions of all rows (splines, centring) a layer's rows are
        needed in memory at once, as with ``effects`` beside "doc".
    skip, drop_sinks : optional
        As for `add_lags`; these, formula and effects are by default the run's own.
    models, hooks : sequence of str, optional
        Only these.
    effects, cluster, max_lag : optional
        As for `LagSums`.

    Raises
    ------
    InputError
        Shards that are missing, or another regression of a run that kept no norms.

    Examples
    --------
    >>> import tempfile
    >>> from mechreg import Spec, run_spec
    >>> folder = run_spec(Spec(models=("mini-s",), corpus="demo"), out=tempfile.mkdtemp(), progress=False)
    >>> run_moments(folder, "log_norm ~ lag1").coefficients()["term"].unique().tolist()
    ['Intercept', 'lag1']
    """
    opened = store.open_run(run)
    spec = opened.spec
    own = {"formula": formula, "skip": skip, "drop_sinks": drop_sinks, "effects": effects}
    asked: dict[str, Any] = {key: spec[key] if value is None else value for key, value in own.items()}
    chosen_models = store.chosen(models, opened.models, name="models")
    if spec["keep"] == "moments":
        if hooks is not None or any(
            one_or_many(value) != one_or_many(spec[key]) for key, value in asked.items()
        ):
            raise InputError(
                f"{str(run)!r} keeps the sums of its own regression, and no norms but those of a sample; run it with "
                "keep = 'norms' for another."
            )
        return merged(kept_sums(opened, model) for model in chosen_models)
    options: dict[str, Any] = {"effects": asked.pop("effects"), "cluster": cluster, "max_lag": max_lag}
    lagging = Lagging(**asked)
    needs_all_rows = any(rule.kind == "size" for rule in sink_rules(lagging.drop_sinks))
    chosen_hooks = store.chosen(hooks, opened.hooks, name="hooks")

    def of_shards(model: str, hook: str) -> Iterator[LagSums]:
        record, shards = opened.records[model], opened.shards("norms", model, hook)
        if len(shards) != record.get("plan", {}).get("shards"):
            raise InputError(f"Shards of {model!r} are missing in {str(run)!r}; `mechreg run` makes them.")
        for shard, of_tokens in zip(shards, opened.shards("tokens", model), strict=True):
            sums = LagSums(lagging.formula, **options)
            tokens = partial(store.read_token_shard, of_tokens)
            sums.update(lagged_norms(store.read_norm_shard(shard), tokens, lagging, record))
            yield sums

    def of_hook(model: str, hook: str) -> LagSums:
        try:
            if not needs_all_rows:
                return merged(of_shards(model, hook))
        except NeedsAllRows:
            pass
        layers = lagged_layers(opened, model, lagging, hooks=[hook])
        return merged(LagSums.from_frame(lagged, lagging.formula, **options) for lagged in layers)

    return merged(of_hook(model, hook) for model in chosen_models for hook in chosen_hooks)


def lagged_layers(
    run: store.Run, model: str, by: Lagging | Spec, *, hooks: Sequence[str]
) -> Iterator[pd.DataFrame]:
    """Yield the lagged frames of what a run stored of a model, a few layers at a time: all rows of each."""
    record, tokens = run.records[model], partial(run.tokens, models=[model])
    lowest = 1 if lags_among(formula_columns(by.formula))[1] else 0
    blocks = record["facts"]["blocks"]
    for hook in hooks:
        rows = record["plan"]["tokens"] * series_per_layer(record, hook)
        together = max(1, MOST_ROWS // rows)
        for first in range(lowest, blocks, together):
            layers = range(first - lowest, min(first + together, blocks))
            norms = run.norms(models=[model], hooks=[hook], layers=layers)
            lagged = lagged_norms(norms, tokens, by, record)
            yield lagged[lagged["layer"] >= first]


def kept_sums(run: store.Run, model: str) -> LagSums:
    """Return the sums that a run kept of a model, over all its shards."""

    def read(path: Path) -> LagSums:
        with store.readable(path):
            try:
                return LagSums.load(path)
            except InputError as error:
                raise store.damaged(path, error) from error

    return merged(map(read, run.shards("moments", model)))


def sums_of_shard(norms: pd.DataFrame, tokens: pd.DataFrame, spec: Spec, record: dict[str, Any]) -> LagSums:
    """Return the sums of a spec's regression over the norms of one shard of a model with that record."""
    longest = record["plan"]["longest"]  # of the whole corpus: it sets the number of Newey-West lags
    sums = LagSums(
        spec.formula,
        cluster="doc" if spec.cov in CLUSTERED else None,
        max_lag=max(1, usual_lags(longest)) if spec.cov == "hac" else 1,
        effects=spec.effects,
    )
    sums.update(lagged_norms(norms, lambda: tokens, spec, record))
    return sums


def merged(parts: Iterable[LagSums]) -> LagSums:
    """Return the sums over all parts, which are merged in pairs, pairs of pairs, ...: n log n, the same every time."""
    held: list[tuple[int, LagSums]] = []
    for part in parts:
        level = 0
        while held and held[-1][0] == level:
            part = held.pop()[1].merge(part)
            level += 1
        held.append((level, part))
    if not held:
        raise InputError("There is no shard to sum.")
    _, whole = held.pop()
    while held:
        whole = held.pop()[1].merge(whole)
    return whole


def with_special(norms: pd.DataFrame, record: dict[str, Any]) -> pd.DataFrame:
    """Return a model's norms with the column ``special``, which says what its special tokens are."""
    return norms.assign(special=norms["token_id"].isin(record["facts"].get("special_ids", [])))


def lagged_norms(
    norms: pd.DataFrame, tokens: Callable[[], pd.DataFrame], by: Lagging | Spec, record: dict[str, Any]
) -> pd.DataFrame:
    """Return a model's lagged frame, with the tokens' columns that the formula asks for, read only if it asks."""
    columns = formula_columns(by.formula)
    if any(rule.kind == "special" for rule in sink_rules(by.drop_sinks)):
        norms = with_special(norms, record)
    column = next((name for name in columns[:1] if name in get_args(RunMeasure)), "norm")
    lagged = add_lags_of(norms, columns, column=column, skip=by.skip, drop_sinks=by.drop_sinks)
    wanted = [column for column in columns if column not in lagged.columns]
    if not wanted:
        return lagged
    frame = tokens()
    missing = [column for column in wanted if column not in frame.columns]
    if missing:
        raise InputError(
            f"The formula {by.formula!r} needs the column {missing[0]!r}; the run has "
            f"{sorted({*lagged.columns, *frame.columns})}."
        )
    keys = [*TOKEN_KEYS]
    right = frame[[*keys, *wanted]].astype({"doc": "str"})
    return lagged.astype({"doc": "str"}).merge(right, on=keys, how="left", validate="many_to_one")
