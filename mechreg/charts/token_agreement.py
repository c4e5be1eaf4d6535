"""Agreement token by token: a heat map of all layers of one model against all layers of another, for every pair."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.depth import ALL_DEPTHS, QUARTERS, layers_of_depth, tooltips
from mechreg.charts.rows import count, few, frame_of, one_value
from mechreg.charts.theme import INK, PALE_INK, WIDTH, figure_title, panel_title
from mechreg.schema import InputError, NumericalError, require

_ENDS = tuple(f"{name}_{end}" for name in ("model", "layer", "depth") for end in "ab")
_NUMBERS = ("estimate", "conf_low", "conf_high", "p_adjusted")
_COMMON = ("hook", "column", "unit", "effects", "match", "conf_level", "n", "n_docs", "matched")
_MATCH = {"depth": "nearest in depth", "best": "best match"}


def plot_token_agreement(cells: Any, *, hook: str | None = None) -> ChartType:
    """Return a heat map for every pair of models: rank correlation, token by token, of every pair of their layers.

    Both sides go from the input to the output in relative depth, so the dashed diagonal is equal depth. Matched layers
    are framed; a small cross marks a cell that is not above chance (p_adjusted). All maps have one colour scale.

    Parameters
    ----------
    cells : TokenComparison, or pandas.DataFrame
        What `compare_tokens` gives, or its ``cells``.
    hook : str, optional
        Which hook point, where there are several.

    Returns
    -------
    Altair chart
        With a title, a caption and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column, no rows, two rows for one cell, more than six models, several hooks or measures.
    NumericalError
        A number that is NaN or infinite.

    Examples
    --------
    >>> row = {"model_a": "a", "model_b": "b", "hook": "attn_out", "column": "norm", "unit": "token",
    ...        "effects": "doc", "match": "depth", "conf_level": 0.95, "n": 900, "n_docs": 12, "estimate": 0.4,
    ...        "conf_low": 0.3, "conf_high": 0.5, "p_adjusted": 0.01}
    >>> rows = [row | {"layer_a": a, "layer_b": b, "depth_a": (a + 0.5) / 2, "depth_b": (b + 0.5) / 2,
    ...                "matched": a == b} for a in (0, 1) for b in (0, 1)]
    >>> plot_token_agreement(pd.DataFrame(rows)).to_dict()["title"]["text"]
    'Do models update the same tokens? norm of attn_out, layer by layer'
    """
    who = "plot_token_agreement"
    cells = frame_of(cells, "cells", who=who)
    require(cells, (*_ENDS, *_NUMBERS, *_COMMON), who=who)
    if not len(cells):
        raise InputError(f"{who} needs at least one row; the frame is empty.")
    cells, hook = one_value(cells, "hook", hook, who=who)
    cells, column = one_value(cells, "column", None, who=who)
    few([*cells["model_a"], *cells["model_b"]], who=who)
    for name in _COMMON[2:-1]:
        cells, _ = one_value(cells, name, None, who=who)
    _require_cells(cells, who=who)
    pairs = list(cells.groupby(["model_a", "model_b"], sort=False, observed=True))
    columns = min(3, len(pairs))
    side = {1: 400, 2: 270, 3: 165}[columns]
    most = float(np.ceil(20 * cells["estimate"].abs().max()) / 20) or 0.05
    panels = [_panel(part, side, most) for _, part in pairs]
    first = cells.iloc[0]
    after = f"after effects of {first['effects']}" if first["effects"] else "no effects taken out"
    docs, alpha = count(int(first["n_docs"]), "document"), 1 - first["conf_level"]
    caption = [
        f"Colour: rank correlation over {count(int(first['n']), str(first['unit']))} of {docs}, {after}. "
        f"Framed: matched layers ({_MATCH[first['match']]}). Dashed: equal depth. × no more than unrelated series that "
        f"are as smooth (p ≥ {alpha:.2g} over all cells of a pair)."
    ]
    title = f"Do models update the same tokens? {column} of {hook}, layer by layer"
    return alt.concat(
        *panels,
        columns=columns,
        spacing=24,
        title=figure_title(title, caption),
        description=_description(pairs, str(column), str(hook)),
    ).resolve_scale(color="shared")


def _require_cells(cells: pd.DataFrame, *, who: str) -> None:
    keys = ["model_a", "model_b", "layer_a", "layer_b"]
    if cells.duplicated(keys).any():
        raise InputError(
            f"{who} needs one row for each pair of layers; some come twice. Choose one comparison."
        )
    for end in "ab":
        if not cells[f"depth_{end}"].between(0, 1, inclusive="neither").all():
            raise InputError(
                f"{who} needs a 'depth_{end}' between 0 and 1, (layer + 0.5) / n_layers, in every row."
            )
    bad = ~np.isfinite(cells[list(_NUMBERS)].to_numpy(dtype="float64", na_value=np.nan)).all(axis=1)
    if bad.any():
        raise NumericalError(
            f"{who} needs finite numbers as {', '.join(_NUMBERS)}; {int(bad.sum())} rows have others."
        )


def _panel(part: pd.DataFrame, side: int, most: float) -> ChartType:
    """Return the map of one pair: cells as wide as their layers, in relative depth."""
    n_layers = {
        end: int(
            layers_of_depth(part.rename(columns={f"layer_{end}": "layer", f"depth_{end}": "depth"})).iloc[0]
        )
        for end in "ab"
    }
    places = {}
    for end, names in (("b", ("x", "x2", "xm")), ("a", ("y", "y2", "ym"))):
        for name, moved in zip(names, (0, 1, 0.5), strict=True):
            places[name] = f"(datum.layer_{end} + {moved}) / {n_layers[end]}"
    rows = part[["layer_a", "layer_b", "matched"]].assign(
        estimate=part["estimate"].round(4),
        low=part["conf_low"].round(3),
        high=part["conf_high"].round(3),
        unsure=part["p_adjusted"] > 1 - part["conf_level"] + 1e-9,
    )
    cells, framed = (
        rows.drop(columns="matched"),
        rows.loc[rows["matched"].astype(bool), ["layer_a", "layer_b"]],
    )
    models = {end: str(part[f"model_{end}"].iloc[0]) for end in "ab"}

    def axis(channel: Any, end: str, field: str) -> Any:
        ends = alt.Axis(
            values=list(QUARTERS), format=".2~f", grid=False, title=f"relative depth in {models[end]}"
        )
        return channel(f"{field}:Q", scale=ALL_DEPTHS, axis=ends)

    def placed(frame: pd.DataFrame) -> alt.Chart:
        chart = alt.Chart(frame).transform_calculate(**places)
        return chart.encode(x=axis(alt.X, "b", "x"), x2="x2:Q", y=axis(alt.Y, "a", "y"), y2="y2:Q")

    color = alt.Color(
        "estimate:Q",
        title="rank correlation",
        scale=alt.Scale(scheme="blueorange", domain=[-most, most], domainMid=0, reverse=True),
        legend=alt.Legend(gradientLength=140, gradientThickness=10, format=".2~f", tickCount=5),
    )
    shown = tooltips(
        *((f"layer_{end}:O", f"layer of {models[end]}", "") for end in "ab"),
        *(
            ("estimate:Q", "rank correlation", ".3f"),
            ("low:Q", "interval from", ".3f"),
            ("high:Q", "to", ".3f"),
        ),
    )
    cell = side / max(n_layers.values())
    crosses = (
        alt.Chart(cells[cells["unsure"]])
        .transform_calculate(**places)
        .mark_text(text="×", fontSize=max(5, min(12, 0.8 * cell)), color=PALE_INK)
    )
    equal = alt.Chart(alt.Data(values=[{"at": 0}, {"at": 1}])).mark_line(
        color=INK, strokeDash=[4, 3], strokeWidth=1, opacity=0.6
    )
    mean = part.loc[part["matched"].astype(bool), "estimate"].mean()
    return alt.layer(
        placed(cells).mark_rect().encode(color=color, tooltip=shown),
        equal.encode(x=axis(alt.X, "b", "at"), y=axis(alt.Y, "a", "at")),
        crosses.encode(x=axis(alt.X, "b", "xm"), y=axis(alt.Y, "a", "ym")),
        placed(framed).mark_rect(filled=False, stroke=INK, strokeWidth=1.4),
    ).properties(
        width=side,
        height=side,
        title=panel_title(
            f"{models['a']} and {models['b']}",
            f"matched layers: mean {_number(mean)}",
            width=max(side, WIDTH // 4),
        ),
    )


def _description(pairs: list[tuple[Any, pd.DataFrame]], column: str, hook: str) -> str:
    sentences = [
        f"Heat maps of rank correlations of {column} of {hook}, token by token, of all pairs of layers."
    ]
    for (a, b), part in pairs:
        top = part.iloc[int(part["estimate"].to_numpy().argmax())]
        mean = part.loc[part["matched"].astype(bool), "estimate"].mean()
        sentences.append(
            f"{a} and {b}: mean of matched layers {_number(mean)}, largest {_number(top['estimate'])} at layers "
            f"{top['layer_a']} and {top['layer_b']}."
        )
    return " ".join(sentences)


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
