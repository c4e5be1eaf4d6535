"""Profiles over relative depth in several models, and their differences against a margin of equivalence."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import CROSS, DISC, Tooltip, estimate_panel, hues, placed
from mechreg.charts.layout import Width, sheet
from mechreg.charts.rows import few, frame_of, named, one_comparison
from mechreg.charts.scales import ValueScale, value_scale
from mechreg.charts.theme import OKABE_ITO, PALE_INK
from mechreg.schema import InputError, require, require_option
from mechreg.words import count

_BANDS = {"sim": "for all depths of a model at once", "conf": "at each depth"}
_STATES = ("equivalent", "undecided", "beyond the margin")
_DIFFERENCES = ("estimate", "conf_low", "conf_high", "sim_low", "sim_high", "margin", "p_value")


def plot_profiles(
    profiles: Any,
    *,
    band: str = "sim",
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return the figure of all models' profiles: a term's coefficient by relative depth, with bands.

    A mark is a layer. Models of one group have its colour and differ by dash; without groups every model has its own
    colour.

    Parameters
    ----------
    profiles : ProfileComparison, or pandas.DataFrame
        What `compare_profiles` gives, or its ``profiles`` (layers) or ``binned`` (slices of depth).
    band : str
        "sim": each whole profile is inside its band; "conf": each of its coefficients is.
    width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> rows = [{"model": m, "group": "", "hook": "attn_out", "term": "lag1", "depth": d, "estimate": 0.3,
    ...          "conf_low": 0.2, "conf_high": 0.4, "sim_low": 0.1, "sim_high": 0.5, "conf_level": 0.95, "n_docs": 60}
    ...         for m in ("a", "b") for d in (0.25, 0.75)]
    >>> plot_profiles(pd.DataFrame(rows)).to_dict()["title"]["text"]
    'lag1 of attn_out by relative depth, in 2 models'
    """
    who, page = "plot_profiles", sheet(width, height, title)
    require_option(band, tuple(_BANDS), name="band")
    low, high = f"{band}_low", f"{band}_high"
    needed = ("model", "group", "depth", "estimate", low, high)
    profiles = frame_of(profiles, "profiles", needed, who=who)
    hook, term, level, docs = one_comparison(profiles, ("depth", "estimate", low, high), who=who)
    models = few(profiles["model"], who=who)
    group = profiles.groupby("model")["group"].first()
    has_groups = bool(group.astype("str").any())
    keep = [name for name in ("model", "group", "layer", "depth", "estimate") if name in profiles]
    marks = placed(profiles[keep].assign(low=profiles[low], high=profiles[high]), several=True)
    hue = [group[model] for model in models] if has_groups else models
    places = list(dict.fromkeys(hue))
    nth = [hue[:at].count(name) if has_groups else at for at, name in enumerate(hue)]
    look = hues("model", models, page, colors=[places.index(name) for name in hue], dashes=nth)
    named_fields = [name for name in ("model", "group", "layer") if name in marks and marks[name].any()]
    tooltip: list[Tooltip] = [f"{name}:N" for name in named_fields]
    tooltip += [("depth:Q", "relative depth", ".4f"), ("estimate:Q", "beta", ".4f")]
    chart = estimate_panel(
        marks,
        page.place(320),
        several=True,
        scale=value_scale(marks[["low", "high"]], f"beta of {term}"),
        look=look,
        tooltip=[*tooltip, ("low:Q", "band from", ".4f"), ("high:Q", "to", ".4f")],
        behind=lambda base, y: [base.mark_area(opacity=0.14).encode(y=y("low"), y2="high")],
    )

    def sentence(rows: pd.DataFrame) -> str:
        ends = (rows.iloc[int(at)] for at in (rows["estimate"].argmin(), rows["estimate"].argmax()))
        least, largest = (f"{row['estimate']:.3f} at depth {row['depth']:.2f}" for row in ends)
        return f"{least} is the least, {largest} the largest."

    caption = f"Bands: {level:.0%} {_BANDS[band]}, from {count(docs, 'document')} that all models read."
    caption += " Colour: group; dash: models in it." if has_groups else ""
    lead = f"Coefficients of {term} for {hook} by relative depth, with bands."
    heading = f"{term} of {hook} by relative depth, in {count(len(models), 'model')}"
    return page.finished(chart, heading, [caption], [lead, *named(marks, ["model"], sentence)])


