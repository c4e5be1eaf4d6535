"""How a notebook shows a chart: in our theme, as an image when offline, with Altair's own settings unchanged."""

import base64
import copy
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import altair as alt
from altair.typing import ChartType

from mechreg.charts.drawing import drawn
from mechreg.charts.save import VEGA_LITE, chart_spec
from mechreg.charts.theme import stacked_legends, themed
from mechreg.schema import InputError

_SCALE = 2  # pixels of the picture to one of the chart, for screens that have as many


class _Shown:
    """Methods that our charts have in addition to Altair's."""

    def to_dict(self: Any, *args: Any, **options: Any) -> dict[str, Any]:
        with themed():
            return dict(super().to_dict(*args, **options))  # type: ignore[misc]

    def __or__(self, other: Any) -> Any:
        left, right = _on_the_same_axes(self, other)
        data = _take_named_data(left, right)
        with warnings.catch_warnings():  # a click on a layer picks it out in both
            warnings.filterwarnings("ignore", "Automatically deduplicated selection")
            both = shown_offline(super(_Shown, left).__or__(right))  # type: ignore[misc]
        both._kwds.update(data)
        return both

    def __and__(self, other: Any) -> Any:
        above, below = (
            part.copy(deep=False) if isinstance(part, alt.SchemaBase) else part for part in (self, other)
        )
        data = _take_named_data(above, below)
        both = shown_offline(super(_Shown, above).__and__(below))  # type: ignore[misc]
        both._kwds.update(data)
        return both

    def __add__(self, other: Any) -> Any:
        return shown_offline(super().__add__(other))  # type: ignore[misc]

    def _repr_mimebundle_(self, *args: Any, **options: Any) -> Any:
        if alt.renderers.active != "default":  # the user chose another
            return super()._repr_mimebundle_(*args, **options)  # type: ignore[misc]
        spec = stacked_legends(chart_spec(self))
        png = drawn("png", svg=drawn("svg", spec=spec, version=VEGA_LITE), ppi=96 * _SCALE)
        width, height = struct.unpack(">II", base64.b64decode(png)[16:24])
        live = f"application/vnd.vegalite.v{VEGA_LITE.partition('.')[0]}+json"
        size = {"width": width // _SCALE, "height": height // _SCALE}
        return {live: spec, "image/png": png}, {"image/png": size}


_CLASSES: dict[type, type] = {
    kind: type(kind.__name__, (_Shown, kind), {})
    for kind in (
        alt.Chart,
        alt.LayerChart,
        alt.ConcatChart,
        alt.HConcatChart,
        alt.VConcatChart,
        alt.FacetChart,
    )
}
globals().update({made.__name__: made for made in _CLASSES.values()})  # where pickle looks for them


def shown_offline(chart: ChartType) -> ChartType:
    """Return a chart that a notebook shows without a network, composed or not."""
    if type(chart) in _CLASSES:
        shown: Any = object.__new__(_CLASSES[type(chart)])  # a copy of Altair's composes it anew
        shown.__dict__.update(_args=chart._args, _kwds=dict(chart._kwds))
        return shown
    return chart


def _take_named_data(*parts: Any) -> dict[str, Any]:
    """Take the data that a chart has by name off its parts, which belong to the chart that they become part of."""
    own: list[dict[str, Any]] = [part._kwds for part in parts if isinstance(part, alt.SchemaBase)]
    found: list[dict[str, Any]] = [
        {key: kwds.pop(key) for key in ("datasets", "usermeta") if key in kwds} for kwds in own
    ]
    named = [entry for entry in found if isinstance(entry.get("datasets"), dict)]
    if len(named) > 1:
        raise InputError(
            "A figure has room for one plot_layer_explorer, whose views are linked; save the other one by itself."
        )
    return named[0] if named else {}


def _on_the_same_axes(left: Any, right: Any) -> tuple[Any, Any]:
    """Return copies of two charts: vertical axes of one title, but for those of layers, go as far as both did."""
    left, right = copy.deepcopy(left), copy.deepcopy(right)
    scales = [_scales(chart) if isinstance(chart, alt.SchemaBase) else {} for chart in (left, right)]
    for title in scales[0].keys() & scales[1].keys() - {"layer"}:
        same = [scale for of_chart in scales for scale in of_chart[title]]
        domain = [end(at for scale in same for at in scale.domain) for end in (min, max)]
        for scale in same:
            scale.domain = domain
    return left, right


def _scales(chart: alt.SchemaBase) -> dict[str, list[Any]]:
    """Return a chart's vertical scales by title: their own, else that of one which is equal, else their panel's."""
    axes = list(_vertical(chart))
    titles = {tuple(scale.domain): title for title, _, scale in axes if title}
    scales: dict[str, list[Any]] = {}
    for title, heading, scale in axes:
        scales.setdefault(title or titles.get(tuple(scale.domain), heading), []).append(scale)
    return scales


def _vertical(part: Any, heading: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the title, the panel's heading and the scale of every vertical axis whose ends are numbers."""
    if isinstance(title := part._get("title"), alt.SchemaBase):
        heading = " ".join(title.text) if isinstance(title.text, list) else str(title.text)
    for kind in ("layer", "concat", "hconcat", "vconcat"):
        for inner in part._get(kind, []):
            yield from _vertical(inner, heading)
    for name in ("encoding", "y", "scale"):
        axis, part = part, part._get(name) if isinstance(part, alt.SchemaBase) else None
    ends = part._get("domain") if isinstance(part, alt.SchemaBase) else None
    if isinstance(ends, list) and all(isinstance(end, int | float) for end in ends):
        title = axis._get("title")
        yield title if isinstance(title, str) else "", heading, part
