"""Persistence in a run: the lags and their sum, as they are and within documents and positions, and the half-life."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from mechreg.charts.terms import sort_terms
from mechreg.regression import LaggedFits, LagSums, fit_lagged, linear_combination, within_documents
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
    own: Fits,
    coefficients: pd.DataFrame,
    lagged: pd.DataFrame,
    norms: pd.DataFrame,
    spec: Spec,
    record: dict[str, Any],
) -> pd.DataFrame:
    """Return a row for every layer, term (lags, their sum, ``half_life``) and controls of one model's run.

    Parameters
    ----------
    own, coefficients
        The run's own regression. Sums give documents' levels; those of positions need rows.
    lagged, norms : pandas.DataFrame
        All rows, or those of a sample of whole documents, which ``note`` then says.
    """
    lags = sort_terms(coefficients["term"]).lags
    if not lags:
        return pd.DataFrame(columns=[*GROUP_KEYS, *_COLUMNS])
    sampled = ""
    if isinstance(own, LagSums) and lagged["doc"].nunique() < coefficients["n_docs"].max():
        sampled = f"of a sample of {lagged['doc'].nunique():,} documents"
    tables = []
    for effects, fit in _fits(own, lagged, spec):
        terms = [*lags, " + ".join(lags)] if len(lags) > 1 else lags
        note = sampled if effects == WITHIN else ""
        tables.append(_or_missing(partial(_terms, fit, lags, spec), coefficients, terms, effects, note))
    if spec.formula.split("~")[0].strip() == "log_norm":
        slow = partial(_half_life, norms, spec, record)
        tables.append(_or_missing(slow, coefficients, ["half_life"], WITHIN, sampled))
    table = pd.concat(tables, ignore_index=True)
    keys = [key for key in (*GROUP_KEYS, "head") if key in table]
    return table.reindex(columns=[*keys, *_COLUMNS])


def _fits(
    own: Fits, lagged: pd.DataFrame, spec: Spec
) -> Iterator[tuple[tuple[str, ...], Callable[[], Fits]]]:
    """Yield whose levels are taken off (none, the run's own, documents' and positions'), and what makes that fit."""
    of_sums = [("doc",)] if isinstance(own, LagSums) else []
    mine = WITHIN if {*spec.effects} == {*WITHIN} else spec.effects
    for effects in dict.fromkeys([(), mine, *of_sums, WITHIN]):
        yield effects, partial(_fitted, own, effects, mine, lagged, spec)


def _fitted(
    own: Fits, effects: tuple[str, ...], mine: tuple[str, ...], lagged: pd.DataFrame, spec: Spec
) -> Fits:
    if effects == mine:
        return own
    if not isinstance(own, LagSums) or effects == WITHIN:
        return fit_lagged(lagged, spec.formula, cov=spec.cov, effects=effects)
    if not effects:
        raise InputError("the sums that are kept have documents' levels taken off")
    return within_documents(own)


def _terms(make: Callable[[], Fits], lags: list[str], spec: Spec) -> pd.DataFrame:
    """Return the rows of the lags and of their sum."""
    fits = make()
    table = fits.coefficients if isinstance(fits, LaggedFits) else fits.coefficients(cov=spec.cov)
    parts = [table[table["term"].isin(lags)]]
    if len(lags) > 1:
        parts.append(linear_combination(fits, " + ".join(lags), cov=spec.cov))
    return pd.concat(parts)


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
