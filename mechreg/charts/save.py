"""Charts as files: the same chart gives the same bytes, and nothing in its data can become markup."""

import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
from altair.utils.schemapi import SchemaValidationError

from mechreg.charts.drawing import drawn
from mechreg.charts.theme import stacked_legends, themed
from mechreg.outside import for_page, for_vega
from mechreg.schema import InputError, require_names, require_whole_number

FORMATS = ("html", "json", "svg", "png", "pdf")
MAX_ROWS = 20_000
PRINT_PPI = 300
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def save_chart(
    chart: Any,
    path: str | Path,
    *,
    formats: str | Sequence[str] | None = None,
    ppi: int = PRINT_PPI,
) -> list[Path]:
    """Return the files that a chart was written to, one for each format.

    The html page asks the network for nothing. All files but pdf are the same bytes whenever the chart is the same.

    Parameters
    ----------
    chart : Altair chart
        One whose data are in it, at most 20,000 rows of them (Altair's own ``save`` lets more pass).
    path : str or pathlib.Path
        "figures/betas.pdf" is one file; without a suffix "figures/betas" becomes figures/betas.html and so on. Folders
        are made.
    formats : "html", "json", "svg", "png", "pdf", or a sequence of them
        By default what the path's suffix says, else all but pdf.
    ppi : int
        Pixels an inch of the png, 36 to 1,200.

    Examples
    --------
    >>> import tempfile, pandas as pd
    >>> chart = alt.Chart(pd.DataFrame({"lag": [1, 2], "beta": [0.4, 0.1]})).mark_point().encode(x="lag", y="beta")
    >>> [file.name for file in save_chart(chart, f"{tempfile.mkdtemp()}/betas", formats=("json", "svg"))]
    ['betas.json', 'betas.svg']
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"save_chart needs a path, such as 'figures/betas'; got {path!r}.")
    path = Path(path)
    if formats is None:
        suffix = path.suffix.lower().removeprefix(".")
        formats = suffix if suffix in FORMATS else ("html", "json", "svg", "png")
        path = path.with_suffix("") if suffix in FORMATS else path
    contents = chart_files(chart, path, formats=formats, ppi=ppi)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return [_write(file, content) for file, content in contents.items()]
    except OSError as error:
        raise InputError(f"save_chart cannot write to {str(path.parent)!r}: {error.strerror}.") from error


def chart_files(
    chart: Any, path: Path, *, formats: str | Sequence[str], ppi: int = PRINT_PPI
) -> dict[Path, bytes]:
    """Return what `save_chart` writes: every file, and what it holds."""
    names = require_names(formats, FORMATS, name="formats")
    require_whole_number(ppi, name="ppi", least=36, most=1_200)
    if path.suffix.lower().removeprefix(".") in FORMATS or not path.name:
        raise InputError(
            f"save_chart needs a path without suffix, such as 'figures/betas'; got {str(path)!r}. "
            "Give the suffix or formats=, not both."
        )
    spec = chart_spec(chart)
    render: dict[str, Callable[[], bytes]] = {
        "html": lambda: _html(spec, name=path.name).encode(),
        "json": lambda: (json.dumps(spec, indent=1) + "\n").encode(),
        "svg": lambda: svg.encode(),
        "png": lambda: base64.b64decode(drawn("png", svg=svg, ppi=ppi)),
        "pdf": lambda: base64.b64decode(drawn("pdf", svg=svg)),
    }
    try:  # the svg is made in any case: it runs the chart, where compiling alone would miss a bad expression
        svg = svg_of(spec)
        return {path.with_name(f"{path.name}.{name}"): render[name]() for name in names}
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"save_chart cannot draw this chart: {_reason(error)}") from error


def chart_spec(chart: Any) -> dict[str, Any]:
    """Return a chart as a Vega-Lite specification with its data and theme in it; refuse what cannot be drawn."""
    if not isinstance(chart, alt.TopLevelMixin):
        raise InputError(f"save_chart needs an Altair chart; got {type(chart).__name__}.")
    try:
        with themed(), alt.data_transformers.enable("default", max_rows=MAX_ROWS):
            spec = chart.to_dict(context={"pre_transform": False})
    except alt.MaxRowsError as error:
        raise InputError(_too_many("more rows")) from error
    except (SchemaValidationError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"save_chart cannot draw this chart: {_reason(error)}") from error
    rows = 0
    for source in _data_sources(spec):
        if (isinstance(source, dict) and "url" in source) or isinstance(source, str):
            raise InputError(
                "save_chart needs the data as rows inside the chart, so that the page works offline; "
                "read the file into a frame first."
            )
        rows += len(source) if isinstance(source, list) else 0
    if rows > MAX_ROWS:
        raise InputError(_too_many(f"{rows:,} rows"))
    return for_vega(spec)


def script_json(value: Any) -> str:
    r"""Return JSON that can stand inside an HTML script element, whatever strings are in it."""
    # All beyond ASCII is escaped: what could end the element, open a comment or start an entity is left.
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


@cache
def vega_bundle() -> str:
    """Return the javascript of Vega, Vega-Lite and vega-embed that vl-convert carries, of the charts' own version."""
    return drawn("bundle", version=VEGA_LITE)


