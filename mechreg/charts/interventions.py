"""Interventions: the effects of an edit by dose, one line an edited layer."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.depth import tooltips
from mechreg.charts.rows import (
    count,
    distinct,
    few,
    frame_of,
    names_of,
    one_value,
    require_one_row,
    rows_of_hook,
)
from mechreg.charts.theme import DEPTH_LEGEND, DEPTH_SCALE, INK, PALE_INK, WIDTH, figure_title, panel_title
from mechreg.schema import InputError, require

_EFFECTS = (
    *("edit", "dose", "control", "measure", "measured_layer", "offset"),
    *("estimate", "conf_low", "conf_high", "n", "n_docs"),
)
_MEASURES = {
    "loss": ["change in", "next-token loss (nats)"],
    "kl": ["KL from the clean", "distribution (nats)"],
    "top1": ["share of", "top-1 flips"],
    "norms": ["change in log norm,", "last layer"],
}
_DOSES = {
    "scale": ("factor", 1.0, "scaled"),
    "rotate": ("angle (degrees)", 0.0, "rotated"),
    "surprise": ("residual sd from the predicted norm", None, "set to predicted norms"),
    "set_norm": ("dose", None, "set to norms"),
}
_ITSELF = "the edit"
_TICKED = 7  # doses; more do not have a tick each
_CROWDED = 12  # layers; the bars of more hide each other


def plot_dose_response(
    effects: Any,
    *,
    hook: str | None = None,
    edit: str | None = None,
    control: str | None = None,
    measures: str | Sequence[str] | None = None,
) -> ChartType:
    """Return the figure of an edit's effects by dose: a panel a measure, a line an edited layer.

    Bars are the confidence intervals of the frame. A control's lines are dashed. Effects are those on all
    tokens that an edit can reach; of norms, those in the last layer.

    Parameters
    ----------
    effects : pandas.DataFrame
        What `intervene` gives for a sequence of doses.
    hook, edit : str, optional
        Which, where the frame has several.
    control : str, optional
        Which control stands beside the edit; by default the frame's only one.
    measures : sequence of "loss", "kl", "top1", "norms", optional
        By default all that the frame has.

    Returns
    -------
    Altair chart
        With a title, a caption and a description in words. Models are rows.

    Raises
    ------
    SchemaError, InputError
        A missing column, several hooks, edits or controls and none chosen, fewer than two doses, two rows for one
        mark, or more than six models.
    NumericalError
        An estimate that is NaN or infinite.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "edit": "scale", "control": "none",
    ...        "measure": "kl", "measured_layer": -1, "offset": -1, "conf_low": 0.0, "conf_high": 0.2, "n": 90,
    ...        "n_docs": 3}
    >>> frame = pd.DataFrame([row | {"dose": 0.0, "estimate": 0.1}, row | {"dose": 1.0, "estimate": 0.0}])
    >>> plot_dose_response(frame).to_dict()["title"]["text"]
    'attn_out scaled: effects by dose and layer'
    """
    who = "plot_dose_response"
    effects = frame_of(effects, "effects", who=who)
    require(effects, ("layer",), who=who)
    effects = effects[effects["layer"] >= 0].reset_index(drop=True)  # all layers together have no depth
    shown, hook = rows_of_hook(effects, hook, _EFFECTS, who=who)
    shown, edit = one_value(shown, "edit", edit, who=who)
    shown = shown[shown["offset"] == -1]
    controls = shown[shown["control"] != "none"]
    if control is not None or len(controls):
        _, control = one_value(controls, "control", control, who=who)
    shown = shown[shown["control"].isin(["none", control])]
    models = few(shown["model"], who=who)
    measures = _measures(shown, measures)
    marks = _dose_marks(shown, measures, control)
    if marks["dose"].nunique() < 2:
        raise InputError(
            f"{who} needs at least two doses of one edit, for example Scale(0.5) and Scale(2.0)."
        )
    require_one_row(marks, ("model", "layer", "dose", "measure", "kind"), ["estimate"], who=who)
    columns = 2 if len(models) == 1 else len(measures)
    columns = min(columns, len(measures))
    width = (WIDTH - 60 * (columns - 1)) // columns
    scales = {name: _scale(marks[marks["measure"] == name]) for name in measures}
    panels = []
    for model in models:
        of_model = marks[marks["model"] == model]
        for name in measures:
            panel = _dose_panel(of_model[of_model["measure"] == name], name, edit, scales[name])
            panel = panel.properties(width=width, height=190 if len(models) == 1 else 130)
            if name == measures[0]:
                panel = panel.properties(title=panel_title(model, _sample_size(of_model), width=width))
            panels.append(panel)
    done = _DOSES.get(edit, ("dose", None, edit))[2]
    return alt.concat(
        *panels,
        columns=columns,
        spacing=24,
        title=figure_title(f"{hook} {done}: effects by dose and layer", _caption(marks)),
        description=_description(marks, hook, done),
    ).resolve_scale(color="shared", stroke="independent", strokeDash="shared")


def _measures(shown: pd.DataFrame, measures: Sequence[str] | None) -> list[str]:
    have = [name for name in _MEASURES if name in set(shown["measure"])]
    wanted = have if measures is None else names_of(measures, name="measures")
    for name in wanted:
        if name not in have:
            raise InputError(f"plot_dose_response has no rows of the measure {name!r}; the frame has {have}.")
    if not wanted:
        raise InputError(f"plot_dose_response draws {', '.join(_MEASURES)}; the frame has none of them.")
    return wanted


def _dose_marks(shown: pd.DataFrame, measures: list[str], control: str | None) -> pd.DataFrame:
    """Return one row a mark; of the norms those in each model's last layer."""
    last = shown.groupby("model", observed=True)["measured_layer"].transform("max")
    is_shown = shown["measure"].isin(measures) & (
        (shown["measure"] != "norms") | (shown["measured_layer"] == last)
    )
    # Layers stand side by side around their dose, so that their bars do not hide each other.
    layers = np.sort(shown["layer"].unique())
    gaps = np.diff(np.sort(shown["dose"].unique()))
    side = np.searchsorted(layers, shown["layer"]) - (len(layers) - 1) / 2
    x = shown["dose"] + side * 0.16 * (gaps.min() if len(gaps) else 1.0) / len(layers)
    keep = ["model", "layer", "depth", "dose", "measure", "estimate", "conf_low", "conf_high", "n", "n_docs"]
    names = {"none": _ITSELF, control: f"control: {str(control).replace('_', ' ')}"}
    kind = shown["control"].map(names).astype("str")
    return shown.assign(x=x, kind=kind).loc[is_shown, [*keep, "x", "kind"]]


