"""The panels of the linked view of layers, which all follow one choice of a layer."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import BETA, estimate_panel, hues, placed, tooltips
from mechreg.charts.layout import Sheet
from mechreg.charts.scales import OwnData, value_scale
from mechreg.charts.terms import sort_terms
from mechreg.charts.theme import INK, OKABE_ITO
from mechreg.charts.tokens import LINE_HEIGHT, token_layer

_DENSE = ["#dce9f3", OKABE_ITO[0], "#002b45"]
_NORM = "log norm"
_LABEL: dict[str, Any] = {"align": "left", "baseline": "bottom", "dy": -4, "color": INK}
_OWN = alt.Scale(zero=False, nice=False)  # the chosen layer's


def layer_choice(layers: list[int], first: int) -> alt.Parameter:
    """Return the selection of one layer: by an input below the chart, or by a click on the profile."""
    by: Any = (
        alt.binding_range(min=layers[0], max=layers[-1], step=1, name="layer ")
        if layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1
        else alt.binding_select(options=layers, name="layer ")
    )
    return alt.selection_point(
        name="chosen",
        fields=["layer"],
        bind=by,
        # A click on empty space would select all layers, and one on a line the layer where the line begins.
        on="click[event.item && isValid(event.item.datum.layer) && event.item.mark.marktype !== 'line']",
        clear=False,
        toggle=False,
        empty=False,
        value=[{"layer": first}],
    )


def profile_panel(
    betas: pd.DataFrame, term: str, layers: list[int], pick: alt.Parameter, page: Sheet
) -> ChartType:
    """Return the coefficients by layer, the chosen layer lit up; a click on a layer chooses it."""
    terms = [term, *(lag for lag in sort_terms(betas["term"]).lags if lag != term)][:4]
    marks = betas[betas["term"].isin(terms) & betas["layer"].isin(layers)]
    marks = marks[["model", "layer", "depth", "term", "estimate", "conf_low", "conf_high"]].round(4)
    columns = alt.Data(values=[{"layer": at, "left": at - 0.5, "right": at + 0.5} for at in layers])
    lit = alt.condition(pick, alt.value(0.3), alt.value(0.0))
    rects = alt.Chart(columns).mark_rect(color=OKABE_ITO[4], cursor="pointer", aria=False)
    return estimate_panel(
        placed(marks, several=False, hue="term", names=terms),
        page.place(120),
        several=False,
        scale=value_scale(marks[["estimate", "conf_low", "conf_high"]], "beta"),
        look=hues("term", terms, page),
        bars={"conf": 1.5},
        behind=lambda base, y: [rects.encode(x="left:Q", x2="right:Q", opacity=lit).add_params(pick)],
        tooltip=("layer:Q", "term:N", *BETA),
    )


def _chosen(pick: alt.Parameter, *lists: str, **calculated: str) -> alt.Chart:
    """Return a chart of the chosen layer's row: lists in it as rows of their own, and what is calculated of those."""
    chart = alt.Chart(alt.NamedData("layers")).transform_filter(pick)
    chart = chart.transform_flatten(list(lists)) if lists else chart
    return chart.transform_calculate(**calculated) if calculated else chart


def _points(pick: alt.Parameter, **ends: tuple[str, str]) -> alt.Chart:
    """Return a chart of two points, from one field of the chosen layer to another in each direction."""
    points = ", ".join(
        "{" + ", ".join(f"{axis}: datum.{fields[at]}" for axis, fields in ends.items()) + "}" for at in (0, 1)
    )
    both = _chosen(pick, points=f"[{points}]").transform_flatten(["points"])
    return both.transform_calculate(**{axis: f"datum.points.{axis}" for axis in ends})


def token_panels(term: str, given: str, pick: alt.Parameter, page: Sheet) -> ChartType:
    """Return the chosen layer's histogram and density: beside each other where both can be read."""
    if page.width < 300:
        rows = (_histogram(pick, page.width, 100), _scatter(term, given, pick, page.width, page))
        return alt.vconcat(*rows, spacing=26)
    side = page.width * 15 // 32
    panels = (_histogram(pick, page.width - side - 60, side), _scatter(term, given, pick, side, page))
    return alt.hconcat(*panels, spacing=20 if page.on_paper else 60).resolve_scale(color="independent")


