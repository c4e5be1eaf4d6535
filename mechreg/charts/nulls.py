"""Coefficients by depth, against what they would be with no context at work."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.depth import between, depth_x, estimate_layers, layers_of_depth, tooltips, value_scale
from mechreg.charts.rows import count, few, frame_of, one_value, require_one_row, rows_of_hook, sample_size
from mechreg.charts.theme import (
    INK,
    OKABE_ITO,
    WIDTH,
    figure_title,
    judged_marks,
    p_labels,
    p_legend,
    panel_title,
)
from mechreg.schema import InputError

MAX_NULLS = 5  # panels beside each other; more are too narrow
_ESTIMATES = (
    "estimate",
    "null_estimate",
    "null_low",
    "null_high",
    "excess",
    "conf_low",
    "conf_high",
    "p_value",
)


def plot_nulls(
    comparison: Any, *, hook: str | None = None, term: str = "lag1", alpha: float = 0.05
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
    who = "plot_nulls"
    labels = p_labels(alpha)
    comparison = frame_of(comparison, "comparison", who=who)
    columns = ("term", "null", *_ESTIMATES, "repeats", "draws", "n", "n_docs")
    shown, hook = rows_of_hook(comparison, hook, columns, who=who)
    shown, _ = one_value(shown, "term", term, who=who)
    models, nulls = few(shown["model"], who=who), few(shown["null"], "null", most=MAX_NULLS, who=who)
    require_one_row(shown, ("model", "layer", "null"), _ESTIMATES, who=who)
    marks = shown[["model", "layer", "depth", "null", *_ESTIMATES]].assign(
        judged=np.where(shown["p_value"] < alpha, *labels)
    )
    scale = value_scale(marks[["estimate", "null_low", "null_high"]], cut_at_zero=True)
    width = (WIDTH - 20 * (len(nulls) - 1)) // len(nulls)
    height = 240 if len(models) == 1 else 150
    rows = []
    for model in models:
        panels = []
        for at, null in enumerate(nulls):
            part = marks[(marks["model"] == model) & (marks["null"] == null)]
            if not len(part):
                raise InputError(f"{who} has no rows of the null {null!r} for the model {model!r}.")
            panel = _panel(
                part, term, labels, scale, OKABE_ITO[at], leftmost=at == 0, lowest=model == models[-1]
            )
            panels.append(
                panel.properties(width=width, height=height, title=_heading(null, color=OKABE_ITO[at]))
            )
        title = panel_title(model, sample_size(shown[shown["model"] == model]), width=WIDTH)
        rows.append(alt.hconcat(*panels, spacing=20, bounds="flush", title=title))
    return alt.vconcat(
        *rows,
        spacing=20,
        title=figure_title(f"{term} of {hook} against its nulls, by depth", _caption(shown)),
        description=_description(marks, term, hook, labels),
    ).resolve_scale(shape="shared", fill="shared", stroke="shared")


def _heading(null: str, *, color: str) -> alt.Title:
    return alt.Title(
        null.replace("_", " "),
        fontSize=12,
        offset=6,
        color=color,
        subtitlePadding=2,
        anchor="middle",
        frame="group",
    )


def _panel(
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
    # labelFlush: else the first heading is pushed up.
    axis = alt.Axis(title=f"beta of {term}" if leftmost else None, labels=leftmost, labelFlush=True)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", axis=axis, scale=scale)

    shown = tooltips(
        *("model:N", "layer:Q", "null:N", ("estimate:Q", "beta", ".4f")),
        *(("null_estimate:Q", "null beta", ".4f"), ("excess:Q", "", ".4f")),
        *(("conf_low:Q", "excess from", ".4f"), ("conf_high:Q", "to", ".4f"), ("p_value:Q", "p", ".2~g")),
    )
    base = alt.Chart(part).encode(x=depth_x(title="relative depth" if lowest else None), y=y("estimate"))
    n_layers = int(layers_of_depth(part).max())
    size = 46 if n_layers <= 12 else 30 if n_layers <= 24 else 18
    band = between(base, y, "null_low", "null_high")
    return alt.layer(
        *estimate_layers(
            base,
            y,
            scale=scale,
            behind=[
                band.mark_area(color=color, opacity=0.3)
                if len(part) > 1
                else band.mark_rule(color=color, size=8),
                base.encode(y=y("null_estimate")).mark_line(color=color, strokeWidth=1.5),
            ],
            line={"color": INK, "strokeWidth": 1, "opacity": 0.5},
            points=judged_marks(
                base.encode(tooltip=shown), labels, size=size, filled={"color": INK}, hollow={"stroke": INK}
            ),
        ),
        p_legend(labels, "excess over the null", orient="bottom", direction="horizontal"),
    )


def _caption(shown: pd.DataFrame) -> list[str]:
    repeats = shown.groupby("null", sort=False, observed=True)["repeats"].max()
    listed = ", ".join(f"{int(number)} of {str(null).replace('_', ' ')}" for null, number in repeats.items())
    return [
        "Black: the coefficient. Coloured: the same under a null, where no context is at work: its mean over frames "
        f"({listed}), and the band in which one frame's lies. p: of coefficient minus null, not adjusted, from "
        f"{int(shown['draws'].max()):,} draws of the documents, the same ones for both."
    ]


def _description(marks: pd.DataFrame, term: str, hook: str, labels: list[str]) -> str:
    sentences = [f"Coefficients of {term} for {hook} by relative depth, against nulls."]
    for (model, null), rows in marks.groupby(["model", "null"], sort=False, observed=True):
        sentences.append(
            f"{model}, {null}: mean beta {rows['estimate'].mean():.3f}, null {rows['null_estimate'].mean():.3f}, "
            f"excess with {labels[0]} in {int((rows['judged'] == labels[0]).sum())} of {count(len(rows), 'layer')}."
        )
    return " ".join(sentences)