def _scale(marks: pd.DataFrame) -> alt.Scale:
    """Return a measure's axis, the same in every model's panel; it holds 0."""
    low = min(marks[["estimate", "conf_low"]].min().min(), 0.0)
    high = max(marks[["estimate", "conf_high"]].max().max(), 0.0)
    return alt.Scale(domain=[round(float(low), 6), round(float(high), 6) or 1.0], nice=True, zero=True)


def _dose_panel(marks: pd.DataFrame, measure: str, edit: str, scale: alt.Scale) -> ChartType:
    title, neutral, _ = _DOSES.get(edit, ("dose", None, edit))
    kinds = [_ITSELF, *[kind for kind in distinct(marks["kind"]) if kind != _ITSELF]]
    crowded = marks["layer"].nunique() > _CROWDED
    doses = sorted(marks["dose"].unique().tolist())
    ticks: dict[str, Any] = {"values": doses, "format": ".3~g"} if len(doses) <= _TICKED else {}
    x = alt.X(
        "x:Q",
        title=title,
        scale=alt.Scale(zero=False, nice=False, padding=10),
        axis=alt.Axis(grid=False, **ticks),
    )
    y = alt.Y("estimate:Q", title=_MEASURES[measure], scale=scale, axis=alt.Axis(grid=False))
    # Two channels of one scale: Vega has no gradient as the legend of points and lines together.
    color = alt.Color("depth:Q", scale=DEPTH_SCALE, legend=DEPTH_LEGEND)
    stroke = alt.Stroke("depth:Q", scale=DEPTH_SCALE, legend=None)
    dash = alt.StrokeDash(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=kinds, range=[[1, 0], [4, 3]][: len(kinds)]),
        legend=alt.Legend(symbolStrokeColor=INK, symbolSize=220) if len(kinds) > 1 else None,
    )
    tooltip = tooltips(
        *("layer:Q", ("dose:Q", "", ".3~g"), ("kind:N", "run", ""), ("estimate:Q", "", ".4~g")),
        *(("conf_low:Q", "interval from", ".4~g"), ("conf_high:Q", "to", ".4~g"), ("n:Q", "tokens", ",")),
    )
    base = alt.Chart(marks).encode(x=x, y=y)
    bars = base.mark_rule(strokeWidth=1.3, opacity=0.6).encode(
        y=alt.Y("conf_low:Q", scale=scale), y2="conf_high", stroke=stroke
    )
    still = alt.Chart(alt.Data(values=[{}])).mark_rule(color=PALE_INK, strokeDash=[2, 3])
    rules = [still.encode(y=alt.datum(0))]
    if neutral is not None and marks["dose"].min() <= neutral <= marks["dose"].max():
        rules.append(still.encode(x=alt.datum(neutral)))
    return alt.layer(
        *rules,
        base.mark_line(strokeWidth=0.7 if crowded else 1.4).encode(
            stroke=stroke, strokeDash=dash, detail="layer:N"
        ),
        *([] if crowded else [bars]),
        base.transform_filter(alt.FieldEqualPredicate(field="kind", equal=_ITSELF))
        .mark_point(filled=True, size=12 if crowded else 34, opacity=1)
        .encode(color=color, tooltip=tooltip),
    )


def _sample_size(part: pd.DataFrame) -> str:
    docs = count(int(part["n_docs"].max()), "document")
    return f"{int(part['n'].max()):,} tokens, {docs}, {count(part['layer'].nunique(), 'layer')} edited one by one"


def _caption(marks: pd.DataFrame) -> list[str]:
    dashed = [kind for kind in distinct(marks["kind"]) if kind != _ITSELF]
    same = " of the same size" if "control: random direction" in dashed else ""
    crowded = marks.groupby("model", observed=True)["layer"].nunique().max() > _CROWDED
    hidden = "Intervals, which would hide each other, are in the frame."
    bars = hidden if crowded else "Bars: confidence intervals of the mean over documents."
    controls = [f"Dashed, without points: {kind.removeprefix('control: ')}{same}." for kind in dashed]
    return [" ".join([bars, *controls])]


def _description(marks: pd.DataFrame, hook: str, done: str) -> str:
    sentences = [f"Effects of {hook} {done}, by dose, a line an edited layer."]
    for (model, measure), rows in marks[marks["kind"] == _ITSELF].groupby(
        ["model", "measure"], sort=False, observed=True
    ):
        name = " ".join(_MEASURES[str(measure)])
        top = rows.iloc[int(rows["estimate"].abs().to_numpy().argmax())]
        sentences.append(
            f"{model}, {name}: largest {top['estimate']:.3g} at dose {top['dose']:g} in layer {top['layer']}."
        )
    return " ".join(sentences)
