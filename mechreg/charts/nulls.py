"""Coefficients by layer, against what they would be with no context at work."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import CROSS, Mark, estimate_panel, p_labels, placed
from mechreg.charts.layout import Place, Width, sheet
from mechreg.charts.rows import by_model, drawable, few, frame_of, named, one_value, rows_of_hook, sample_size
from mechreg.charts.scales import value_scale
from mechreg.charts.theme import OKABE_ITO
from mechreg.schema import InputError
from mechreg.words import count

MAX_NULLS = 5  # panels beside each other; more are too narrow
# A draw that repeats one document has no error and counts as extreme: p is at least G^(1 - G) with G documents (.5
# with 2, .11 with 3, .0016 with 5), which from 6 on is less than the usual 999 draws could tell.
MIN_DOCS = 6
_UNTOLD = "cannot be told"
_ESTIMATES = (
    *("estimate", "null_estimate", "null_low", "null_high", "excess", "conf_low", "conf_high", "p_value"),
)

_TOOLTIP = (
    *("model:N", "layer:Q", "null:N", ("estimate:Q", "beta", ".4f"), ("null_estimate:Q", "null beta", ".4f")),
    *(("excess:Q", "", ".4f"), ("conf_low:Q", "excess from", ".4f"), ("conf_high:Q", "to", ".4f")),
    ("p_value:Q", "p", ".2~g"),
)


def plot_nulls(
    comparison: Any,
    *,
    hook: str | None = None,
    term: str = "lag1",
    alpha: float = 0.05,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return the figure of one term's coefficients by layer, against the band in which each null has them.

    Rows are models, columns are nulls. The black line is the coefficient; its mark is a filled triangle where its
    excess over that null has p below ``alpha`` (not adjusted), pointing up or down, and hollow elsewhere: a circle, or
    a cross where the test could hardly find a difference, of fewer than 6 documents (whose p is at least .5 of 2 and
    .11 of 3) or with so few draws that p could not be below ``alpha``. The band is where the coefficient of one frame
    of the null lies, its line the mean.

    Parameters
    ----------
    comparison : pandas.DataFrame
        What `compare_to_nulls` gives, of at most five nulls.
    term, alpha, hook, width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "term": "lag1", "null": "norm_order",
    ...        "estimate": 0.3, "null_estimate": 0.1, "null_low": 0.0, "null_high": 0.2, "excess": 0.2,
    ...        "conf_low": 0.1, "conf_high": 0.3, "p_value": 0.001, "repeats": 5, "draws": 999, "n": 91, "n_docs": 9}
    >>> plot_nulls(pd.DataFrame([row])).to_dict()["title"]["text"]
    'lag1 of attn_out against its nulls, by layer'
    """
    who, page = "plot_nulls", sheet(width, height, title)
    small_p = p_labels(alpha)[0]
    kinds = {
        f"above the null, {small_p}": Mark("triangle-up", True),
        f"below it, {small_p}": Mark("triangle-down", True),
        "no difference seen": Mark("circle", False),
        _UNTOLD: CROSS,
    }
    comparison = frame_of(comparison, "comparison", who=who)
    columns = ("term", "null", *_ESTIMATES, "repeats", "draws", "n", "n_docs")
    shown, hook = rows_of_hook(comparison, hook, columns, who=who)
    shown, _ = one_value(shown, "term", term, who=who)
    shown = shown.reset_index(drop=True)
    nulls = few(shown["null"], "null", most=MAX_NULLS, who=who)
    models = drawable(shown, ("model", "layer", "null"), _ESTIMATES, who=who)
    several, is_significant = len(models) > 1, shown["p_value"] < alpha
    is_untold = (shown["n_docs"] < MIN_DOCS) | (1 / (1 + shown["draws"]) >= alpha)
    above, below, unseen, untold = kinds
    cases = [is_significant & (shown["excess"] > 0), is_significant, is_untold]
    judged = np.select(cases, [above, below, untold], unseen)
    kinds = {kind: mark for kind, mark in kinds.items() if kind != untold or untold in judged}
    marks = placed(
        shown[["model", "layer", "depth", "null", *_ESTIMATES]].assign(judged=judged), several=several
    )
    scale = value_scale(marks[["estimate", "null_low", "null_high"]], f"beta of {term}", cut_at_zero=True)

    def panel(part: pd.DataFrame, place: Place) -> ChartType:
        null, model = part["null"].iloc[0], part["model"].iloc[0]
        return estimate_panel(
            part,
            place._replace(lowest=place.lowest and model == models[-1]),
            several=several,
            scale=scale,
            kinds=kinds,
            legend=page.legend(orient="bottom", direction="horizontal", columns=page.width // 200 or 1),
            behind=lambda base, y: _band(base, y, OKABE_ITO[nulls.index(null)], len(part)),
            tooltip=_TOOLTIP,
        )

    rows = []
    for model, own in by_model(marks):
        for null in nulls:
            if not (own["null"] == null).any():
                raise InputError(f"{who} has no rows of the null {null!r} for the model {model!r}.")
        parts = {str(null).replace("_", " "): own[own["null"] == null] for null in nulls}
        grid = page.panels(parts, panel, columns=len(nulls), height=150 if several else 240)
        rows.append(page.titled(grid, model, sample_size(shown.loc[own.index])))
    heading = f"{term} of {hook} against its nulls, by {'depth' if several else 'layer'}"
    lead = f"Coefficients of {term} for {hook} by layer, against nulls."
    caption = [_caption(shown), *([_why_untold(shown)] if _UNTOLD in kinds else [])]
    return page.figure(rows, heading, caption, [lead, *_words(marks, list(kinds))])


def _band(base: alt.Chart, y: Any, color: str, n_layers: int) -> list[alt.Chart]:
    """Return a null's band and its mean."""
    band = base.encode(y=y("null_low"), y2="null_high", color=alt.ColorValue(color))
    line = base.encode(y=y("null_estimate"), color=alt.ColorValue(color)).mark_line(strokeWidth=1.5)
    return [band.mark_area(opacity=0.3) if n_layers > 1 else band.mark_rule(size=8, opacity=0.3), line]


def _caption(shown: pd.DataFrame) -> str:
    repeats = shown.groupby("null", sort=False, observed=True)["repeats"].max()
    listed = ", ".join(f"{int(number)} of {str(null).replace('_', ' ')}" for null, number in repeats.items())
    return (
        "Black: the coefficient. Coloured: the same under a null, where no context is at work: its mean over frames "
        f"({listed}), and the band in which one frame's lies. p: of coefficient minus null, not adjusted, from "
        f"{int(shown['draws'].max()):,} draws of the documents, the same ones for both."
    )


def _why_untold(shown: pd.DataFrame) -> str:
    """Return why some differences cannot be told: of few documents, draws that repeat one of them keep p high."""
    docs, draws = int(shown["n_docs"].min()), int(shown["draws"].min())
    least = max(float(docs) ** (1 - docs), 1 / (1 + draws))
    few = f"of {count(docs, 'document')}" if docs < MIN_DOCS else f"of {draws:,} draws"
    return f"Cannot be told: p {few} is at least {least:.2g}, and seldom so low. A difference could have been missed."


def _words(marks: pd.DataFrame, kinds: list[str]) -> Any:
    def sentence(rows: pd.DataFrame) -> str:
        above, below, *_, last = (int((rows["judged"] == kind).sum()) for kind in kinds)
        untold = f", {_UNTOLD} in {last}" if kinds[-1] == _UNTOLD else ""
        return (
            f"mean beta {rows['estimate'].mean():.3f}, null {rows['null_estimate'].mean():.3f}; {kinds[0]} in {above} "
            f"and {kinds[1]} in {below}{untold} of {count(len(rows), 'layer')}."
        )

    return named(marks, ["model", "null"], sentence)