def plot_equivalence(
    equivalence: Any, *, width: Width | None = None, height: int | None = None, title: str | None = None
) -> ChartType:
    """Return the figure of differences between models by depth, against the margin within which they are equal.

    A panel is a pair of models. Filled marks are depths at which the pair is equivalent; thick bars are the intervals
    of its two one-sided tests, thin ones hold at all depths of a pair at once. Its heading judges the pair as a whole.

    Parameters
    ----------
    equivalence : ProfileComparison, or pandas.DataFrame
        What ``compare_profiles(..., margin=...)`` gives, or its ``equivalence``.
    width, height, title
        As in every chart: see `mechreg.charts`.

    Examples
    --------
    >>> row = {"model_a": "a", "model_b": "b", "hook": "attn_out", "term": "lag1", "depth": 0.5, "estimate": 0.02,
    ...        "conf_low": 0.0, "conf_high": 0.04, "sim_low": -0.01, "sim_high": 0.05, "margin": 0.1, "p_value": 0.001,
    ...        "equivalent": True, "conf_level": 0.9, "n_docs": 60}
    >>> rows = [row | {"scope": "bin"}, row | {"scope": "overall", "depth": None}]
    >>> plot_equivalence(pd.DataFrame(rows)).to_dict()["title"]["text"]
    'Differences of lag1 for attn_out against a margin of ±0.1'
    """
    who, page = "plot_equivalence", sheet(width, height, title)
    equivalence = frame_of(equivalence, "equivalence", who=who)
    require(equivalence, ("model_a", "model_b", "scope", "depth", "equivalent", *_DIFFERENCES), who=who)
    if not len(equivalence):
        raise InputError(f"{who} has no rows: no margin was given. Use compare_profiles(..., margin=0.1).")
    hook, term, level, docs = one_comparison(equivalence, _DIFFERENCES, who=who)
    few([*equivalence["model_a"], *equivalence["model_b"]], who=who)
    if equivalence["margin"].nunique() > 1:
        raise InputError(f"{who} draws one margin; the frame has {sorted(equivalence['margin'].unique())}.")
    margin = float(equivalence["margin"].iloc[0])
    pair = equivalence["model_a"].astype(str) + " − " + equivalence["model_b"].astype(str)
    is_equivalent = equivalence["equivalent"].astype(bool)
    beyond = (equivalence["sim_low"] > margin).map({True: _STATES[2], False: _STATES[1]})
    state = beyond.where(~is_equivalent, _STATES[0])
    table = equivalence[["scope", "depth", *_DIFFERENCES]].assign(
        pair=pair, state=state, judged=np.where(is_equivalent, "equivalent", "not shown equivalent")
    )
    overall = table[table["scope"] == "overall"].set_index("pair")
    marks = placed(table[table["scope"] == "bin"].drop(columns=["scope", "margin", "state"]), several=True)
    far = 1.05 * max(float(marks[["sim_low", "sim_high"]].abs().to_numpy().max()), 1.25 * margin)
    scale = ValueScale(domain=[round(-far, 4), round(far, 4)], nice=False, of=f"difference of {term}")
    numbers: list[Tooltip] = [(f"{name}:Q", "", ".4f") for name in _DIFFERENCES if name != "margin"]
    grid = page.panels(
        {name: marks[marks["pair"] == name] for name in marks["pair"].unique()},
        lambda part, place: estimate_panel(
            part,
            place,
            several=True,
            scale=scale,
            kinds={"equivalent": DISC, "not shown equivalent": CROSS},
            legend=page.legend("at that depth"),
            bars={"sim": 0.8, "conf": 2.5},
            behind=lambda base, y: _margin(margin, scale),
            tooltip=("pair:N", ("depth:Q", "relative depth", ".3f"), *numbers),
        ),
        columns=3,
        height=150,
        detail=lambda part: str(overall["state"][part["pair"].iloc[0]]),
    )
    caption = (
        f"Shaded: the margin. Filled: two one-sided tests, p < {round((1 - level) / 2, 4):g}. Thick bars: {level:.0%} "
        f"intervals; thin: for all depths of a pair at once. Below a pair: it at all depths. {count(docs, 'document')}."
    )
    lead = f"Differences of {term} for {hook} between pairs of models, by relative depth."
    judged = (f"{row.Index}: the largest is {row.estimate:.3f}; {row.state}." for row in overall.itertuples())
    heading = f"Differences of {term} for {hook} against a margin of ±{margin:g}"
    return page.figure([grid], heading, [caption], [lead, *judged])


def _margin(margin: float, scale: alt.Scale) -> list[alt.Chart]:
    """Return the margin as an area between two lines."""
    low, high = (alt.Chart(alt.Data(values=[{"edge": edge, "other": margin}])) for edge in (-margin, margin))
    y = alt.Y("edge:Q", scale=scale)
    lines = [edge.mark_rule(color=PALE_INK).encode(y=y) for edge in (low, high)]
    return [low.mark_rect(color=OKABE_ITO[5], opacity=0.18).encode(y=y, y2="other"), *lines]
