"""Coefficients by relative depth: a panel a model and a colour a lag, or a panel a group and a colour a model."""

import re
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.betas_by_group import betas_by_group
from mechreg.charts.depth import (
    ALL_DEPTHS,
    BETA,
    depth_x,
    estimate_layers,
    layers_of_depth,
    level_of,
    tooltips,
    value_scale,
)
from mechreg.charts.rows import (
    count,
    distinct,
    few,
    frame_of,
    names_of,
    one_name,
    require_one_row,
    rows_of_hook,
    sample_size,
)
from mechreg.charts.terms import sort_terms
from mechreg.charts.theme import (
    OKABE_ITO,
    PALE_INK,
    WIDTH,
    figure_title,
    judged_marks,
    layer_ticks,
    p_labels,
    p_legend,
    panel_title,
)
from mechreg.schema import InputError, did_you_mean

_NUMBERS = ("estimate", "conf_low", "conf_high")
_LAG = re.compile(r"lag(\d+)")


def plot_betas(
    coefficients: Any,
    *,
    by: str | None = None,
    hook: str | None = None,
    terms: str | Sequence[str] | None = None,
    alpha: float = 0.05,
    adjusted: bool = True,
) -> ChartType:
    """Return the figure of the coefficients of every layer, beta by relative depth.

    A filled mark is a coefficient whose p-value is below ``alpha``, a hollow cross is one whose is not; bars are the
    frame's confidence intervals. All panels have the same axes. There is a panel a model and a colour a term, the
    terms of a layer side by side; with ``by``, one term in a panel a group, largest group first, and a colour a model.

    Parameters
    ----------
    coefficients : pandas.DataFrame, or fits
        What `fit_lagged` gives, or its coefficient frame; with ``by``, of a fit by that column.
    by : str, optional
        The column of groups, such as "pos".
    hook : str, optional
        Which hook point, where the frame has several.
    terms : str or sequence of str, optional
        By default every lag (``lag1``, ``lag2``, ...), in order, and with ``by`` the first of them; without a lag, the
        first terms that there are.
    alpha : float
    adjusted : bool
        Judge by ``p_adjusted`` (Benjamini-Hochberg over layers and lags) or by the raw ``p_value``.

    Returns
    -------
    Altair chart
        With a title, a caption (n, covariance, correction) and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column or term, several hooks and none chosen, more than six models, eight terms or twenty groups, two
        rows for one coefficient.
    NumericalError
        An estimate, interval or p-value that is NaN or infinite.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "term": "lag1", "estimate": 0.3,
    ...        "std_error": 0.1, "df": 88, "conf_low": 0.1, "conf_high": 0.5, "p_adjusted": 0.003, "n": 91,
    ...        "n_docs": 1, "cov_type": "nonrobust"}
    >>> plot_betas(pd.DataFrame([row])).to_dict()["title"]["text"]
    'Coefficients of lag1 for attn_out, by depth'
    """
    who = "plot_betas"
    if not isinstance(adjusted, bool):
        raise InputError(f"adjusted must be True or False; got {adjusted!r}.")
    coefficients = frame_of(coefficients, "coefficients", who=who)
    p = "p_adjusted" if adjusted else "p_value"
    labels = p_labels(alpha, kind="adjusted p" if adjusted else "p")
    groups = [] if by is None else [one_name(by, name="by")]
    shown, hook = rows_of_hook(
        coefficients, hook, (*groups, "term", *_NUMBERS, p, "n", "n_docs", "cov_type"), who=who
    )
    terms = _terms(shown, terms, one=by is not None)
    if terms == ["Intercept"]:  # which no family of tests has
        adjusted, p, labels = False, "p_value", p_labels(alpha)
    notes = _notes(shown, terms)
    shown = shown[shown["term"].isin(terms)]
    models = few(shown["model"], who=who)
    require_one_row(shown, ("model", "layer", "term", *groups), (*_NUMBERS, p), who=who)
    keep = shown[["model", "layer", "depth", "term", *groups, *_NUMBERS, "n", "n_docs", "cov_type"]]
    marks = keep.assign(
        p=shown[p], judged=np.where(shown[p] < alpha, *labels), n_layers=layers_of_depth(shown)
    )
    if by is not None:
        return betas_by_group(marks, by, hook, models, labels, [_judged_by(adjusted), *notes])
    caption = [
        f"Bars: {level_of(shown)}confidence intervals (cov_type {', '.join(distinct(shown['cov_type']))}). "
        f"{_judged_by(adjusted)} n: tokens a layer.",
        *notes,
    ]
    return _by_model(marks, models, terms, labels).properties(
        title=figure_title(f"Coefficients of {_listed(terms)} for {hook}, by depth", caption),
        description=_description(marks, terms, hook, labels),
    )


def _terms(shown: pd.DataFrame, terms: str | Sequence[str] | None, *, one: bool) -> list[str]:
    """Return the terms to show: those that were asked for, or all lags in order."""
    have = distinct(shown["term"])
    most = 1 if one else len(OKABE_ITO)
    if terms is None:
        known = sort_terms(have)
        wanted = (known.lags or (known.interactions + known.others)[: len(OKABE_ITO)] or have[:1])[
            : 1 if one else None
        ]
    else:
        wanted = names_of(terms, name="terms")
    for name in wanted:
        if name not in have:
            raise InputError(
                f"plot_betas has no rows of the term {name!r}; the frame has {have}.{did_you_mean(name, have)}"
            )
    if len(wanted) > most:
        raise InputError(
            f"plot_betas shows at most {count(most, 'term')}{' with by=' if one else ''}; got {len(wanted)}: {wanted}. "
            "Choose with terms=."
        )
    return wanted


