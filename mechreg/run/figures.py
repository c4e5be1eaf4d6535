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
) -> None:
    """Draw norms and betas of every hook into a folder.

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
    norms = store.stacked(per_model)
    for hook in spec.hooks:
        if (
            (coefficients["hook"] == hook).any()
            and "head" in coefficients
            and not headless(coefficients[coefficients["hook"] == hook])
        ):
            continue  # a panel per head is no figure: the tables have them
        suffix = "" if len(spec.hooks) == 1 else f"-{hook}"
        figures = [
            (f"norms{suffix}", _noted(charts.plot_norms(norms, hook=hook), notes)),
            (f"betas{suffix}", charts.plot_betas(coefficients[coefficients["hook"] == hook])),
        ]
        for name, chart in figures:
            with store.in_reach(folder):
                charts.save_chart(chart, folder / name, formats=FORMATS)


def _noted(chart: Any, notes: list[str]) -> Any:
    """Return a chart with sentences added to its caption."""
    if not notes:
        return chart
    title = figure_title(chart.title.text, [*chart.title.subtitle, *notes])
    return chart.properties(title=title)
