"""How much the profiles of several models agree: a matrix of pairs."""

import textwrap
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.layout import Sheet, Width, sheet
from mechreg.charts.rows import few, frame_of, number, one_comparison
from mechreg.charts.theme import INK, OKABE_ITO
from mechreg.schema import require_option
from mechreg.words import count

_MEASURES = {
    "concordance": "Concordance",
    "rank_correlation": "Rank correlation",
    "sign_agreement": "Share of depths with the same sign",
    "rms_difference": "RMS difference",
}


def plot_agreement(
    agreement: Any,
    *,
    measure: str = "concordance",
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return the figure of one measure of agreement: a matrix of models with values in its cells.

    Below each value is its interval and, where it can be tested, the p value of the shapes' likeness.

    Parameters
    ----------
    agreement : ProfileComparison, or pandas.DataFrame
        What `compare_profiles` gives, or its ``agreement``.
    measure : str
        "concordance", "rank_correlation", "sign_agreement" or "rms_difference".
    width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> row = {"model_a": "a", "model_b": "b", "hook": "attn_out", "term": "lag1", "measure": "concordance",
    ...        "estimate": 0.8, "conf_low": 0.7, "conf_high": 0.9, "p_value": 0.01, "bins": 12, "conf_level": 0.95,
    ...        "n_docs": 60}
    >>> plot_agreement(pd.DataFrame([row])).to_dict()["title"]["text"]
    'Concordance of lag1 profiles for attn_out'
    """
    who, page = "plot_agreement", sheet(width, height, title)
    require_option(measure, tuple(_MEASURES), name="measure")
    needed = ("model_a", "model_b", "measure", "estimate", "conf_low", "conf_high", "p_value", "bins")
    agreement = frame_of(agreement, "agreement", needed, who=who)
    shown = agreement[agreement["measure"] == measure]
    hook, term, level, docs = one_comparison(shown, (), who=who)
    models = few([*shown["model_a"], *shown["model_b"]], who=who)
    cells = _cells(shown, models, digits=3 if measure == "rms_difference" else 2)
    has_p = bool((cells["p"] != "").any())
    caption = (
        f"Without sampling noise; {level:.0%} intervals; {int(shown['bins'].iloc[0])} slices of depth; "
        f"{count(docs, 'document')}."
    )
    if has_p:
        caption += " p: against unrelated shapes that are as smooth."
    elif measure != "sign_agreement":
        caption += " So few depths give no test of shape any power."
    words = [f"{_MEASURES[measure]} of every pair of models."]
    for cell in cells.to_dict("records"):
        pair = f"{models[cell['row']]} and {models[cell['column']]}"
        words.append(f"{pair}: {cell['value']} ({cell['interval']}).")
    heading = f"{_MEASURES[measure]} of {term} profiles for {hook}"
    return page.finished(_matrix(cells, models, measure, page, has_p=has_p), heading, [caption], words)


def _matrix(cells: pd.DataFrame, models: list[str], measure: str, page: Sheet, *, has_p: bool) -> ChartType:
    """Return the lower left of the matrix of models, with what is written in its cells."""
    n_cells = len(models) - 1
    most = (page.width + 50) // (n_cells + 1) if page.on_paper else page.width // max(2, n_cells)
    side, height = min(120, most), page.height or 64 * n_cells  # names take as much as a cell
    low, high = "#f4f4f4", OKABE_ITO[1 if measure == "rms_difference" else 0]
    domain, colors, dark = [0, 1.0], [low, high], 0.7
    if measure == "rms_difference":
        domain, dark = [0, float(np.nanmax([*cells["estimate"], 0.0])) or 1.0], 0.85
    elif measure != "sign_agreement":
        domain, colors = [-1, 0, 1], [OKABE_ITO[1], low, high]
    interpolate: Any = "lab" if len(domain) == 3 else alt.Undefined
    scale = alt.Scale(domain=domain, range=colors, interpolate=interpolate)
    legend = page.gradient(length=min(140, height), format=".2~f", tickCount=4)
    lines = ["\n".join(textwrap.wrap(model, side // 7)) or model for model in models]
    broken: Any = {"labelExpr": "split(datum.label, '\\n')", "labelLimit": 0, "labelAngle": 0}
    axis = alt.Axis(domain=False, ticks=False, labelPadding=6, **broken)
    cells = cells.assign(**{end: [lines[at] for at in cells[end]] for end in ("row", "column")})
    base = alt.Chart(cells).encode(
        x=alt.X("column:N", sort=lines[:-1], scale=alt.Scale(domain=lines[:-1]), title=None, axis=axis),
        y=alt.Y("row:N", sort=lines[1:], scale=alt.Scale(domain=lines[1:]), title=None, axis=axis),
    )
    ink = alt.condition(f"abs(datum.estimate) > {dark * domain[-1]}", alt.value("white"), alt.value(INK))
    color = alt.Color("estimate:Q", scale=scale, legend=legend)
    lines_of: dict[str, Any] = {
        "value": ("bold", 14, -14 if has_p else -8),
        "interval": ("normal", 10, 3 if has_p else 9),
    }
    lines_of["p"] = ("normal", 10, 18)
    texts = [
        base.mark_text(fontWeight=weight, fontSize=size, dy=dy).encode(text=f"{field}:N", color=ink)
        for field, (weight, size, dy) in lines_of.items()
    ]
    cell = base.mark_rect(stroke="white", strokeWidth=2).encode(color=color)
    return alt.layer(cell, *texts, width=side * n_cells, height=height)


def _cells(shown: pd.DataFrame, models: list[str], *, digits: int) -> pd.DataFrame:
    """Return a row a cell: the numbers of two models, the later one below, and what is written."""
    ends = np.sort([[models.index(name) for name in shown[end]] for end in ("model_a", "model_b")], axis=0)
    limits = zip(shown["conf_low"], shown["conf_high"], strict=True)
    return pd.DataFrame(
        {
            "row": ends[1],
            "column": ends[0],
            "estimate": shown["estimate"].to_numpy(),
            "value": [_number(value, digits) for value in shown["estimate"]],
            "interval": [f"{_number(low, digits)} to {_number(high, digits)}" for low, high in limits],
            "p": [_p(p) for p in shown["p_value"]],
        }
    )


def _number(value: float, digits: int) -> str:
    """Return a number with its decimals and a minus sign, or what there is instead."""
    if np.isnan(value):
        return "not defined"
    return "∞" if np.isinf(value) else number(value, digits)


def _p(p: float) -> str:
    return "" if np.isnan(p) else "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)
