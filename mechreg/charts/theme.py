"""The theme of every chart: fonts, sizes and colours that survive print and colour blindness; marks of significance."""

import textwrap
from numbers import Real
from typing import Any

import altair as alt

from mechreg.schema import InputError

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/. Yellow is last, since it is faint on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

# vl-convert carries Liberation Sans; where no font of the list is there, it drops all text without a word.
# Arial has the same widths, for browsers that lack the first.
FONT = "Liberation Sans, Arial, sans-serif"

_SEQUENTIAL: Any = {"scheme": "cividis"}
INK, PALE_INK, GRID = "#222222", "#555555", "#e6e6e6"
WIDTH = 640  # of the marks of one whole figure; near 6.5 inches of paper, where 11 px are 8 points


@alt.theme.register("mechreg", enable=True)
def mechreg_theme() -> alt.theme.ThemeConfig:
    """Return the theme that importing this module registers and enables as "mechreg".

    Examples
    --------
    >>> alt.theme.active, mechreg_theme()["config"]["font"]
    ('mechreg', 'Liberation Sans, Arial, sans-serif')
    """
    return {
        "config": {
            "font": FONT,
            "background": "white",
            "padding": 10,
            "view": {"stroke": None},
            "axis": {
                "labelFontSize": 11,
                "titleFontSize": 12,
                "titleFontWeight": "normal",
                "labelColor": INK,
                "titleColor": INK,
                "domainColor": PALE_INK,
                "tickColor": PALE_INK,
                "gridColor": GRID,
                "titlePadding": 8,
            },
            "legend": {
                "labelFontSize": 11,
                "titleFontSize": 12,
                "titleFontWeight": "normal",
                "labelColor": INK,
                "titleColor": INK,
                "labelLimit": 240,
                "titleLimit": 240,
            },
            "title": {
                "anchor": "start",
                "fontSize": 15,
                "fontWeight": "bold",
                "color": INK,
                "subtitleFontSize": 11,
                "subtitleColor": PALE_INK,
                "subtitlePadding": 5,
                "offset": 12,
            },
            "range": {
                "category": list(OKABE_ITO),
                "ordinal": _SEQUENTIAL,
                "ramp": _SEQUENTIAL,
                "heatmap": _SEQUENTIAL,
            },
        }
    }


# Relative depth: cividis from the first block (dark) to the last, without the lightest fifth, since thin lines
# in it are lost on white.
DEPTH_SCALE = alt.Scale(domain=[0, 1], scheme=alt.SchemeParams(name="cividis", extent=[0, 0.82]))
DEPTH_LEGEND = alt.Legend(
    title="relative depth",
    type="gradient",
    gradientLength=110,
    gradientThickness=12,
    gradientOpacity=1,
    values=[0, 0.5, 1],
    format=".1f",
)


def figure_title(text: str, caption: list[str]) -> alt.Title:
    """Return a figure's title with its caption below it, the caption's sentences broken into lines."""
    return alt.Title(text, subtitle=[line for part in caption for line in textwrap.wrap(part, 140)])


def panel_title(model: str, detail: str, *, width: int) -> alt.Title:
    """Return the heading of one model's panel: its name, and n in smaller print below it.

    A long name is broken, never cut: its end may be all that tells two checkpoints apart.
    """
    lines = textwrap.wrap(model, width // 7) or [model]
    return alt.Title(lines, subtitle=detail, fontSize=12, offset=6, subtitlePadding=2)


def layer_ticks(low: int, high: int) -> list[int]:
    """Return at most thirteen evenly spaced layers from low to high.

    Examples
    --------
    >>> layer_ticks(0, 3), layer_ticks(0, 47)[-2:]
    ([0, 1, 2, 3], [40, 44])
    """
    every = next(step for step in (2**power for power in range(64)) if (high - low) // step < 13)
    return list(range(low, high + 1, every))


def p_labels(alpha: float, *, kind: str = "p") -> list[str]:
    """Return the two words of the legend of significance, significant first.

    Examples
    --------
    >>> p_labels(0.05, kind="adjusted p")
    ['adjusted p < 0.05', 'adjusted p ≥ 0.05']
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise InputError(f"alpha must lie between 0 and 1, for example alpha=0.05; got {alpha!r}.")
    return [f"{kind} < {alpha:g}", f"{kind} ≥ {alpha:g}"]


def judged_marks(
    base: alt.Chart,
    labels: list[str],
    *,
    size: int,
    filled: dict[str, Any] | None = None,
    hollow: dict[str, Any] | None = None,
) -> list[alt.Chart]:
    """Return filled circles where the field "judged" has the first label, hollow crosses where it has the second."""
    is_first, is_second = (alt.FieldEqualPredicate(field="judged", equal=label) for label in labels)
    disc: dict[str, Any] = {"filled": True, "shape": "circle", "size": size} | (filled or {})
    cross: dict[str, Any] = {"fill": "white", "shape": "cross", "size": 1.5 * size, "strokeWidth": 1.3}
    return [
        base.transform_filter(is_first).mark_point(opacity=1, **disc),
        base.transform_filter(is_second).mark_point(opacity=1, **cross, **(hollow or {})),
    ]


def p_legend(labels: list[str], title: str, **options: Any) -> alt.Chart:
    """Return marks of no size: Vega's legends cannot show that a shape's filling depends on the data."""
    look = alt.Legend(title=title, symbolSize=70, symbolStrokeWidth=1.3, **options)
    looks = {alt.Shape: ["circle", "cross"], alt.Fill: [INK, "white"], alt.Stroke: [INK, INK]}
    channels = [
        channel("judged:N", scale=alt.Scale(domain=labels, range=values), legend=look)
        for channel, values in looks.items()
    ]
    rows = alt.Chart(alt.Data(values=[{"judged": label} for label in labels]))
    return rows.mark_point(size=0, opacity=1, aria=False).encode(*channels)
