"""Coefficients by depth, against what they would be with no context at work."""

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.judged import p_labels, p_legend
from mechreg.charts.rows import count, distinct, few_models, of_term, one_hook, require_one_row
from mechreg.charts.theme import (
    INK,
    OKABE_ITO,
    PALE_INK,
    WIDTH,
    figure_title,
    panel_title,
)
from mechreg.schema import InputError, require

MAX_NULLS = 5  # panels beside each other; more are too narrow
_NULL_NUMBERS = (
    "estimate",
    "null_estimate",
    "null_low",
    "null_high",
    "excess",
    "conf_low",
    "conf_high",
    "p_value",
)
COEFFICIENT_KEYS = ("model", "hook", "layer", "depth", "term")


def plot_nulls(
    comparison: pd.DataFrame, *, hook: str | None = None, term: str = "lag1", alpha: float = 0.05
) -> ChartType:
    """Return the figure of one term's coefficients by depth, against the band in which each null has them.

    Rows are models, columns are nulls, all on the same axes. The black line is the coefficient; its mark is filled
    where the excess over that null has p below ``alpha``, a hollow cross elsewhere. The band is where the coefficient
    of one frame of the null lies, its line the mean.

    Parameters
    ----------
    comparison : pandas.DataFrame
        What `compare_to_nulls` gives.
    hook : str, optional
        Which hook point, where the frame has several.
    term : str
    alpha : float
        For p values that are not adjusted.

    Returns
    -------
    Altair chart
        With a title, a caption and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column or term, several hooks and none chosen, more than six models or five nulls, two rows for
        one coefficient.
    NumericalError
        A number that is NaN or infinite.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "term": "lag1", "null": "norm_order",
    ...        "estimate": 0.3, "null_estimate": 0.1, "null_low": 0.0, "null_high": 0.2, "excess": 0.2,
    ...        "conf_low": 0.1, "conf_high": 0.3, "p_value": 0.001, "repeats": 5, "draws": 999, "n": 91, "n_docs": 9}
    >>> plot_nulls(pd.DataFrame([row])).to_dict()["title"]["text"]
    'lag1 of attn_out against its nulls, by depth'
    """
    needed = (*COEFFICIENT_KEYS, "null", *_NULL_NUMBERS, "repeats", "draws", "n", "n_docs")
    require(comparison, needed, who="plot_nulls")
    labels = p_labels(alpha)
    shown, hook = one_hook(comparison, hook, who="plot_nulls")
    shown = of_term(shown, term, who="plot_nulls")
    models, nulls = few_models(shown, who="plot_nulls"), distinct(shown["null"])
    if len(nulls) > MAX_NULLS:
        raise InputError(
            f"plot_nulls shows at most {MAX_NULLS} nulls in one figure; the frame has {len(nulls)}."
        )
    require_one_row(shown, ("model", "layer", "null"), _NULL_NUMBERS, who="plot_nulls")
    marks = shown[["model", "layer", "depth", "null", *_NULL_NUMBERS]].assign(
        judged=np.where(shown["p_value"] < alpha, *labels)
    )
    y = alt.Scale(domain=value_range(marks[["estimate", "null_low", "null_high"]]), nice=True, zero=False)
    width = (WIDTH - 20 * (len(nulls) - 1)) // len(nulls)
    height = 240 if len(models) == 1 else 150
    rows = []
    for model in models:
        of_model = marks[marks["model"] == model]
        panels = []
        for at, null in enumerate(nulls):
            part = of_model[of_model["null"] == null]
            if not len(part):
                raise InputError(f"plot_nulls finds no rows of the null {null!r} for the model {model!r}.")
            color = OKABE_ITO[at]
            heading = alt.Title(
                null.replace("_", " "),
                fontSize=12,
                offset=6,
                color=color,
                subtitlePadding=2,
                anchor="middle",
                frame="group",
            )
            panels.append(
                _null_panel(
                    part, term, labels, y, color, leftmost=at == 0, lowest=model == models[-1]
                ).properties(width=width, height=height, title=heading)
            )
        about = shown[shown["model"] == model]
        detail = f"n = {int(about['n'].max()):,}, {count(int(about['n_docs'].max()), 'document')}"
        rows.append(
            alt.hconcat(*panels, spacing=20, bounds="flush", title=panel_title(model, detail, width=WIDTH))
        )
    return alt.vconcat(
        *rows,
        spacing=20,
        title=figure_title(f"{term} of {hook} against its nulls, by depth", _null_caption(shown)),
        description=_null_description(marks, term, hook, labels),
    ).resolve_scale(shape="shared", fill="shared", stroke="shared")


