"""Layers by tokens: one document, or the difference of two, as a heat map under which the tokens can be read."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import ticks, tooltips
from mechreg.charts.layout import Sheet, Width, sheet
from mechreg.charts.rows import chosen_group, frame_of, one_name
from mechreg.charts.scales import colour_ends
from mechreg.charts.theme import INK
from mechreg.charts.tokens import measured, shown_token
from mechreg.schema import TOKEN_KEYS, InputError, NumericalError, among
from mechreg.words import count

MAX_CELLS = 18_000
CELL = 13  # pixels of a token's column at least, so that its label can be read
_WHO = "plot_heatmap"


def plot_heatmap(
    norms: Any,
    other: Any = None,
    *,
    doc: str | None = None,
    value: str = "norm",
    model: str | None = None,
    hook: str | None = None,
    head: int | None = None,
    window: int | None = None,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return one document as a heat map, layers by tokens; with a second frame, the first less the second.

    A long text has several rows of tokens, as on a page. The colours end at the 2% and 98% quantiles, so that a sink
    does not wash out the rest.

    Parameters
    ----------
    norms : pandas.DataFrame
        layer, doc, window, position, the value's column, and ``token``, which labels the columns (without it,
        positions do).
    other : pandas.DataFrame, optional
        A second prompt, or the same under an edit or in another model: as many tokens and the same layers.
    value : str
        A column. "norm" is shown as its logarithm.
    doc, model, head, window : optional
        Which, where a frame has several.
    hook, width, height, title
        As in every chart: see `mechreg.charts`. The height is that of one row of tokens.

    Examples
    --------
    >>> frame = pd.DataFrame({"doc": "d", "window": 0, "position": [0, 1, 2] * 2, "token": ["The", " cat", " sat"] * 2,
    ...                       "layer": [0] * 3 + [1] * 3, "norm": [30.0, 2.0, 3.0, 40.0, 1.0, 2.0]})
    >>> plot_heatmap(frame).to_dict()["title"]["text"]
    'Log norm by layer and token: d'
    """
    page, value = sheet(width, height, title), one_name(value, name="value")
    wanted = {"model": model, "hook": hook, "head": head, "doc": doc, "window": window}
    cells, heading, where = _cells(norms, value, wanted)
    if other is not None:
        second, _, where_second = _cells(other, value, wanted, also=True)
        cells, heading = _less(cells, second), f"difference in {heading}"
        where = f"{where} less {where_second}" if where != where_second else f"two of {where}"
    if not cells["value"].notna().any():
        raise NumericalError(f"{_WHO} needs a finite {value!r} at some token; there is none.")
    if len(cells) > MAX_CELLS:
        raise InputError(
            f"{_WHO} shows at most {MAX_CELLS:,} cells, tokens times layers; there are {len(cells):,}. Give fewer "
            "tokens, for example norms[norms['position'] < 200]."
        )
    n_tokens = int(cells["at"].max()) + 1
    n_lines = -(-n_tokens // max(1, page.width // CELL))
    each = -(-n_tokens // n_lines)
    scale = _scale(cells["value"], both_signs=other is not None)
    lines = [part for _, part in cells.groupby(cells["at"] // each)]
    rows = [_row(part, page, page.width // each, scale, heading) for part in lines]
    largest = cells.iloc[int(np.nanargmax(cells["value"].abs()))]
    layers = count(cells["layer"].nunique(), "layer")
    words = (
        f"Heat map of {heading}, {where}, {layers} by {count(n_tokens, 'token')}; from {cells['value'].min():.3f} "
        f"to {cells['value'].max():.3f}, largest in size at layer {largest['layer']}, token {largest['label']!r}."
    )
    caption = f"{count(n_tokens, 'token')}, {layers}. Colours end at the 2% and 98% quantiles."
    usual = f"{heading[0].upper()}{heading[1:]} by layer and token: {where}"
    return page.figure(rows, usual, [caption], [words])


def _cells(
    norms: Any, value: str, wanted: dict[str, Any], *, also: bool = False
) -> tuple[pd.DataFrame, str, str]:
    """Return layer, place in the text, label and value of every cell, the value's title, and which text it is.

    A frame that is ``also`` there is asked only for what it has.
    """
    norms = frame_of(norms, "norms", (*TOKEN_KEYS, "layer", value), who=_WHO)
    norms = norms.assign(doc=norms["doc"].astype(str))
    if also:
        known = {key: key in norms and among(which, norms[key].unique()) for key, which in wanted.items()}
        wanted = {key: which if known[key] else None for key, which in wanted.items()}
    if wanted["window"] is None:  # all of them, one after the other
        wanted = {key: which for key, which in wanted.items() if key != "window"}
    rows, place = chosen_group(norms, wanted, who=_WHO)
    if rows.duplicated(["layer", *TOKEN_KEYS]).any():
        raise InputError(f"{_WHO} needs one row for each layer and token; the frame has several.")
    heading, numbers = measured(rows, value, who=_WHO)
    tokens = rows["token"].astype(str).map(shown_token) if "token" in rows else rows["position"].astype(str)
    label = tokens.str.strip(" ").where(lambda text: text != "", "␣")
    at = rows.groupby(["window", "position"]).ngroup()
    cells = pd.DataFrame({"layer": rows["layer"], "at": at, "position": rows["position"], "label": label})
    hook = " of ".join(str(place[key]) for key in ("hook", "model") if key in place)
    where = f"{place['doc']}, {hook}" if hook else place["doc"]
    values = np.where(np.isfinite(numbers), numbers.round(4), np.nan)
    return cells.assign(value=values), heading, where


def _less(cells: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return the cells minus the other frame's values, with both labels where they differ."""
    both = cells.merge(
        second, on=["layer", "at"], how="outer", suffixes=("", "_second"), validate="one_to_one"
    )
    if both[["label", "label_second"]].isna().to_numpy().any():
        sizes = [f"{of['at'].nunique()} tokens in {of['layer'].nunique()} layers" for of in (cells, second)]
        raise InputError(
            f"{_WHO} needs as many tokens and the same layers in both frames; they have {' and '.join(sizes)}. Choose "
            "prompts of equal length."
        )
    same = both["label"] == both["label_second"]
    label = both["label"].where(same, both["label"] + " / " + both["label_second"])
    values = both["value"] - both["value_second"]
    return both[["layer", "at", "position"]].assign(label=label, value=values)


def _scale(values: pd.Series, *, both_signs: bool) -> alt.Scale:
    ends = colour_ends(values, 0.02, both_signs=both_signs)
    middle: dict[str, Any] = (
        {"domainMid": 0, "scheme": "blueorange"} if len(ends) == 3 else {"scheme": "cividis"}
    )
    return alt.Scale(domain=[ends[0], ends[-1]], clamp=True, **middle)


def _row(part: pd.DataFrame, page: Sheet, cell: int, scale: alt.Scale, heading: str) -> ChartType:
    """Return one row of tokens: the cells of all layers, the first below, and the tokens under them."""
    layers, places = sorted(part["layer"].unique()), sorted(part["at"].unique())
    height = page.height or min(280, 26 * len(layers), max(120, 9 * len(layers)))
    marked = [int(layers[at]) for at in ticks(len(layers), height)]
    x = alt.X("at:O", axis=None, scale=alt.Scale(domain=[int(at) for at in places], padding=0))
    y = alt.Y("layer:O", sort="descending", axis=alt.Axis(values=marked), scale=alt.Scale(padding=0))
    tooltip = tooltips(("label:N", "token", ""), "position:Q", "layer:Q", ("value:Q", heading, ".4f"))
    legend = page.gradient(heading, tickCount=5)
    color = alt.Color("value:Q", scale=scale, legend=legend)
    cells = alt.Chart(part).mark_rect(aria=False).encode(x=x, y=y, color=color, tooltip=tooltip)
    look: Any = {
        "angle": 270,
        "align": "right",
        "baseline": "middle",
        "color": INK,
        "limit": 90,
        "aria": False,
    }
    labels = alt.Chart(part[part["layer"] == layers[0]]).mark_text(fontSize=min(11, cell - 2), **look)
    below = labels.encode(x=x, y=alt.value(height + 5), text="label:N", tooltip=tooltip)
    return alt.layer(cells, below, width=cell * len(places), height=height)
