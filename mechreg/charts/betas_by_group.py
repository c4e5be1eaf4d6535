"""One term's coefficients by depth in groups: a panel a part of speech, source or genre, and a colour a model."""

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.depth import BETA, depth_x, estimate_layers, tooltips
from mechreg.charts.norms_by_group import BY_IN_WORDS, HIDDEN_BARS, groups_of, outwards
from mechreg.charts.rows import distinct
from mechreg.charts.theme import INK, OKABE_ITO, WIDTH, figure_title, judged_marks, p_legend, panel_title

_COLUMNS = 4
_CROWDED = 100  # marks in a panel; the bars of more hide each other


def betas_by_group(
    marks: pd.DataFrame, by: str, hook: str, models: list[str], labels: list[str], notes: list[str]
) -> ChartType:
    """Return the figure of `plot_betas` with ``by``, of one term's marks."""
    marks = marks.assign(group=groups_of(marks, by, who="plot_betas"))
    term, in_words = marks["term"].iloc[0], BY_IN_WORDS.get(by, by)
    tokens = marks.groupby("group")["n"].max().sort_values(ascending=False)
    order = list(tokens.index)
    low, high = outwards(marks["conf_low"].min(), marks["conf_high"].max())
    scale = alt.Scale(domain=[low, _above_ticks(low, high)], nice=False, zero=False)
    columns = -(-len(order) // -(-len(order) // _COLUMNS))  # rows of like lengths: five are three and two
    width = (WIDTH - 20 * (columns - 1)) // columns
    panels = []
    for at, group in enumerate(order):
        part = marks[marks["group"] == group]
        docs = int(part["n_docs"].max())
        title = panel_title(
            group, f"n = {tokens[group]:,}, {docs:,} document{'s' * (docs != 1)}", width=width
        )
        panel = _panel(
            part, models, term, labels, scale, leftmost=at % columns == 0, lowest=at + columns >= len(order)
        )
        panels.append(panel.properties(width=width, height=110, title=title))
    crowded = marks.groupby("group").size().max() > _CROWDED
    bars = HIDDEN_BARS.capitalize() if crowded else "Bars: confidence intervals"
    kinds = ", ".join(distinct(marks["cov_type"]))
    return alt.concat(
        *panels,
        columns=columns,
        bounds="flush",
        spacing={"row": 66, "column": 20},  # type: ignore[arg-type]
        title=figure_title(
            f"{term} of {hook} by {in_words} and depth",
            [" ".join([f"{bars} (cov_type {kinds}). n: tokens a layer, at most.", *notes])],
        ),
        description=_description(marks, order, f"Coefficients of {term} for {hook}", in_words),
    ).resolve_scale(color="shared", shape="shared", fill="shared", stroke="shared")


def _panel(
    part: pd.DataFrame,
    models: list[str],
    term: str,
    labels: list[str],
    scale: alt.Scale,
    *,
    leftmost: bool,
    lowest: bool,
) -> ChartType:
    """Return one group's panel."""
    crowded = len(part) > _CROWDED
    axis = alt.Axis(title=f"beta of {term}" if leftmost else None, labels=leftmost, tickCount=5)
    color = alt.Color(
        "model:N",
        sort=models,
        scale=alt.Scale(domain=models, range=[INK] if len(models) == 1 else list(OKABE_ITO[: len(models)])),
        legend=alt.Legend(title="model", symbolType="circle", symbolOpacity=1, symbolSize=70),
    )
    shown = tooltips(
        *("model:N", "group:N", "layer:Q", *BETA),
        *(("p:Q", labels[0].split(" <")[0], ".2~g"), ("n:Q", "", ",")),
    )

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=scale, axis=axis)

    base = alt.Chart(part.drop(columns=["term", "cov_type"])).encode(
        x=depth_x(title="relative depth" if lowest else None, ticks=(0, 0.5, 1)), color=color
    )
    return alt.layer(
        *estimate_layers(
            base,
            y,
            line={"strokeWidth": 1.2, "opacity": 0.5},
            bars=None if crowded else {"strokeWidth": 1.2, "opacity": 0.7},
            points=judged_marks(
                base.encode(y=y("estimate"), tooltip=shown),
                labels,
                size=8 if crowded else 22,
                hollow={"filled": False},
            ),
        ),
        p_legend(labels, "significance"),
    )


def _above_ticks(low: float, high: float) -> float:
    """Return an upper end that is far enough above the last tick: its label would push up the row's first heading."""
    rough = (high - low) / 5  # Vega's steps for five ticks are 1, 2 or 5 times a power of ten
    power = 10 ** np.floor(np.log10(rough))
    step = power * float(
        np.select([rough / power >= edge for edge in (50**0.5, 10**0.5, 2**0.5)], [10, 5, 2], 1)
    )
    return round(max(high, np.floor(high / step + 1e-9) * step + 0.07 * (high - low)), 4)


def _description(marks: pd.DataFrame, order: list[str], what: str, in_words: str) -> str:
    sentences = [f"{what} by relative depth, a panel for each {in_words}."]
    for group in order:
        part = marks[marks["group"] == group]
        means = part.groupby("model", sort=False, observed=True)["estimate"].mean()
        listed = ", ".join(f"{model} {mean:.2f}" for model, mean in means.items())
        sentences.append(f"{group} (n = {int(part['n'].max()):,}): mean over layers {listed}.")
    return " ".join(sentences)
