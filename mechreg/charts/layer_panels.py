"""The panels of the linked view of layers, which all follow one choice of a layer."""

import re
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.depth import BETA, tooltips
from mechreg.charts.rows import distinct
from mechreg.charts.theme import INK, OKABE_ITO, PALE_INK, WIDTH, layer_ticks
from mechreg.charts.tokens import ABOVE, BELOW, LINE_HEIGHT, NEUTRAL, token_layer

GAP = 60
_SIDE = 300  # of the density, which is square
_REST = WIDTH - _SIDE - GAP
_LAG = re.compile(r"lag\d+")
_DENSE = ["#dce9f3", OKABE_ITO[0], "#002b45"]
_NORM = "log norm"


def layer_choice(layers: list[int], first: int) -> alt.Parameter:
    """Return the selection of one layer: by an input below the chart, or by a click on the profile."""
    whole = layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1
    by: Any = (
        alt.binding_range(min=layers[0], max=layers[-1], step=1, name="layer ")
        if whole
        else alt.binding_select(options=layers, name="layer ")
    )
    return alt.selection_point(
        name="chosen",
        fields=["layer"],
        bind=by,
        on="click",
        clear=False,
        toggle=False,
        value=[{"layer": first}],
    )


def profile_panel(betas: pd.DataFrame, term: str, layers: list[int], pick: alt.Parameter) -> ChartType:
    """Return the coefficients by layer, those of the chosen layer lit up; a click anywhere chooses."""
    lags = sorted((t for t in distinct(betas["term"]) if _LAG.fullmatch(t)), key=lambda t: int(t[3:]))
    terms = [term, *(lag for lag in lags if lag != term)][:4]
    marks = betas[betas["term"].isin(terms) & betas["layer"].isin(layers)]
    marks = marks[["layer", "depth", "term", "estimate", "conf_low", "conf_high"]].round(4)
    step = 0.5 if len(layers) == 1 else min(np.diff(layers)) / 2
    side = {name: (at - (len(terms) - 1) / 2) * 0.5 * step / len(terms) for at, name in enumerate(terms)}
    marks = marks.assign(x=(marks["layer"] + marks["term"].map(side)).round(3))
    axis = alt.Axis(values=layer_ticks(layers[0], layers[-1]), format="d", grid=False)
    x = alt.X(
        "x:Q",
        title="layer (click one)",
        axis=axis,
        scale=alt.Scale(domain=[layers[0] - step, layers[-1] + step], nice=False, zero=False),
    )
    y = alt.Y("estimate:Q", title="beta", scale=alt.Scale(zero=True))
    hues = alt.Scale(domain=terms, range=[OKABE_ITO[at] for at in range(len(terms))])
    color = alt.Color("term:N", sort=terms, scale=hues, title="term", legend=alt.Legend(symbolOpacity=1))
    tooltip = tooltips("layer:Q", "term:N", *BETA)
    columns = alt.Data(
        values=[{"layer": layer, "left": layer - step, "right": layer + step} for layer in layers]
    )
    base = alt.Chart(marks).encode(x=x, color=color)
    lit = alt.condition(pick, alt.value(1.0), alt.value(0.3))
    left = alt.X("left:Q", axis=axis, title="layer (click one)")
    return alt.layer(
        alt.Chart(columns)
        .mark_rect(color=OKABE_ITO[4], cursor="pointer", aria=False)
        .encode(x=left, x2="right:Q", opacity=alt.condition(pick, alt.value(0.25), alt.value(0.0)))
        .add_params(pick),
        alt.Chart(alt.Data(values=[{}]))
        .mark_rule(color=PALE_INK, strokeDash=[4, 3], aria=False)
        .encode(y=alt.datum(0)),
        base.mark_line(strokeWidth=1, opacity=0.35, aria=False).encode(y=y),
        base.mark_rule(strokeWidth=1.5, aria=False).encode(
            y=alt.Y("conf_low:Q"), y2="conf_high:Q", opacity=lit
        ),
        base.mark_point(filled=True, cursor="pointer").encode(
            y=y,
            tooltip=tooltip,
            opacity=lit,
            size=alt.condition(pick, alt.value(110), alt.value(26)),
        ),
    ).properties(width=WIDTH, height=120)


def _chosen(pick: alt.Parameter) -> alt.Chart:
    """Return a chart of the chosen layer's row, with what is shown of the layer."""
    return alt.Chart(alt.NamedData("layers")).transform_filter(pick)


