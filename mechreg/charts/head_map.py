"""Head maps: a coefficient of every attention head, by layer."""

from functools import partial
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import BETA, cell_chart, p_labels, sure_and_unsure, tooltips
from mechreg.charts.layout import Place, Sheet, Width, resolved, sheet
from mechreg.charts.rows import (
    by_model,
    drawable,
    frame_of,
    largest,
    named,
    one_value,
    rows_of_hook,
    sample_size,
)
from mechreg.charts.scales import diverging

_NUMBERS = ["estimate", "conf_low", "conf_high", "p_adjusted"]


def plot_head_map(
    coefficients: Any,
    *,
    term: str = "lag1",
    alpha: float = 0.05,
    hook: str | None = None,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return a heat map of one coefficient: layers across, attention heads up, a panel a model.

    A cell whose adjusted p-value is ``alpha`` or more is a small square.

    Parameters
    ----------
    coefficients : pandas.DataFrame, or fits
        What `fit_lagged` gives of a per-head hook (result, z), or its coefficient frame.
    term, alpha, hook, width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> row = {"model": "m", "hook": "result", "layer": 0, "head": 0, "depth": 0.5, "term": "lag1", "estimate": 0.3,
    ...        "conf_low": 0.1, "conf_high": 0.5, "p_adjusted": 0.003, "n": 91, "n_docs": 3}
    >>> plot_head_map(pd.DataFrame([row])).to_dict()["title"]["text"]
    'lag1 of result, by layer and head'
    """
    who, page = "plot_head_map", sheet(width, height, title)
    unsure = p_labels(alpha, kind="adjusted p")[1]
    frame = frame_of(coefficients, "coefficients", who=who)
    shown, hook = rows_of_hook(frame, hook, ("head", "term", *_NUMBERS, "n", "n_docs"), who=who)
    shown, term = one_value(shown, "term", term, who=who)
    shown = shown.reset_index(drop=True)
    drawable(shown, ("model", "layer", "head"), _NUMBERS, who=who)
    cells = shown[["model", "layer", "head", *_NUMBERS, "n", "n_docs"]]
    cells = cells.assign(unsure=cells["p_adjusted"] >= alpha)
    most = float(cells["estimate"].abs().max()) or 1.0
    tall = max(80, 20 * (int(cells["head"].max()) + 1))
    draw = partial(_map, page=page, most=most, legend=term)
    grid = page.panels(
        dict(by_model(cells)), draw, columns=2, height=min(tall, 400), detail=sample_size, axis=20
    )
    grid.resolve = resolved(y="independent")  # models have as many heads as they have
    caption = f"Cells: the coefficient of {term}; a small square: {unsure}."

    def sentence(part: pd.DataFrame) -> str:
        top = largest(part)
        low, middle, high = np.quantile(part["estimate"], [0, 0.5, 1])
        return f"{low:.3g} to {high:.3g}, median {middle:.3g}; largest at layer {top['layer']}, head {top['head']}."

    lead = f"A heat map of {term} of {hook} by layer and attention head."
    words = [lead, *named(cells, ["model"], sentence)]
    return page.figure([grid], f"{term} of {hook}, by layer and head", [caption], words, own=["y"])


def _map(cells: pd.DataFrame, place: Place, *, page: Sheet, most: float, legend: str) -> ChartType:
    bar = page.gradient(legend, length=100, format=".2~g")
    more = (("p_adjusted:Q", "adjusted p", ".2~g"), ("n:Q", "tokens", ","))
    base = cell_chart(cells, place, "layer", "head", ("layer", "head")).encode(
        color=alt.Color("estimate:Q", scale=diverging(most), legend=bar),
        tooltip=tooltips("layer:O", "head:O", *BETA, *more),
    )
    return alt.layer(*sure_and_unsure(base, "unsure"), width=place.width, height=place.height)