def _null_panel(
    part: pd.DataFrame,
    term: str,
    labels: list[str],
    scale: alt.Scale,
    color: str,
    *,
    leftmost: bool,
    lowest: bool,
) -> ChartType:
    """Return one model under one null."""
    axis = alt.Axis(
        values=[0, 0.25, 0.5, 0.75, 1],
        format=".2~f",
        grid=False,
        labelFlush=False,
        title="relative depth" if lowest else None,
    )
    x = alt.X("depth:Q", scale=alt.Scale(domain=[0, 1], nice=False), axis=axis)
    title = f"beta of {term}" if leftmost else None
    axis_y = alt.Axis(title=title, labels=leftmost, labelFlush=True)  # else the first heading is pushed up
    y = alt.Y("estimate:Q", axis=axis_y, scale=scale)
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("layer:Q"),
        alt.Tooltip("null:N"),
        alt.Tooltip("estimate:Q", title="beta", format=".4f"),
        alt.Tooltip("null_estimate:Q", title="null beta", format=".4f"),
        alt.Tooltip("excess:Q", format=".4f"),
        alt.Tooltip("conf_low:Q", title="excess from", format=".4f"),
        alt.Tooltip("conf_high:Q", title="to", format=".4f"),
        alt.Tooltip("p_value:Q", title="p", format=".2~g"),
    ]
    base = alt.Chart(part).encode(x=x, y=y)
    n_layers = int(((part["layer"] + 0.5) / part["depth"]).round().max())
    size = 46 if n_layers <= 12 else 30 if n_layers <= 24 else 18
    between = base.encode(y=alt.Y("null_low:Q", axis=axis_y, scale=scale), y2="null_high")
    is_excess, is_not = (alt.FieldEqualPredicate(field="judged", equal=label) for label in labels)
    return alt.layer(
        *zero_line(scale),
        between.mark_area(color=color, opacity=0.3)
        if len(part) > 1
        else between.mark_rule(color=color, size=8),
        base.encode(y=alt.Y("null_estimate:Q", axis=axis_y, scale=scale)).mark_line(
            color=color, strokeWidth=1.5
        ),
        base.mark_line(color=INK, strokeWidth=1, opacity=0.5),
        base.transform_filter(is_excess)
        .mark_point(filled=True, color=INK, shape="circle", size=size, opacity=1)
        .encode(tooltip=tooltip),
        base.transform_filter(is_not)
        .mark_point(fill="white", stroke=INK, shape="cross", size=1.5 * size, strokeWidth=1.3, opacity=1)
        .encode(tooltip=tooltip),
        p_legend(labels, "excess over the null", orient="bottom", direction="horizontal"),
    )


def zero_line(scale: alt.Scale) -> list[alt.Chart]:
    """Return a dashed line at 0, unless 0 is where the axis is."""
    if scale.to_dict()["domain"][0] == 0:
        return []
    nothing = alt.Chart(alt.Data(values=[{}]))
    return [nothing.mark_rule(color=PALE_INK, strokeDash=[4, 3]).encode(y=alt.datum(0))]


def value_range(values: pd.DataFrame) -> list[float]:
    """Return the ends of an axis that has 0 and all values on it."""
    low, high = min(float(values.min().min()), 0.0), max(float(values.max().max()), 0.0)
    room = 0.04 * (high - low) or 0.5
    return [round(low - room if low < 0 else 0.0, 4), round(high + room, 4)]


def _null_caption(shown: pd.DataFrame) -> list[str]:
    repeats = {
        null: int(rows["repeats"].max()) for null, rows in shown.groupby("null", sort=False, observed=True)
    }
    listed = ", ".join(f"{number} of {str(null).replace('_', ' ')}" for null, number in repeats.items())
    return [
        "Black: the coefficient. Coloured: the same under a null, where no context is at work: its mean over frames "
        f"({listed}), and the band in which one frame's lies. p: of coefficient minus null, not adjusted, from "
        f"{int(shown['draws'].max()):,} draws of the documents, the same ones for both."
    ]


def _null_description(marks: pd.DataFrame, term: str, hook: str, labels: list[str]) -> str:
    sentences = [f"Coefficients of {term} for {hook} by relative depth, against nulls."]
    for (model, null), rows in marks.groupby(["model", "null"], sort=False, observed=True):
        sentences.append(
            f"{model}, {null}: mean beta {rows['estimate'].mean():.3f}, null {rows['null_estimate'].mean():.3f}, "
            f"excess with {labels[0]} in {int((rows['judged'] == labels[0]).sum())} of {count(len(rows), 'layer')}."
        )
    return " ".join(sentences)