def content_policy(scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy of a page that runs these scripts and no other, and requests nothing."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


_START = (
    'vegaEmbed("#chart", JSON.parse(document.getElementById("spec").textContent),'
    '{mode:"vega-lite",renderer:"svg",ast:true,actions:{export:true,source:false,compiled:false,editor:false}})'
    '.catch(e=>{document.getElementById("chart").textContent="The chart could not be drawn: "+e.message;throw e});'
)


def _html(spec: dict[str, Any], *, name: str) -> str:
    """Return the page of one chart: Vega and the specification inside, and a policy that allows nothing else.

    Vega's expressions are interpreted (``ast``), not compiled, so that the policy need not allow eval.
    """
    bundle = vega_bundle()
    title = for_page(_title(spec) or name)
    description = for_page(spec.get("description", _title(spec)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{content_policy([bundle, _START])}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>body {{ margin: 1rem; background: white; }} #chart {{ max-width: 100%; overflow-x: auto; }}</style>
<script>{bundle}</script>
</head>
<body>
<div id="chart"></div>
<noscript><p>{description}</p></noscript>
<script type="application/json" id="spec">{script_json(stacked_legends(spec))}</script>
<script>{_START}</script>
</body>
</html>
"""


_ID = re.compile(
    r'(?P<before> (?:id="|[a-z-]+="url\(#))(?P<kind>clip|gradient_)(?P<number>\d+)(?P<after>\)?")'
)


def svg_of(spec: dict[str, Any]) -> str:
    """Return the svg of a specification, its root described, its ids those of this chart alone."""
    svg = drawn("svg", spec=stacked_legends(spec), version=VEGA_LITE)
    # Vega counts clip paths and gradients for as long as the process lives. They are counted anew here, after a
    # mark of the chart, so that two charts in one page do not share an id.
    mark = hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:8]
    names: dict[str, str] = {}

    def rename(found: re.Match[str]) -> str:
        old = found["kind"] + found["number"]
        name = names.setdefault(old, f"chart-{mark}-{len(names)}")
        return f"{found['before']}{name}{found['after']}"

    # Only inside tags, and there quotes in data are escaped: a token that reads id="clip3" stays as it is.
    svg = re.sub(r"<[^>]*>", lambda tag: _ID.sub(rename, tag[0]), svg)
    if "description" not in spec:
        return svg
    label = for_page(spec["description"])
    return svg.replace("<svg ", f'<svg role="graphics-document" aria-label="{label}" ', 1)


def _data_sources(part: Any) -> Iterator[Any]:
    """Yield the rows, or the {"url": ...}, of all data in a specification."""
    if isinstance(part, list):
        for entry in part:
            yield from _data_sources(entry)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key == "datasets":
                yield from value.values()
            elif key == "data" and isinstance(value, dict) and value.keys() & {"url", "values"}:
                yield value if "url" in value else value["values"]
            else:
                yield from _data_sources(value)


def _title(spec: dict[str, Any]) -> str:
    title = spec.get("title", "")
    text = title.get("text", "") if isinstance(title, dict) else title
    return " ".join(map(str, text)) if isinstance(text, list) else str(text)


def _too_many(found: str) -> str:
    return (
        f"save_chart writes charts of at most {MAX_ROWS:,} rows; this one embeds {found}. "
        "Aggregate the frame first (quantiles, binned densities)."
    )


def _reason(error: Exception) -> str:
    """Return the line of an error that says what is wrong; Vega's is below a heading and above a stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if line.startswith("Error: ")), lines[0]).removeprefix("Error: ")


def _write(path: Path, content: bytes) -> Path:
    """Write a file so that a reader sees all of the old one or all of the new one."""
    unfinished = path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
