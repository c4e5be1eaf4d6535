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
from mechreg.run.refit_stored import with_special
from mechreg.schema import GROUP_KEYS, Cov, InputError, NumericalError, group_columns
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

    ``own`` is the run's own regression, None where it is made again; ``layers`` gives the lagged frames, some layers
    at a time; ``norms`` are all or those of a sample of whole documents, as the column ``note`` then says.
    """
    lags = sort_terms(coefficients["term"]).lags
    if not lags:
        return pd.DataFrame(columns=[*GROUP_KEYS, *_COLUMNS])
    docs = norms["doc"].nunique()
    sampled = (
        f"These numbers come from a sample of {docs:,} documents."
        if docs < coefficients["n_docs"].max()
        else ""
    )
    mine = WITHIN if {*spec.effects} == {*WITHIN} else spec.effects

    def fits(effects: tuple[str, ...]) -> Iterator[Fits]:
        """Yield the fits with these effects: the run's own, from its sums, else of some layers at a time."""
        if own is not None and effects == mine:
            yield own
        elif isinstance(own, LagSums) and effects == ("doc",):
            yield within_documents(own)
        elif not effects and spec.keep == "moments":
            raise InputError("The sums that are kept have documents' levels taken off.")
        else:
            for lagged in layers():
                yield fit_lagged(lagged, spec.formula, cov=spec.cov, effects=effects)

    tables = []
    terms = [*lags, " + ".join(lags)] if len(lags) > 1 else lags
    for effects in dict.fromkeys([(), mine, *([("doc",)] if isinstance(own, LagSums) else []), WITHIN]):
        note = sampled if effects == WITHIN and spec.keep == "moments" else ""
        made = partial(_of_terms, fits(effects), terms, spec.cov)
        tables.append(_or_missing(made, coefficients, terms, effects, note))
    if spec.formula.split("~")[0].strip() == "log_norm":
        made = partial(_half_life, norms, spec, record)
        tables.append(_or_missing(made, coefficients, ["half_life"], WITHIN, sampled))
    table = pd.concat(tables, ignore_index=True)
    return table.reindex(columns=[*group_columns(table), *_COLUMNS])


def _of_terms(fitted: Iterator[Fits], terms: list[str], cov: Cov) -> pd.DataFrame:
    tables, sums = [], []
    for fits in fitted:
        tables.append(fits.coefficients if isinstance(fits, LaggedFits) else fits.coefficients(cov=cov))
        if len(terms) > 1:
            sums.append(linear_combination(fits, terms[-1], cov=cov))
    table = joined(tables)
    return pd.concat([table[table["term"].isin(terms)], *([joined(sums)] if sums else [])])


def _half_life(norms: pd.DataFrame, spec: Spec, record: dict[str, Any]) -> pd.DataFrame:
    """Return after how many tokens the autocorrelation has halved, in every layer."""
    longest = int(norms["position"].max()) + 1 - spec.skip
    found = autocorrelation(
        with_special(norms, record),
        max_lag=max(2, min(32, longest - 1)),
        skip=spec.skip,
        drop_sinks=spec.drop_sinks,
        draws=199,
    )
    names = {"half_life": "estimate", "half_life_low": "conf_low", "half_life_high": "conf_high"}
    layers = found.layers.rename(columns=names)
    told = layers["conf_high"] < longest  # a missing half-life is not
    layers[[*names.values()]] = layers[[*names.values()]].where(told)
    note = np.where(
        told, "", "A half-life needs a slow part of the autocorrelation that exceeds white noise."
    )
    return layers.assign(term="half_life", cov_type="bootstrap of documents", note=note)


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
        places = coefficients[[*group_columns(coefficients), "depth"]].drop_duplicates()
        table = pd.concat([places.assign(term=term, estimate=np.nan) for term in terms])
        note = str(error)
    own = table.get("note", pd.Series("", table.index))
    return table.assign(controls=" + ".join(effects) or "none", note=own.where(own != "", note))
