"""Norms and coefficients by group: parts of speech, sources, genres."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.rows import count, distinct, few_models, frame_of, of_term, one_hook, one_name
from mechreg.charts.theme import (
    DEPTH_LEGEND,
    DEPTH_SCALE,
    INK,
    OKABE_ITO,
    PALE_INK,
    WIDTH,
    figure_title,
    panel_title,
)
from mechreg.schema import InputError, NumericalError, require

MAX_GROUPS = 20  # more rows or panels than that are a poster
_COLUMNS = 4
_IN_WORDS = {"pos": "part of speech"}
_CROWDED = 12  # layers of a group; the bars of more hide each other
_CROWDED_PANEL = 100  # marks in a panel of coefficients; likewise
_UNSEEN = "intervals, which would hide each other, are in the frame"


def plot_norms_by(table: pd.DataFrame, *, by: str = "pos", hook: str | None = None) -> ChartType:
    """Return the figure of log norms by group: each group's mean in every layer, against the layer's mean.

    A row is a group, with its tokens counted; a dot is a layer, shaded by depth, at the group's mean log norm less
    that of all groups in this layer; bars are intervals of the group's mean. Models are panels with the same axes.

    Parameters
    ----------
    table : pandas.DataFrame
        What `group_norms` gives, of all groups.
    by : str
        The column of groups.
    hook : str, optional
        Which hook point, where the table has several.

    Returns
    -------
    Altair chart
        With a title, a caption and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column, several hooks and none chosen, more than six models or twenty groups, two rows for one mean.
    NumericalError
        A mean that is NaN or infinite.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "n": 9, "n_docs": 2, "conf_low": 0.5,
    ...        "conf_high": 1.5}
    >>> table = pd.DataFrame([{**row, "pos": "NOUN", "estimate": 1.0}, {**row, "pos": "VERB", "estimate": 0.9}])
    >>> plot_norms_by(table).to_dict()["title"]["text"]
    'Log norms of attn_out by part of speech'
    """
    needed = ("model", "hook", "layer", "depth", "n", "n_docs", "estimate", "conf_low", "conf_high")
    require(table, (one_name(by, name="by"), *needed), who="plot_norms_by")
    shown, hook = one_hook(table, hook, who="plot_norms_by")
    models = few_models(shown, who="plot_norms_by")
    _require_one_row(shown, by, ["estimate"], who="plot_norms_by")
    shown = shown.assign(group=shown[by].astype("str"))
    total = shown.assign(sum=shown["estimate"] * shown["n"]).groupby(["model", "layer"], observed=True)
    mean = total["sum"].transform("sum") / total["n"].transform("sum")
    marks = shown.assign(
        deviation=shown["estimate"] - mean, low=shown["conf_low"] - mean, high=shown["conf_high"] - mean
    )
    order = list(marks.groupby("group")["deviation"].mean().sort_values(ascending=False).index)
    low, high = min(marks["deviation"].min(), 0.0), max(marks["deviation"].max(), 0.0)
    room = 0.2 * (high - low)  # a group of a dozen tokens has bars many times the others' means
    x = alt.Scale(domain=[_down(low - room), _up(high + room)], nice=False)
    n_layers = marks.groupby("model", observed=True)["layer"].nunique()
    columns = min(len(models), 3 if n_layers.max() <= 12 else 2)
    width = (WIDTH - 20 * (columns - 1)) // columns
    crowded = bool(n_layers.max() > _CROWDED)
    # Models that read the same tokens have the same groups in the same places: named once, panels have room.
    alike = marks.groupby(["model", "group"], observed=True)["n"].max().groupby("group").nunique().max() == 1
    alike &= marks.groupby("group")["model"].nunique().min() == len(models)
    panels = []
    for at, model in enumerate(models):
        part = marks[marks["model"] == model]
        counts = part.groupby("group")["n"].max()
        labels = {group: f"{group} {counts.get(group, 0):,}" for group in order}
        drawn = part[
            ["layer", "depth", "group", "n", "n_docs", "deviation", "estimate", "low", "high"]
        ].assign(label=part["group"].map(labels))
        panels.append(
            _norm_rows(drawn, list(labels.values()), x, named=not alike or at % columns == 0).properties(
                width=width,
                height=max(120, (34 if crowded else 22) * len(order)),
                title=panel_title(
                    model,
                    f"n = {counts.sum():,}; at most {count(int(part['n_docs'].max()), 'document')} a group",
                    width=width,
                ),
            )
        )
    bars = "bars: intervals of the group's mean, clustered by document, cut at the panel's edge"
    caption = (
        f"Dots: a group's mean log norm in a layer, less the layer's mean over all groups; "
        f"{_UNSEEN if crowded else bars}. Numbers beside the groups: tokens."
    )
    return alt.concat(
        *panels,
        columns=columns,
        spacing=20,
        title=figure_title(f"Log norms of {hook} by {_IN_WORDS.get(by, by)}", [caption]),
        description=_norms_in_words(marks, order, by, hook),
    ).resolve_scale(color="shared", stroke="independent", y="independent")


def plot_betas_by(
    coefficients: Any, *, by: str = "pos", term: str = "lag1", hook: str | None = None
) -> ChartType:
    """Return the figure of one term's coefficients by depth, a panel a group and a line a model.

    Panels stand in the order of their tokens and have the same axes; bars are the frame's confidence intervals.

    Parameters
    ----------
    coefficients : pandas.DataFrame, or fits
        What ``fit_lagged(..., by=...)`` gives, or its coefficients.
    by : str
        The column of groups.
    term : str
    hook : str, optional
        Which hook point, where the frame has several.

    Returns
    -------
    Altair chart
        With a title, a caption and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column or term, several hooks and none chosen, more than six models or twenty groups, two rows for
        one coefficient.
    NumericalError
        An estimate or interval that is NaN or infinite.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "pos": "NOUN", "depth": 0.5, "term": "lag1",
    ...        "estimate": 0.3, "conf_low": 0.1, "conf_high": 0.5, "n": 91, "n_docs": 9, "cov_type": "crv3"}
    >>> plot_betas_by(pd.DataFrame([row])).to_dict()["title"]["text"]
    'lag1 of attn_out by part of speech and depth'
    """
    coefficients = frame_of(coefficients, "coefficients", who="plot_betas_by")
    needed = (
        one_name(by, name="by"),
        "model",
        "hook",
        "layer",
        "depth",
        "term",
        "estimate",
        "conf_low",
        "conf_high",
        "n",
        "n_docs",
    )
    require(coefficients, (*needed, "cov_type"), who="plot_betas_by")
    shown, hook = one_hook(coefficients, hook, who="plot_betas_by")
    shown = of_term(shown, term, who="plot_betas_by")
    models = few_models(shown, who="plot_betas_by")
    _require_one_row(shown, by, ["estimate", "conf_low", "conf_high"], who="plot_betas_by")
    marks = shown[["model", "layer", "depth", "estimate", "conf_low", "conf_high", "n", "n_docs"]].assign(
        group=shown[by].astype("str")
    )
    order = list(marks.groupby("group")["n"].max().sort_values(ascending=False).index)
    low, high = min(marks["conf_low"].min(), 0.0), max(marks["conf_high"].max(), 0.0)
    y = alt.Scale(domain=[_down(low), _above_ticks(_down(low), _up(high))], nice=False, zero=False)
    columns = -(-len(order) // -(-len(order) // _COLUMNS))  # rows of like lengths: five are three and two
    width = (WIDTH - 20 * (columns - 1)) // columns
    panels = []
    for at, group in enumerate(order):
        part = marks[marks["group"] == group]
        n, docs = int(part["n"].max()), int(part["n_docs"].max())
        panels.append(
            _beta_panel(
                part, models, term, y, leftmost=at % columns == 0, lowest=at + columns >= len(order)
            ).properties(
                width=width,
                height=110,
                title=panel_title(group, f"n = {n:,}, {count(docs, 'document')}", width=width),
            )
        )
    kinds = ", ".join(distinct(shown["cov_type"]))
    crowded = marks.groupby("group").size().max() > _CROWDED_PANEL
    bars = _UNSEEN.capitalize() if crowded else "Bars: confidence intervals"
    return alt.concat(
        *panels,
        columns=columns,
        bounds="flush",
        spacing={"row": 66, "column": 20},  # type: ignore[arg-type]
        title=figure_title(
            f"{term} of {hook} by {_IN_WORDS.get(by, by)} and depth",
            [f"{bars} (cov_type {kinds}). n: tokens a layer, at most."],
        ),
        description=_betas_in_words(marks, order, term, by, hook),
    ).resolve_scale(color="shared")


def _require_one_row(shown: pd.DataFrame, by: str, numbers: list[str], *, who: str) -> None:
    if shown[by].isna().any():
        raise InputError(f"{who} needs a value of {by!r} in every row; some are missing.")
    if shown[by].nunique() > MAX_GROUPS:
        raise InputError(
            f"{who} shows at most {MAX_GROUPS} groups in one figure; {by!r} has {shown[by].nunique()}. Choose some."
        )
    twice = shown.duplicated(["model", "layer", by])
    if twice.any():
        row = shown[twice].iloc[0]
        raise InputError(
            f"{who} needs one row for each {by} in a layer; there are two for model {row['model']}, layer "
            f"{row['layer']}, {by} {row[by]}. Choose one head, or one value of the other columns."
        )
    if not np.isfinite(shown[numbers].to_numpy("float64", na_value=np.nan)).all():
        raise NumericalError(f"{who} needs finite numbers as {', '.join(numbers)}; some are not.")


def _norm_rows(drawn: pd.DataFrame, labels: list[str], x: alt.Scale, *, named: bool) -> ChartType:
    """Return one model's rows: the layers of a group below each other within it, first layer on top."""
    layers = sorted(drawn["layer"].unique())
    place = {
        layer: 0.0 if len(layers) == 1 else at / (len(layers) - 1) - 0.5 for at, layer in enumerate(layers)
    }
    drawn = drawn.assign(offset=drawn["layer"].map(place).astype(float))
    axis = alt.Axis(grid=True, ticks=False, domain=False, labels=named)
    base = alt.Chart(drawn).encode(
        y=alt.Y("label:N", sort=labels, title=None, axis=axis),
        yOffset=alt.YOffset("offset:Q", scale=alt.Scale(domain=[-0.8, 0.8])),
    )
    tooltip = [
        alt.Tooltip("label:N", title="group"),
        alt.Tooltip("layer:Q"),
        alt.Tooltip("estimate:Q", title="mean log norm", format=".3f"),
        alt.Tooltip("deviation:Q", title="less the layer's", format="+.3f"),
        alt.Tooltip("n:Q", format=","),
        alt.Tooltip("n_docs:Q", title="documents"),
    ]
    dots = base.encode(
        x=alt.X("deviation:Q", scale=x, title="mean log norm less the layer's", axis=alt.Axis(tickCount=5)),
        color=alt.Color("depth:Q", scale=DEPTH_SCALE, legend=DEPTH_LEGEND),
        tooltip=tooltip,
    )
    # Its own channel: Vega has no gradient as the legend of dots and lines together.
    shade = alt.Stroke("depth:Q", scale=DEPTH_SCALE, legend=None)
    bars = base.mark_rule(strokeWidth=1.2, opacity=0.7, clip=True).encode(
        x=alt.X("low:Q", scale=x), x2="high", stroke=shade
    )
    return alt.layer(
        alt.Chart(alt.Data(values=[{}]))
        .mark_rule(color=PALE_INK, strokeDash=[4, 3])
        .encode(x=alt.datum(0, type="quantitative", scale=x)),
        *([] if len(layers) > _CROWDED else [bars]),
        dots.mark_point(filled=True, size=26 if len(layers) <= _CROWDED else 12, opacity=1),
    )


