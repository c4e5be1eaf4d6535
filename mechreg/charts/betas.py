"""Coefficients by layer and lag, one panel a model, on relative depth."""

import re
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType
from scipy.special import stdtr

from mechreg.charts.judged import p_labels, p_legend
from mechreg.charts.rows import count, distinct, few_models, frame_of, names_of, one_hook, require_one_row
from mechreg.charts.terms import sort_terms
from mechreg.charts.theme import OKABE_ITO, PALE_INK, WIDTH, figure_title, layer_ticks, panel_title
from mechreg.schema import InputError, did_you_mean, require

_NEEDED = (
    *("model", "hook", "layer", "depth", "term", "estimate", "std_error", "df", "conf_low", "conf_high"),
    *("n", "n_docs", "cov_type"),
)
_LAG = re.compile(r"lag(\d+)")


def plot_betas(
    coefficients: Any,
    *,
    hook: str | None = None,
    terms: str | Sequence[str] | None = None,
    alpha: float = 0.05,
    adjusted: bool = True,
) -> ChartType:
    """Return the figure of the coefficients of every layer: beta by relative depth, one panel a model.

    A filled mark is a coefficient whose p-value is below ``alpha``, a hollow cross is one whose is not; bars
    are the confidence intervals of the frame. All panels have the same axes. The terms of one layer stand
    side by side, so that their bars do not hide each other; the tooltip has the layer.

    Parameters
    ----------
    coefficients : pandas.DataFrame, or fits
        What `fit_lagged` gives, or a coefficient frame: model, hook, layer, depth, term, estimate, std_error, df,
        conf_low, conf_high, p_adjusted or p_value, n, n_docs, cov_type.
    hook : str, optional
        Which hook point, where the frame has several.
    terms : sequence of str, optional
        By default every lag (``lag1``, ``lag2``, ...), in order; without one, the first terms that there are.
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
        A missing column or term, several hooks and none chosen, more than six models or eight terms, two rows
        for one coefficient.
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
    if not isinstance(adjusted, bool):
        raise InputError(f"adjusted must be True or False; got {adjusted!r}.")
    coefficients = frame_of(coefficients, "coefficients", who="plot_betas")
    p = "p_adjusted" if adjusted else "p_value"
    needed = (
        "model",
        "hook",
        "layer",
        "depth",
        "term",
        "estimate",
        "conf_low",
        "conf_high",
        p,
        "n",
        "n_docs",
    )
    require(coefficients, (*needed, "cov_type"), who="plot_betas")
    labels = p_labels(alpha, told="adjusted p" if adjusted else "p")
    shown, hook = one_hook(coefficients, hook, who="plot_betas")
    terms = _terms(shown, terms)
    without = distinct(shown["model"])
    meaning = sort_terms(shown["term"]).meaning() if any(sort_terms(terms).lags) else ""
    if terms == ["Intercept"]:  # which no family of tests has
        adjusted, p, labels = False, "p_value", p_labels(alpha, told="p")
    shown = shown[shown["term"].isin(terms)]
    models = few_models(shown, who="plot_betas")
    without = [model for model in without if model not in models]
    require_one_row(
        shown, ("model", "layer", "term"), ("estimate", "conf_low", "conf_high", p), who="plot_betas"
    )

    marks = _marks(shown, terms).assign(p=shown[p], judged=np.where(shown[p] < alpha, *labels))
    y = alt.Scale(domain=_range(marks), nice=True, zero=False)
    columns = _columns(len(models), int(marks["n_layers"].max()))
    width = (WIDTH - 20 * (columns - 1)) // columns
    height = 280 if len(models) == 1 else {1: 130, 2: 220, 3: 200}[columns]
    panels = [
        _panel(
            marks[marks["model"] == model],
            terms,
            labels,
            y,
            leftmost=at % columns == 0,
            lowest=at + columns >= len(models),
        ).properties(
            title=panel_title(model, _n(shown[shown["model"] == model]), width=width),
            width=width,
            height=height,
        )
        for at, model in enumerate(models)
    ]
    return alt.concat(
        *panels,
        columns=columns,
        spacing=20,
        title=figure_title(
            f"Coefficients of {_listed(terms)} for {hook}, by depth",
            _caption(shown, adjusted, meaning, without),
        ),
        description=_description(marks, terms, hook, labels),
    ).resolve_scale(color="shared", shape="shared", fill="shared", stroke="shared")


def _terms(shown: pd.DataFrame, terms: Sequence[str] | None) -> list[str]:
    """Return the terms to show: those that were asked for, or all lags in order."""
    have = distinct(shown["term"])
    if terms is None:
        found = sort_terms(have)
        wanted = found.lags or (found.interactions + found.others)[: len(OKABE_ITO)] or have[:1]
    else:
        wanted = names_of(terms, name="terms")
        for name in wanted:
            if name not in have:
                raise InputError(
                    f"plot_betas has no rows of the term {name!r}; the frame has {have}.{did_you_mean(name, have)}"
                )
    if len(wanted) > len(OKABE_ITO):
        raise InputError(
            f"plot_betas shows at most {len(OKABE_ITO)} terms, as many as a reader can tell colours apart; "
            f"got {len(wanted)}: {wanted}. Choose with terms=."
        )
    return wanted


def _marks(shown: pd.DataFrame, terms: list[str]) -> pd.DataFrame:
    """Return one row a mark, with its place on the depth axis: terms side by side around their layer's depth."""
    n_layers = ((shown["layer"] + 0.5) / shown["depth"]).round().astype(int)
    side = shown["term"].map({term: at - (len(terms) - 1) / 2 for at, term in enumerate(terms)}).astype(float)
    keep = shown[["model", "layer", "depth", "term", "estimate", "conf_low", "conf_high", "n"]]
    return keep.assign(x=shown["depth"] + side * 0.6 / (len(terms) * n_layers), n_layers=n_layers)


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
    depths = alt.Axis(
        values=[0, 0.25, 0.5, 0.75, 1],
        format=".2~f",
        grid=False,
        labelFlush=False,
        title="relative depth" if lowest else None,
    )
    ticks = layer_ticks(0, n_layers - 1)
    layers = alt.Axis(
        orient="top",
        values=[(layer + 0.5) / n_layers for layer in ticks],
        labelExpr=f"'L' + round(datum.value * {n_layers} - 0.5)",
        title=None,
        grid=False,
        domain=False,
        labelFontSize=9,
        labelSeparation=5,
        labelColor=PALE_INK,
    )
    place = alt.Scale(domain=[0, 1], nice=False)
    units = "log norm per log norm" if all(_LAG.fullmatch(term) for term in terms) else "per unit of the term"
    y = alt.Y("estimate:Q", title=f"beta ({units})" if leftmost else None, scale=scale)
    color = alt.Color(
        "term:N",
        title="term",
        sort=terms,
        scale=alt.Scale(domain=terms, range=list(OKABE_ITO[: len(terms)])),
        legend=alt.Legend(symbolType="circle", symbolOpacity=1, symbolSize=70),
    )
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("layer:Q"),
        alt.Tooltip("depth:Q", title="relative depth", format=".3f"),
        alt.Tooltip("term:N"),
        alt.Tooltip("estimate:Q", title="beta", format=".4f"),
        alt.Tooltip("conf_low:Q", title="interval from", format=".4f"),
        alt.Tooltip("conf_high:Q", title="to", format=".4f"),
        alt.Tooltip("p:Q", title=labels[0].split(" <")[0], format=".2~g"),
        alt.Tooltip("n:Q", format=","),
    ]
    size = 46 if n_layers <= 12 else 30 if n_layers <= 24 else 22
    base = alt.Chart(marks).encode(y=y, color=color)
    bars = base.encode(y=alt.Y("conf_low:Q", scale=scale), y2="conf_high")
    x, x_top, x_bare = (alt.X("x:Q", scale=place, axis=axis) for axis in (depths, layers, None))
    is_significant, is_not = (alt.FieldEqualPredicate(field="judged", equal=label) for label in labels)
    return alt.layer(
        alt.Chart(alt.Data(values=[{}])).mark_rule(color=PALE_INK, strokeDash=[4, 3]).encode(y=alt.datum(0)),
        base.mark_line(strokeWidth=1, opacity=0.35).encode(x=x),
        bars.mark_rule(strokeWidth=1.5, opacity=0.8).encode(x=x_top),
        base.transform_filter(is_significant)
        .mark_point(filled=True, shape="circle", size=size, opacity=1)
        .encode(x=x_bare, tooltip=tooltip),
        base.transform_filter(is_not)
        .mark_point(filled=False, fill="white", shape="cross", size=1.5 * size, strokeWidth=1.3, opacity=1)
        .encode(x=x_bare, tooltip=tooltip),
        p_legend(labels, "significance"),
    ).resolve_axis(x="independent")


