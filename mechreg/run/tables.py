"""The tables of a run from its shards: of all rows at once, else of sums over shards, else some layers at a time."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mechreg import store
from mechreg.regression import LaggedFits, fit_lagged
from mechreg.regression.results import joined
from mechreg.run.figure_sample import sampled_documents, shards_of_sample
from mechreg.run.persistence import persistence_of
from mechreg.run.refit_stored import kept_sums, lagged_by_spec, lagged_layers
from mechreg.run.shards import is_large
from mechreg.schema import GROUP_KEYS
from mechreg.spec import Spec


class Tables(NamedTuple):
    """What a model's shards give."""

    coefficients: pd.DataFrame
    statistics: pd.DataFrame
    summaries: str
    norms: pd.DataFrame  # all, or a sample of whole documents
    drawn: str  # what the sample is, "" where it is all
    persistence: pd.DataFrame


def tables_of(run: Path, spec: Spec, record: dict[str, Any]) -> Tables:
    """Return the tables of one model of a run whose shards are all made."""
    opened, name = store.open_run(run), record["name"]
    if not is_large(spec, record["facts"], record["plan"]["tokens"]):
        norms = opened.norms(models=[name])
        frame = lagged_by_spec(norms, spec, record, partial(opened.tokens, models=[name]))
        fits = fit_lagged(frame, spec.formula, cov=spec.cov, effects=spec.effects)
        persistence = persistence_of(fits, fits.coefficients, lambda: iter([frame]), norms, spec, record)
        return Tables(fits.coefficients, fits.statistics, _summaries(fits), norms, "", persistence)
    norms, tokens = _sample(opened, record)
    drawn = _drawn(norms, record["plan"])

    def layers() -> Iterator[pd.DataFrame]:
        if spec.keep == "norms":
            options: dict[str, Any] = {"hooks": spec.hooks, "skip": spec.skip, "drop_sinks": spec.drop_sinks}
            return lagged_layers(opened, name, spec.formula, **options)
        return iter([lagged_by_spec(norms, spec, record, lambda: tokens)])

    if record["plan"]["streamed"]:
        moments = kept_sums(opened, name)
        coefficients, statistics = moments.coefficients(cov=spec.cov), moments.statistics()
        persistence = persistence_of(moments, coefficients, layers, norms, spec, record)
        return Tables(coefficients, statistics, _short_summaries(coefficients), norms, drawn, persistence)
    parts = []
    for frame in layers():
        fits = fit_lagged(frame, spec.formula, cov=spec.cov, effects=spec.effects)
        parts.append((fits.coefficients, fits.statistics, _summaries(fits)))
    tables, tests, texts = zip(*parts, strict=True)
    coefficients, statistics = joined(tables), pd.concat(tests, ignore_index=True)
    persistence = persistence_of(None, coefficients, layers, norms, spec, record)
    return Tables(coefficients, statistics, "\n\n".join(texts), norms, drawn, persistence)


def _sample(run: store.Run, record: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the norms and tokens of the sample; where only moments are kept, no other norms are stored."""
    shards, place = record["plan"]["shards"], (record["name"], record["config_hash"])
    norms, tokens = [], []
    for index in shards_of_sample(shards):
        path = partial(store.shard_path, run.path, model=place[0], config_hash=place[1], index=index)
        tokens.append(store.read_token_shard(path(kind="tokens", hook=None)))
        docs = sampled_documents(tokens[-1]["doc"], shards)
        frames = [store.read_norm_shard(path(kind="norms", hook=hook)) for hook in run.hooks]
        norms += [frame[frame["doc"].isin(docs)] for frame in frames]
    return store.stacked(norms), store.stacked(tokens)


def _drawn(norms: pd.DataFrame, plan: dict[str, Any]) -> str:
    tokens = norms.drop_duplicates(["doc", "window", "position"])
    return (
        f"A sample of {tokens['doc'].nunique():,} of {plan['documents']:,} documents ({len(tokens):,} of "
        f"{plan['tokens']:,} tokens), whole, from all parts of the corpus; the tables are of all."
    )


def _summaries(fits: LaggedFits) -> str:
    """Return statsmodels' text of every fit, each under a line that says which it is."""
    return "\n\n".join(_heading(place) + str(fits.summary(**place)) for place in _places(fits.coefficients))


def _short_summaries(coefficients: pd.DataFrame) -> str:
    """Return the coefficients as text: statsmodels' own would need all rows in memory."""
    shown = ["term", "estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high"]
    parts = ["Too many rows for statsmodels' own text: these are the tables, from sums of products."]
    for place in _places(coefficients):
        rows = coefficients[(coefficients[list(place)] == pd.Series(place)).all(axis=1)]
        first = rows.iloc[0]
        parts.append(
            f"{_heading(place)}n {first['n']}, documents {first['n_docs']}, R2 {first['r_squared']:.4f}, "
            f"{first['cov_type']}\n" + rows[shown].to_string(index=False, float_format="{:.4g}".format)
        )
    return "\n\n".join(parts)


def _heading(place: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value}" for key, value in place.items()) + "\n"


def _places(coefficients: pd.DataFrame) -> list[dict[str, Any]]:
    keys = [key for key in (*GROUP_KEYS, "head") if key in coefficients.columns]
    rows = coefficients[keys].drop_duplicates().to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]
