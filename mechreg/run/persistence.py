"""Persistence in a run: the lags and their sum, as they are and within documents and positions, and the half-life."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from mechreg.charts.terms import sort_terms
from mechreg.regression import LaggedFits, LagSums, fit_lagged, linear_combination, within_documents
from mechreg.regression.results import joined
from mechreg.robustness import autocorrelation
from mechreg.run.refit_stored import special_ids_of
from mechreg.schema import GROUP_KEYS, InputError, NumericalError
from mechreg.spec import Spec

WITHIN = ("doc", "position")
_COLUMNS = (
    "depth", "term", "controls", "estimate", "std_error", "df", "p_value", "p_adjusted", "conf_low", "conf_high", "n",
    "n_docs", "cov_type", "note",
)  # fmt: skip
Fits = LaggedFits | LagSums


def persistence_of(
    own: Fits | None,
    coefficients: pd.DataFrame,
    layers: Callable[[], Iterator[pd.DataFrame]],
    norms: pd.DataFrame,
    spec: Spec,
    record: dict[str, Any],
) -> pd.DataFrame:
    """Return a row for every layer, term (lags, their sum, ``half_life``) and controls of one model's run.

    Parameters
    ----------
    own, coefficients
        The run's own regression; None where it is made again of some layers at a time. Sums give documents' levels.
    layers : callable
        Gives the lagged frames, some layers at a time.
    norms : pandas.DataFrame
        All rows, or those of a sample of whole documents, which ``note`` then says.
    """
    lags = sort_terms(coefficients["term"]).lags
    if not lags:
        return pd.DataFrame(columns=[*GROUP_KEYS, *_COLUMNS])
    sampled = ""
    if norms["doc"].nunique() < coefficients["n_docs"].max():
        sampled = f"of a sample of {norms['doc'].nunique():,} documents"
    mine = WITHIN if {*spec.effects} == {*WITHIN} else spec.effects
    of_sums = [("doc",)] if isinstance(own, LagSums) else []
    tables = []
    for effects in dict.fromkeys([(), mine, *of_sums, WITHIN]):
        terms = [*lags, " + ".join(lags)] if len(lags) > 1 else lags
        note = sampled if effects == WITHIN and spec.keep == "moments" else ""
        fits = partial(_fits, own, effects, mine, layers, spec)
        tables.append(_or_missing(partial(_terms, fits, lags, spec), coefficients, terms, effects, note))
    if spec.formula.split("~")[0].strip() == "log_norm":
        slow = partial(_half_life, norms, spec, record)
        tables.append(_or_missing(slow, coefficients, ["half_life"], WITHIN, sampled))
    table = pd.concat(tables, ignore_index=True)
    keys = [key for key in (*GROUP_KEYS, "head") if key in table]
    return table.reindex(columns=[*keys, *_COLUMNS])


def _fits(
    own: Fits | None,
    effects: tuple[str, ...],
    mine: tuple[str, ...],
    layers: Callable[[], Iterator[pd.DataFrame]],
    spec: Spec,
) -> Iterator[Fits]:
    """Yield the fits with these effects: the run's own, from its sums, else of some layers at a time."""
    if own is not None and effects == mine:
        yield own
    elif isinstance(own, LagSums) and effects == ("doc",):
        yield within_documents(own)
    elif not effects and spec.keep == "moments":
        raise InputError("the sums that are kept have documents' levels taken off")
    else:
        for lagged in layers():
            yield fit_lagged(lagged, spec.formula, cov=spec.cov, effects=effects)


def _terms(make: Callable[[], Iterator[Fits]], lags: list[str], spec: Spec) -> pd.DataFrame:
    """Return the rows of the lags and of their sum."""
    tables, sums = [], []
    for fits in make():
        tables.append(fits.coefficients if isinstance(fits, LaggedFits) else fits.coefficients(cov=spec.cov))
        if len(lags) > 1:
            sums.append(linear_combination(fits, " + ".join(lags), cov=spec.cov))
    table = joined(tables)
    return pd.concat([table[table["term"].isin(lags)], *([joined(sums)] if sums else [])])


def _half_life(norms: pd.DataFrame, spec: Spec, record: dict[str, Any]) -> pd.DataFrame:
    """Return after how many tokens the autocorrelation has halved, in every layer."""
    norms = norms.assign(special=norms["token_id"].isin(special_ids_of(record)))
    longest = int(norms["position"].max()) + 1 - spec.skip
    found = autocorrelation(
        norms, max_lag=max(2, min(32, longest - 1)), skip=spec.skip, drop_sinks=spec.drop_sinks, draws=199
    )
    names = {"half_life": "estimate", "half_life_low": "conf_low", "half_life_high": "conf_high"}
    layers = found.layers.rename(columns=names)
    told = layers["conf_high"] < longest  # a missing half-life is not
    layers[[*names.values()]] = layers[[*names.values()]].where(told)
    untold = "no half-life where no slow part of the autocorrelation is told from white noise"
    about: dict[str, Any] = {
        "term": "half_life",
        "cov_type": "bootstrap of documents",
        "note": np.where(told, "", untold),
    }
    return layers.assign(**about)


def _or_missing(
    make: Callable[[], pd.DataFrame],
    coefficients: pd.DataFrame,
    terms: list[str],
    effects: tuple[str, ...],
    note: str,
) -> pd.DataFrame:
    """Return a table of these terms, or rows without numbers that say why there are none."""
    try:
        table = make()
    except (InputError, NumericalError) as error:
        keys = [key for key in (*GROUP_KEYS, "head", "depth") if key in coefficients]
        places = coefficients[keys].drop_duplicates()
        table = pd.concat([places.assign(term=term, estimate=np.nan) for term in terms])
        note = str(error)
    own = table.get("note", pd.Series("", table.index))
    return table.assign(controls=" + ".join(effects) or "none", note=own.where(own != "", note))
