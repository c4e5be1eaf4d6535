"""Estimates and their intervals by layer or relative depth: the one panel that all such charts are made of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.layout import Place, Sheet
from mechreg.charts.scales import ValueScale
from mechreg.charts.theme import INK, OKABE_ITO, PALE_INK
from mechreg.schema import require_number
from mechreg.words import covariance_in_words

Tooltip = str | tuple[str, str, str]
INTERVAL: tuple[Tooltip, ...] = (("conf_low:Q", "interval from", ".4f"), ("conf_high:Q", "to", ".4f"))
BETA: tuple[Tooltip, ...] = (("estimate:Q", "beta", ".4f"), *INTERVAL)
CROWDED = 100  # marks of a panel; the bars of more hide each other
_DASHES = ([1, 0], [5, 3], [1.5, 2], [8, 3, 1.5, 3], [10, 4], [3, 1])


class Mark(NamedTuple):
    """How a mark looks."""

    shape: str
    filled: bool


DISC, CROSS = Mark("circle", True), Mark("cross", False)


def tooltips(*fields: Tooltip) -> list[alt.Tooltip]:
    """Return tooltips of fields such as "layer:Q", or of a field with its title and its format ("" for none)."""
    entries = [(field, "", "") if isinstance(field, str) else field for field in fields]
    return [
        alt.Tooltip(field, title=title or alt.Undefined, format=form or alt.Undefined)
        for field, title, form in entries
    ]


def p_labels(alpha: float, *, kind: str = "p") -> list[str]:
    """Return the two words of the legend of significance, significant first."""
    require_number(alpha, name="alpha", least=0, most=1, strict=True, example=0.05)
    return [f"{kind} < {alpha:g}", f"{kind} ≥ {alpha:g}"]


def layers_of_depth(rows: pd.DataFrame) -> pd.Series:
    """Return how many layers each row's model has, which its layer and depth imply."""
    return ((rows["layer"] + 0.5) / rows["depth"]).round().astype(int)


def placed(
    rows: pd.DataFrame, *, several: bool, hue: str | None = None, names: Sequence[str] = ()
) -> pd.DataFrame:
    """Return rows with their place ``x``: relative depth in several models, the layer in one.

    The ``names`` of a hue stand side by side.
    """
    x = rows["depth"] if several else rows["layer"].astype(float)
    if hue is not None:
        side = rows[hue].map({name: at - (len(names) - 1) / 2 for at, name in enumerate(names)}).astype(float)
        # As far apart in all models of a figure: a small model's would stand at other depths than their own.
        x = x + side * 0.6 / len(names) / (layers_of_depth(rows).max() if several else 1)
    return rows.assign(x=x)


