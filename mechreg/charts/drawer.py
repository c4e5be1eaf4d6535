"""The process that draws: it reads a request a line, lets vl-convert draw, and writes an answer a line.

`mechreg.charts.drawing` starts it as a script of its own, so it imports nothing of ours.
"""

import base64
import json
import os
import re
import sys
import tempfile
from typing import Any

_SIZE = re.compile(r'\b(width|height)="([\d.]+)"')  # the first two are those of the whole svg
_COMPLAINT = re.compile(r"^(?:ERROR|WARN) (?:Error: )?(.*)", re.MULTILINE)


def answer(request: dict[str, Any]) -> str:
    """Return what a request asks for: the javascript of Vega, a chart as svg, or an svg as png or pdf, in base64."""
    import vl_convert

    if request["what"] == "bundle":
        return str(vl_convert.javascript_bundle(vl_version=request["version"]))  # type: ignore[call-arg]  # wrong stub
    if request["what"] == "svg":  # nothing is fetched while drawing
        return str(
            vl_convert.vegalite_to_svg(request["spec"], vl_version=request["version"], allowed_base_urls=[])
        )
    # vl-convert takes a pixel of the svg, of which an inch has 96, for a point, of which it has 72.
    svg = _SIZE.sub(lambda found: f'{found[1]}="{float(found[2]) * 72 / 96:g}"', request["svg"], count=2)
    if request["what"] == "png":
        return base64.b64encode(vl_convert.svg_to_png(svg, ppi=request["ppi"])).decode()
    return base64.b64encode(vl_convert.svg_to_pdf(svg)).decode()


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    # Vega reports on stderr what went wrong while a chart ran, and returns the part that was drawn by then.
    messages = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
    os.dup2(messages.fileno(), 2)
    os.dup2(messages.fileno(), 1)
    sys.path[:] = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        messages.seek(0)
        messages.truncate()
        try:
            reply: dict[str, Any] = {"value": answer(json.loads(line))}
        except Exception as error:
            reply = {"error": str(error) or type(error).__name__}
        messages.seek(0)
        complaint = _COMPLAINT.search(messages.read().decode("utf-8", "replace"))
        if complaint and "error" not in reply:
            reply = {"error": complaint[1]}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