def _beta_panel(
    part: pd.DataFrame, models: list[str], term: str, y: alt.Scale, *, leftmost: bool, lowest: bool
) -> ChartType:
    """Return one group's panel."""
    axis = alt.Axis(
        values=[0, 0.5, 1],
        format=".2~f",
        grid=False,
        labelFlush=False,
        title="relative depth" if lowest else None,
    )
    colors = [INK] if len(models) == 1 else list(OKABE_ITO[: len(models)])
    base = alt.Chart(part).encode(
        x=alt.X("depth:Q", scale=alt.Scale(domain=[0, 1], nice=False), axis=axis),
        color=alt.Color(
            "model:N",
            sort=models,
            scale=alt.Scale(domain=models, range=colors),
            legend=alt.Legend(title="model", symbolType="circle", symbolOpacity=1, symbolSize=70),
        ),
    )
    axis_y = alt.Axis(title=f"beta of {term}" if leftmost else None, labels=leftmost, tickCount=5)
    at = alt.Y("estimate:Q", scale=y, axis=axis_y)
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("group:N"),
        alt.Tooltip("layer:Q"),
        alt.Tooltip("estimate:Q", title="beta", format=".4f"),
        alt.Tooltip("conf_low:Q", title="interval from", format=".4f"),
        alt.Tooltip("conf_high:Q", title="to", format=".4f"),
        alt.Tooltip("n:Q", format=","),
    ]
    bars = base.mark_rule(strokeWidth=1.2, opacity=0.7).encode(
        y=alt.Y("conf_low:Q", scale=y, axis=axis_y), y2="conf_high"
    )
    return alt.layer(
        alt.Chart(alt.Data(values=[{}])).mark_rule(color=PALE_INK, strokeDash=[4, 3]).encode(y=alt.datum(0)),
        base.mark_line(strokeWidth=1.2, opacity=0.5).encode(y=at),
        *([] if len(part) > _CROWDED_PANEL else [bars]),
        base.mark_point(filled=True, size=8 if len(part) > _CROWDED_PANEL else 22, opacity=1).encode(
            y=at, tooltip=tooltip
        ),
    )


