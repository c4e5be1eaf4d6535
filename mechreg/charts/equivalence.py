"""Differences between models at every depth, against the margin within which they count as equal."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.depth import tooltips
from mechreg.charts.rows import count, distinct, few, frame_of
from mechreg.charts.theme import DEPTH_SCALE, OKABE_ITO, PALE_INK, WIDTH, figure_title
from mechreg.charts.universality import broken, one_comparison
from mechreg.schema import InputError, require

_STATES = {"equivalent": OKABE_ITO[0], "undecided": PALE_INK, "beyond the margin": OKABE_ITO[1]}
_FOREST = 900  # pixels that a forest should not be much higher than
_ROW = (2, 11)  # pixels of one of its rows


def plot_equivalence(equivalence: Any) -> ChartType:
    """Return the forest plot of differences: every pair and depth against the margin within which they count as equal.

    Filled marks are depths at which a pair is equivalent; thick bars are the intervals of its two one-sided tests, thin
    ones hold at all depths of a pair at once. At the right is what is said of the pair as a whole.

    Parameters
    ----------
    equivalence : ProfileComparison, or pandas.DataFrame
        What ``compare_profiles(..., margin=...)`` gives, or its ``equivalence``.

    Returns
    -------
    Altair chart
        With a title, a caption and a description in words.

    Raises
    ------
    SchemaError, InputError
        A missing column, no rows (no margin was given), more than six models, several hooks, terms or margins.
    NumericalError
        A number that is NaN or infinite.

    Examples
    --------
    >>> row = {"model_a": "a", "model_b": "b", "hook": "attn_out", "term": "lag1", "depth": 0.5, "estimate": 0.02,
    ...        "conf_low": 0.0, "conf_high": 0.04, "sim_low": -0.01, "sim_high": 0.05, "margin": 0.1, "p_value": 0.001,
    ...        "equivalent": True, "conf_level": 0.9, "n_docs": 60}
    >>> rows = [row | {"scope": "bin"}, row | {"scope": "overall", "depth": None}]
    >>> plot_equivalence(pd.DataFrame(rows)).to_dict()["title"]["text"]
    'Differences of lag1 for attn_out against a margin of ±0.1'
    """
    who = "plot_equivalence"
    numbers = ("estimate", "conf_low", "conf_high", "sim_low", "sim_high", "margin", "p_value")
    equivalence = frame_of(equivalence, "equivalence", who=who)
    require(equivalence, ("model_a", "model_b", "scope", "depth", "equivalent", *numbers), who=who)
    if not len(equivalence):
        raise InputError(f"{who} has no rows: no margin was given. Use compare_profiles(..., margin=0.1).")
    hook, term, level, docs = one_comparison(equivalence, numbers, who=who)
    few([*equivalence["model_a"], *equivalence["model_b"]], who=who)
    if equivalence["margin"].nunique() > 1:
        raise InputError(f"{who} draws one margin; the frame has {sorted(equivalence['margin'].unique())}.")
    margin = float(equivalence["margin"].iloc[0])
    marks, pairs, height = _forest(equivalence, numbers)
    caption = [
        f"Filled: equivalent at that depth (two one-sided tests, p < {round((1 - level) / 2, 4):g}).",
        f"Thick bars: {level:.0%} intervals; thin: for all depths of a pair at once. "
        f"Right: the pair at all depths. {count(docs, 'document')}.",
    ]
    words = [f"Differences of {term} for {hook} between pairs of models, by relative depth."]
    for pair in pairs.itertuples():
        name = str(pair.pair).replace("\n", " ")
        words.append(f"{name}: the largest is {pair.largest:.3f}; {pair.state}.")
    return alt.layer(*_forest_layers(marks, pairs, height, margin, term, numbers)).properties(
        width=WIDTH - 220,
        height=height,
        title=figure_title(f"Differences of {term} for {hook} against a margin of ±{margin:g}", caption),
        description=" ".join(words),
    )


def _forest_layers(
    marks: pd.DataFrame, pairs: pd.DataFrame, height: int, margin: float, term: str, numbers: tuple[str, ...]
) -> list[alt.Chart]:
    """Return the margin, both intervals and the mark of every row, and the words beside the pairs."""
    far = 1.05 * max(float(marks[["sim_low", "sim_high"]].abs().to_numpy().max()), 1.25 * margin)
    scale = alt.Scale(domain=[round(-far, 4), round(far, 4)], nice=False)

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=scale, title=f"difference of {term}", axis=alt.Axis(tickCount=6))

    def vertical(*edges: dict[str, Any], **look: Any) -> alt.Chart:
        return alt.Chart(alt.Data(values=list(edges))).mark_rule(color=PALE_INK, **look).encode(x=x("edge"))

    down = alt.Scale(domain=[0, height], reverse=True, nice=False)
    y, y_top = (alt.Y(f"{field}:Q", scale=down, axis=None) for field in ("y", "top"))
    depths = [float(depth) for depth in sorted(marks["depth"].unique())]
    legend = alt.Legend(
        title="relative depth",
        orient="top",
        direction="horizontal",
        # The depths that are drawn, where a reader can tell so many colours apart.
        values=depths if len(depths) <= 6 else [0, 0.5, 1],
        format=".3~f",
        gradientOpacity=1,
    )
    base = alt.Chart(marks).encode(y=y, color=alt.Color("depth:Q", scale=DEPTH_SCALE, legend=legend))
    row = float(marks["row"].iloc[0])
    shown = tooltips(
        *("pair:N", ("depth:Q", "relative depth", ".3f")),
        *[(f"{name}:Q", "", ".4f") for name in numbers if name != "margin"],
    )
    points = base.mark_point(size=8 if row < 5 else 26 if row < 9 else 40, opacity=1, strokeWidth=1.2).encode(
        x=x("estimate"), tooltip=shown
    )
    fill = alt.Fill("depth:Q", scale=DEPTH_SCALE, legend=None)
    labels = alt.Chart(pairs).encode(y=y)
    allowed = alt.Chart(alt.Data(values=[{"edge": -margin, "other": margin}]))
    return [
        allowed.mark_rect(color=OKABE_ITO[5], opacity=0.18).encode(x=x("edge"), x2="other"),
        vertical({"edge": -margin}, {"edge": margin}),
        vertical({"edge": 0}, strokeDash=[4, 3]),
        alt.Chart(pairs.iloc[1:]).mark_rule(color="#cccccc").encode(y=y_top),
        base.mark_rule(strokeWidth=0.8 if row > 4 else 0.4).encode(x=x("sim_low"), x2="sim_high"),
        base.mark_rule(strokeWidth=min(3.0, max(1.2, row - 2))).encode(x=x("conf_low"), x2="conf_high"),
        points.transform_filter("datum.equivalent").encode(fill=fill),
        points.transform_filter("!datum.equivalent").encode(fill=alt.value("white")),
        labels.mark_text(align="right", dx=-8, lineBreak="\n").encode(x=alt.value(0), text="pair:N"),
        *[
            labels.transform_filter(alt.FieldEqualPredicate(field="state", equal=state))
            .mark_text(align="left", dx=8, fontWeight="bold", color=color)
            .encode(x=alt.value("width"), text="state:N")
            for state, color in _STATES.items()
        ],
    ]


def _forest(equivalence: pd.DataFrame, numbers: tuple[str, ...]) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Return the marks and the pairs with their places, first depths above, and the height."""
    names = zip(equivalence["model_a"], equivalence["model_b"], strict=True)
    pair = [f"{a} − {b}" if len(a) + len(b) < 22 else f"{broken(a, 24)} −\n{broken(b, 24)}" for a, b in names]
    table = equivalence[["scope", "depth", "equivalent", *numbers]].assign(pair=pair)
    rank = {name: at for at, name in enumerate(distinct(table["pair"]))}
    marks, overall = table[table["scope"] == "bin"], table[table["scope"] == "overall"]
    depths = int(marks.groupby("pair").size().max())
    row = int(np.clip(_FOREST // (len(rank) * depths), *_ROW))
    block = max(depths * row + 12, 40)
    first = (block - depths * row) / 2 + row / 2
    at = marks["pair"].map(rank) * block + first + marks.groupby("pair").cumcount() * row
    marks = marks.drop(columns=["scope", "margin"]).assign(
        y=at, row=row, equivalent=marks["equivalent"].astype(bool)
    )
    state = np.where(overall["equivalent"].astype(bool), "equivalent", "undecided")
    state = np.where(overall["sim_low"] > overall["margin"], "beyond the margin", state)
    top = overall["pair"].map(rank) * block
    pairs = pd.DataFrame({"pair": overall["pair"], "top": top, "y": top + block / 2, "state": state})
    return marks, pairs.assign(largest=overall["estimate"]), block * len(rank)
