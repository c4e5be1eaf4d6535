"""The specification curve: one term's coefficients under several reasonable regressions, side by side."""

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.depth import BETA, between, estimate_layers, tooltips, value_scale
from mechreg.charts.rows import (
    count,
    distinct,
    few,
    frame_of,
    names_of,
    one_value,
    require_one_row,
    rows_of_hook,
    sample_size,
)
from mechreg.charts.theme import DEPTH_LEGEND, DEPTH_SCALE, INK, WIDTH, figure_title, panel_title
from mechreg.outside import for_vega
from mechreg.schema import InputError, did_you_mean

_SPEC_NUMBERS = ("estimate", "conf_low", "conf_high", "r_squared", "held_out_r_squared")


def plot_specifications(
    table: Any,
    *,
    hook: str | None = None,
    term: str = "lag1",
    specifications: str | Sequence[str] | None = None,
) -> ChartType:
    """Return the specification curve of one term: its profile over depth under each specification, side by side.

    Above, the coefficient of every layer with its interval, layers from left to right within a specification, and
    behind each of them the baseline's in grey; below, R2 of the rows fitted and of documents left out.

    Parameters
    ----------
    table : pandas.DataFrame
        What `specification_curve` gives, or such tables of several models one below the other.
    hook : str, optional
        Which hook point, where the frame has several.
    term : str
    specifications : sequence of str, optional
        Those to show, in that order; by default all. The first is the baseline.

    Returns
    -------
    Altair chart
        With a title, a caption and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column, term or specification, several hooks and none chosen, more than six models, two rows for
        one coefficient.
    NumericalError
        A number that is NaN or infinite.

    Examples
    --------
    >>> row = {"specification": "baseline", "model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "term": "lag1",
    ...        "estimate": 0.3, "conf_low": 0.2, "conf_high": 0.4, "r_squared": 0.2, "held_out_r_squared": 0.1,
    ...        "n": 91, "n_docs": 9}
    >>> plot_specifications(pd.DataFrame([row])).to_dict()["title"]["text"]
    'lag1 of attn_out under 1 specification'
    """
    who = "plot_specifications"
    table = frame_of(table, "table", who=who)
    shown, hook = rows_of_hook(table, hook, ("specification", "term", *_SPEC_NUMBERS, "n", "n_docs"), who=who)
    shown, _ = one_value(shown, "term", term, who=who)
    have = distinct(shown["specification"])
    names = have if specifications is None else names_of(specifications, name="specifications")
    for name in names:
        if name not in have:
            raise InputError(
                f"{who} has no rows of the specification {name!r}; the table has {have}.{did_you_mean(name, have)}"
            )
    shown = shown[shown["specification"].isin(names)]
    models = few(shown["model"], who=who)
    require_one_row(shown, ("model", "layer", "specification"), _SPEC_NUMBERS, who=who)
    marks = _placed(shown, names)
    betas = value_scale(marks[["conf_low", "conf_high"]], cut_at_zero=True)
    fits = value_scale(marks[["r_squared", "held_out_r_squared"]], cut_at_zero=True)
    rows = []
    for model in models:
        of_model = marks[marks["model"] == model]
        rows.append(
            alt.vconcat(
                _estimates(of_model, names, term, betas, 200 if len(models) == 1 else 130),
                _fits(of_model, names, fits, lowest=model == models[-1]),
                spacing=6,
                title=panel_title(model, sample_size(shown[shown["model"] == model]), width=WIDTH),
            )
        )
    under = count(len(names), "specification")
    return alt.vconcat(
        *rows,
        spacing=16,
        title=figure_title(f"{term} of {hook} under {under}", _caption(names)),
        description=_description(marks, names, term, hook),
    ).resolve_scale(color="shared", shape="shared")


