"""Cause maps: regression beside cause, for every pair of layers, as two heat maps."""

import textwrap
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import cell_chart, sure_and_unsure, tooltips
from mechreg.charts.layout import Place, Sheet, Width, sheet
from mechreg.charts.rows import by_model, drawable, frame_of, largest, named, number, rows_of_hook
from mechreg.charts.scales import diverging
from mechreg.charts.theme import GRID, INK
from mechreg.outside import any_frames
from mechreg.schema import require
from mechreg.words import count

_PAIRS = (
    *("model", "hook", "layer", "later_layer", "n_layers", "n", "n_edits", "n_docs"),
    *("coefficient", "coefficient_low", "coefficient_high", "effect", "effect_low", "effect_high"),
)
_LABELLED = 30  # pixels; numbers in narrower cells cannot be read
_MAPS = {
    "coefficient": "regression: slope of log norm (l, t) on log norm (k, t−1)",
    "effect": "cause: change of log norm (l, t) by log scale (k, t−1)",
}


@any_frames
def plot_cause_maps(
    pairs: Any,
    *,
    agreement: pd.DataFrame | None = None,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return two heat maps of all pairs of layers: the cross-layer lag coefficient, and the effect of scaling.

    Columns are the layer k whose update at t-1 is looked at or scaled, rows the layer l at t. A cell whose interval
    holds 0 is a small square; grey cells are 0 exactly. Both maps have one colour scale, of square roots, so that
    effects a tenth of the coefficients are seen beside them.

    Parameters
    ----------
    pairs : CauseMaps, or pandas.DataFrame
        What `regression_vs_cause` gives, or its ``pairs``, of one model or of several, concatenated: models are rows.
    agreement : pandas.DataFrame, optional
        Its ``agreement``, which adds the rank correlation to the headings: where ``pairs`` is a frame.
    width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "n_layers": 2, "coefficient": 0.2, "coefficient_low": 0.1,
    ...        "coefficient_high": 0.3, "n": 90, "effect": 0.0, "effect_low": 0.0, "effect_high": 0.0, "n_edits": 40,
    ...        "n_docs": 3}
    >>> pairs = pd.DataFrame([row | {"layer": k, "later_layer": l} for k in (0, 1) for l in (0, 1)])
    >>> plot_cause_maps(pairs).to_dict()["title"]["text"]
    'Regression and cause between layers of attn_out, token t−1 to t'
    """
    who, page = "plot_cause_maps", sheet(width, height, title)
    if agreement is None and not hasattr(pairs, "columns"):
        agreement = getattr(pairs, "agreement", None)
    elif agreement is not None:
        agreement = frame_of(agreement, "agreement", who=who)
    pairs = frame_of(pairs, "pairs", _PAIRS, who=who)
    pairs = pairs.assign(depth=(pairs["layer"] + 0.5) / pairs["n_layers"]).reset_index(drop=True)
    shown, hook = rows_of_hook(pairs, None, who=who)
    models = drawable(shown, ("model", "layer", "later_layer"), list(_MAPS), who=who)
    side = page.beside(2, gap=40)
    rows = []
    for model, part in by_model(shown):
        first = part.iloc[0]
        detail = (
            f"n = {first['n']:,} tokens (regression), {first['n_edits']:,} (cause); "
            f"{count(int(first['n_docs']), 'document')}{_rank_correlation(agreement, model)}"
        )
        cells, most = _cells(part, side), float(part[list(_MAPS)].abs().to_numpy().max()) or 1.0
        place = Place(side, page.height or side, lowest=model == models[-1])
        maps = [
            _map(cells, name, place._replace(leftmost=name == "coefficient"), page, most) for name in _MAPS
        ]
        rows.append(page.titled(alt.hconcat(*maps, spacing=20), model, detail))
    caption = (
        "Cells: log norm per log norm, intervals from t(G − 1) over documents; a small square: the interval holds 0. "
        "Grey: exactly 0, since no path leads from layer k at t−1 to layer l ≤ k at t. Colours: of square roots."
    )

    def sentence(part: pd.DataFrame) -> str:
        tops = {name: largest(part, name) for name in _MAPS}
        return "; ".join(
            f"largest {name} {top[name]:.3g}, from layer {top['layer']} to layer {top['later_layer']}"
            for name, top in tops.items()
        )

    lead = f"Two heat maps a model of all pairs of layers of {hook}: lag coefficient across layers, effect of scaling."
    heading = f"Regression and cause between layers of {hook}, token t−1 to t"
    return page.figure(
        rows, heading, [caption], [lead, *(f"{words}." for words in named(shown, ["model"], sentence))]
    )


def _cells(part: pd.DataFrame, side: int) -> pd.DataFrame:
    """Return one model's cells, a row a pair for both maps: with 48 layers there are thousands."""
    no_path, has_labels = part["later_layer"] <= part["layer"], side // part["layer"].nunique() >= _LABELLED
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


def _map(cells: pd.DataFrame, name: str, place: Place, page: Sheet, most: float) -> ChartType:
    colors = diverging(most, type="pow", exponent=0.5)
    legend = page.gradient(length=150, format=".2~g")
    color = alt.Color(f"{name}:Q", title=None, scale=colors, legend=legend if place.leftmost else None)
    tooltip = tooltips(
        *(("layer:O", "layer k, t−1", ""), ("later_layer:O", "layer l, t", ""), (f"{name}:Q", "", ".4~g")),
        *((f"{name}_low:Q", "interval from", ".4~g"), (f"{name}_high:Q", "to", ".4~g")),
    )
    titles = ("layer k, token t−1", "layer l, token t")
    base = cell_chart(cells, place, "layer", "later_layer", titles).encode(tooltip=tooltip)
    coloured = base.transform_filter("!datum.no_path") if name == "effect" else base
    layers = sure_and_unsure(coloured.encode(color=color), f"{name}_unsure")
    if name == "effect":
        layers.append(base.transform_filter("datum.no_path").mark_rect(color=GRID))
    cell = place.width // (int(cells["layer"].max()) + 1)
    if cell >= _LABELLED:
        is_dark = f"abs(datum.{name}) > {0.5 * most:.6g} && !datum.{name}_unsure"
        ink = alt.condition(is_dark, alt.value("white"), alt.value(INK))
        text = coloured.mark_text(fontSize=11 if cell >= 45 else 9)
        layers.append(text.encode(text=f"{name}_label:N", color=ink))
    heading = alt.Title(
        textwrap.wrap(_MAPS[name], place.width // 5), fontSize=11, fontWeight="normal", offset=6
    )
    return alt.layer(*layers, width=place.width, height=place.height, title=heading)


def _short(value: float) -> str:
    text = number(value, 2 if abs(value) >= 0.0995 else 3)
    return "0.000" if text == "−0.000" else text


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
