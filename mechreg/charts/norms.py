"""Norms by layer: dots or quantile columns beside the density of every layer, sinks apart; or by groups of tokens."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType
from jaxtyping import Float

from mechreg.charts.estimates import Tooltip, ticks, tooltips
from mechreg.charts.layout import Place, Sheet, Width, resolved, sheet
from mechreg.charts.norms_by_group import norms_by_group
from mechreg.charts.rows import by_model, few, frame_of, named, rows_of_hook
from mechreg.charts.scales import ValueScale, value_scale
from mechreg.charts.theme import DEPTH_SCALE, INK
from mechreg.schema import InputError, log_norms
from mechreg.sinks import DEFAULT_Z, robust_z
from mechreg.words import count

MAX_DOTS = 5_000  # more are a solid mass, and slow
MAX_BINS = 100
MAX_OUTLINE_ROWS = 9_000
MAX_SINKS = 12  # of a layer, the largest
_FIRST, _SINK, _OTHER = "position 0", "later sinks", "other tokens"
_QUANTILES = {"q01": 0.01, "q25": 0.25, "log_norm": 0.5, "q75": 0.75, "q99": 0.99}


def plot_norms(
    norms: Any,
    *,
    by: str | None = None,
    hook: str | None = None,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return the figure of one hook's norms: log norm by layer, beside the density of every layer.

    Left, every token is a dot in its layer's column, moved sideways at random; above 5,000 dots in the figure a column
    shows quantiles instead. Right, a ridge a layer: its Freedman-Diaconis histogram, each as high as the others, so
    that a layer whose norms are all alike hides no other. Position 0 and later attention sinks are drawn apart. A
    click on a column picks its layer out. Models are rows of one figure, on the same log norm axes.

    With ``by``, a panel is a group of tokens: its mean log norm in every layer, less that of all groups in this layer.

    Parameters
    ----------
    norms : pandas.DataFrame, or a run
        A norm frame, or what `open_run` gives; its ``token`` and ``head`` go into the tooltips, and heads are pooled.
        With ``by``, what `group_norms` gives, of all groups.
    by : str, optional
        The column of groups, such as "pos".
    hook, width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": [0, 0, 0], "depth": 0.5, "doc": "d",
    ...                       "position": [0, 1, 2], "norm": [30.0, 2.0, 3.0]})
    >>> plot_norms(norms).to_dict()["title"]["text"]
    'Log norms of attn_out by layer'
    """
    page = sheet(width, height, title)
    norms = frame_of(norms, "norms", who="plot_norms")
    if by is not None:
        return norms_by_group(norms, by, hook, page)
    shown, hook = rows_of_hook(norms, hook, ("doc", "position", "norm"), who="plot_norms")
    models = few(shown["model"], who="plot_norms")
    table = _with_sinks(shown)
    parts = dict(by_model(table))
    for model, part in parts.items():
        if (part["position"] == 0).all():
            raise InputError(f"plot_norms needs tokens after position 0; {model!r} has none.")
    as_dots = len(table) <= MAX_DOTS
    n_layers = [part["layer"].nunique() for part in parts.values()]
    bins = max(1, min(MAX_BINS, MAX_OUTLINE_ROWS // sum(n_layers)))
    marks = [(_dots if as_dots else _quantiles)(part) for part in parts.values()]
    ridges = [_ridges(part[part["place"] == _OTHER], most=bins) for part in parts.values()]
    # The same log norm axes in every row, so that models can be compared.
    ends: dict[str, Any] = {"room": 0.02, "with_zero": False}
    shown_norms = pd.concat(marks)[["log_norm"] if as_dots else ["q01", "log_norm", "q99"]]
    y = value_scale(shown_norms, "log norm (natural log)", **ends)
    x = value_scale(pd.concat(ridges)[["log_norm"]], "log norm", **ends)
    usual = 280 if len(models) == 1 else 150
    rows: list[ChartType] = []
    for model, left, right in zip(models, marks, ridges, strict=True):
        pick = alt.selection_point(name=f"picked_{len(rows)}", fields=["layer"], on="click")
        # A ridge needs some pixels of its own.
        place = page.place(max(usual, (10 if len(models) == 1 else 5) * right["layer"].nunique()))
        place = place._replace(width=page.beside(2, gap=24, axis=26), lowest=model == models[-1])
        columns = (_dot_marks if as_dots else _column_marks)(left, place, y, page, pick).add_params(pick)
        panels = alt.hconcat(
            columns, _ridge_marks(right, place, x, pick), spacing=24, resolve=resolved(fill="independent")
        )
        rows.append(page.titled(panels, model, _sample_size(parts[model])))
    caption = _caption(table, as_dots=as_dots, bins=bins)
    return page.figure(rows, f"Log norms of {hook} by layer", caption, _words(table, hook), own=["y", "fill"])


def histogram_edges(
    values: Float[np.ndarray, " tokens"], *, most: int = MAX_BINS
) -> Float[np.ndarray, " edges"]:
    """Return the edges of equal bins of Freedman and Diaconis' (1981) width over the middle 99.8% of the values.

    numpy's ``histogram_bin_edges(bins="fd")`` makes tens of thousands of bins where a few sinks are far away.
    """
    low, high = np.quantile(values, 0.001, method="lower"), np.quantile(values, 0.999, method="higher")
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    inside = values[(values >= low) & (values <= high)]
    q25, q75 = np.quantile(inside, [0.25, 0.75])
    width = 2 * (q75 - q25) / len(inside) ** (1 / 3)
    # Where half of the values are equal the rule's width is zero.
    bins = most if width * most < high - low else int(np.ceil((high - low) / width))
    return np.linspace(low, high, bins + 1)


def _with_sinks(shown: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that the figure needs, log norms, and ``place``: position 0, a later sink, or neither."""
    keep = [name for name in ("model", "layer", "head", "depth", "doc", "position", "token") if name in shown]
    if "head" in keep and shown["head"].nunique() == 1:  # -1 at a hook without heads
        keep.remove("head")
    table = shown[keep].assign(log_norm=log_norms(shown, who="plot_norms"))
    is_first = table["position"] == 0
    layers = table.groupby(["model", "layer"], observed=True).ngroup().to_numpy()
    is_sink = robust_z(table["log_norm"].mask(is_first).to_numpy(), layers) > DEFAULT_Z
    return table.assign(place=np.select([is_first, is_sink], [_FIRST, _SINK], _OTHER))


def _dots(part: pd.DataFrame) -> pd.DataFrame:
    """Return every token with its place in its layer's column."""
    # The place has no meaning; a fixed seed draws the same figure every time.
    jitter = np.random.default_rng(0).uniform(-0.32, 0.32, len(part))
    x = (part["layer"] + np.where(part["place"] == _OTHER, jitter, 0.0)).round(3)
    return part.drop(columns="model").assign(x=x, log_norm=part["log_norm"].round(4))


def _quantiles(part: pd.DataFrame) -> pd.DataFrame:
    """Return the quantiles of every layer's tokens, those of position 0, and the largest of its later sinks."""
    sinks = part[part["place"] == _SINK].sort_values("log_norm", ascending=False)
    sinks = (
        sinks.groupby("layer").head(MAX_SINKS)[["layer", "depth", "place", "log_norm"]].round(4).assign(n=1)
    )
    groups = part[part["place"] != _SINK].groupby(["layer", "depth", "place"])["log_norm"]
    table = groups.quantile(np.array(list(_QUANTILES.values()))).unstack().round(4)
    table.columns = list(_QUANTILES)
    table = pd.concat([table.assign(n=groups.size()).reset_index(), sinks], ignore_index=True)
    return table.assign(x=table["layer"].astype(float))


def _ridges(part: pd.DataFrame, *, most: int) -> pd.DataFrame:
    """Return the outline of every layer's histogram, last layer first, 1 where it is highest."""
    ridges = []
    for (layer, depth), group in sorted(part.groupby(["layer", "depth"]), reverse=True):
        values = group["log_norm"].to_numpy()
        edges = histogram_edges(values, most=most)
        counts = np.histogram(values, edges)[0]
        places = np.r_[edges[0], (edges[1:] + edges[:-1]) / 2, edges[-1]]
        outline = {"log_norm": places.round(5), "share": np.r_[0.0, counts / counts.max(), 0.0].round(5)}
        ridges.append(pd.DataFrame({"layer": layer, "depth": depth, **outline}))
    return pd.concat(ridges, ignore_index=True)


def _layers(frame: pd.DataFrame, place: Place, field: str = "x") -> alt.X:
    low, high = int(frame["layer"].min()), int(frame["layer"].max())
    scale = alt.Scale(domain=[low - 0.6, high + 0.6], nice=False, zero=False)
    axis = alt.Axis(values=[low + at for at in ticks(high - low + 1, place.width)], format="d", grid=False)
    return alt.X(f"{field}:Q", title="layer" if place.lowest else None, scale=scale, axis=axis)


def _log_norm(field: str, scale: ValueScale) -> alt.Y:
    return alt.Y(f"{field}:Q", title=scale.of, scale=scale)


def _faded(pick: alt.Parameter, opacity: float) -> Any:
    """Return an opacity, which is less for the layers that were not picked."""
    return alt.condition(pick, alt.value(opacity), alt.value(0.12 * opacity))


def _dot_marks(
    dots: pd.DataFrame, place: Place, scale: ValueScale, page: Sheet, pick: alt.Parameter
) -> ChartType:
    fields = {"layer": "Q", "head": "Q", "position": "Q", "doc": "N", "token": "N"}
    shown: list[Tooltip] = [(f"{name}:{kind}", name, "") for name, kind in fields.items() if name in dots]
    tooltip = tooltips(*shown, ("log_norm:Q", "log norm", ".3f"))
    x, y = _layers(dots, place), _log_norm("log_norm", scale)
    other = alt.Chart(dots[dots["place"] == _OTHER]).mark_point(
        filled=True, size=24 if len(dots) <= 1_000 else 12
    )
    other = other.encode(x=x, y=y, color=page.depth(), opacity=_faded(pick, 0.7), tooltip=tooltip)
    sinks = _sink_marks(dots, x, y, page, tooltip)
    return alt.layer(other, *sinks, width=place.width, height=place.height)


def _column_marks(
    quantiles: pd.DataFrame, place: Place, scale: ValueScale, page: Sheet, pick: alt.Parameter
) -> ChartType:
    tooltip = tooltips(
        *("layer:Q", ("place:N", "at", ""), ("n:Q", "", ",")),
        *[(f"{name}:Q", f"{at:.0%}", ".3f") for name, at in _QUANTILES.items()],
    )
    ends = {"left": quantiles["layer"] - 0.4, "right": quantiles["layer"] + 0.4}
    other = alt.Chart(quantiles.assign(**ends)[quantiles["place"] == _OTHER])
    other = other.encode(x=_layers(quantiles, place, "left"), x2="right", color=page.depth(), tooltip=tooltip)
    y = _log_norm("log_norm", scale)
    return alt.layer(
        other.mark_rect().encode(y=_log_norm("q01", scale), y2="q99", opacity=_faded(pick, 0.28)),
        other.mark_rect().encode(y=_log_norm("q25", scale), y2="q75", opacity=_faded(pick, 0.5)),
        # In the column's own colour: a pale line would wipe out the box of a layer whose norms hardly vary.
        other.mark_rect(height=2).encode(y=y, opacity=_faded(pick, 1.0)),
        *_sink_marks(quantiles, _layers(quantiles, place), y, page, tooltip),
        width=place.width,
        height=place.height,
    )


def _sink_marks(
    marks: pd.DataFrame, x: alt.X, y: alt.Y, page: Sheet, tooltip: list[alt.Tooltip]
) -> list[alt.Chart]:
    """Return the marks of position 0 and of later sinks, hollow as no other mark of the figure; none without them."""
    own = marks[marks["place"] != _OTHER]
    names = [name for name in (_FIRST, _SINK) if (own["place"] == name).any()]
    if not names:
        return []
    looks = {_FIRST: "diamond", _SINK: "triangle-up"}
    scale = alt.Scale(domain=names, range=[looks[name] for name in names])
    legend = page.legend(symbolStrokeColor=INK, symbolSize=60, symbolStrokeWidth=1.3)
    shape = alt.Shape("place:N", scale=scale, legend=legend)
    mark = alt.Chart(own).mark_point(filled=False, color=INK, size=24, strokeWidth=1, opacity=0.8)
    return [mark.encode(x=x, y=y, shape=shape, tooltip=tooltip)]


def _ridge_marks(ridges: pd.DataFrame, place: Place, scale: ValueScale, pick: alt.Parameter) -> ChartType:
    """Return a density a layer, first layer below; where there are many, a ridge reaches over those above it."""
    low, high = int(ridges["layer"].min()), int(ridges["layer"].max())
    n_layers = high - low + 1
    reach = 0.9 if n_layers <= 6 else 1.6 if n_layers <= 16 else 2.6
    drawn = ridges.assign(top=(ridges["layer"] + reach * ridges["share"]).round(4))
    marked = [low + at for at in ticks(n_layers, place.height)]
    up = alt.Scale(domain=[low - 0.2, high + reach + 0.1], nice=False, zero=False)
    axes = alt.Axis(tickCount=6), alt.Axis(values=marked, format="d", grid=False, domain=False)
    areas = (
        alt.Chart(drawn)
        .mark_area(line={"color": "white", "strokeWidth": 0.7}, orient="vertical")
        .encode(
            alt.X("log_norm:Q", title=scale.of if place.lowest else None, scale=scale, axis=axes[0]),
            alt.Y("top:Q", title="layer", scale=up, axis=axes[1]),
            alt.Y2("layer:Q"),
            # Its own channel and scale: Vega has no gradient as the legend of dots and areas together.
            alt.Fill("depth:Q", scale=DEPTH_SCALE, legend=None),
            detail="layer:N",
            opacity=_faded(pick, 0.85),
            tooltip=tooltips("layer:Q"),
        )
    )
    return areas.properties(width=place.width, height=place.height)


def _sample_size(part: pd.DataFrame) -> str:
    """Return how many tokens, documents and layers a panel shows."""
    n_heads = part["head"].nunique() if "head" in part else 1
    sizes = part.groupby("layer").size() // n_heads
    n = count(int(sizes.min()), "token")
    if sizes.max() > sizes.min():
        n = f"{sizes.min():,} to {count(int(sizes.max()), 'token')} a layer"
    parts = [f"n = {n}", count(part["doc"].nunique(), "document"), count(len(sizes), "layer")]
    return ", ".join([*parts, f"{n_heads} heads pooled"] if n_heads > 1 else parts)


def _caption(table: pd.DataFrame, *, as_dots: bool, bins: int) -> list[str]:
    apart = [name for name in (_FIRST, _SINK) if (table["place"] == name).any()]
    if as_dots:
        dot = "token and head" if "head" in table else "token"
        left = f"Left: one dot a {dot}; the sideways scatter has no meaning."
    else:
        left = f"Left: {len(table):,} norms aggregated; columns: 1–99% and 25–75%, line: median"
        left += ", diamond: median at position 0." if _FIRST in apart else "."
    bins_of = f"middle 99.8%, at most {bins} bins"
    right = f"Right: Freedman–Diaconis histograms, each as high as the others, {bins_of}"
    right += f", without {' and '.join(apart)}." if apart else "."
    if _SINK not in apart:
        return [left, right]
    most = "" if as_dots else f"; of a layer at most the {MAX_SINKS} largest are drawn"
    return [left, right, f"Sinks: {DEFAULT_Z:g} robust deviations above the layer's median log norm{most}."]


def _words(table: pd.DataFrame, hook: str) -> list[str]:
    """Return what the figure shows in words, for those who cannot see it."""

    def sentence(part: pd.DataFrame) -> str:
        median = part[part["place"] != _FIRST].groupby("layer")["log_norm"].median()
        ends = [f"{value:.2f} in layer {layer}" for layer, value in median.items()]
        first, n_sinks = part[part["place"] == _FIRST]["log_norm"], int((part["place"] == _SINK).sum())
        parts = [
            f"{_sample_size(part)}; the median log norm goes from {' to '.join(dict.fromkeys((ends[0], ends[-1])))}"
        ]
        parts += [f"at position 0 the median over all layers is {first.median():.2f}"] if len(first) else []
        parts += [f"{n_sinks:,} norms at later positions are sinks"] if n_sinks else []
        return "; ".join(parts) + "."

    lead = f"Log norms of {hook} by layer, as columns of marks and as ridges."
    return [lead, *named(table, ["model"], sentence)]