def ticks(n_layers: int, width: int) -> list[int]:
    """Return evenly spaced layers whose labels have room in so many pixels.

    Examples
    --------
    >>> ticks(4, 640), ticks(48, 640)[-2:], ticks(30, 100)
    ([0, 1, 2, 3], [40, 44], [0, 8, 16, 24])
    """
    most = min(13, max(2, width // 25))
    every = next(step for step in (2**power for power in range(64)) if (n_layers - 1) // step < most)
    return list(range(0, n_layers, every))


def _band_axis(size: int, length: int) -> alt.Axis:
    """Return the axis of as many bands, labelled where labels have room; of given values Vega loses the first."""
    every = (*ticks(size, length), size)[1]
    label = f"datum.value % {every} ? '' : datum.label"
    return alt.Axis(labelExpr=label, labelAngle=0, ticks=False, domain=False, grid=False)


def cell_chart(cells: pd.DataFrame, place: Place, x: str, y: str, titles: Sequence[str]) -> alt.Chart:
    """Return cells in bands by two whole numbers, with their titles, the first ones at the left and below."""
    bands = alt.Scale(paddingInner=0.03, paddingOuter=0)
    across, up = (_band_axis(int(cells[field].max()) + 1, place[at]) for at, field in enumerate((x, y)))
    return alt.Chart(cells).encode(
        alt.X(f"{x}:O", title=titles[0] if place.lowest else None, axis=across, scale=bands),
        alt.Y(f"{y}:O", title=titles[1] if place.leftmost else None, axis=up, sort="descending", scale=bands),
    )


def sure_and_unsure(cells: alt.Chart, unsure: str) -> list[alt.Chart]:
    """Return cells as squares, which are small where a field says that they are unsure."""
    sure, small = (cells.transform_filter(f"{no}datum.{unsure}") for no in ("!", ""))
    return [sure.mark_rect(), small.mark_rect(width={"band": 0.45}, height={"band": 0.45})]


def across(rows: pd.DataFrame, place: Place, *, several: bool) -> alt.X:
    """Return the horizontal axis of rows that were `placed`."""
    if several:
        title, domain = "relative depth", [0.0, 1.0]
        values: list[Any] = [0, 0.25, 0.5, 0.75, 1] if place.width > 200 else [0, 0.5, 1]
    else:
        n_layers = int(layers_of_depth(rows).max())
        title, domain, values = "layer", [-0.5, n_layers - 0.5], ticks(n_layers, place.width)
    axis = alt.Axis(values=values, format=".2~f", grid=False, labelFlush=False)
    return alt.X(
        "x:Q", scale=alt.Scale(domain=domain, nice=False), axis=axis, title=title if place.lowest else None
    )


def marks_legend(kinds: Mapping[str, Mark], legend: alt.Legend) -> alt.Chart:
    """Return marks of no size: Vega's legends cannot show that a shape's filling depends on the data."""
    looks: dict[Any, list[str]] = {
        alt.Shape: [mark.shape for mark in kinds.values()],
        alt.Fill: [INK if mark.filled else "white" for mark in kinds.values()],
        alt.Stroke: [INK] * len(kinds),
    }
    look = legend.copy()
    look.symbolSize, look.symbolStrokeWidth = 70, 1.3
    channels = [
        channel("judged:N", scale=alt.Scale(domain=list(kinds), range=values), legend=look)
        for channel, values in looks.items()
    ]
    rows = alt.Chart(alt.Data(values=[{"judged": label} for label in kinds]))
    return rows.mark_point(size=0, opacity=1, aria=False).encode(*channels)


def hues(
    field: str,
    names: list[str],
    sheet: Sheet,
    *,
    colors: Sequence[int] | None = None,
    dashes: Sequence[int] | None = None,
    shown: Sequence[str] | None = None,
) -> list[Any]:
    """Return the colour of every value of a field, and its dash if asked for, in one legend.

    ``colors`` and ``dashes`` are the values' places in the palette and among the dash patterns; the legend has the
    values that are ``shown``.
    """
    palette = [OKABE_ITO[at] for at in colors or range(len(names))]
    palette = [INK] if len(names) == 1 and field == "model" else palette
    look: dict[str, Any] = {"symbolType": "circle", "symbolSize": 70}
    channels: list[tuple[Any, list[Any]]] = [(alt.Color, palette)]
    if dashes:
        look = {"symbolType": "stroke", "symbolSize": 400, "symbolStrokeWidth": 2}
        channels.append((alt.StrokeDash, [_DASHES[at] for at in dashes]))
    shown = list(shown or names)
    # A single term is named in the title; a single model is named only in the legend.
    legend = (
        sheet.names(field, shown, symbolOpacity=1, **look) if field == "model" or len(shown) > 1 else None
    )
    return [
        channel(f"{field}:N", sort=names, scale=alt.Scale(domain=names, range=values), legend=legend)
        for channel, values in channels
    ]


def estimate_panel(
    rows: pd.DataFrame,
    place: Place,
    *,
    several: bool,
    scale: ValueScale,
    tooltip: Iterable[Tooltip],
    look: Iterable[Any] = (),
    kinds: Mapping[str, Mark] | None = None,
    legend: alt.Legend | None = None,
    bars: Mapping[str, float] | None = None,
    behind: Callable[[alt.Chart, Callable[[str], alt.Y]], list[alt.Chart]] | None = None,
) -> ChartType:
    """Return estimates by layer or depth: 0, what stands behind, a line, intervals, and marks.

    Rows are as `placed`, with ``judged`` where there are ``kinds``: how marks of each judgement look, by default discs.
    ``bars`` are the intervals to draw, such as "conf", and their widths; those of many marks are left out. ``look`` is
    the colour of everything, by default ink. ``behind`` makes the layers behind of the panel's chart and vertical axis.
    """
    # Flush: the last tick's label would push up the headings of its row.
    axis = alt.Axis(labels=place.leftmost, labelFlush=True, tickCount=max(3, place.height // 40))

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=scale, axis=axis, title=scale.of if place.leftmost else None)

    base = alt.Chart(rows).encode(across(rows, place, several=several), *(look or [alt.ColorValue(INK)]))
    zero = alt.Chart(alt.Data(values=[{}])).mark_rule(color=PALE_INK, strokeDash=[4, 3])
    layers = [] if scale.domain[0] == 0 else [zero.encode(y=alt.datum(0))]
    layers += behind(base, y) if behind else []
    layers.append(base.mark_line(strokeWidth=1.1, opacity=0.45).encode(y=y("estimate")))
    for name, width in ({} if len(rows) > CROWDED else bars or {}).items():
        bar = base.mark_rule(strokeWidth=width, opacity=0.75).encode(y=y(f"{name}_low"), y2=f"{name}_high")
        layers.append(bar)
    size = float(np.clip(round(1.1 * place.width / rows["depth"].nunique()), 16, 46))
    points = base.encode(y=y("estimate"), tooltip=tooltips(*tooltip))
    for label, mark in (kinds or {"": DISC}).items():
        of_kind = (
            points.transform_filter(alt.FieldEqualPredicate(field="judged", equal=label)) if kinds else points
        )
        filling = (
            {"filled": True}
            if mark.filled
            else {"filled": False, "fill": "white", "strokeWidth": 1.3 if size > 24 else 1}
        )
        bulk = size if mark.filled else 1.5 * size
        layers.append(of_kind.mark_point(shape=mark.shape, size=bulk, opacity=1, **filling))
    layers += [marks_legend(kinds, legend)] if kinds and legend is not None else []
    return alt.layer(*layers, width=place.width, height=place.height)


def bars_in_words(bars: str, rows: pd.DataFrame, *, crowded: bool) -> str:
    """Return what the bars of rows are, or why there are none."""
    if rows["conf_low"].isna().all():
        return "One document, so without intervals."
    return "Intervals, which would hide each other, are in the frame." if crowded else bars


def intervals_in_words(rows: pd.DataFrame) -> str:
    """Return what the bars of coefficients are: their level, where t statistics imply one, and their covariance."""
    from scipy.special import stdtr

    half_widths = (rows["conf_high"] - rows["conf_low"]) / 2 / rows["std_error"]
    levels = np.unique((2 * stdtr(rows["df"], half_widths) - 1).to_numpy(dtype="float64").round(4))
    level = f"{100 * levels[0]:g}% " if len(levels) == 1 and np.isfinite(levels[0]) else ""
    kinds = map(covariance_in_words, rows["cov_type"].astype(str).unique())
    return f"Bars: {level}confidence intervals, {', '.join(dict.fromkeys(kinds))}."
