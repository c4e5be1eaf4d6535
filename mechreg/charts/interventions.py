"""Interventions: the effects of an edit by dose, one line an edited layer."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import bars_in_words, tooltips
from mechreg.charts.layout import Place, Sheet, Width, resolved, sheet
from mechreg.charts.rows import (
    by_model,
    chosen_group,
    drawable,
    frame_of,
    largest,
    named,
    one_value,
    rows_of_hook,
)
from mechreg.charts.scales import ValueScale, value_scale
from mechreg.charts.theme import DEPTH_SCALE, INK, PALE_INK
from mechreg.schema import InputError, require_names
from mechreg.words import count

_EFFECTS = (
    *("edit", "dose", "control", "measure", "measured_layer", "offset"),
    *("estimate", "conf_low", "conf_high", "n", "n_docs"),
)
_NUMBERS = ("estimate", "conf_low", "conf_high")
_MEASURES = {
    "loss": "change in next-token loss (nats)",
    "kl": "KL from the clean distribution (nats)",
    "top1": "share of top-1 flips",
    "norms": "change in log norm, last layer",
    "difference": "norm of the difference, last layer",
    "target_loss": "change in the target's loss (nats)",
    "logit_difference": "change in logit difference",
}
_OF_LAYERS = ("norms", "difference")
_DOSES = {
    "scale": ("factor", 1.0, "scaled"),
    "rotate": ("angle (degrees)", 0.0, "rotated"),
    "rotate_towards": ("angle (degrees)", 0.0, "rotated towards a direction"),
    "project": ("factor of the component", 1.0, "scaled along a direction"),
    "patch": ("share of the other document", 0.0, "patched"),
    "surprise": ("residual sd from the predicted norm", None, "set to predicted norms"),
    "set_norm": ("dose", None, "set to norms"),
}
_ITSELF, _DIRECT = "the edit", "direct effect"
_TICKED = 7  # doses; more do not have a tick each
_CROWDED = 12  # layers; the bars of more hide each other


def plot_dose_response(
    effects: Any,
    *,
    hook: str | None = None,
    edit: str | None = None,
    head: int | None = None,
    control: str | None = None,
    measures: str | Sequence[str] | None = None,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return the figure of an edit's effects by dose: a panel a measure, a line an edited layer.

    A control's lines, or the direct effect's, are dashed. Effects are those on all tokens that an edit can reach; of
    norms, those in the last layer. Models are rows.

    Parameters
    ----------
    effects : pandas.DataFrame
        What `intervene` gives for a sequence of doses.
    edit, head : optional
        Which, where the frame has several.
    control : str, optional
        Which control stands beside the edit; by default the frame's only one.
    measures : sequence of str, optional
        By default all that the frame has.
    hook, width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "edit": "scale", "control": "none",
    ...        "measure": "kl", "measured_layer": -1, "offset": -1, "conf_low": 0.0, "conf_high": 0.2, "n": 90,
    ...        "n_docs": 3}
    >>> frame = pd.DataFrame([row | {"dose": 0.0, "estimate": 0.1}, row | {"dose": 1.0, "estimate": 0.0}])
    >>> plot_dose_response(frame).to_dict()["title"]["text"]
    'attn_out scaled: effects by dose and layer'
    """
    who, page = "plot_dose_response", sheet(width, height, title)
    effects = frame_of(effects, "effects", ("layer",), who=who)
    effects = effects[effects["layer"] >= 0].reset_index(drop=True)  # all layers together have no depth
    shown, hook = rows_of_hook(effects, hook, _EFFECTS, who=who)
    shown, place = chosen_group(shown, {"edit": edit, "head": head}, who=who)
    edit = str(place["edit"])
    shown = shown[shown["offset"] == -1]
    controls = shown[shown["control"] != "none"]
    if control is not None or len(controls):
        _, control = one_value(controls, "control", control, who=who)
    shown = shown[shown["control"].isin(["none", control])]
    wanted = _measures(shown, measures)
    marks = _dose_marks(_with_neutral(shown, edit), wanted, control)
    if marks["dose"].nunique() < 2:
        raise InputError(
            f"{who} needs at least two doses of one edit, for example Scale(0.5) and Scale(2.0)."
        )
    models = drawable(marks, ("model", "layer", "dose", "measure", "kind"), ["estimate"], who=who)
    kinds = [_ITSELF, *[kind for kind in marks["kind"].unique() if kind != _ITSELF]]
    scales = {
        name: value_scale(
            marks.loc[marks["measure"] == name, list(_NUMBERS)], _MEASURES[name], digits=6, cut_at_zero=True
        )
        for name in wanted
    }
    rows = []
    for model, own in by_model(marks):
        grid = page.panels(
            {_MEASURES[name]: own[own["measure"] == name] for name in wanted},
            lambda part, place: _dose_panel(part, place, page, edit, kinds, scales[part["measure"].iloc[0]]),
            columns=2 if len(models) == 1 else len(wanted),
            height=190 if len(models) == 1 else 130,
            narrowest=150,
            gap=30,
            axis=36,
        )
        grid.resolve = resolved(y="independent", stroke="independent")
        rows.append(page.titled(grid, model, _sample_size(own)))
    of_head = f" of head {place['head']}" if place.get("head", -1) >= 0 else ""
    done = f"{hook}{of_head} {_DOSES.get(edit, ('dose', None, edit))[2]}"

    def sentence(part: pd.DataFrame) -> str:
        top = largest(part)
        return f"largest {top['estimate']:.3g} at dose {top['dose']:g} in layer {top['layer']}."

    lead = f"Effects of {done}, by dose, a line an edited layer."
    words = [lead, *named(marks[marks["kind"] == _ITSELF], ["model", "measure"], sentence)]
    heading = f"{done}: effects by dose and layer"
    return page.figure(rows, heading, [_caption(marks)], words, own=["y", "stroke"])