def _scatter(term: str, given: str, pick: alt.Parameter, side: int, page: Sheet) -> ChartType:
    """Return the binned density of the chosen layer, with the line of its fit."""
    axis = alt.Axis(tickCount=6)
    x = alt.X("x:Q", title=f"{term} of log norm{given}", scale=_OWN, axis=axis)
    y = alt.Y("y:Q", title=f"log norm{given}" if given else "log norm (natural log)", scale=_OWN, axis=axis)
    cells = _chosen(
        *(pick, "at_x", "at_y", "tokens"),
        x="datum.x_low + datum.at_x * datum.cell_x",
        y="datum.y_low + datum.at_y * datum.cell_y",
    ).transform_calculate(x2="datum.x + datum.cell_x", y2="datum.y + datum.cell_y")
    # Scales take their ranges from what is drawn: the corners keep them the layer's whole range.
    corners = _points(pick, x=("x_low", "x_high"), y=("y_low", "y_high"))
    line = _points(pick, x=("x_low", "x_high"), y=("line_low", "line_high"))
    words = (
        "'layer ' + datum.layer + ':  beta ' + format(datum.beta, '.3f') + ',  n = ' + format(datum.n, ',')"
    )
    look = _LABEL | {"fontSize": 12, "fontWeight": "bold"}
    legend = page.gradient("tokens in cell", tickCount=4, format="~s")
    dense = alt.Scale(type="log", range=_DENSE, interpolate="lab")
    tooltip = tooltips(("tokens:Q", "", ","), ("x:Q", f"{term} from", ".3f"), ("y:Q", "log norm from", ".3f"))
    color = alt.Color("tokens:Q", scale=dense, legend=legend)
    return alt.layer(
        corners.mark_point(size=0, opacity=0, aria=False).encode(x=x, y=y),
        cells.mark_rect(aria=False).encode(x=x, x2="x2:Q", y=y, y2="y2:Q", tooltip=tooltip, color=color),
        line.mark_line(color=OKABE_ITO[1], strokeWidth=2, clip=True, aria=False).encode(x=x, y=y),
        _chosen(pick, label=words).mark_text(**look).encode(x=alt.value(0), y=alt.value(0), text="label:N"),
    ).properties(width=side, height=side)


def _histogram(pick: alt.Parameter, width: int, height: int) -> ChartType:
    """Return the chosen layer's histogram, with its median."""
    bars = _chosen(pick, "bars", "at_bar", x="datum.low + datum.at_bar * datum.bar")
    x = alt.X("x:Q", title="log norm (natural log)", scale=_OWN, axis=alt.Axis(tickCount=6, grid=False))
    y = alt.Y("bars:Q", title="tokens", axis=alt.Axis(format="~s"))
    tooltip = tooltips(("bars:Q", "tokens", ","), ("x:Q", "log norm from", ".3f"), ("x2:Q", "to", ".3f"))
    median = _chosen(pick, label="'median ' + format(datum.median, '.2f')")
    look = _LABEL | {"dx": 4, "fontSize": 11}
    return alt.layer(
        bars.transform_calculate(x2="datum.x + datum.bar")
        .mark_rect(color=OKABE_ITO[0], opacity=0.8, aria=False)
        .encode(x=x, x2="x2:Q", y=y, y2=alt.datum(0), tooltip=tooltip),
        median.mark_rule(color=INK, strokeDash=[4, 3], aria=False).encode(x="median:Q"),
        median.mark_text(**look).encode(x="median:Q", y=alt.value(0), text="label:N"),
    ).properties(width=width, height=height)


def _full_shade(values: list[float | None]) -> float:
    """Return the size beyond which 3% of the values lie, 1 where that is 0 or there are none."""
    sizes = np.abs([value for value in values if value is not None])
    return (float(f"{np.quantile(sizes, 0.97):.2g}") if len(sizes) else 0.0) or 1.0


def text_panel(
    views: list[dict[str, Any]],
    places: list[dict[str, Any]],
    has_residuals: bool,
    pick: alt.Parameter,
    page: Sheet,
) -> tuple[ChartType, alt.Parameter]:
    """Return the document as text, coloured by the chosen layer's values, and the choice between those."""
    # Full shade is the same in all layers, but not for both: residuals are a fraction of what norms differ by.
    of_norms, of_residuals = (
        _full_shade([value for view in views for value in view[kind]]) for kind in ("norm", "residual")
    )
    options = [_NORM, "residual"] if has_residuals else [_NORM]
    by = alt.binding_radio(options=options, name="colour tokens by ")
    shade = alt.param(name="shade", value=options[-1], bind=by)
    fields = ["shown", "text", "line", "x", "x2", "text_x", "position"]
    base = (
        _chosen(pick, "norm", "residual")
        .transform_window(at="row_number()")
        .transform_lookup(
            lookup="at",
            from_=alt.LookupData(data=OwnData(name="tokens", rows=(places,)), key="at", fields=fields),
        )
        .transform_calculate(
            shaded=f"shade == '{_NORM}' ? datum.norm : datum.residual",
            log_norm="isValid(datum.norm) ? datum.norm + datum.median : null",
        )
    )
    tooltip = tooltips(
        *(("shown:N", "token", ""), "position:Q", "layer:Q"),
        *(("log_norm:Q", "log norm", ".3f"), ("residual:Q", "", ".3f")),
    )
    low, high = (
        alt.expr(f"shade == '{_NORM}' ? {sign * of_norms} : {sign * of_residuals}") for sign in (-1, 1)
    )
    look: Any = {"field": "shaded", "ends": [low, 0, high], "heading": "deviation (log norm)"}
    chart = token_layer(base, page, tooltip=tooltip, **look)
    height = LINE_HEIGHT * (places[-1]["line"] + 1)
    return chart.properties(width=page.width, height=height, name="tokens"), shade
