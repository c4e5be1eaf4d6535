"""Agreement token by token: a heat map of all layers of one model against all layers of another, for every pair."""

import textwrap
from dataclasses import replace
from functools import partial
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import Tooltip, tooltips
from mechreg.charts.layout import Place, Sheet, Width, resolved, sheet
from mechreg.charts.rows import few, frame_of, number, one_value, require_one_row
from mechreg.charts.theme import INK, PALE_INK, elided
from mechreg.words import count

QUARTERS = (0, 0.25, 0.5, 0.75, 1)
ALL_DEPTHS = alt.Scale(domain=[0, 1], nice=False)
_ENDS = tuple(f"{name}_{end}" for name in ("model", "layer", "depth") for end in "ab")
_NUMBERS = ("estimate", "conf_low", "conf_high", "p_adjusted")
_COMMON = ("hook", "column", "unit", "effects", "match", "conf_level", "n", "n_docs", "matched")
MAX_CELLS = 12_000  # of all pairs; of more, neighbouring layers are drawn as one
_MATCH = {"depth": "nearest in depth", "best": "best match"}


def plot_token_agreement(
    cells: Any,
    *,
    hook: str | None = None,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return a heat map for every pair of models: rank correlation, token by token, of every pair of their layers.

    Both sides go from the input to the output in relative depth, so the dashed diagonal is equal depth. Matched layers
    are framed; a small cross marks a cell that is not above chance (p_adjusted). All maps have one colour scale. Above
    12,000 cells, neighbouring layers are drawn as one.

    Parameters
    ----------
    cells : TokenComparison, or pandas.DataFrame
        What `compare_tokens` gives, or its ``cells``.
    hook, width, height, title
        As in every chart: see `mechreg.charts`. Without a height the maps are square.

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
    who, page = "plot_token_agreement", sheet(width, height, title)
    cells = frame_of(cells, "cells", (*_ENDS, *_NUMBERS, *_COMMON), who=who)
    cells, hook = one_value(cells, "hook", hook, who=who)
    cells, column = one_value(cells, "column", None, who=who)
    few([*cells["model_a"], *cells["model_b"]], who=who)
    for name in _COMMON[2:-1]:
        cells, _ = one_value(cells, name, None, who=who)
    keys = ("model_a", "model_b", "layer_a", "layer_b")
    require_one_row(cells, keys, _NUMBERS, depths=("depth_a", "depth_b"), who=who)
    pairs = list(cells.groupby(["model_a", "model_b"], sort=False, observed=True))
    most = float(np.ceil(20 * cells["estimate"].abs().max()) / 20) or 0.05
    block = int(np.ceil(np.sqrt(len(cells) / MAX_CELLS)))
    first = cells.iloc[0]
    after = f"after effects of {first['effects']}" if first["effects"] else "no effects taken out"
    docs, alpha = count(int(first["n_docs"]), "document"), 1 - first["conf_level"]
    caption = [
        f"Colour: rank correlation over {count(int(first['n']), str(first['unit']))} of {docs}, {after}. "
        f"Framed: matched layers ({_MATCH[first['match']]}). Dashed: equal depth. × no more than unrelated series that "
        f"are as smooth (p ≥ {alpha:.2g} over all cells of a pair)."
        + (f" Cells are means over {block} x {block} layers." if block > 1 else "")
    ]
    maps = replace(page, width=400) if width is None and len(pairs) == 1 else page
    panels = maps.panels(
        {f"{a} and {b}": part for (a, b), part in pairs},
        partial(_panel, page=page, most=most, block=block),
        columns=3,
        height=0,
        axis=54,
        detail=_matched,
    )
    heading = f"Do models update the same tokens? {column} of {hook}, layer by layer"
    words = [_description(pairs, str(column), str(hook))]
    panels.resolve = resolved(color="shared")
    return page.finished(panels, heading, caption, words)


def _shown_cells(part: pd.DataFrame, block: int) -> pd.DataFrame:
    """Return the cells of one pair; with blocks, means over that many layers, marked unsure if all of them are."""
    cells = part[["layer_a", "layer_b", "estimate"]].assign(
        low=part["conf_low"].round(3),
        high=part["conf_high"].round(3),
        unsure=part["p_adjusted"] > 1 - part["conf_level"] + 1e-9,
    )
    if block > 1:
        cells = cells.assign(
            layer_a=cells["layer_a"] // block * block, layer_b=cells["layer_b"] // block * block
        )
        of_block = cells.groupby(["layer_a", "layer_b"], as_index=False, sort=False)
        cells = of_block.agg(estimate=("estimate", "mean"), unsure=("unsure", "all"))
    return cells.assign(estimate=cells["estimate"].round(4))


def _edges(n_layers: dict[str, int], block: int) -> dict[str, str]:
    """Return where a cell begins, ends and has its middle, in relative depth, as Vega's expressions."""
    edges: dict[str, str] = {}
    for end, axis in (("b", "x"), ("a", "y")):
        layer, n = f"datum.layer_{end}", n_layers[end]
        edges |= {f"{axis}1": f"{layer} / {n}", f"{axis}2": f"min({layer} + {block}, {n}) / {n}"}
        edges[f"{axis}_middle"] = f"({layer} + min({layer} + {block}, {n})) / {2 * n}"
    return edges


def _panel(part: pd.DataFrame, place: Place, *, page: Sheet, most: float, block: int) -> ChartType:
    """Return the map of one pair: cells as wide as their layers, in relative depth."""
    height = place.height or place.width
    models = {end: str(part[f"model_{end}"].iloc[0]) for end in "ab"}
    first = part.iloc[0]
    n_layers = {end: round((first[f"layer_{end}"] + 0.5) / first[f"depth_{end}"]) for end in "ab"}

    def placed(frame: pd.DataFrame, x: str, y: str, *, of: int) -> alt.Chart:
        depth_axis: dict[str, Any] = {"values": list(QUARTERS), "format": ".2~f", "grid": False}
        room = place.width // 6
        titles = {
            end: textwrap.wrap(f"relative depth in {elided(models[end], room - 5)}", room) for end in "ab"
        }
        return (
            alt.Chart(frame)
            .transform_calculate(**_edges(n_layers, of))
            .encode(
                alt.X(f"{x}:Q", scale=ALL_DEPTHS, axis=alt.Axis(title=titles["b"], **depth_axis)),
                alt.Y(f"{y}:Q", scale=ALL_DEPTHS, axis=alt.Axis(title=titles["a"], **depth_axis)),
            )
        )

    what = "rank correlation"
    legend = page.gradient(what, length=140, format=".2~f", tickCount=5)
    scale = alt.Scale(scheme="blueorange", domain=[-most, most], domainMid=0, reverse=True)
    color = alt.Color("estimate:Q", title=what, scale=scale, legend=legend)
    shown: list[Tooltip] = [(f"layer_{end}:O", f"layer of {models[end]}", "") for end in "ab"]
    shown.append(("estimate:Q", what, ".3f"))
    if block == 1:
        shown += [("low:Q", "interval from", ".3f"), ("high:Q", "to", ".3f")]
    cells, matched = _shown_cells(part, block), part[part["matched"].astype(bool)]
    thinnest = min(place.width, height) / max(n_layers.values())
    size = max(5.0, min(12.0, 0.8 * thinnest * block))
    ends = pd.DataFrame({"at": [0, 1]})
    rectangles = placed(cells, "x1", "y1", of=block).mark_rect()
    frames = placed(matched[["layer_a", "layer_b"]], "x1", "y1", of=1)
    unsure = placed(cells, "x_middle", "y_middle", of=block).transform_filter("datum.unsure")
    border = frames.mark_rect(filled=False, stroke=INK, strokeWidth=min(1.4, 0.2 * thinnest))
    layers = [
        rectangles.encode(x2="x2:Q", y2="y2:Q", color=color, tooltip=tooltips(*shown)),
        placed(ends, "at", "at", of=1).mark_line(color=INK, strokeDash=[4, 3], strokeWidth=1, opacity=0.6),
        unsure.mark_text(text="×", fontSize=size, color=PALE_INK),
        border.encode(x2="x2:Q", y2="y2:Q"),
    ]
    return alt.layer(*layers, width=place.width, height=height)


def _matched(part: pd.DataFrame) -> str:
    return f"matched layers: mean {number(part.loc[part['matched'].astype(bool), 'estimate'].mean())}"


def _description(pairs: list[tuple[Any, pd.DataFrame]], column: str, hook: str) -> str:
    what = f"rank correlations of {column} of {hook}, token by token, of all pairs of layers"
    sentences = [f"Heat maps of {what}."]
    for (a, b), part in pairs:
        top = part.iloc[int(part["estimate"].to_numpy().argmax())]
        mean = part.loc[part["matched"].astype(bool), "estimate"].mean()
        sentences.append(
            f"{a} and {b}: mean of matched layers {number(mean)}, largest {number(top['estimate'])} at layers "
            f"{top['layer_a']} and {top['layer_b']}."
        )
    return " ".join(sentences)
