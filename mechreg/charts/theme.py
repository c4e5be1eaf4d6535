"""The theme of every chart: fonts, sizes and colours that survive print and colour blindness; headings."""

import textwrap
from collections.abc import Iterable
from typing import Any

import altair as alt

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/. Yellow is last, since it is faint on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

# vl-convert carries Liberation Sans; where no font of the list is there, it drops all text without a word.
# Arial has the same widths, for browsers that lack the first.
FONT = "Liberation Sans, Arial, sans-serif"

_SEQUENTIAL: Any = {"scheme": "cividis"}
INK, PALE_INK, GRID = "#222222", "#555555", "#e6e6e6"
WIDTH = 640  # of the marks of one whole figure; near 6.5 inches of paper, where 11 px are 8 points

_LABELS: Any = {
    "labelFontSize": 11,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "labelColor": INK,
    "titleColor": INK,
}


_LEGEND: Any = _LABELS | {"labelLimit": 240, "titleLimit": 240}


def stacked_legends(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a specification of ours as it is drawn: legends below a chart stand one below the other.

    Vega takes that from its configuration, but Vega-Lite's schema has no name for it: a chart's json does not hold it.
    """
    if spec.get("config", {}).get("legend") != _LEGEND:
        return spec
    layout = {"bottom": {"direction": "vertical", "margin": 8}}
    return spec | {"config": spec["config"] | {"legend": _LEGEND | {"layout": layout}}}


@alt.theme.register("mechreg", enable=False)
def mechreg_theme() -> alt.theme.ThemeConfig:
    """Return the theme that importing this module registers as "mechreg", for charts of ours alone."""
    return {
        "config": {
            "font": FONT,
            "background": "white",
            "padding": 10,
            "view": {"stroke": None},
            "axis": _LABELS
            | {"domainColor": PALE_INK, "tickColor": PALE_INK, "gridColor": GRID, "titlePadding": 8},
            "legend": _LEGEND,
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


def themed() -> Any:
    """Return a context (for ``with``) in which the theme is ours, unless the user enabled one."""
    return alt.theme.enable("mechreg" if alt.theme.active == "default" else alt.theme.active)


# Relative depth: cividis from the first block (dark) to the last, without the lightest fifth, since thin lines
# in it are lost on white.
DEPTH_SCALE = alt.Scale(domain=[0, 1], scheme=alt.SchemeParams(name="cividis", extent=[0, 0.82]))


def figure_title(text: str, caption: Iterable[str], *, width: int = WIDTH) -> alt.Title:
    """Return a figure's title with its caption below it, both broken into lines of the figure's width."""
    room = min(width + 90, int(1.3 * width))  # with axes and, where there is room, a legend
    lines = textwrap.wrap(text, int(room / 8.6)) or [text]
    captions: list[str] = []
    for part in caption:  # names without spaces are of wider letters
        size = 5.2 if max(map(len, part.split()), default=0) < 30 else 6.0
        captions += textwrap.wrap(part, int(room / size))
    return alt.Title(lines[0] if len(lines) == 1 else lines, subtitle=captions)


def elided(name: str, most: int) -> str:
    """Return a name in so many letters, its middle left out: both ends may tell two checkpoints apart.

    Examples
    --------
    >>> elided("organisation/model-step1000", 13)
    'organi…ep1000'
    """
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-((most - 1) // 2) :]}"


def panel_title(name: str, detail: str, *, width: int) -> alt.Title:
    """Return the heading of a panel: its name, and n in smaller print below it.

    A long name is broken, never cut: its end may be all that tells two checkpoints apart.
    """
    lines, details = (
        textwrap.wrap(name, max(6, width // 7)) or [name],
        textwrap.wrap(detail, max(9, width // 5)),
    )
    subtitle = details[0] if len(details) == 1 else details or ""
    return alt.Title(lines, subtitle=subtitle, fontSize=12, offset=6, subtitlePadding=2)
