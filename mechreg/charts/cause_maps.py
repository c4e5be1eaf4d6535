"""Cause maps: regression beside cause, for every pair of layers, as two heat maps."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.depth import tooltips
from mechreg.charts.rows import count, few, frame_of, require_one_row, rows_of_hook
from mechreg.charts.theme import GRID, INK, WIDTH, figure_title, layer_ticks, panel_title
from mechreg.schema import require

_PAIRS = (
    *("model", "hook", "layer", "later_layer", "n_layers", "n", "n_edits", "n_docs"),
    *("coefficient", "coefficient_low", "coefficient_high", "effect", "effect_low", "effect_high"),
)
_LABELLED = 8  # layers; numbers in more cells than these cannot be read
_MAPS = {
    "coefficient": "regression: slope of log norm (l, t) on log norm (k, t−1)",
    "effect": "cause: change of log norm (l, t) by log scale (k, t−1)",
}


def plot_cause_maps(pairs: Any, *, agreement: pd.DataFrame | None = None) -> ChartType:
    """Return two heat maps of all pairs of layers: the cross-layer lag coefficient, and the effect of scaling.

    Columns are the layer k whose update at t-1 is looked at or scaled, rows the layer l at t. A small cross
    marks a cell whose interval holds 0; grey cells are 0 exactly. The maps have colour scales of their own,
    both with 0 in the middle.

    Parameters
    ----------
    pairs : CauseMaps, or pandas.DataFrame
        What `regression_vs_cause` gives, or its ``pairs``, of one model or of several, concatenated: models are rows.
    agreement : pandas.DataFrame, optional
        Its ``agreement``, which adds the rank correlation to the headings: where ``pairs`` is a frame.

    Returns
    -------
    Altair chart
        With a title, a caption and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column, several hooks, two rows for one pair, more than six models.
    NumericalError
        A coefficient or effect that is NaN or infinite.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "n_layers": 2, "coefficient": 0.2, "coefficient_low": 0.1,
    ...        "coefficient_high": 0.3, "n": 90, "effect": 0.0, "effect_low": 0.0, "effect_high": 0.0, "n_edits": 40,
    ...        "n_docs": 3}
    >>> pairs = pd.DataFrame([row | {"layer": k, "later_layer": l} for k in (0, 1) for l in (0, 1)])
    >>> plot_cause_maps(pairs).to_dict()["title"]["text"]
    'Regression and cause between layers of attn_out, token t−1 to t'
    """
    who = "plot_cause_maps"
    if agreement is None and not hasattr(pairs, "columns"):
        agreement = getattr(pairs, "agreement", None)
    elif agreement is not None:
        agreement = frame_of(agreement, "agreement", who=who)
    pairs = frame_of(pairs, "pairs", who=who)
    require(pairs, _PAIRS, who=who)
    pairs = pairs.reset_index(drop=True)
    pairs = pairs.assign(depth=(pairs["layer"] + 0.5) / pairs["n_layers"])
    shown, hook = rows_of_hook(pairs, None, who=who)
    models = few(shown["model"], who=who)
    require_one_row(shown, ("model", "layer", "later_layer"), list(_MAPS), who=who)
    width = (WIDTH - 110) // 2
    rows = []
    for model in models:
        part = shown[shown["model"] == model]
        first = part.iloc[0]
        detail = (
            f"n = {first['n']:,} tokens (regression), {first['n_edits']:,} (cause); "
            f"{count(int(first['n_docs']), 'document')}{_rank_correlation(agreement, model)}"
        )
        cells, title = _cells(part), panel_title(model, detail, width=WIDTH)
        maps = [_map(cells, name, width, lowest=model == models[-1]) for name in _MAPS]
        rows.append(alt.hconcat(*maps, spacing=36, title=title).resolve_scale(color="independent"))
    caption = (
        "Cells: log norm per log norm, intervals from t(G − 1) over documents; × marks an interval that holds 0. "
        "Grey: exactly 0, since no path leads from layer k at t−1 to layer l ≤ k at t."
    )
    return alt.vconcat(
        *rows,
        spacing=20,
        title=figure_title(f"Regression and cause between layers of {hook}, token t−1 to t", [caption]),
        description=_description(shown, hook),
    )


def _cells(part: pd.DataFrame) -> pd.DataFrame:
    """Return one model's cells, a row a pair for both maps: with 48 layers there are thousands."""
    no_path, has_labels = part["later_layer"] <= part["layer"], part["layer"].nunique() <= _LABELLED
    cells = part[["layer", "later_layer"]].assign(no_path=no_path & (part["effect"] == 0))
    for name in _MAPS:
        value, low, high = part[name], part[f"{name}_low"], part[f"{name}_high"]
        cells[name], cells[f"{name}_low"], cells[f"{name}_high"] = value, low, high
        cells[f"{name}_unsure"] = (low <= 0) & (high >= 0) & ~((value == 0) & no_path)
        if has_labels:
            cells[f"{name}_label"] = value.map(_short)
    if has_labels:
        return cells
    numbers = [f"{name}{end}" for name in _MAPS for end in ("", "_low", "_high")]
    return cells.assign(**{name: cells[name].map(lambda value: float(f"{value:.5g}")) for name in numbers})


