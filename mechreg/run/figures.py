"""The figures of a run: norms and betas of every hook. One that cannot be drawn is skipped; the run still completes."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from mechreg import charts, store
from mechreg.charts.drawing import drawn
from mechreg.charts.save import VEGA_LITE, chart_files, vega_bundle
from mechreg.charts.theme import figure_title
from mechreg.frames import stacked
from mechreg.schema import MechregError
from mechreg.spec import Spec

FORMATS = ("html", "json", "svg", "png")
log = logging.getLogger("mechreg")


def begin_drawing() -> None:
    """Unpack Vega, which takes seconds, in the process that draws, while shards are made here."""

    def ready() -> None:
        with contextlib.suppress(MechregError, ValueError, OSError):  # reported when a figure is drawn
            vega_bundle()
            drawn("svg", spec={"data": {"values": [{}]}, "mark": "point", "encoding": {}}, version=VEGA_LITE)

    threading.Thread(target=ready, daemon=True).start()


def draw_figures(
    spec: Spec, per_model: list[pd.DataFrame], coefficients: pd.DataFrame, folder: Path, *, notes: list[str]
) -> None:
    """Draw norms and betas of every hook into a folder; ``notes`` go into the caption of the norms.

    A figure that cannot be drawn is named in a warning, and the file of an earlier run is removed.
    """
    for name, plot in _plots(spec, stacked(per_model), coefficients, notes):
        try:
            files = chart_files(plot(), folder / name, formats=FORMATS)
        except MechregError as error:
            log.warning("The figure %s is missing: %s", folder / name, error)
            for ending in FORMATS:
                store.remove(folder / f"{name}.{ending}")
            continue
        for path, content in files.items():
            with store.committed(path) as temporary:
                temporary.write_bytes(content)


def _plots(
    spec: Spec, norms: pd.DataFrame, coefficients: pd.DataFrame, notes: list[str]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of every figure and what draws it."""
    for hook in spec.hooks:
        rows = coefficients[coefficients["hook"] == hook]
        if "head" in rows and (rows["head"] != -1).any():
            continue  # too many heads for one panel each; see the tables
        suffix = "" if len(spec.hooks) == 1 else f"-{hook}"
        yield f"norms{suffix}", partial(_norms, norms, hook, notes)
        fits = SimpleNamespace(coefficients=rows, formula=spec.formula)
        yield f"betas{suffix}", partial(charts.plot_betas, fits)


def _norms(norms: pd.DataFrame, hook: str, notes: list[str]) -> Any:
    """Return the chart of a hook's norms with sentences added to its caption."""
    chart = charts.plot_norms(norms, hook=hook)
    title = figure_title(chart.title.text, [*chart.title.subtitle, *notes])
    return chart.properties(title=title) if notes else chart
