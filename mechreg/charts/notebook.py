"""How a notebook shows a chart: in the theme, as a picture where no network is, and nothing of Altair's is switched."""

import base64
import struct
from typing import Any

import altair as alt
from altair.typing import ChartType

from mechreg.charts.drawing import drawn
from mechreg.charts.save import VEGA_LITE, chart_spec
from mechreg.charts.theme import themed

_SCALE = 2  # pixels of the picture to one of the chart, for screens that have as many


class _Shown:
    """What our charts have beside Altair's methods."""

    def to_dict(self: Any, *args: Any, **options: Any) -> dict[str, Any]:
        with themed():
            return dict(super().to_dict(*args, **options))  # type: ignore[misc]

    def __or__(self, other: Any) -> Any:
        return shown_offline(super().__or__(other))  # type: ignore[misc]

    def __and__(self, other: Any) -> Any:
        return shown_offline(super().__and__(other))  # type: ignore[misc]

    def __add__(self, other: Any) -> Any:
        return shown_offline(super().__add__(other))  # type: ignore[misc]

    def _repr_mimebundle_(self, *args: Any, **options: Any) -> Any:
        if alt.renderers.active != "default":  # the user chose another
            return super()._repr_mimebundle_(*args, **options)  # type: ignore[misc]
        spec = chart_spec(self)
        png = drawn("png", svg=drawn("svg", spec=spec, version=VEGA_LITE), ppi=72 * _SCALE)
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
