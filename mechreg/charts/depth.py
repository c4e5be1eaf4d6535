"""Estimates and their intervals by relative depth: the axes and marks that all such charts are built from."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from mechreg.charts.theme import PALE_INK

QUARTERS = (0, 0.25, 0.5, 0.75, 1)
ALL_DEPTHS = alt.Scale(domain=[0, 1], nice=False)
Tooltip = str | tuple[str, str, str]
Axis = Callable[[str], alt.Y]  # the y of a panel for one of its fields
INTERVAL: tuple[Tooltip, ...] = (("conf_low:Q", "interval from", ".4f"), ("conf_high:Q", "to", ".4f"))
BETA: tuple[Tooltip, ...] = (("estimate:Q", "beta", ".4f"), *INTERVAL)


def tooltips(*fields: Tooltip) -> list[alt.Tooltip]:
    """Return tooltips of fields such as "layer:Q", or of a field with its title and its format ("" for none).

    Examples
    --------
    >>> [shown.to_dict()["field"] for shown in tooltips("layer:Q", ("estimate:Q", "beta", ".4f"))]
    ['layer', 'estimate']
    """
    entries = [(field, "", "") if isinstance(field, str) else field for field in fields]
    return [
        alt.Tooltip(field, title=title or alt.Undefined, format=form or alt.Undefined)
        for field, title, form in entries
    ]


def depth_x(
    field: str = "depth", *, title: str | None = "relative depth", ticks: Sequence[int | float] = QUARTERS
) -> alt.X:
    """Return relative depth from 0 to 1 as the horizontal axis; without a title where a panel stands below."""
    axis = alt.Axis(values=list(ticks), format=".2~f", grid=False, labelFlush=False, title=title)
    return alt.X(f"{field}:Q", scale=ALL_DEPTHS, axis=axis)


def value_scale(values: pd.DataFrame, *, digits: int = 4, cut_at_zero: bool = False) -> alt.Scale:
    """Return an axis that has 0 and all values on it with some room; none below 0 if it is cut there."""
    low, high = min(float(values.min().min()), 0.0), max(float(values.max().max()), 0.0)
    room = 0.04 * (high - low) or 0.5
    low = low if cut_at_zero and low == 0 else low - room
    return alt.Scale(domain=[round(low, digits), round(high + room, digits)], nice=True, zero=False)


def zero_line(scale: alt.Scale | None = None) -> list[alt.Chart]:
    """Return a dashed line at 0; none where the given axis starts there."""
    if scale is not None and scale.to_dict()["domain"][0] == 0:
        return []
    nothing = alt.Chart(alt.Data(values=[{}]))
    return [nothing.mark_rule(color=PALE_INK, strokeDash=[4, 3]).encode(y=alt.datum(0))]


def between(base: alt.Chart, y: Axis, low: str = "conf_low", high: str = "conf_high") -> alt.Chart:
    """Return what spans an interval, for a mark to draw: a rule as a bar, an area as a band."""
    return base.encode(y=y(low), y2=high)


def estimate_layers(
    base: alt.Chart,
    y: Axis,
    *,
    points: Iterable[alt.Chart],
    line: dict[str, Any] | None = None,
    bars: dict[str, Any] | None = None,
    x_of_bars: alt.X | None = None,
    behind: Iterable[alt.Chart] = (),
    scale: alt.Scale | None = None,
) -> list[alt.Chart]:
    """Return a panel's layers: 0, what stands behind, the line through the estimates, their intervals, their marks.

    ``line`` and ``bars`` are how those two look; without one there is none.
    """
    layers = [*zero_line(scale), *behind]
    if line is not None:
        layers.append(base.mark_line(**line).encode(y=y("estimate")))
    if bars is not None:
        layers.append(between(base if x_of_bars is None else base.encode(x=x_of_bars), y).mark_rule(**bars))
    return [*layers, *points]


def layers_of_depth(rows: pd.DataFrame) -> pd.Series:
    """Return how many layers each row's model has, which its layer and depth imply."""
    return ((rows["layer"] + 0.5) / rows["depth"]).round().astype(int)


def level_of(rows: pd.DataFrame) -> str:
    """Return the level of the intervals, "95% ", which the frame's t statistics imply; nothing if it varies."""
    from scipy.special import stdtr

    half_widths = (rows["conf_high"] - rows["conf_low"]) / 2 / rows["std_error"]
    levels = np.unique((2 * stdtr(rows["df"], half_widths) - 1).to_numpy(dtype="float64").round(4))
    return f"{100 * levels[0]:g}% " if len(levels) == 1 and np.isfinite(levels[0]) else ""