def _columns(n_models: int, n_layers: int) -> int:
    """Return how many panels stand side by side: fewer where many layers need the width."""
    return min(n_models, 3 if n_layers <= 12 else 2 if n_layers <= 24 else 1)


def _range(marks: pd.DataFrame) -> list[float]:
    low, high = min(marks["conf_low"].min(), 0.0), max(marks["conf_high"].max(), 0.0)
    room = 0.04 * (high - low) or 0.5
    return [round(float(low - room), 4), round(float(high + room), 4)]


def _n(shown: pd.DataFrame) -> str:
    low, high = int(shown["n"].min()), int(shown["n"].max())
    n = f"n = {low:,}" if low == high else f"n = {low:,} to {high:,}"
    return ", ".join(
        [n, count(int(shown["n_docs"].max()), "document"), count(shown["layer"].nunique(), "layer")]
    )


def _caption(shown: pd.DataFrame, adjusted: bool, meaning: str, without: list[str]) -> list[str]:
    judged = "Benjamini–Hochberg" if adjusted else "raw p-values, not corrected for their number"
    return [
        f"Bars: {_level(shown)}confidence intervals (cov_type {', '.join(distinct(shown['cov_type']))}). "
        f"Significance: {judged}. n: tokens a layer.",
        *([f"The formula has interactions: a lag's coefficient is that {meaning}."] if meaning else []),
        *([f"Without {', '.join(without)}, which has no such term."] if without else []),
    ]


def _level(shown: pd.DataFrame) -> str:
    """Return the level of the intervals, "95% ", which the frame's t statistics imply; nothing if it varies."""
    half_widths = (shown["conf_high"] - shown["conf_low"]) / 2 / shown["std_error"]
    levels = np.unique((2 * stdtr(shown["df"], half_widths) - 1).to_numpy(dtype="float64").round(4))
    return f"{100 * levels[0]:g}% " if len(levels) == 1 and np.isfinite(levels[0]) else ""


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
