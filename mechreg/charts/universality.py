"""Profiles over relative depth in several models, and how much they agree."""

import textwrap
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.depth import (
    ALL_DEPTHS,
    QUARTERS,
    Tooltip,
    between,
    estimate_layers,
    tooltips,
    value_scale,
)
from mechreg.charts.rows import count, few, frame_of
from mechreg.charts.theme import INK, OKABE_ITO, WIDTH, figure_title
from mechreg.schema import InputError, NumericalError, require, require_option

_BANDS = {"sim": ("sim_low", "sim_high"), "conf": ("conf_low", "conf_high")}
_MEASURES = {
    "concordance": "Concordance",
    "rank_correlation": "Rank correlation",
    "sign_agreement": "Share of depths with the same sign",
    "rms_difference": "RMS difference",
}
_DASHES = ([1, 0], [5, 3], [1.5, 2], [8, 3, 1.5, 3], [10, 4], [3, 1])
_SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")


def plot_profiles(profiles: Any, *, band: str = "sim") -> ChartType:
    """Return the figure of all models' profiles: a term's coefficient by relative depth, with bands.

    A mark is a layer. Models of one group have its colour and differ by dash and shape; without groups every model
    has its own colour.

    Parameters
    ----------
    profiles : ProfileComparison, or pandas.DataFrame
        What `compare_profiles` gives, or its ``profiles`` (layers) or ``binned`` (slices of depth).
    band : str
        "sim": each whole profile is inside its band; "conf": each of its coefficients is.

    Returns
    -------
    Altair chart
        With a title, a caption and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column, no rows, more than six models, several hooks or terms.
    NumericalError
        A number that is NaN or infinite.

    Examples
    --------
    >>> rows = [{"model": m, "group": "", "hook": "attn_out", "term": "lag1", "depth": d, "estimate": 0.3,
    ...          "conf_low": 0.2, "conf_high": 0.4, "sim_low": 0.1, "sim_high": 0.5, "conf_level": 0.95, "n_docs": 60}
    ...         for m in ("a", "b") for d in (0.25, 0.75)]
    >>> plot_profiles(pd.DataFrame(rows)).to_dict()["title"]["text"]
    'lag1 of attn_out by relative depth, in 2 models'
    """
    who = "plot_profiles"
    require_option(band, tuple(_BANDS), name="band")
    low, high = _BANDS[band]
    profiles = frame_of(profiles, "profiles", who=who)
    require(profiles, ("model", "group", "depth", "estimate", low, high), who=who)
    hook, term, level, docs = one_comparison(profiles, ("depth", "estimate", low, high), who=who)
    models = few(profiles["model"], who=who)
    group = profiles.groupby("model")["group"].first()
    has_groups = bool(group.astype("str").any())
    keep = [name for name in ("model", "group", "layer", "depth", "estimate") if name in profiles]
    marks = profiles[keep].assign(low=profiles[low], high=profiles[high])
    held = "for all depths of a model at once" if band == "sim" else "at each depth"
    caption = f"Bands: {level:.0%} {held}, from {count(docs, 'document')} that all models read."
    caption += " Colour: group; dash and shape: models in it." if has_groups else ""
    words = [f"Coefficients of {term} for {hook} by relative depth, with bands."]
    for model in models:
        own = marks[marks["model"] == model]
        least, largest = (own.iloc[int(at)] for at in (own["estimate"].argmin(), own["estimate"].argmax()))
        words.append(f"{model}: {least['estimate']:.3f} at depth {least['depth']:.2f} is the least,")
        words.append(f"{largest['estimate']:.3f} at depth {largest['depth']:.2f} the largest.")
    of_one_colour = [group[model] if has_groups else model for model in models]
    return alt.layer(*_profile_layers(marks, models, of_one_colour, term)).properties(
        width=WIDTH,
        height=320,
        title=figure_title(
            f"{term} of {hook} by relative depth, in {count(len(models), 'model')}", [caption]
        ),
        description=" ".join(words),
    )


