"""Coefficients by layer: a panel a model and a colour a lag, or a panel a group and a colour a model."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import (
    BETA,
    CROSS,
    CROWDED,
    DISC,
    Tooltip,
    bars_in_words,
    estimate_panel,
    hues,
    intervals_in_words,
    layers_of_depth,
    p_labels,
    placed,
)
from mechreg.charts.layout import Width, sheet
from mechreg.charts.rows import (
    by_group,
    by_model,
    drawable,
    frame_of,
    in_words,
    largest,
    named,
    one_name,
    rows_of_hook,
    sample_size,
)
from mechreg.charts.scales import value_scale
from mechreg.charts.terms import sort_terms
from mechreg.charts.theme import OKABE_ITO
from mechreg.outside import any_frames
from mechreg.schema import InputError, require_names
from mechreg.words import count

_NUMBERS = ("estimate", "conf_low", "conf_high")
_LAG = re.compile(r"lag(\d+)")
_NOT_ADJUSTED = "raw p-values, not corrected for their number"
_ADJUSTED = {"bh": "Benjamini–Hochberg", "bonferroni": "Bonferroni", "holm": "Holm", "max-t": "max-T"}


@any_frames
def plot_betas(
    coefficients: Any,
    *,
    by: str | None = None,
    hook: str | None = None,
    terms: str | Sequence[str] | None = None,
    alpha: float = 0.05,
    adjusted: bool = True,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return the figure of the coefficients of every layer.

    A filled mark is a coefficient whose p-value is below ``alpha``, a hollow cross is one whose is not. There is a
    panel a model and a colour a term; with ``by``, a panel a group, largest group first, and a colour a model.

    Parameters
    ----------
    coefficients : pandas.DataFrame, or fits
        What `fit_lagged` gives, or its coefficient frame; with ``by``, of a fit by that column.
    by : str, optional
        The column of groups, such as "pos".
    terms : str or sequence of str, optional
        At most eight. By default every lag, in order, and with ``by`` the first of them.
    adjusted : bool
        Judge by ``p_adjusted`` or by the raw ``p_value``. Only fits know the method, for the caption.
    alpha, hook, width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "term": "lag1", "estimate": 0.3,
    ...        "std_error": 0.1, "df": 88, "conf_low": 0.1, "conf_high": 0.5, "p_adjusted": 0.003, "n": 91,
    ...        "n_docs": 1, "cov_type": "nonrobust"}
    >>> plot_betas(pd.DataFrame([row])).to_dict()["title"]["text"]
    'Coefficients of lag1 for attn_out, by layer'
    """
    who, page = "plot_betas", sheet(width, height, title)
    if not isinstance(adjusted, bool):
        raise InputError(f"adjusted must be True or False; got {adjusted!r}.")
    formula, method = _of_fits(coefficients)
    coefficients = frame_of(coefficients, "coefficients", who=who)
    p = "p_adjusted" if (adjusted := adjusted and method != "none") else "p_value"
    labels = p_labels(alpha, kind="adjusted p" if adjusted else "p")
    groups = [] if by is None else [one_name(by, name="by")]
    needed = (*groups, "term", *_NUMBERS, p, "n", "n_docs", "cov_type")
    shown, hook = rows_of_hook(coefficients, hook, needed, who=who)
    lags = sort_terms(shown["term"]).lags
    terms = _terms(shown, terms, one=by is not None)
    # A lag has the same colour whatever else is shown, so that figures side by side can share a legend.
    palette = lags if set(terms) <= set(lags) and len(lags) <= len(OKABE_ITO) else terms
    if terms == ["Intercept"]:  # which no family of tests has
        adjusted, p, labels = False, "p_value", p_labels(alpha)
    notes = _notes(shown, terms)
    shown = shown[shown["term"].isin(terms)]
    models = drawable(shown, ("model", "layer", "term", *groups), (*_NUMBERS, p), who=who)
    several, hue, names = len(models) > 1, *(("term", palette) if by is None else ("model", models))
    kept = ["model", "layer", "depth", "term", *groups, *_NUMBERS, "n", "n_docs"]
    marks = shown[kept].assign(p=shown[p], judged=np.where(shown[p] < alpha, *labels))
    marks = placed(marks, several=several, hue="term" if by is None else None, names=terms)
    if by is None:
        parts = dict(by_model(marks))
        columns, usual = _grid(marks) if several else (1, 280)
    else:
        parts, columns, usual = by_group(marks, by, who=who), 4, 110
    draw = partial(
        estimate_panel,
        several=several,
        scale=value_scale(marks[list(_NUMBERS)], f"beta {_units(terms, formula)}"),
        look=hues(hue, names, page, shown=terms if by is None else models),
        kinds=dict(zip(labels, (DISC, CROSS), strict=True)),
        legend=page.legend("significance"),
        bars={"conf": 1.4},
        tooltip=_tooltip(labels, groups),
    )
    detail = partial(sample_size, layers=by is None)
    grid = page.panels(parts, draw, columns=columns, height=usual, detail=detail)
    where = "depth" if several else "layer"
    heading = f"Coefficients of {_listed(terms)} for {hook}, by {where}"
    heading = heading if by is None else f"{terms[0]} of {hook} by {in_words(by)} and {where}"
    judged_by = _ADJUSTED.get(method, "p adjusted over layers and lags") if adjusted else _NOT_ADJUSTED
    crowded = max(map(len, parts.values())) > CROWDED
    bars = bars_in_words(intervals_in_words(shown), marks, crowded=crowded)
    caption = [f"{bars} Significance: {judged_by}. n: tokens a layer.", *notes]
    return page.figure([grid], heading, caption, _words(marks, terms, hook, labels, groups))