def _measures(shown: pd.DataFrame, measures: str | Sequence[str] | None) -> list[str]:
    """Return the measures that were asked for, by default all."""
    have = [name for name in _MEASURES if name in set(shown["measure"])]
    if measures is not None:
        return require_names(measures, have, name="measures")
    if not have:
        raise InputError(f"plot_dose_response draws {', '.join(_MEASURES)}; the frame has none of them.")
    return have


def _with_neutral(shown: pd.DataFrame, edit: str) -> pd.DataFrame:
    """Return effects with those of the dose that changes nothing, which are 0, where it lies between the doses."""
    neutral, doses = _DOSES.get(edit, ("dose", None, edit))[1], shown["dose"]
    if neutral is None or (doses == neutral).any() or not doses.min() < neutral < doses.max():
        return shown
    least = shown[doses == doses.min()]
    zeros = least.assign(dose=neutral, **{name: 0.0 * least[name] for name in _NUMBERS})  # NaN stays NaN
    return pd.concat([shown, zeros], ignore_index=True)


def _dose_marks(shown: pd.DataFrame, measures: list[str], control: str | None) -> pd.DataFrame:
    """Return one row a mark; of the norms those in each model's last layer."""
    last = shown.groupby("model", observed=True)["measured_layer"].transform("max")
    is_shown = shown["measure"].isin(measures) & (
        ~shown["measure"].isin(_OF_LAYERS) | (shown["measured_layer"] == last)
    )
    # Layers stand side by side around their dose, so that their bars do not hide each other.
    layers = np.sort(shown["layer"].unique())
    gaps = np.diff(np.sort(shown["dose"].unique()))
    side = np.searchsorted(layers, shown["layer"]) - (len(layers) - 1) / 2
    x = shown["dose"] + side * 0.16 * (gaps.min() if len(gaps) else 1.0) / len(layers)
    keep = ["model", "layer", "depth", "dose", "measure", *_NUMBERS, "n", "n_docs"]
    names = {control: f"control: {str(control).replace('_', ' ')}", "none": _ITSELF, "direct": _DIRECT}
    kind = shown["control"].map(names).astype("str")
    return shown.assign(x=x, kind=kind).loc[is_shown, [*keep, "x", "kind"]]


