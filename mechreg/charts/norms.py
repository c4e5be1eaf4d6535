"""Norms by layer: dots or quantile columns, beside a histogram of every layer; or by groups of tokens."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType
from jaxtyping import Float

from mechreg.charts.depth import Tooltip, tooltips
from mechreg.charts.norms_by_group import norms_by_group
from mechreg.charts.rows import count, few, frame_of, rows_of_hook
from mechreg.charts.theme import DEPTH_LEGEND, DEPTH_SCALE, INK, WIDTH, figure_title, layer_ticks, panel_title
from mechreg.schema import InputError, NumericalError

MAX_DOTS = 5_000  # more are a solid mass, and slow
MAX_BINS = 100
MAX_OUTLINE_ROWS = 9_000
MAX_STEPPED = 12  # layers; the steps of more than a dozen histograms cross each other everywhere
_LEFT = WIDTH * 11 // 20
_RIGHT = WIDTH - _LEFT
_FIRST, _LATER = "position 0", "later positions"
_DEPTH = alt.Color("depth:Q", scale=DEPTH_SCALE, legend=DEPTH_LEGEND)
_QUANTILES = {"q01": 0.01, "q25": 0.25, "log_norm": 0.5, "q75": 0.75, "q99": 0.99}


def plot_norms(norms: Any, *, by: str | None = None, hook: str | None = None) -> ChartType:
    """Return the figure of one hook's norms: log norm by layer, beside a histogram outline of every layer.

    Left, every token is a dot in its layer's column, moved sideways at random so that dots do not hide each other;
    above 5,000 dots in the figure a column shows quantiles instead (1-99%, 25-75%, median). Right, Freedman-Diaconis
    histograms. Position 0 is drawn apart, since in many models it is an attention sink with a norm many times the
    others'. Models are rows of one figure, on the same log norm axes.

    With ``by``, a row is a group of tokens: a dot is a layer, shaded by depth, at the group's mean log norm less that
    of all groups in this layer; bars are intervals of the group's mean. Models are panels with the same axes.

    Parameters
    ----------
    norms : pandas.DataFrame, or a run
        A norm frame, or what `open_run` gives; its ``token`` and ``head`` go into the tooltips, and heads are pooled.
        With ``by``, what `group_norms` gives, of all groups.
    by : str, optional
        The column of groups, such as "pos".
    hook : str, optional
        Which hook point, where the frame has several.

    Returns
    -------
    Altair chart
        With a title, a caption (n, what the marks are) and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column, no rows, several hooks and none chosen, more than six models or twenty groups, two rows for
        one group's mean.
    NumericalError
        A norm without a logarithm (zero, negative, NaN, infinite), or a mean that is not finite.

    Examples
    --------
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": [0, 0, 0], "depth": 0.5, "doc": "d",
    ...                       "position": [0, 1, 2], "norm": [30.0, 2.0, 3.0]})
    >>> plot_norms(norms).to_dict()["title"]["text"]
    'Log norms of attn_out by layer'
    """
    norms = frame_of(norms, "norms", who="plot_norms")
    if by is not None:
        return norms_by_group(norms, by, hook)
    shown, hook = rows_of_hook(norms, hook, ("doc", "position", "norm"), who="plot_norms")
    models = few(shown["model"], who="plot_norms")
    table = _log_norms(shown)
    parts = {model: table[table["model"] == model] for model in models}
    for model, part in parts.items():
        if (part["position"] == 0).all():
            raise InputError(f"plot_norms needs tokens after position 0; {model!r} has none.")
    as_dots = len(table) <= MAX_DOTS
    n_layers = [part["layer"].nunique() for part in parts.values()]
    bins = max(1, min(MAX_BINS, MAX_OUTLINE_ROWS // sum(n_layers)))
    as_steps = max(n_layers) <= MAX_STEPPED
    marks = [(_dots if as_dots else _quantiles)(part) for part in parts.values()]
    outlines = [
        _outlines(part[part["position"] != 0], most=bins, as_steps=as_steps) for part in parts.values()
    ]

    # The same log norm axes in every row, so that models can be compared.
    drawn = ["log_norm"] if as_dots else ["q01", "log_norm", "q99"]
    y = alt.Scale(domain=_range([frame[drawn] for frame in marks]), nice=True, zero=False)
    x = alt.Scale(domain=_range([frame[["log_norm"]] for frame in outlines]), nice=False, zero=False)
    height = 280 if len(models) == 1 else 150
    rows = []
    for model, left, right in zip(models, marks, outlines, strict=True):
        lowest = model == models[-1]
        columns = (_dot_marks if as_dots else _column_marks)(left, y, lowest=lowest)
        histograms = _outline_marks(right, x, as_steps=as_steps, lowest=lowest)
        rows.append(
            alt.hconcat(
                columns.properties(width=_LEFT, height=height),
                histograms.properties(width=_RIGHT, height=height),
                spacing=24,
                title=panel_title(model, _sample_size(parts[model]), width=WIDTH),
            )
        )
    caption = _caption(table, as_dots=as_dots, as_steps=as_steps, bins=bins)
    return alt.vconcat(
        *rows,
        spacing=20,
        title=figure_title(f"Log norms of {hook} by layer", caption),
        description=_description(parts, hook),
    ).resolve_scale(color="shared", shape="shared", stroke="independent")


def histogram_edges(
    values: Float[np.ndarray, " tokens"], *, most: int = MAX_BINS
) -> Float[np.ndarray, " edges"]:
    """Return the edges of equal bins of Freedman and Diaconis' width over the middle 99.8% of the values.

    A few sinks far away would make the whole range tens of thousands of bins, so the 0.1% at either end is
    left out and there are at most ``most`` bins. Below 1,000 values nothing is left out.

    Source: Freedman and Diaconis (1981), width 2 IQR / n^(1/3); numpy's ``histogram_bin_edges(bins="fd")`` is
    the same without a limit.

    Examples
    --------
    >>> histogram_edges(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]))
    array([0. , 3.5, 7. ])
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