def _down(value: float) -> float:
    return round(float(np.floor(20 * value) / 20), 2)


def _up(value: float) -> float:
    return round(float(np.ceil(20 * value) / 20), 2)


def _above_ticks(low: float, high: float) -> float:
    """Return an upper end that is far enough above the last tick: its label would push up the row's first heading."""
    rough = (high - low) / 5  # Vega's steps for five ticks are 1, 2 or 5 times a power of ten
    power = 10 ** np.floor(np.log10(rough))
    step = power * float(
        np.select([rough / power >= edge for edge in (50**0.5, 10**0.5, 2**0.5)], [10, 5, 2], 1)
    )
    room = 0.07 * (high - low)
    return round(max(high, np.floor(high / step + 1e-9) * step + room), 4)


def _norms_in_words(marks: pd.DataFrame, order: list[str], by: str, hook: str) -> str:
    sentences = [f"Mean log norms of {hook} by {_IN_WORDS.get(by, by)}, less each layer's mean."]
    for model, part in marks.groupby("model", sort=False, observed=True):
        mean = part.groupby("group")["deviation"].mean()
        highest, lowest = str(mean.idxmax()), str(mean.idxmin())
        sentences.append(
            f"{model}: over layers highest for {highest} ({mean[highest]:+.3f}), lowest for {lowest} "
            f"({mean[lowest]:+.3f}), of {count(len(mean), 'group')}."
        )
    return " ".join(sentences)


def _betas_in_words(marks: pd.DataFrame, order: list[str], term: str, by: str, hook: str) -> str:
    sentences = [
        f"Coefficients of {term} for {hook} by relative depth, a panel for each {_IN_WORDS.get(by, by)}."
    ]
    for group in order:
        part = marks[marks["group"] == group]
        told = ", ".join(
            f"{model} {rows['estimate'].mean():.2f}"
            for model, rows in part.groupby("model", sort=False, observed=True)
        )
        sentences.append(f"{group} (n = {int(part['n'].max()):,}): mean over layers {told}.")
    return " ".join(sentences)
