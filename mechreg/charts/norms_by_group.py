"""Log norms of groups of tokens: each group's mean in every layer, against the layer's mean."""

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.depth import tooltips
from mechreg.charts.rows import count, few, one_name, require_one_row, rows_of_hook
from mechreg.charts.theme import DEPTH_LEGEND, DEPTH_SCALE, PALE_INK, WIDTH, figure_title, panel_title
from mechreg.schema import InputError

MAX_GROUPS = 20  # more rows or panels than that are a poster
BY_IN_WORDS = {"pos": "part of speech"}
HIDDEN_BARS = "intervals, which would hide each other, are in the frame"
_CROWDED = 12  # layers of a group; the bars of more hide each other
_COLUMNS = ("estimate", "conf_low", "conf_high", "n", "n_docs")


def norms_by_group(table: pd.DataFrame, by: str, hook: str | None) -> ChartType:
    """Return the figure of `plot_norms` with ``by``, of a table of `group_norms`."""
    who = "plot_norms"
    if "norm" in table and "estimate" not in table:
        raise InputError(f"{who} with by={by!r} needs the table of group_norms(norms, by={by!r}).")
    shown, hook = rows_of_hook(table, hook, (one_name(by, name="by"), *_COLUMNS), who=who)
    models = few(shown["model"], who=who)
    shown = shown.assign(group=groups_of(shown, by, who=who))
    require_one_row(shown, ("model", "layer", by), ["estimate"], who=who)
    total = shown.assign(sum=shown["estimate"] * shown["n"]).groupby(["model", "layer"], observed=True)
    mean = total["sum"].transform("sum") / total["n"].transform("sum")
    marks = shown.assign(
        deviation=shown["estimate"] - mean, low=shown["conf_low"] - mean, high=shown["conf_high"] - mean
    )
    order = list(marks.groupby("group")["deviation"].mean().sort_values(ascending=False).index)
    low, high = min(marks["deviation"].min(), 0.0), max(marks["deviation"].max(), 0.0)
    room = 0.2 * (high - low)  # a group of a dozen tokens has bars many times the others' means
    x = alt.Scale(domain=outwards(low - room, high + room), nice=False)
    n_layers = marks.groupby("model", observed=True)["layer"].nunique()
    columns = min(len(models), 3 if n_layers.max() <= 12 else 2)
    width = (WIDTH - 20 * (columns - 1)) // columns
    crowded = bool(n_layers.max() > _CROWDED)
    alike = _have_the_same_groups(marks, len(models))  # then they are named once, and panels have room
    panels = []
    for at, model in enumerate(models):
        part = marks[marks["model"] == model]
        counts = part.groupby("group")["n"].max()
        docs = count(int(part["n_docs"].max()), "document")
        panel = _panel(part, counts.reindex(order, fill_value=0), x, named=not alike or at % columns == 0)
        panels.append(
            panel.properties(
                width=width,
                height=max(120, (34 if crowded else 22) * len(order)),
                title=panel_title(model, f"n = {counts.sum():,}; at most {docs} a group", width=width),
            )
        )
    bars = "bars: intervals of the group's mean, clustered by document, cut at the panel's edge"
    caption = (
        f"Dots: a group's mean log norm in a layer, less the layer's mean over all groups; "
        f"{HIDDEN_BARS if crowded else bars}. Numbers beside the groups: tokens."
    )
    return alt.concat(
        *panels,
        columns=columns,
        spacing=20,
        title=figure_title(f"Log norms of {hook} by {BY_IN_WORDS.get(by, by)}", [caption]),
        description=_description(marks, by, hook),
    ).resolve_scale(color="shared", stroke="independent", y="independent")


def groups_of(rows: pd.DataFrame, by: str, *, who: str) -> pd.Series:
    """Return each row's group as text, of at most twenty groups."""
    if rows[by].isna().any():
        raise InputError(f"{who} needs a value of {by!r} in every row; some are missing.")
    few(rows[by], "group", most=MAX_GROUPS, who=who)
    return rows[by].astype("str")


