"""How a notebook shows a chart: in our theme, as an image when offline, with Altair's own settings unchanged."""

import base64
import copy
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import altair as alt
from altair.typing import ChartType

from mechreg.charts.drawing import drawn
from mechreg.charts.save import VEGA_LITE, chart_spec
from mechreg.charts.scales import ValueScale
from mechreg.charts.theme import stacked_legends, themed

_LEGENDS = {
    alt.Color: "color",
    alt.Fill: "fill",
    alt.Stroke: "stroke",
    alt.Shape: "shape",
    alt.StrokeDash: "strokeDash",
}
_SCALE = 2  # pixels of the picture to one of the chart, for screens that have as many


class _Shown:
    """Methods that our charts have in addition to Altair's."""

    def to_dict(self: Any, *args: Any, **options: Any) -> dict[str, Any]:
        with themed():
            return dict(super().to_dict(*args, **options))  # type: ignore[misc]

    def __or__(self, other: Any) -> Any:
        left, right = _on_the_same_axes(self, other)
        return _composed(left, right, alt.hconcat, super(_Shown, left).__or__)  # type: ignore[misc]

    def __and__(self, other: Any) -> Any:
        return _composed(self, other, alt.vconcat, super().__and__)  # type: ignore[misc]

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


def _composed(first: Any, second: Any, compose: Callable[..., Any], extend: Callable[[Any], Any]) -> Any:
    """Return two charts as one; a figure, which has a title, stays whole: Altair would put the other one into it.

    They share their legends if these are alike; Vega would make one of any two.
    """
    with warnings.catch_warnings():  # a click on a layer picks it out in both
        warnings.filterwarnings("ignore", "Automatically deduplicated selection")
        is_figure = first._get("title") is not alt.Undefined
        both = compose(first, second) if is_figure else extend(second)
    looks = [sorted({_look(one) for one in _within(chart, tuple(_LEGENDS))}) for chart in (first, second)]
    if looks[0] != looks[1]:
        both = both.resolve_scale(**dict.fromkeys(_LEGENDS.values(), "independent"))
    return shown_offline(both)


def _look(channel: Any) -> tuple[str, str]:
    """Return what a legend is of, and how it looks."""
    scale = channel._get("scale")
    return str(channel._get("shorthand")), str(scale.to_dict() if isinstance(scale, alt.Scale) else scale)


def _on_the_same_axes(left: Any, right: Any) -> tuple[Any, Any]:
    """Return copies of two charts: axes of the same values go as far as both did."""
    left, right = copy.deepcopy(left), copy.deepcopy(right)
    scales = [*_within(left, ValueScale)], [*_within(right, ValueScale)]
    for of in {scale.of for scale in scales[0]} & {scale.of for scale in scales[1]}:
        same = [scale for of_chart in scales for scale in of_chart if scale.of == of]
        domain = [end(at for scale in same for at in scale.domain) for end in (min, max)]
        for scale in same:
            scale.domain = domain
    return left, right


def _within(part: Any, kind: type | tuple[type, ...]) -> Iterator[Any]:
    """Yield the parts of a chart that are of one class."""
    if isinstance(part, kind):
        yield part
    inner = part._kwds if isinstance(part, alt.SchemaBase) else part
    for one in inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ():
        yield from _within(one, kind)
