"""The specification curve: one term's coefficients under several reasonable regressions, side by side."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import BETA, across, estimate_panel, placed, tooltips
from mechreg.charts.layout import Place, Sheet, Width, resolved, sheet
from mechreg.charts.rows import by_model, drawable, frame_of, named, one_value, rows_of_hook, sample_size
from mechreg.charts.scales import ValueScale, value_scale
from mechreg.charts.theme import INK
from mechreg.schema import require_names
from mechreg.words import count

_NUMBERS = ("estimate", "conf_low", "conf_high", "r_squared", "held_out_r_squared")
_R_SQUARED = {"r_squared": "of the rows fitted", "held_out_r_squared": "of documents left out"}
_MOST_COLUMNS = 5


def plot_specifications(
    table: Any,
    *,
    hook: str | None = None,
    term: str = "lag1",
    specifications: str | Sequence[str] | None = None,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return the specification curve of one term: its profile under each specification, side by side.

    Above, the coefficient of every layer with its interval, and behind each of them the baseline's in grey; below, R2
    of the rows fitted and of documents left out. Models are rows.

    Parameters
    ----------
    table : pandas.DataFrame
        What `specification_curve` gives, or such tables of several models one below the other.
    specifications : sequence of str, optional
        Those to show, in that order; by default all. The first is the baseline.
    term, hook, width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> row = {"specification": "baseline", "model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "term": "lag1",
    ...        "estimate": 0.3, "conf_low": 0.2, "conf_high": 0.4, "r_squared": 0.2, "held_out_r_squared": 0.1,
    ...        "n": 91, "n_docs": 9}
    >>> plot_specifications(pd.DataFrame([row])).to_dict()["title"]["text"]
    'lag1 of attn_out under 1 specification'
    """
    who, page = "plot_specifications", sheet(width, height, title)
    table = frame_of(table, "table", who=who)
    shown, hook = rows_of_hook(table, hook, ("specification", "term", *_NUMBERS, "n", "n_docs"), who=who)
    shown, _ = one_value(shown, "term", term, who=who)
    have = list(shown["specification"].unique())
    wanted = have if specifications is None else specifications
    names = require_names(wanted, have, name="specifications")
    shown = shown[shown["specification"].isin(names)]
    models = drawable(shown, ("model", "layer", "specification"), _NUMBERS[:3], who=who)
    several = len(models) > 1
    keep = shown[["model", "layer", "depth", "specification", *_NUMBERS]]
    baseline = keep.loc[keep["specification"] == names[0], ["model", "layer", "estimate"]]
    baseline = baseline.rename(columns={"estimate": "baseline"})
    marks = placed(keep.merge(baseline, on=["model", "layer"], how="left"), several=several)
    scales = [
        value_scale(marks[list(of)], name, cut_at_zero=True)
        for of, name in ((_NUMBERS[:3], f"beta of {term}"), (_NUMBERS[3:], "R²"))
    ]
    rows = []
    for model, own in by_model(marks):
        grid = page.panels(
            {name.replace("_", " "): own[own["specification"] == name] for name in names},
            lambda part, place: _panel(part, place, page, scales, several=several),
            columns=min(_MOST_COLUMNS, len(names)),
            height=130 if several else 150,
            gap=14,
        )
        grid.resolve = resolved(y="independent")
        rows.append(page.titled(grid, model, sample_size(shown[shown["model"] == model])))
    within = [name.replace("_", " ") for name in names if name.endswith("_effects")]
    note = f" R² of {' and '.join(within)} is of what these leave." if within else ""
    caption = f"Bars: confidence intervals, clustered by document. Grey: {names[0].replace('_', ' ')}.{note}"

    def sentence(part: pd.DataFrame) -> str:
        betas = f"beta {part['estimate'].min():.3f} to {part['estimate'].max():.3f}"
        fit = part["held_out_r_squared"].mean()  # a mean of documents' regressions has none
        return f"{betas}, mean held-out R² {fit:.3f}." if fit == fit else f"{betas}."

    under = f"under {count(len(names), 'specification')}"
    words = named(marks, ["model", "specification"], sentence)
    lead = f"Coefficients of {term} for {hook} by layer {under}."
    return page.figure(rows, f"{term} of {hook} {under}", [caption], [lead, *words], own=["y"])


def _panel(
    part: pd.DataFrame, place: Place, page: Sheet, scales: list[ValueScale], *, several: bool
) -> ChartType:
    """Return one specification of one model: its coefficients above its R2."""
    grey: Any = {"strokeWidth": 2.5, "opacity": 0.6}
    upper = estimate_panel(
        part,
        place._replace(lowest=False),
        several=several,
        scale=scales[0],
        bars={"conf": 1.2},
        behind=lambda base, y: [
            base.mark_line(**grey).encode(y=y("baseline"), color=alt.ColorValue("#999999"))
        ],
        tooltip=("model:N", "specification:N", "layer:Q", *BETA, ("baseline:Q", "beta, baseline", ".4f")),
    )
    keys = ["model", "specification", "layer", "depth", "x"]
    long = part.melt(keys, list(_R_SQUARED), var_name="kind", value_name="value")
    long = long.dropna(subset="value").assign(kind=long["kind"].map(_R_SQUARED))
    look: Any = {"orient": "bottom", "direction": "horizontal", "symbolStrokeColor": INK}
    kinds = alt.Scale(domain=list(_R_SQUARED.values()), range=["stroke", "circle"])
    shape = alt.Shape("kind:N", scale=kinds, legend=page.legend("R²", symbolStrokeWidth=1.3, **look))
    axis = alt.Axis(labels=place.leftmost, labelFlush=True, tickCount=2)
    y = alt.Y("value:Q", scale=scales[1], axis=axis, title=scales[1].of if place.leftmost else None)
    tooltip = tooltips("specification:N", "layer:Q", ("kind:N", "R²", ""), ("value:Q", "value", ".4f"))
    lower = (
        alt.Chart(long)
        .mark_point(filled=False, stroke=INK, size=14 if len(part) > 12 else 36, strokeWidth=1.1, opacity=1)
        .encode(across(part, place, several=several), y, shape, tooltip=tooltip)
        .properties(width=place.width, height=60)
    )
    return alt.vconcat(upper, lower, spacing=4)