def _placed(shown: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return a row a mark: its specification's place plus its depth, and the baseline's coefficient."""
    place = {name: at for at, name in enumerate(names)}
    keep = shown[["model", "layer", "depth", "specification", *_SPEC_NUMBERS]]
    baseline = keep.loc[keep["specification"] == names[0], ["model", "layer", "estimate"]]
    joined = keep.merge(baseline.rename(columns={"estimate": "baseline"}), on=["model", "layer"], how="left")
    return joined.assign(x=joined["specification"].map(place).astype(float) + 0.1 + 0.8 * joined["depth"])


def _specification_axis(names: list[str], *, labels: bool) -> alt.X:
    # Words below each other, so that no label is wider than its column; JSON is an expression in Vega's language.
    lines = json.dumps(for_vega([name.replace("_", " ").split(" ") for name in names]))
    return alt.X(
        "x:Q",
        scale=alt.Scale(domain=[0, len(names)], nice=False, padding=0),
        axis=alt.Axis(
            values=[at + 0.5 for at in range(len(names))],
            labelExpr=f"{lines}[floor(datum.value)]",
            labels=labels,
            grid=False,
            ticks=False,
            title=None,
            labelFontSize=10 if len(names) <= 6 else 9,
        ),
    )


def _separators(names: list[str]) -> alt.Chart:
    edges = alt.Data(values=[{"edge": at} for at in range(1, len(names))])
    return alt.Chart(edges).mark_rule(color="#cccccc").encode(x=alt.X("edge:Q"))


def _estimates(marks: pd.DataFrame, names: list[str], term: str, scale: alt.Scale, height: int) -> ChartType:
    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=f"beta of {term}", scale=scale)

    base = alt.Chart(marks).encode(x=_specification_axis(names, labels=False), y=y("estimate"))
    color = alt.Color("depth:Q", scale=DEPTH_SCALE, legend=DEPTH_LEGEND)
    shown = tooltips("model:N", "specification:N", "layer:Q", *BETA, ("baseline:Q", "beta, baseline", ".4f"))
    dense = len(marks) > 150
    baseline = base.mark_line(color="#999999", strokeWidth=2.5, opacity=0.6).encode(
        y=y("baseline"), detail=alt.Detail("specification:N")
    )
    bars = between(base, y).mark_bar(orient="vertical", size=1 if dense else 1.6).encode(color=color)
    points = base.mark_point(filled=True, size=12 if dense else 34, opacity=1)
    return alt.layer(
        *estimate_layers(
            base,
            y,
            scale=scale,
            behind=[_separators(names), baseline, bars],
            points=[points.encode(color=color, tooltip=shown)],
        )
    ).properties(width=WIDTH, height=height)


def _fits(marks: pd.DataFrame, names: list[str], scale: alt.Scale, *, lowest: bool) -> ChartType:
    kinds = {"r_squared": "of the rows fitted", "held_out_r_squared": "of documents left out"}
    long = marks.melt(
        ["model", "specification", "layer", "depth", "x"], list(kinds), var_name="kind", value_name="value"
    ).assign(kind=lambda frame: frame["kind"].map(kinds))
    look = alt.Legend(
        title="R²",
        orient="bottom",
        direction="horizontal",
        symbolSize=70,
        symbolStrokeColor=INK,
        symbolStrokeWidth=1.3,
    )
    shape = alt.Shape(
        "kind:N", scale=alt.Scale(domain=list(kinds.values()), range=["stroke", "circle"]), legend=look
    )
    tooltip = tooltips(
        *("model:N", "specification:N", "layer:Q", ("kind:N", "R²", ""), ("value:Q", "value", ".4f"))
    )
    points = alt.Chart(long).mark_point(
        filled=False, stroke=INK, size=14 if len(marks) > 150 else 50, strokeWidth=1.2, opacity=1
    )
    x, y = _specification_axis(names, labels=lowest), alt.Y("value:Q", title="R²", scale=scale)
    marked = points.encode(x=x, y=y, shape=shape, tooltip=tooltip)
    return alt.layer(_separators(names), marked).properties(width=WIDTH, height=80)


def _caption(names: list[str]) -> list[str]:
    within = [name.replace("_", " ") for name in names if name.endswith("_effects")]
    note = f" R² of {' and '.join(within)} is of what these leave." if within else ""
    return [
        "Layers from left to right in every column; bars: confidence intervals clustered by document; grey: the "
        f"{names[0].replace('_', ' ')}'s coefficients.{note}"
    ]


def _description(marks: pd.DataFrame, names: list[str], term: str, hook: str) -> str:
    sentences = [f"Coefficients of {term} for {hook} by layer under {count(len(names), 'specification')}."]
    for (model, name), rows in marks.groupby(["model", "specification"], sort=False, observed=True):
        sentences.append(
            f"{model}, {name}: beta {rows['estimate'].min():.3f} to {rows['estimate'].max():.3f}, mean held-out R² "
            f"{rows['held_out_r_squared'].mean():.3f}."
        )
    return " ".join(sentences)