def outwards(low: float, high: float) -> list[float]:
    """Return the ends of an axis at twentieths, with 0 and both numbers on it.

    Examples
    --------
    >>> outwards(0.02, 0.31)
    [0.0, 0.35]
    """
    low, high = np.floor(20 * min(low, 0.0)) / 20, np.ceil(20 * max(high, 0.0)) / 20
    return [round(float(low), 2), round(float(high), 2)]


def _have_the_same_groups(marks: pd.DataFrame, n_models: int) -> bool:
    """Return whether all models read the same tokens, and so have the same groups in the same places."""
    sizes = marks.groupby(["model", "group"], observed=True)["n"].max().groupby("group")
    return bool(sizes.nunique().max() == 1 and sizes.size().min() == n_models)


def _panel(part: pd.DataFrame, counts: pd.Series, x: alt.Scale, *, named: bool) -> ChartType:
    """Return one model's rows: the layers of a group below each other within it, first layer on top."""
    labels = {group: f"{group} {n:,}" for group, n in counts.items()}
    layers = sorted(part["layer"].unique())
    place = dict(zip(layers, np.linspace(-0.5, 0.5, len(layers)) if len(layers) > 1 else [0.0], strict=True))
    keep = ["layer", "depth", "group", "n", "n_docs", "deviation", "estimate", "low", "high"]
    drawn = part[keep].assign(label=part["group"].map(labels), offset=part["layer"].map(place).astype(float))
    axis = alt.Axis(grid=True, ticks=False, domain=False, labels=named)
    base = alt.Chart(drawn).encode(
        y=alt.Y("label:N", sort=list(labels.values()), title=None, axis=axis),
        yOffset=alt.YOffset("offset:Q", scale=alt.Scale(domain=[-0.8, 0.8])),
    )
    dots = base.encode(
        x=alt.X("deviation:Q", scale=x, title="mean log norm less the layer's", axis=alt.Axis(tickCount=5)),
        color=alt.Color("depth:Q", scale=DEPTH_SCALE, legend=DEPTH_LEGEND),
        tooltip=tooltips(
            *(("label:N", "group", ""), "layer:Q", ("estimate:Q", "mean log norm", ".3f")),
            *(("deviation:Q", "less the layer's", "+.3f"), ("n:Q", "", ","), ("n_docs:Q", "documents", "")),
        ),
    )
    # Its own channel: Vega has no gradient as the legend of dots and lines together.
    shade = alt.Stroke("depth:Q", scale=DEPTH_SCALE, legend=None)
    bars = base.mark_rule(strokeWidth=1.2, opacity=0.7, clip=True).encode(
        x=alt.X("low:Q", scale=x), x2="high", stroke=shade
    )
    zero = alt.Chart(alt.Data(values=[{}])).mark_rule(color=PALE_INK, strokeDash=[4, 3])
    return alt.layer(
        zero.encode(x=alt.datum(0, type="quantitative", scale=x)),
        *([] if len(layers) > _CROWDED else [bars]),
        dots.mark_point(filled=True, size=26 if len(layers) <= _CROWDED else 12, opacity=1),
    )


def _description(marks: pd.DataFrame, by: str, hook: str) -> str:
    sentences = [f"Mean log norms of {hook} by {BY_IN_WORDS.get(by, by)}, less each layer's mean."]
    for model, part in marks.groupby("model", sort=False, observed=True):
        mean = part.groupby("group")["deviation"].mean()
        highest, lowest = str(mean.idxmax()), str(mean.idxmin())
        sentences.append(
            f"{model}: over layers highest for {highest} ({mean[highest]:+.3f}), lowest for {lowest} "
            f"({mean[lowest]:+.3f}), of {count(len(mean), 'group')}."
        )
    return " ".join(sentences)
