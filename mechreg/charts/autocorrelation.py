"""Autocorrelation by lag, a panel a layer, with the slow context that fits it."""

from functools import partial
from typing import Any

import altair as alt
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.layout import Place, Sheet, Width, sheet
from mechreg.charts.rows import frame_of, one_value, rows_of_hook
from mechreg.charts.scales import ValueScale, value_scale
from mechreg.charts.theme import INK, OKABE_ITO, PALE_INK

SERIES = {"acf": INK, "pacf": OKABE_ITO[1], "fitted": OKABE_ITO[0]}
_COLUMNS = ("lag", "acf", "acf_low", "acf_high", "pacf", "fitted")


def plot_autocorrelation(
    found: Any,
    *,
    model: str | None = None,
    hook: str | None = None,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return the figure of one model's autocorrelations by lag, a panel a layer, with s rho^lag as a line.

    Parameters
    ----------
    found : Autocorrelation or pandas.DataFrame
        What `autocorrelation` gives, or its ``lags``.
    model, hook, width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "lag": 1, "acf": 0.5, "acf_low": 0.4,
    ...        "acf_high": 0.6, "pacf": 0.5, "fitted": 0.45}
    >>> plot_autocorrelation(pd.DataFrame([row])).to_dict()["title"]["text"]
    'Autocorrelation of attn_out in m'
    """
    who, page = "plot_autocorrelation", sheet(width, height, title)
    rows, hook = rows_of_hook(frame_of(found, "lags", who=who), hook, _COLUMNS, who=who)
    rows, model = one_value(rows, "model", model, who=who)
    layers = {f"layer {layer}": part[list(_COLUMNS)] for layer, part in rows.groupby("layer")}
    caption = (
        "Points: autocorrelation of log norms, with intervals over documents; crosses: partial autocorrelation; line: "
        "s rho^lag, a slow context of share s on top of white token noise."
    )
    words = f"Autocorrelation by lag of {hook} in {model}, {len(layers)} layers. {caption}"
    draw = partial(_panel, page=page, scale=value_scale(rows[list(_COLUMNS[1:])], "correlation"))
    grid = page.panels(layers, draw, columns=4, height=110, narrowest=80, axis=34)
    return page.figure([grid], f"Autocorrelation of {hook} in {model}", [caption], [words])


def _panel(part: pd.DataFrame, place: Place, *, page: Sheet, scale: ValueScale) -> ChartType:
    base = alt.Chart(part).encode(alt.X("lag:Q", title="tokens before" if place.lowest else None))
    colors = alt.Scale(domain=list(SERIES), range=list(SERIES.values()))

    def series(name: str, mark: alt.Chart) -> alt.Chart:
        y = alt.Y(f"{name}:Q", title=scale.of if place.leftmost else None, scale=scale)
        color = alt.Color("series:N", title=None, scale=colors, legend=page.legend())
        return mark.transform_calculate(series=f"'{name}'").encode(y, color)

    return alt.layer(
        base.mark_rule(color=PALE_INK, strokeDash=[4, 3]).encode(y=alt.datum(0)),
        base.mark_rule(color=PALE_INK, opacity=0.6).encode(
            alt.Y("acf_low:Q", scale=scale), alt.Y2("acf_high:Q")
        ),
        series("pacf", base.mark_point(shape="cross", size=14, filled=True)),
        series("acf", base.mark_point(shape="circle", size=20, filled=True, opacity=1)),
        series("fitted", base.mark_line(strokeWidth=1.8)),
        width=place.width,
        height=place.height,
    )