def _profile_layers(
    marks: pd.DataFrame, models: list[str], of_one_colour: list[str], term: str
) -> list[alt.Chart]:
    """Return the bands, lines and marks; models of one colour differ by dash and shape."""
    hues = list(dict.fromkeys(of_one_colour))
    nth = [of_one_colour[:at].count(name) for at, name in enumerate(of_one_colour)]
    legend = alt.Legend(symbolOpacity=1, symbolSize=70)

    def by_model(channel: Any, values: list[str]) -> Any:
        scale = alt.Scale(domain=models, range=values)
        return channel("model:N", title="model", sort=models, scale=scale, legend=legend)

    # A field of its own: shared with the legend of models, dashes would be drawn around its symbols.
    marks = marks.assign(nth=marks["model"].map(dict(zip(models, nth, strict=True))))
    dash = alt.StrokeDash(
        "nth:O", scale=alt.Scale(domain=list(range(len(_DASHES))), range=list(_DASHES)), legend=None
    )
    names = [name for name in ("model", "group", "layer") if name in marks and marks[name].any()]
    shown: list[Tooltip] = [f"{name}:N" for name in names]
    shown += [("depth:Q", "relative depth", ".4f"), ("estimate:Q", "beta", ".4f")]
    shown += [("low:Q", "band from", ".4f"), ("high:Q", "to", ".4f")]
    scale = value_scale(marks[["low", "high"]])

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=scale, title=f"beta of {term}")

    color = by_model(alt.Color, [OKABE_ITO[hues.index(name)] for name in of_one_colour])
    x = alt.X(
        "depth:Q",
        title="relative depth",  # of the channel: screen readers read it with every mark
        scale=ALL_DEPTHS,
        axis=alt.Axis(values=list(QUARTERS), format=".2~f", grid=False, labelFlush=False),
    )
    base = alt.Chart(marks).encode(x=x, color=color)
    most = int(marks.groupby("model", sort=False).size().max())
    points = base.mark_point(filled=True, size=45 if most <= 12 else 28 if most <= 24 else 14, opacity=1)
    shape = by_model(alt.Shape, [_SHAPES[at] for at in nth])
    return estimate_layers(
        base,
        y,
        behind=[
            between(base, y, "low", "high").mark_area(opacity=0.14),
            base.mark_line(strokeWidth=1.6).encode(y=y("estimate"), strokeDash=dash),
        ],
        points=[points.encode(y=y("estimate"), shape=shape, tooltip=tooltips(*shown))],
    )


def plot_agreement(agreement: Any, *, measure: str = "concordance") -> ChartType:
    """Return the figure of one measure of agreement: a matrix of models with values in its cells.

    Below each value is its interval and, where it can be tested, the p value of the shapes' likeness.

    Parameters
    ----------
    agreement : ProfileComparison, or pandas.DataFrame
        What `compare_profiles` gives, or its ``agreement``.
    measure : str
        "concordance", "rank_correlation", "sign_agreement" or "rms_difference".

    Returns
    -------
    Altair chart
        With a title, a caption and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column, no rows, a wrong measure, more than six models, several hooks or terms.

    Examples
    --------
    >>> row = {"model_a": "a", "model_b": "b", "hook": "attn_out", "term": "lag1", "measure": "concordance",
    ...        "estimate": 0.8, "conf_low": 0.7, "conf_high": 0.9, "p_value": 0.01, "bins": 12, "conf_level": 0.95,
    ...        "n_docs": 60}
    >>> plot_agreement(pd.DataFrame([row])).to_dict()["title"]["text"]
    'Concordance of lag1 profiles for attn_out'
    """
    who = "plot_agreement"
    require_option(measure, tuple(_MEASURES), name="measure")
    agreement = frame_of(agreement, "agreement", who=who)
    needed = ("model_a", "model_b", "measure", "estimate", "conf_low", "conf_high", "p_value", "bins")
    require(agreement, needed, who=who)
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
    return _matrix(cells, models, measure, has_p=has_p).properties(
        title=figure_title(f"{_MEASURES[measure]} of {term} profiles for {hook}", [caption]),
        description=" ".join(words),
    )


