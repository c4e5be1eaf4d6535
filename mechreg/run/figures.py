"""The figures of a run: norms and betas of every hook."""

from pathlib import Path
from typing import Any, Literal

import pandas as pd

from mechreg import charts, store
from mechreg.charts.theme import figure_title
from mechreg.run.shards import headless
from mechreg.spec import Spec

FORMATS: tuple[Literal["html", "json", "svg", "png"], ...] = ("html", "json", "svg", "png")


def draw_figures(
    spec: Spec, per_model: list[pd.DataFrame], coefficients: pd.DataFrame, folder: Path, *, notes: list[str]
) -> dict[str, Path]:
    """Draw norms and betas of every hook; return the svg of each by its title.

    Parameters
    ----------
    spec : Spec
    per_model : list of pandas.DataFrame
        A norm frame each.
    coefficients : pandas.DataFrame
    folder : Path
    notes : list of str
        What is to be said in the caption of the norms: that they are a sample.
    """
    drawn = {}
    norms = store.stacked(per_model)
    for hook in spec.hooks:
        if (
            (coefficients["hook"] == hook).any()
            and "head" in coefficients
            and not headless(coefficients[coefficients["hook"] == hook])
        ):
            continue  # a panel per head is no figure: the tables have them
        suffix = "" if len(spec.hooks) == 1 else f"-{hook}"
        figures = {
            f"Norms of {hook}": (f"norms{suffix}", _noted(charts.plot_norms(norms, hook=hook), notes)),
            f"Betas of {hook}": (
                f"betas{suffix}",
                charts.plot_betas(coefficients[coefficients["hook"] == hook]),
            ),
        }
        for title, (name, chart) in figures.items():
            with store.in_reach(folder):
                paths = charts.save_chart(chart, folder / name, formats=FORMATS)
            drawn[title] = next(path for path in paths if path.suffix == ".svg")
    return drawn


def _noted(chart: Any, notes: list[str]) -> Any:
    """Return a chart with sentences added to its caption."""
    if not notes:
        return chart
    title = figure_title(chart.title.text, [*chart.title.subtitle, *notes])
    return chart.properties(title=title)
