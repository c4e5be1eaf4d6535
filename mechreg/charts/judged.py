"""Marks that are judged by a p-value: filled below the level, a hollow cross above it."""

from numbers import Real
from typing import Any

import altair as alt

from mechreg.charts.theme import INK
from mechreg.schema import InputError


def p_labels(alpha: float, *, told: str = "p") -> list[str]:
    """Return the two words of the legend, significant first.

    Raises
    ------
    InputError
        An alpha that is no number between 0 and 1.

    Examples
    --------
    >>> p_labels(0.05, told="adjusted p")
    ['adjusted p < 0.05', 'adjusted p ≥ 0.05']
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise InputError(f"alpha must lie between 0 and 1, for example alpha=0.05; got {alpha!r}.")
    return [f"{told} < {alpha:g}", f"{told} ≥ {alpha:g}"]


def p_legend(labels: list[str], title: str, **options: Any) -> alt.Chart:
    """Return marks of no size: Vega's legends cannot show that a shape's filling depends on the data."""
    look = alt.Legend(title=title, symbolSize=70, symbolStrokeWidth=1.3, **options)
    looks = {alt.Shape: ["circle", "cross"], alt.Fill: [INK, "white"], alt.Stroke: [INK, INK]}
    return (
        alt.Chart(alt.Data(values=[{"judged": label} for label in labels]))
        .mark_point(size=0, opacity=1, aria=False)
        .encode(
            *[
                channel("judged:N", scale=alt.Scale(domain=labels, range=values), legend=look)
                for channel, values in looks.items()
            ]
        )
    )
