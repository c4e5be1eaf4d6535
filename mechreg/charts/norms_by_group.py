"""Mean log norms of groups of tokens, by layer."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.estimates import CROWDED, bars_in_words, estimate_panel, hues, placed
from mechreg.charts.layout import Sheet
from mechreg.charts.rows import by_group, drawable, in_words, named, one_name, rows_of_hook, sample_size
from mechreg.charts.scales import value_scale
from mechreg.schema import InputError

_TOOLTIP = (
    *("model:N", "group:N", "layer:Q", ("mean:Q", "mean log norm", ".3f")),
    *(("estimate:Q", "less the layer's", "+.3f"), ("n:Q", "", ","), ("n_docs:Q", "documents", "")),
)
_ARROWS = {"above": "triangle-up", "below": "triangle-down"}


def norms_by_group(table: pd.DataFrame, by: str, hook: str | None, page: Sheet) -> ChartType:
    """Return the figure of groups of tokens, of a table of `group_norms`."""
    who, by = "plot_norms", one_name(by, name="by")
    if "norm" in table and "estimate" not in table:
        raise InputError(f"{who} with by={by!r} needs the table of group_norms(norms, by={by!r}).")
    shown, hook = rows_of_hook(table, hook, (by, "estimate", "conf_low", "conf_high", "n", "n_docs"), who=who)
    models = drawable(shown, ("model", "layer", by), ["estimate"], who=who)
    several = len(models) > 1
    total = shown.assign(sum=shown["estimate"] * shown["n"]).groupby(["model", "layer"], observed=True)
    mean = total["sum"].transform("sum") / total["n"].transform("sum")
    numbers = {name: shown[name] - mean for name in ("estimate", "conf_low", "conf_high")}
    kept = shown[["model", "layer", "depth", by, "n", "n_docs"]]
    marks = placed(kept.assign(mean=shown["estimate"], **numbers), several=several)
    # A group of a dozen tokens has bars many times the others' means: they are cut, and end in an arrow.
    reach = 0.2 * float(np.ptp(marks["estimate"])) or 0.5
    low, high = min(marks["estimate"].min(), 0.0) - reach, max(marks["estimate"].max(), 0.0) + reach
    is_cut = {"above": marks["conf_high"] > high, "below": marks["conf_low"] < low}
    marks = marks.assign(
        conf_low=marks["conf_low"].clip(lower=low), conf_high=marks["conf_high"].clip(upper=high), **is_cut
    )
    parts = by_group(marks, by, who=who)
    highest_first = sorted(parts.items(), key=lambda part: -part[1]["estimate"].mean())
    grid = page.panels(
        dict(highest_first),
        lambda part, place: estimate_panel(
            part,
            place,
            several=several,
            scale=value_scale(marks[["estimate", "conf_low", "conf_high"]], "deviation of log norm"),
            look=hues("model", models, page),
            bars={"conf": 1.2},
            behind=lambda base, y: [_arrows(base, y, end, shape) for end, shape in _ARROWS.items()],
            tooltip=_TOOLTIP,
        ),
        columns=4,
        height=110,
        detail=sample_size,
    )
    bars = "Bars: intervals of the group's mean, clustered by document; an arrow where one is cut."
    bars = bars_in_words(bars, marks, crowded=max(map(len, parts.values())) > CROWDED)
    what = "A group's mean log norm in a layer, less the layer's mean over all groups; highest group first."
    lead = f"Mean log norms of {hook} by {in_words(by)}, less each layer's mean."
    words = named(marks, ["model", by], lambda part: f"over layers {part['estimate'].mean():+.3f}.")
    return page.figure([grid], f"Log norms of {hook} by {in_words(by)}", [f"{what} {bars}"], [lead, *words])


def _arrows(base: alt.Chart, y: Any, end: str, shape: str) -> alt.Chart:
    """Return arrows where intervals are cut."""
    field = "conf_high" if end == "above" else "conf_low"
    cut = base.transform_filter(f"datum.{end}")
    return cut.mark_point(shape=shape, size=18, filled=True).encode(y=y(field))
