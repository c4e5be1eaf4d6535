"""What all figures share: their size, title and caption, and panels side by side."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import altair as alt
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.notebook import shown_offline
from mechreg.charts.theme import DEPTH_SCALE, WIDTH, elided, figure_title, panel_title
from mechreg.schema import InputError, require_option, require_whole_number

# Of the marks, in pixels of a 96th of an inch: a figure with axes is then 3.25 or 6.75 inches wide, its text 8 points.
PAPER = {"column": 224, "page": 540}
Width = int | Literal["column", "page"]
GAP = 20
Draw = Callable[[pd.DataFrame, "Place"], ChartType]


class Place(NamedTuple):
    """Where a panel stands: its size, and whether axes are titled there."""

    width: int
    height: int
    leftmost: bool = True
    lowest: bool = True


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The size of a figure's marks, and its title if not the usual one."""

    width: int = WIDTH
    height: int | None = None
    title: str | None = None
    on_paper: bool = False  # whose width is that of the whole figure: axes and legends must fit too

    def place(self, height: int) -> Place:
        """Return the place of a single panel, of a usual height."""
        return Place(self.width, self.height or height)

    def titled(self, row: ChartType, name: str, detail: str) -> ChartType:
        """Return a row of the figure under its heading, such as a model's."""
        row.title = panel_title(
            name, detail, width=self.width
        )  # a method of Altair's would copy all that is within
        return row

    def legend(self, title: str | None = None, **look: Any) -> alt.Legend:
        """Return a legend, which stands below a figure on paper and a narrow one."""
        if self.on_paper or self.width <= PAPER["column"]:
            columns = max(1, self.width // 180)
            look = {"orient": "bottom", "direction": "horizontal", "columns": columns} | look
            look |= {"gradientLength": 140, "tickCount": 3} if "gradientLength" in look else {}
        return alt.Legend(title=title, **look)

    def names(self, title: str, names: Sequence[str], **look: Any) -> alt.Legend:
        """Return the legend of names; of long ones the middle is left out as far as that leaves them different."""
        room = 32 if self.width <= PAPER["column"] else 38
        longest = max(map(len, names))
        most = next(
            n for n in range(room, longest + room) if len({elided(name, n) for name in names}) == len(names)
        )
        if longest > most:
            look |= {
                "labelLimit": 0,
                "labelExpr": (
                    f"length(datum.label) <= {most} ? datum.label : "
                    f"slice(datum.label, 0, {most // 2}) + '…' + slice(datum.label, -{(most - 1) // 2})"
                ),
            }
        legend = self.legend(title, values=list(names), **look)
        if self.on_paper:
            legend.columns = max(1, min(legend.columns, self.width // (6 * min(longest, most) + 30)))
        return legend

    def gradient(self, title: str | None = None, *, length: int = 120, **look: Any) -> alt.Legend:
        """Return the legend of colours of numbers."""
        return self.legend(title, gradientLength=length, gradientThickness=12, **look)

    def depth(self) -> alt.Color:
        """Return the colour of relative depth, and its legend."""
        look: Any = {"type": "gradient", "gradientOpacity": 1, "values": [0, 0.5, 1], "format": ".1f"}
        legend = self.gradient("relative depth", length=110, **look)
        return alt.Color("depth:Q", scale=DEPTH_SCALE, legend=legend)

    def beside(self, panels: int, *, gap: int = GAP, axis: int = 0) -> int:
        """Return the width of panels beside each other; on paper with room for the axes of all but the first."""
        return (self.width - (gap + axis * self.on_paper) * (panels - 1)) // panels

    def panels(
        self,
        parts: Mapping[Any, pd.DataFrame],
        draw: Draw,
        *,
        columns: int,
        height: int,
        detail: Callable[[pd.DataFrame], str] | None = None,
        narrowest: int = 100,
        gap: int = GAP,
        axis: int = 0,
    ) -> ChartType:
        """Return a panel for each part, headed by its name, with axes titled at the left and below.

        ``axis`` is the width of the vertical axis, where panels have their own.
        """
        apart = axis * self.on_paper
        columns = max(1, min(columns, len(parts), (self.width + apart) // (narrowest + apart)))
        columns = -(-len(parts) // -(-len(parts) // columns))  # rows of like lengths: five are three and two
        width = self.beside(columns, gap=gap, axis=axis)
        panels = []
        for at, (name, part) in enumerate(parts.items()):
            place = Place(width, self.height or height, at % columns == 0, at + columns >= len(parts))
            heading = panel_title(str(name), detail(part) if detail else "", width=width)
            panel = draw(part, place)
            panel.title = heading  # Altair's methods copy all that is within, twice a level
            panels.append(panel)
        return alt.concat(*panels, columns=columns, spacing=gap, resolve=resolved(y="shared"))

    def figure(
        self,
        rows: Iterable[ChartType],
        title: str,
        caption: Iterable[str],
        words: Iterable[str],
        *,
        own: Iterable[str] = (),
    ) -> Any:
        """Return rows of panels as one figure, so that `a | b` puts two figures side by side."""
        scales: Any = dict.fromkeys(("y", "color", "shape", "fill", "stroke"), "shared")
        scales |= dict.fromkeys(own, "independent")
        return self.finished(
            alt.vconcat(*rows, spacing=GAP, resolve=resolved(**scales)), title, caption, words
        )

    def finished(self, chart: Any, title: str, caption: Iterable[str], words: Iterable[str]) -> Any:
        """Return a chart with its title, its caption and a description in words."""
        chart.title = figure_title(self.title or title, caption, width=self.width)
        chart.description = " ".join(words)
        return shown_offline(chart)


def resolved(**scales: Any) -> alt.Resolve:
    """Return which scales the panels of a figure share."""
    return alt.Resolve(scale=alt.ScaleResolveMap(**scales))


def sheet(width: Width | None, height: int | None, title: str | None) -> Sheet:
    """Return the size and title that were asked for, checked."""
    on_paper = isinstance(width, str)
    if isinstance(width, str):
        require_option(width, tuple(PAPER), name="width")
        width = PAPER[width]
    for name, size in (("width", width), ("height", height)):
        if size is not None:
            require_whole_number(size, name=name, least=40, most=10_000)
    if title is not None and not isinstance(title, str):
        raise InputError(f"title must be a string; got {title!r}.")
    return Sheet(width=WIDTH if width is None else width, height=height, title=title, on_paper=on_paper)
