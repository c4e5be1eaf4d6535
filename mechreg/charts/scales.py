"""Scales: over which values an axis or a colour goes, and what these are, so that figures can share them."""

from typing import Any

import altair as alt
import pandas as pd

from mechreg.charts.theme import OKABE_ITO
from mechreg.schema import InputError


class ValueScale(alt.Scale):
    """A scale that knows what its values are (``of``), in every copy: figures side by side share those of the same."""

    def to_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Return the scale's json."""
        return super().to_dict(*args, **options | {"ignore": ["of"]})


class OwnData(alt.NamedData):
    """Rows under a name, in a tuple since Altair copies lists, that a chart takes along into any figure."""

    def to_dict(self, *args: Any, context: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """Return the name, and put the rows among the data of the whole figure."""
        (rows,) = self.rows
        if (context or {}).get("datasets", {}).setdefault(self.name, rows) is not rows:
            raise InputError(
                "A figure has room for one plot_layer_explorer, whose views are linked; save the other one by itself."
            )
        return super().to_dict(*args, **options | {"ignore": ["rows"], "context": context})


def value_scale(
    values: pd.DataFrame,
    of: str,
    *,
    room: float = 0.04,
    digits: int = 4,
    with_zero: bool = True,
    cut_at_zero: bool = False,
) -> ValueScale:
    """Return an axis that has all values on it with some room, and 0; none below 0 if it is cut there."""
    low, high = float(values.min().min()), float(values.max().max())
    if with_zero:  # first: beside it a NaN, where no value is known, is neither less nor more
        low, high = min(0.0, low), max(0.0, high)
    room = room * (high - low) or 0.5
    low = low if cut_at_zero and low == 0 else low - room
    return ValueScale(domain=[round(low, digits), round(high + room, digits)], nice=True, zero=False, of=of)


def colour_ends(values: pd.Series, cut: float, *, both_signs: bool = False) -> list[float | int]:
    """Return where colours of values end, but for a share ``cut`` at each end; 0 is the middle of both signs."""
    low, high = (round(float(end), 4) for end in values.quantile([cut, 1 - cut]))
    if both_signs or low < 0 < high:
        most = max(-low, high) or 1.0
        return [-most, 0, most]
    return [low, high] if low < high else [low - 0.5, high + 0.5]


def diverging(most: float, **options: Any) -> alt.Scale:
    """Return the colours of numbers of both signs, as far as ``most``."""
    return alt.Scale(domain=[-most, 0, most], range=[OKABE_ITO[0], "#f7f7f7", OKABE_ITO[1]], **options)