def _map(cells: pd.DataFrame, name: str, width: int, *, lowest: bool) -> ChartType:
    n_layers = int(cells["layer"].max()) + 1
    most = float(cells[name].abs().max()) or 1.0
    ticks = layer_ticks(0, n_layers - 1)
    axis = alt.Axis(values=ticks, labelAngle=0, ticks=False, domain=False, grid=False)
    place = alt.Scale(paddingInner=0.03, paddingOuter=0)
    x = alt.X("layer:O", title="layer k, token t−1" if lowest else None, axis=axis, scale=place)
    title = "layer l, token t" if name == "coefficient" else None
    y = alt.Y("later_layer:O", title=title, axis=axis, sort="descending", scale=place)
    color = alt.Color(
        f"{name}:Q",
        title=None,
        scale=alt.Scale(scheme="blueorange", domain=[-most, most], domainMid=0, reverse=True),
        legend=alt.Legend(gradientLength=120, gradientThickness=10, format=".2~g", tickCount=5),
    )
    tooltip = tooltips(
        *(("layer:O", "layer k, t−1", ""), ("later_layer:O", "layer l, t", ""), (f"{name}:Q", "", ".4~g")),
        *((f"{name}_low:Q", "interval from", ".4~g"), (f"{name}_high:Q", "to", ".4~g")),
    )
    base = alt.Chart(cells).encode(x=x, y=y)
    coloured = base.transform_filter("!datum.no_path") if name == "effect" else base
    layers = [coloured.mark_rect().encode(color=color, tooltip=tooltip)]
    if name == "effect":
        layers.append(base.transform_filter("datum.no_path").mark_rect(color=GRID).encode(tooltip=tooltip))
    cell = width / n_layers
    ink = alt.condition(f"abs(datum.{name}) > {0.65 * most:.6g}", alt.value("white"), alt.value(INK))
    has_labels = n_layers <= _LABELLED
    if has_labels:
        size = 11 if n_layers <= 6 else 9
        layers.append(coloured.mark_text(fontSize=size).encode(text=f"{name}_label:N", color=ink))
    crosses = base.transform_filter(f"datum.{name}_unsure").mark_text(
        text="×", fontSize=9 if has_labels else min(10, cell), dx=0.36 * cell if has_labels else 0,
        dy=-0.32 * cell if has_labels else 0,
    )  # fmt: skip
    return alt.layer(*layers, crosses.encode(color=ink)).properties(
        width=width, height=width, title=alt.Title(_MAPS[name], fontSize=11, fontWeight="normal", offset=6)
    )


def _short(value: float) -> str:
    text = f"{value:.2f}" if abs(value) >= 0.0995 else f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def _rank_correlation(agreement: pd.DataFrame | None, model: str) -> str:
    if agreement is None:
        return ""
    require(agreement, ("model", "spearman", "conf_low", "conf_high", "n_pairs"), who="plot_cause_maps")
    rows = agreement[agreement["model"] == model]
    if len(rows) != 1 or not np.isfinite(rows["spearman"].iloc[0]):
        return ""
    row = rows.iloc[0]
    interval = f" ({row['conf_low']:.2f} to {row['conf_high']:.2f})" if np.isfinite(row["conf_low"]) else ""
    number = f"{row['spearman']:.2f}{interval}".replace("-", "−")
    return f". Rank correlation over {row['n_pairs']} pairs k < l: {number}"


def _description(shown: pd.DataFrame, hook: str) -> str:
    sentences = [
        f"Two heat maps a model of all pairs of layers of {hook}: lag coefficient across layers, and the effect of "
        "scaling."
    ]
    for model, part in shown.groupby("model", sort=False, observed=True):
        for name in _MAPS:
            top = part.iloc[int(part[name].abs().to_numpy().argmax())]
            sentences.append(
                f"{model}: largest {name} {top[name]:.3g}, from layer {top['layer']} to layer {top['later_layer']}."
            )
    return " ".join(sentences)