def scatter_panel(term: str, pick: alt.Parameter) -> ChartType:
    """Return the binned density of the chosen layer, with the line of its fit; both axes have one range."""
    scale = alt.Scale(zero=False, nice=False)
    x = alt.X("x:Q", title=f"{term} of log norm", scale=scale, axis=alt.Axis(tickCount=6))
    y = alt.Y("y:Q", title="log norm (natural log)", scale=scale, axis=alt.Axis(tickCount=6))
    cells = (
        _chosen(pick)
        .transform_flatten(["at_x", "at_y", "tokens"])
        .transform_calculate(
            x="datum.low + datum.at_x * datum.cell",
            x2="datum.x + datum.cell",
            y="datum.low + datum.at_y * datum.cell",
            y2="datum.y + datum.cell",
        )
    )
    # Scales take their ranges from what is drawn: the ends keep them the layer's whole range.
    ends = _chosen(pick)
    line = (
        ends.transform_calculate(
            points="[{x: datum.low, y: datum.line_low}, {x: datum.high, y: datum.line_high}]"
        )
        .transform_flatten(["points"])
        .transform_calculate(x="datum.points.x", y="datum.points.y")
    )
    corners = (
        ends.transform_calculate(points="[datum.low, datum.high]")
        .transform_flatten(["points"])
        .transform_calculate(x="+datum.points", y="+datum.points")
    )
    tooltip = tooltips(("tokens:Q", "", ","), ("x:Q", f"{term} from", ".3f"), ("y:Q", "log norm from", ".3f"))
    dense = alt.Scale(type="log", range=_DENSE, interpolate="lab")
    return alt.layer(
        corners.mark_point(size=0, opacity=0, aria=False).encode(x=x, y=y),
        cells.mark_rect(aria=False).encode(
            x=x,
            x2="x2:Q",
            y=y,
            y2="y2:Q",
            tooltip=tooltip,
            color=alt.Color(
                "tokens:Q",
                title="tokens in cell",
                scale=dense,
                legend=alt.Legend(gradientLength=120, gradientThickness=12, tickCount=4, format="~s"),
            ),
        ),
        line.mark_line(color=OKABE_ITO[1], strokeWidth=2, clip=True, aria=False).encode(x=x, y=y),
        ends.mark_text(align="left", baseline="bottom", dy=-4, fontSize=12, fontWeight="bold", color=INK)
        .encode(x=alt.value(0), y=alt.value(0), text=alt.Text("label:N"))
        .transform_calculate(
            label="'layer ' + datum.layer + ':  beta ' + format(datum.beta, '.3f') + ',  n = ' + format(datum.n, ',')"
        ),
    ).properties(width=_SIDE, height=_SIDE)


def histogram_panel(pick: alt.Parameter) -> ChartType:
    """Return the chosen layer's histogram, with its median."""
    scale = alt.Scale(zero=False, nice=False)
    bars = (
        _chosen(pick)
        .transform_flatten(["bars", "at_bar"])
        .transform_calculate(x="datum.low + datum.at_bar * datum.bar", x2="datum.x + datum.bar")
    )
    x = alt.X("x:Q", title="log norm (natural log)", scale=scale, axis=alt.Axis(tickCount=6, grid=False))
    tooltip = tooltips(("bars:Q", "tokens", ","), ("x:Q", "log norm from", ".3f"), ("x2:Q", "to", ".3f"))
    median = _chosen(pick)
    return alt.layer(
        bars.mark_rect(color=OKABE_ITO[0], opacity=0.8, aria=False).encode(
            x=x,
            x2="x2:Q",
            y=alt.Y("bars:Q", title="tokens", axis=alt.Axis(format="~s")),
            y2=alt.datum(0),
            tooltip=tooltip,
        ),
        median.mark_rule(color=INK, strokeDash=[4, 3], aria=False).encode(x="median:Q"),
        median.mark_text(align="left", baseline="bottom", dx=4, dy=-4, fontSize=11, color=INK)
        .encode(x="median:Q", y=alt.value(0), text="label:N")
        .transform_calculate(label="'median ' + format(datum.median, '.2f')"),
    ).properties(width=_REST, height=_SIDE)


def _full_shade(values: list[float | None]) -> float:
    """Return the size beyond which 3% of the values lie, 1 where that is 0 or there are none."""
    sizes = np.abs([value for value in values if value is not None])
    return (float(f"{np.quantile(sizes, 0.97):.2g}") if len(sizes) else 0.0) or 1.0


def text_panel(
    views: list[dict[str, Any]], places: list[dict[str, Any]], has_residuals: bool, pick: alt.Parameter
) -> tuple[ChartType, alt.Parameter]:
    """Return the document as text, coloured by the chosen layer's values, and the choice between those."""
    # Full shade is the same in all layers, but not for both: residuals are a fraction of what norms differ by.
    of_norms, of_residuals = (
        _full_shade([value for view in views for value in view[kind]]) for kind in ("norm", "residual")
    )
    options = [_NORM, "residual"] if has_residuals else [_NORM]
    shade = alt.param(
        name="shade", value=options[-1], bind=alt.binding_radio(options=options, name="colour tokens by ")
    )
    fields = ["shown", "text", "line", "x", "x2", "text_x", "position"]
    base = (
        _chosen(pick)
        .transform_flatten(["norm", "residual"])
        .transform_window(at="row_number()")
        .transform_lookup(
            lookup="at", from_=alt.LookupData(data=alt.NamedData("tokens"), key="at", fields=fields)
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
    scale = alt.Scale(domain=[low, 0, high], range=[BELOW, NEUTRAL, ABOVE], clamp=True, interpolate="lab")
    chart = token_layer(
        base, field="shaded", scale=scale, legend_title="deviation (log norm)", tooltip=tooltip
    )
    height = LINE_HEIGHT * (places[-1]["line"] + 1)
    return chart.properties(width=WIDTH, height=height, name="tokens"), shade