def _of_fits(coefficients: Any) -> tuple[str, str]:
    """Return the formula and the adjustment of fits; a frame has neither."""
    if hasattr(coefficients, "columns"):
        return "", ""
    return getattr(coefficients, "formula", ""), getattr(coefficients, "adjust", "")


def _grid(marks: pd.DataFrame) -> tuple[int, int]:
    """Return how many models stand beside each other, and how high: fewer where many layers need the width."""
    n_layers = int(layers_of_depth(marks).max())
    return (3, 200) if n_layers <= 12 else (2, 200) if n_layers <= 24 else (1, 160)


def _tooltip(labels: list[str], groups: list[str]) -> list[Tooltip]:
    p = labels[0].split(" <")[0]
    names = ["term:N", *(["group:N"] if groups else [])]
    return ["model:N", "layer:Q", *names, *BETA, ("p:Q", p, ".2~g"), ("n:Q", "", ",")]


def _units(terms: list[str], formula: str) -> str:
    """Return the only term, or the units of several; without a formula the outcome is taken for the log norm."""
    if len(terms) == 1:
        return f"of {terms[0]}"
    of_norms = not formula or formula.split("~")[0].strip() == "log_norm"
    are_lags = of_norms and all(_LAG.fullmatch(term) for term in terms)
    return "(log norm per log norm)" if are_lags else "(per unit of the term)"


def _terms(shown: pd.DataFrame, terms: str | Sequence[str] | None, *, one: bool) -> list[str]:
    """Return the terms to show: those that were asked for, or all lags in order."""
    have = list(shown["term"].unique())
    most = 1 if one else len(OKABE_ITO)
    if terms is None:
        known = sort_terms(have)
        wanted = known.lags or (known.interactions + known.others)[: len(OKABE_ITO)] or have[:1]
        wanted = wanted[: 1 if one else None]
    else:
        wanted = require_names(terms, have, name="terms")
    if len(wanted) > most:
        raise InputError(
            f"plot_betas shows at most {count(most, 'term')}{' with by=' if one else ''}; got {len(wanted)}: {wanted}. "
            "Choose with terms=."
        )
    return wanted


def _notes(shown: pd.DataFrame, terms: list[str]) -> list[str]:
    """Return what a reader must know of the formula, and of the models that lack its terms."""
    meaning = sort_terms(shown["term"]).meaning() if any(sort_terms(terms).lags) else ""
    have = list(shown.loc[shown["term"].isin(terms), "model"].unique())
    without = [model for model in shown["model"].unique() if model not in have]
    return [
        *([f"The formula has interactions: a lag's coefficient is that {meaning}."] if meaning else []),
        *([f"Without {', '.join(without)}, which has no such term."] if without else []),
    ]


def _words(
    marks: pd.DataFrame, terms: list[str], hook: str, labels: list[str], groups: list[str]
) -> list[str]:
    def sentence(rows: pd.DataFrame) -> str:
        top = largest(rows)
        n_significant = int((rows["judged"] == labels[0]).sum())
        return (
            f"{n_significant} of {count(len(rows), 'layer')} with {labels[0]}, largest {top['estimate']:.3f} in "
            f"layer {top['layer']}, mean over layers {rows['estimate'].mean():.2f}."
        )

    lead = f"Coefficients of {_listed(terms)} for {hook} by layer, with confidence intervals."
    return [lead, *named(marks, [*groups, "model", "term"], sentence)]


def _listed(names: list[str]) -> str:
    if len(names) > 3:
        return f"{names[0]}, {names[1]}, … {names[-1]}"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