def _notes(shown: pd.DataFrame, terms: list[str]) -> list[str]:
    """Return what a reader must know of the formula, and of the models that lack its terms."""
    meaning = sort_terms(shown["term"]).meaning() if any(sort_terms(terms).lags) else ""
    have = distinct(shown.loc[shown["term"].isin(terms), "model"])
    without = [model for model in distinct(shown["model"]) if model not in have]
    return [
        *([f"The formula has interactions: a lag's coefficient is that {meaning}."] if meaning else []),
        *([f"Without {', '.join(without)}, which has no such term."] if without else []),
    ]


def _judged_by(adjusted: bool) -> str:
    correction = "Benjamini–Hochberg" if adjusted else "raw p-values, not corrected for their number"
    return f"Significance: {correction}."


def _by_model(marks: pd.DataFrame, models: list[str], terms: list[str], labels: list[str]) -> alt.ConcatChart:
    """Return a panel a model, fewer of them side by side where many layers need the width."""
    side = marks["term"].map({term: at - (len(terms) - 1) / 2 for at, term in enumerate(terms)}).astype(float)
    marks = marks.assign(x=marks["depth"] + side * 0.6 / (len(terms) * marks["n_layers"]))
    columns_drawn = ["model", "layer", "depth", "term", *_NUMBERS, "n", "x", "n_layers", "p", "judged"]
    scale = value_scale(marks[["conf_low", "conf_high"]])
    n_layers = int(marks["n_layers"].max())
    columns = min(len(models), 3 if n_layers <= 12 else 2 if n_layers <= 24 else 1)
    width = (WIDTH - 20 * (columns - 1)) // columns
    height = 280 if len(models) == 1 else {1: 130, 2: 220, 3: 200}[columns]
    panels = []
    for at, model in enumerate(models):
        part = marks[marks["model"] == model]
        title = panel_title(model, sample_size(part, layers=True), width=width)
        panel = _panel(
            part[columns_drawn],
            terms,
            labels,
            scale,
            leftmost=at % columns == 0,
            lowest=at + columns >= len(models),
        )
        panels.append(panel.properties(title=title, width=width, height=height))
    return alt.concat(*panels, columns=columns, spacing=20).resolve_scale(
        color="shared", shape="shared", fill="shared", stroke="shared"
    )


def _panel(
    marks: pd.DataFrame,
    terms: list[str],
    labels: list[str],
    scale: alt.Scale,
    *,
    leftmost: bool,
    lowest: bool,
) -> ChartType:
    """Return one model's panel: relative depth below, layers above."""
    n_layers = int(marks["n_layers"].max())
    layers = alt.Axis(
        orient="top",
        values=[(layer + 0.5) / n_layers for layer in layer_ticks(0, n_layers - 1)],
        labelExpr=f"'L' + round(datum.value * {n_layers} - 0.5)",
        title=None,
        grid=False,
        domain=False,
        labelFontSize=9,
        labelSeparation=5,
        labelColor=PALE_INK,
    )
    x = depth_x("x", title="relative depth" if lowest else None)
    x_top, x_bare = (alt.X("x:Q", scale=ALL_DEPTHS, axis=axis) for axis in (layers, None))
    units = "log norm per log norm" if all(_LAG.fullmatch(term) for term in terms) else "per unit of the term"
    title = f"beta ({units})" if leftmost else None
    color = alt.Color(
        "term:N",
        title="term",
        sort=terms,
        scale=alt.Scale(domain=terms, range=list(OKABE_ITO[: len(terms)])),
        legend=alt.Legend(symbolType="circle", symbolOpacity=1, symbolSize=70),
    )
    shown = tooltips(
        *("model:N", "layer:Q", ("depth:Q", "relative depth", ".3f"), "term:N", *BETA),
        *(("p:Q", labels[0].split(" <")[0], ".2~g"), ("n:Q", "", ",")),
    )

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=title if field == "estimate" else alt.Undefined, scale=scale)

    base = alt.Chart(marks).encode(x=x, color=color)
    points = judged_marks(
        base.encode(x=x_bare, y=y("estimate"), tooltip=shown),
        labels,
        size=46 if n_layers <= 12 else 30 if n_layers <= 24 else 22,
        hollow={"filled": False},
    )
    return alt.layer(
        *estimate_layers(
            base,
            y,
            line={"strokeWidth": 1, "opacity": 0.35},
            bars={"strokeWidth": 1.5, "opacity": 0.8},
            x_of_bars=x_top,
            points=points,
        ),
        p_legend(labels, "significance"),
    ).resolve_axis(x="independent")


def _description(marks: pd.DataFrame, terms: list[str], hook: str, labels: list[str]) -> str:
    sentences = [f"Coefficients of {_listed(terms)} for {hook} by relative depth, with confidence intervals."]
    for (model, term), rows in marks.groupby(["model", "term"], sort=False, observed=True):
        largest = rows.iloc[int(rows["estimate"].abs().to_numpy().argmax())]
        sentences.append(
            f"{model}, {term}: {int((rows['judged'] == labels[0]).sum())} of {count(len(rows), 'layer')} with "
            f"{labels[0]}, largest {largest['estimate']:.3f} in layer {largest['layer']}."
        )
    return " ".join(sentences)


def _listed(names: list[str]) -> str:
    if len(names) > 3:
        return f"{names[0]}, {names[1]}, … {names[-1]}"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
