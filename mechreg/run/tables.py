"""The tables of a run from its shards: of all rows at once, else of sums over shards, else some layers at a time."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mechreg import store
from mechreg.regression import LaggedFits, fit_lagged
from mechreg.regression.results import joined
from mechreg.run.persistence import persistence_of
from mechreg.run.refit_stored import kept_sums, lagged_layers, lagged_norms
from mechreg.run.sample import is_large, read_sample, sample_in_words
from mechreg.schema import group_columns
from mechreg.spec import Spec


class Tables(NamedTuple):
    """What a model's shards give."""

    coefficients: pd.DataFrame
    statistics: pd.DataFrame
    summaries: str
    persistence: pd.DataFrame
    norms: pd.DataFrame  # all, or a sample of whole documents
    tokens: Callable[[], pd.DataFrame]  # reads their tokens
    sample: str  # what the sample is, "" where it is all


def tables_of(run: Path, spec: Spec, record: dict[str, Any]) -> Tables:
    """Return the tables of one model of a run whose shards are all made."""
    opened, name = store.open_run(run), record["name"]
    if not is_large(spec, record, record["plan"]["tokens"]):
        norms = opened.norms(models=[name])
        read = partial(opened.tokens, models=[name])
        frame = lagged_norms(norms, read, spec, record)
        fits = fit_lagged(frame, spec.formula, cov=spec.cov, effects=spec.effects)
        persistence = persistence_of(fits, fits.coefficients, lambda: iter([frame]), norms, spec, record)
        return Tables(fits.coefficients, fits.statistics, _summaries(fits), persistence, norms, read, "")
    norms, tokens = read_sample(opened, record)
    sample = (norms, lambda: tokens, sample_in_words(norms, record))

    def layers() -> Iterator[pd.DataFrame]:
        if spec.keep == "norms":
            return lagged_layers(opened, name, spec, hooks=spec.hooks)
        return iter([lagged_norms(norms, lambda: tokens, spec, record)])

    if record["plan"]["streamed"]:
        sums = kept_sums(opened, name)
        coefficients, statistics = sums.coefficients(cov=spec.cov), sums.statistics()
        persistence = persistence_of(sums, coefficients, layers, norms, spec, record)
        return Tables(coefficients, statistics, _short_summaries(coefficients), persistence, *sample)
    parts = []
    for frame in layers():
        fits = fit_lagged(frame, spec.formula, cov=spec.cov, effects=spec.effects)
        parts.append((fits.coefficients, fits.statistics, _summaries(fits)))
    tables, tests, texts = zip(*parts, strict=True)
    coefficients, statistics = joined(tables), pd.concat(tests, ignore_index=True)
    persistence = persistence_of(None, coefficients, layers, norms, spec, record)
    return Tables(coefficients, statistics, "\n\n".join(texts), persistence, *sample)


def _summaries(fits: LaggedFits) -> str:
    """Return statsmodels' text of every fit, each under a line that says which it is."""
    places = _places(fits.coefficients)
    return "\n\n".join(heading + str(fits.summary(**place)) for heading, place in places)


def _short_summaries(coefficients: pd.DataFrame) -> str:
    """Return the coefficients as text: statsmodels' own would need all rows in memory."""
    shown = ["term", "estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high"]
    parts = ["Too many rows for statsmodels' own text: these are the tables, from sums of products."]
    for heading, place in _places(coefficients):
        rows = coefficients[(coefficients[list(place)] == pd.Series(place)).all(axis=1)]
        first = rows.iloc[0]
        parts.append(
            f"{heading}n {first['n']}, documents {first['n_docs']}, R2 {first['r_squared']:.4f}, "
            f"{first['cov_type']}\n" + rows[shown].to_string(index=False, float_format="{:.4g}".format)
        )
    return "\n\n".join(parts)


def _places(coefficients: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the keys of every fit, in words on a line and as they are."""
    for row in coefficients[group_columns(coefficients)].drop_duplicates().to_dict("records"):
        place = {str(key): value for key, value in row.items()}
        yield "  ".join(f"{key} {value}" for key, value in place.items()) + "\n", place