def _dose_panel(
    marks: pd.DataFrame, place: Place, page: Sheet, edit: str, kinds: list[str], scale: ValueScale
) -> ChartType:
    dose_title, neutral, _ = _DOSES.get(edit, ("dose", None, edit))
    layers = sorted(marks["layer"].unique())
    crowded = len(layers) > _CROWDED
    doses = sorted(marks["dose"].unique().tolist())
    ticks: dict[str, Any] = {"values": doses, "format": ".3~g"} if len(doses) <= _TICKED else {}
    x_scale = alt.Scale(zero=False, nice=False, padding=16)
    x = alt.X("x:Q", title=dose_title, scale=x_scale, axis=alt.Axis(grid=False, **ticks))
    y = alt.Y("estimate:Q", title=None, scale=scale, axis=alt.Axis(grid=False, labelFlush=True))
    # Two channels of one scale: Vega has no gradient as the legend of points and lines together.
    stroke = alt.Stroke("depth:Q", scale=DEPTH_SCALE, legend=None)
    look = page.legend(symbolStrokeColor=INK, symbolSize=400, symbolType="stroke") if len(kinds) > 1 else None
    dashes = alt.Scale(domain=kinds, range=[[1, 0], [4, 3]][: len(kinds)])
    tooltip = tooltips(
        *("layer:Q", ("dose:Q", "", ".3~g"), ("kind:N", "run", ""), ("estimate:Q", "", ".4~g")),
        *(("conf_low:Q", "interval from", ".4~g"), ("conf_high:Q", "to", ".4~g"), ("n:Q", "tokens", ",")),
    )
    base = alt.Chart(marks).encode(x=x, y=y)
    itself = base.transform_filter(alt.FieldEqualPredicate(field="kind", equal=_ITSELF))
    bars = base.mark_rule(strokeWidth=1.3, opacity=0.6).encode(
        y=alt.Y("conf_low:Q", scale=scale), y2="conf_high", stroke=stroke
    )
    still = alt.Chart(alt.Data(values=[{}])).mark_rule(color=PALE_INK, strokeDash=[2, 3])
    rules = [still.encode(y=alt.datum(0))]
    if neutral is not None and doses[0] <= neutral <= doses[-1]:
        rules.append(still.encode(x=alt.datum(neutral)))
    # The shades of the first and last layers differ in grey too; a few layers are labelled as well.
    first = marks[(marks["kind"] == _ITSELF) & (marks["dose"] == doses[0])]
    names = alt.Chart(_spread(first, scale, place.height)).mark_text(align="right", dx=-6, fontSize=9)
    return alt.layer(
        *rules,
        base.mark_line(strokeWidth=0.7 if crowded else 1.4).encode(
            stroke=stroke, strokeDash=alt.StrokeDash("kind:N", scale=dashes, legend=look), detail="layer:N"
        ),
        *([] if crowded else [bars]),
        itself.mark_point(filled=True, size=12 if crowded else 34, opacity=1).encode(
            color=page.depth(), tooltip=tooltip
        ),
        *([names.encode(x=x, y=y, text="layer:N")] if len(layers) <= 6 else []),
        width=place.width,
        height=place.height,
    )


def _spread(rows: pd.DataFrame, scale: ValueScale, height: int) -> pd.DataFrame:
    """Return where labels of rows stand: their estimates, moved as little as keeps them 10 px apart."""
    from scipy.optimize import isotonic_regression

    # 13 px before Vega rounds the axis.
    low, high = scale.domain
    rows = rows.sort_values("estimate")
    apart = np.arange(len(rows)) * (high - low) * min(13 / height, 1 / max(1, len(rows)))
    moved = isotonic_regression(rows["estimate"] - apart).x + apart
    return pd.DataFrame({"x": rows["x"].min(), "estimate": moved, "layer": rows["layer"]})


def _sample_size(part: pd.DataFrame) -> str:
    docs = count(int(part["n_docs"].max()), "document")
    return f"{int(part['n'].max()):,} tokens, {docs}, {count(part['layer'].nunique(), 'layer')} edited one by one"


def _caption(marks: pd.DataFrame) -> str:
    dashed = [kind for kind in marks["kind"].unique() if kind != _ITSELF]
    held = " (later attention held at its clean values)"
    more = {"control: random direction": " of the same size", _DIRECT: held}
    is_crowded = bool(marks.groupby("model", observed=True)["layer"].nunique().max() > _CROWDED)
    bars = bars_in_words("Bars: confidence intervals of the mean over documents.", marks, crowded=is_crowded)
    lines = [f"{kind.removeprefix('control: ')}{more.get(kind, '')}" for kind in dashed]
    return " ".join([bars, *(f"Dashed, without points: {line}." for line in lines)])