def _matrix(cells: pd.DataFrame, models: list[str], measure: str, *, has_p: bool) -> ChartType:
    """Return the lower left of the matrix of models, with what is written in its cells."""
    side, height = min(120, WIDTH // max(2, len(models) - 1)), 64 * (len(models) - 1)
    low, high = "#f4f4f4", OKABE_ITO[1 if measure == "rms_difference" else 0]
    domain, colors, dark = [0, 1.0], [low, high], 0.7
    if measure == "rms_difference":
        domain, dark = [0, float(np.nanmax([*cells["estimate"], 0.0])) or 1.0], 0.85
    elif measure != "sign_agreement":
        domain, colors = [-1, 0, 1], [OKABE_ITO[1], low, high]
    interpolate: Any = "lab" if len(domain) == 3 else alt.Undefined
    scale = alt.Scale(domain=domain, range=colors, interpolate=interpolate)
    legend = alt.Legend(gradientLength=min(140, height), format=".2~f", tickCount=4)
    lines = [broken(model, side // 7) for model in models]  # a long name is broken, never cut
    axis = alt.Axis(
        domain=False,
        ticks=False,
        labelAngle=0,
        labelLimit=0,
        labelPadding=6,
        labelExpr="split(datum.label, '\\n')",
    )
    cells = cells.assign(**{end: [lines[at] for at in cells[end]] for end in ("row", "column")})
    base = alt.Chart(cells).encode(
        x=alt.X("column:N", sort=lines[:-1], scale=alt.Scale(domain=lines[:-1]), title=None, axis=axis),
        y=alt.Y("row:N", sort=lines[1:], scale=alt.Scale(domain=lines[1:]), title=None, axis=axis),
    )
    ink = alt.condition(f"abs(datum.estimate) > {dark * domain[-1]}", alt.value("white"), alt.value(INK))
    color = alt.Color("estimate:Q", title=None, scale=scale, legend=legend)
    texts = [
        base.mark_text(fontSize=size, dy=dy, fontWeight="bold" if field == "value" else "normal").encode(
            text=f"{field}:N", color=ink
        )
        for field, size, dy in (
            ("value", 14, -14 if has_p else -8),
            ("interval", 10, 3 if has_p else 9),
            ("p", 10, 18),
        )
    ]
    cell = base.mark_rect(stroke="white", strokeWidth=2).encode(color=color)
    return alt.layer(cell, *texts).properties(width=side * (len(models) - 1), height=height)


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


def one_comparison(frame: pd.DataFrame, numbers: tuple[str, ...], *, who: str) -> tuple[str, str, float, int]:
    """Return the hook, the term, the level of the intervals and the documents, which all rows must share."""
    keys = ("hook", "term", "conf_level", "n_docs")
    require(frame, keys, who=who)
    if not len(frame):
        raise InputError(f"{who} needs at least one row; the frame is empty.")
    for key in keys:
        if frame[key].nunique(dropna=False) > 1:
            raise InputError(
                f"{who} draws one comparison; the frame has several values of {key!r}. Choose one."
            )
    bad = ~np.isfinite(frame[list(numbers)].to_numpy(dtype="float64", na_value=np.nan)).all(axis=1)
    if bad.any():
        raise NumericalError(
            f"{who} needs finite numbers as {', '.join(numbers)}; {int(bad.sum())} rows have others."
        )
    first = frame.iloc[0]
    return str(first["hook"]), str(first["term"]), float(first["conf_level"]), int(first["n_docs"])


def broken(name: str, width: int) -> str:
    """Return a name in lines."""
    return "\n".join(textwrap.wrap(name, width)) or name


def _number(value: float, digits: int) -> str:
    """Return a number with its decimals and a minus sign, or what there is instead."""
    if np.isnan(value):
        return "not defined"
    return "∞" if np.isinf(value) else f"{value:.{digits}f}".replace("-", "−")


def _p(p: float) -> str:
    return "" if np.isnan(p) else "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)