def _log_norms(shown: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that the figure needs, with the natural logarithm of every norm."""
    norm = shown["norm"].to_numpy(dtype="float64", na_value=np.nan)
    bad = ~(np.isfinite(norm) & (norm > 0))
    if bad.any():
        row = shown.iloc[int(bad.argmax())]
        raise NumericalError(
            f"plot_norms needs the logarithm of every norm; the norm is {row['norm']} at model {row['model']}, "
            f"layer {row['layer']}, doc {row['doc']}, position {row['position']} ({int(bad.sum())} such rows)."
        )
    keep = [name for name in ("model", "layer", "head", "depth", "doc", "position", "token") if name in shown]
    if "head" in keep and shown["head"].nunique() == 1:  # -1 at a hook without heads
        keep.remove("head")
    return shown[keep].assign(log_norm=np.log(norm))


def _dots(part: pd.DataFrame) -> pd.DataFrame:
    """Return every token with its place in its layer's column."""
    first = part["position"] == 0
    # The place has no meaning; a fixed seed draws the same figure every time.
    jitter = np.where(first, 0.0, np.random.default_rng(0).uniform(-0.32, 0.32, len(part)))
    return part.drop(columns="model").assign(
        x=(part["layer"] + jitter).round(3),
        log_norm=part["log_norm"].round(4),
        place=np.where(first, _FIRST, _LATER),
    )


def _quantiles(part: pd.DataFrame) -> pd.DataFrame:
    """Return the quantiles of every layer, position 0 apart."""
    place = np.where(part["position"] == 0, _FIRST, _LATER)
    groups = part.assign(place=place).groupby(["layer", "depth", "place"])["log_norm"]
    table = groups.quantile(np.array(list(_QUANTILES.values()))).unstack().round(4)
    table.columns = list(_QUANTILES)
    return table.assign(n=groups.size()).reset_index().assign(x=lambda frame: frame["layer"])


def _outlines(later: pd.DataFrame, *, most: int, as_steps: bool) -> pd.DataFrame:
    """Return the histogram of every layer as the corners of its outline, which starts and ends on the axis.

    As steps, a corner's density holds up to the next corner; else corners are the middles of bins.
    """
    outlines = []
    for (layer, depth), group in later.groupby(["layer", "depth"]):
        values = group["log_norm"].to_numpy()
        edges = histogram_edges(values, most=most)
        density = np.histogram(values, edges)[0] / (len(values) * np.diff(edges))
        middles = (edges[1:] + edges[:-1]) / 2
        places = np.r_[edges[0], edges] if as_steps else np.r_[edges[0], middles, edges[-1]]
        corners = {"log_norm": places.round(5), "density": np.r_[0.0, density, 0.0].round(6)}
        outlines.append(
            pd.DataFrame({"layer": layer, "depth": depth, "corner": np.arange(len(places)), **corners})
        )
    return pd.concat(outlines, ignore_index=True)


def _dot_marks(dots: pd.DataFrame, scale: alt.Scale, *, lowest: bool) -> ChartType:
    fields = {"layer": "Q", "head": "Q", "position": "Q", "doc": "N", "token": "N"}
    shown: list[Tooltip] = [(f"{name}:{kind}", name, "") for name, kind in fields.items() if name in dots]
    tooltip = tooltips(*shown, ("log_norm:Q", "log norm", ".3f"))
    x, y = _layer_x(dots, lowest=lowest), _log_norm_y("log_norm", scale)
    later = alt.Chart(dots[dots["place"] == _LATER]).mark_point(
        filled=True, size=24 if len(dots) <= 1_000 else 12, opacity=0.7
    )
    first = dots[dots["place"] == _FIRST]
    return alt.layer(
        later.encode(x=x, y=y, color=_DEPTH, tooltip=tooltip), *_first_marks(first, x, y, tooltip)
    )


def _column_marks(quantiles: pd.DataFrame, scale: alt.Scale, *, lowest: bool) -> ChartType:
    tooltip = tooltips(
        *("layer:Q", ("place:N", "at", ""), ("n:Q", "", ",")),
        *[(f"{name}:Q", f"{at:.0%}", ".3f") for name, at in _QUANTILES.items()],
    )
    x = _layer_x(quantiles, lowest=lowest)
    later = alt.Chart(
        quantiles[quantiles["place"] == _LATER].assign(
            left=lambda frame: frame["layer"] - 0.4, right=lambda frame: frame["layer"] + 0.4
        )
    ).encode(x=_layer_x(quantiles, "left", lowest=lowest), x2="right", color=_DEPTH, tooltip=tooltip)
    first = quantiles[quantiles["place"] == _FIRST]
    return alt.layer(
        later.mark_rect(opacity=0.28).encode(y=_log_norm_y("q01", scale), y2="q99"),
        later.mark_rect(opacity=0.5).encode(y=_log_norm_y("q25", scale), y2="q75"),
        # In the column's own colour: a pale line would wipe out the box of a layer whose norms hardly vary.
        later.mark_rect(opacity=1, height=2).encode(y=_log_norm_y("log_norm", scale)),
        *_first_marks(first, x, _log_norm_y("log_norm", scale), tooltip),
    )


def _first_marks(first: pd.DataFrame, x: alt.X, y: alt.Y, tooltip: list[alt.Tooltip]) -> list[alt.Chart]:
    """Return position 0's marks, black and hollow as no other mark of the figure; none where it is not there."""
    if first.empty:
        return []
    legend = alt.Legend(symbolStrokeColor=INK, symbolSize=60, symbolStrokeWidth=1.3)
    shape = alt.Shape(
        "place:N", title=None, scale=alt.Scale(domain=[_FIRST], range=["diamond"]), legend=legend
    )
    mark = alt.Chart(first).mark_point(filled=False, color=INK, size=40, strokeWidth=1.3, opacity=1)
    return [mark.encode(x=x, y=y, shape=shape, tooltip=tooltip)]


def _outline_marks(outlines: pd.DataFrame, scale: alt.Scale, *, as_steps: bool, lowest: bool) -> alt.Chart:
    return (
        alt.Chart(outlines)
        .mark_line(
            interpolate="step-after" if as_steps else "linear",
            strokeWidth=1.5 if as_steps else 1,
            opacity=0.9,
        )
        .encode(
            x=alt.X("log_norm:Q", title="log norm" if lowest else None, scale=scale),
            # Room for any label, so that the panels of all models stand below each other.
            y=alt.Y("density:Q", title="density per unit of log norm", axis=alt.Axis(minExtent=30)),
            # Its own channel and scale: Vega has no gradient as the legend of dots and lines together.
            stroke=alt.Stroke("depth:Q", scale=DEPTH_SCALE, legend=None),
            detail="layer:N",
            order="corner:Q",
            tooltip=[alt.Tooltip("layer:Q")],
        )
    )


def _layer_x(frame: pd.DataFrame, field: str = "x", *, lowest: bool) -> alt.X:
    low, high = int(frame["layer"].min()), int(frame["layer"].max())
    scale = alt.Scale(domain=[low - 0.6, high + 0.6], nice=False, zero=False)
    axis = alt.Axis(values=layer_ticks(low, high), format="d", grid=False)
    return alt.X(f"{field}:Q", title="layer" if lowest else None, scale=scale, axis=axis)


def _log_norm_y(field: str, scale: alt.Scale) -> alt.Y:
    return alt.Y(f"{field}:Q", title="log norm (natural log)", scale=scale)


def _range(frames: list[pd.DataFrame]) -> list[float]:
    low, high = min(frame.min().min() for frame in frames), max(frame.max().max() for frame in frames)
    room = 0.02 * (high - low) or 0.5
    return [round(float(low - room), 4), round(float(high + room), 4)]


def _sample_size(part: pd.DataFrame) -> str:
    """Return how many tokens, documents and layers a panel shows."""
    n_layers, n_heads = part["layer"].nunique(), part["head"].nunique() if "head" in part else 1
    sizes = part.groupby("layer").size() // n_heads
    n = count(int(sizes.min()), "token")
    if sizes.max() > sizes.min():
        n = f"{sizes.min():,} to {count(int(sizes.max()), 'token')} a layer"
    parts = [f"n = {n}", count(part["doc"].nunique(), "document"), count(n_layers, "layer")]
    return ", ".join([*parts, f"{n_heads} heads pooled"] if n_heads > 1 else parts)


def _caption(table: pd.DataFrame, *, as_dots: bool, as_steps: bool, bins: int) -> list[str]:
    has_first = bool((table["position"] == 0).any())
    if as_dots:
        dot = "token and head" if "head" in table else "token"
        left = f"Left: one dot a {dot}; the sideways scatter has no meaning."
    else:
        left = f"Left: {len(table):,} norms aggregated; columns: 1–99% and 25–75%, line: median"
        left += ", diamond: median at position 0." if has_first else "."
    outlines = "Freedman–Diaconis histograms" + ("" if as_steps else " as lines through the middles of bins")
    right = f"Right: {outlines}, middle 99.8%, at most {bins} bins"
    return [left, right + (", without position 0." if has_first else ".")]


def _description(parts: dict[str, pd.DataFrame], hook: str) -> str:
    """Return what the figure shows in words, for those who cannot see it."""
    sentences = [f"Log norms of {hook} by layer, as columns of marks and as histograms."]
    for model, part in parts.items():
        first = part["position"] == 0
        median = part[~first].groupby("layer")["log_norm"].median()
        sentence = f"{model} ({_sample_size(part)}): the median log norm goes from {median.iloc[0]:.2f} "
        sentence += f"in layer {median.index[0]}"
        sentence += f" to {median.iloc[-1]:.2f} in layer {median.index[-1]}" if len(median) > 1 else ""
        if first.any():
            sentence += (
                f"; at position 0 the median over all layers is {part[first]['log_norm'].median():.2f}"
            )
        sentences.append(sentence + ".")
    return " ".join(sentences)
