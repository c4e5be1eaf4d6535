"""Every chart of the package against its snapshot: titles, encodings, marks, scales, and what its data hold.

A snapshot in tests/snapshots is the chart's Vega-Lite json, its data replaced by columns, rows and the range of each
column (numbers with three digits, since the last ones depend on the machine's arithmetic). When a chart is meant to
change, look at it (analyses/gallery.py), renew the snapshots, and read the difference before it is committed:

    python tests/test_every_chart.py
"""

import json
import math
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from chart_frames import CHARTS
from public import ROOM_OF

from mechreg.charts import save_chart
from mechreg.charts.save import chart_spec

ROOT = Path(__file__).parents[1]
SNAPSHOTS = Path(__file__).parent / "snapshots"
FEW = {"small": 2, "medium": 3}
NORM_CHARTS = ("plot_norms", "plot_layer_explorer")  # drawn from tokens; the others from tables


def snapshot(spec: dict[str, Any]) -> str:
    """Return what a chart draws, without its rows, its theme, and the names that depend on what was drawn before."""
    spec = {key: value for key, value in spec.items() if key not in ("$schema", "config")}
    text = json.dumps(described(spec), ensure_ascii=False, indent=1) + "\n"
    names: dict[str, str] = {}
    auto = r"\b(data|view|param|concat|hconcat|vconcat|layer)[-_]([0-9a-f]{32}|[0-9a-f]+_\d+|\d+)\b"
    return re.sub(auto, lambda found: names.setdefault(found[0], f"{found[1]}-{len(names)}"), text)


def described(part: Any) -> Any:
    if isinstance(part, list):
        return [described(entry) for entry in part]
    if isinstance(part, dict):
        return {
            key: columns_of(value)
            if key == "values" and isinstance(value, list) and value and isinstance(value[0], dict)
            else {name: columns_of(rows) for name, rows in value.items()}
            if key == "datasets"
            else described(value)
            for key, value in part.items()
        }
    return rounded(part)


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many rows there are, and from where to where each column goes."""
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
        there = [value for value in flat if value is not None]
        distinct = sorted(set(there), key=lambda value: (str(type(value)), value))
        told = [rounded(value) for value in (distinct if len(distinct) <= 4 else (distinct[0], distinct[-1]))]
        columns[name] = " to ".join(map(str, told)) if len(distinct) > 4 else ", ".join(map(str, told))
        columns[name] += f" ({len(flat) - len(there)} missing)" if len(there) < len(flat) else ""
    return {"rows": len(rows), "columns": columns}


def rounded(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        short = float(f"{value:.3g}")
        return int(short) if short.is_integer() else short
    return value


def test_every_plot_function_is_here_and_in_the_gallery():
    public = {name for name in ROOM_OF if name.startswith("plot_")}
    assert {name.removesuffix("_by") for name in CHARTS} == public
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (\w+)", page, flags=re.MULTILINE)) == public
    for name in CHARTS:
        stem = name.removeprefix("plot_")
        assert f"](figures/gallery/{stem}.svg)" in page
        for kind in ("svg", "png"):
            assert (ROOT / "figures" / "gallery" / f"{stem}.{kind}").is_file()
    committed = sum(file.stat().st_size for file in (ROOT / "figures" / "gallery").iterdir())
    assert committed < 4_200_000


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_what_its_snapshot_says(name):
    expected = (SNAPSHOTS / f"{name}.json").read_text(encoding="utf-8")
    assert snapshot(chart_spec(CHARTS[name](FEW, 94))) == expected, (
        "if it is meant: python tests/test_every_chart.py"
    )


@pytest.mark.parametrize("name", CHARTS)
def test_sentences_begin_in_capitals_and_names_of_what_is_drawn_do_not(name):
    spec = chart_spec(CHARTS[name](FEW, 94))
    for words in (spec["title"]["text"], spec["title"]["subtitle"][0], spec["description"]):
        assert words[0].isupper() or words[0].isdigit() or words.startswith(("lag1 of", "attn_out ")), words
    for words in titles_of(
        {key: part for key, part in spec.items() if key not in ("title", "config", "datasets")}
    ):
        assert words[0].islower() or words.startswith(("R²", "KL ")), words


def titles_of(part: Any) -> Iterator[str]:
    """Yield the titles of axes, legends and tooltips."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if key == "title" and value and ("text" not in value or isinstance(value, str)):
            yield value[0] if isinstance(value, list) else value
        elif isinstance(value, dict | list):
            yield from titles_of(value)


def test_a_snapshot_sees_a_title_an_encoding_a_column_and_a_number():
    spec = chart_spec(CHARTS["plot_betas"](FEW, 94))
    before = snapshot(spec)
    name = next(iter(spec["datasets"]))
    changes = (
        lambda s: s["title"].update(text="another"),
        lambda s: s["vconcat"][0]["concat"][0]["layer"][2]["encoding"]["y"].update(field="other"),
        lambda s: s["datasets"][name][0].update(more=1),
        lambda s: s["datasets"][name][0].update(conf_high=9.0),
        lambda s: s["datasets"][name].pop(),
    )
    for change in changes:
        other = json.loads(json.dumps(spec))
        change(other)
        assert snapshot(other) != before


# The others take two seconds each.
QUICK = ("plot_tokens", "plot_profiles", "plot_agreement", "plot_equivalence")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CHARTS]
)
def test_the_same_frame_gives_the_same_bytes_and_text_stays_text(tmp_path, name):
    chart = CHARTS[name](FEW, 94)
    text, svg, pdf = save_chart(chart, tmp_path / "once", formats=("json", "svg", "pdf"))
    for first, again in zip(
        (text, svg),
        save_chart(CHARTS[name](FEW, 94), tmp_path / "again", formats=("json", "svg")),
        strict=True,
    ):
        assert first.read_bytes() == again.read_bytes()
    title = chart.to_dict()["title"]["text"]
    drawn = [part.text for part in ElementTree.parse(svg).getroot().iter("{http://www.w3.org/2000/svg}text")]
    assert title in drawn
    content, characters = pdf_text(pdf.read_bytes())
    assert set(title) <= characters
    # A show operator for each text, or several where a character is of another font.
    assert len(re.findall(rb"T[jJ]\b", content)) >= len([part for part in drawn if part])


def pdf_text(pdf: bytes) -> tuple[bytes, set[str]]:
    """Return what a PDF draws, and the characters that its fonts' maps give to who copies or searches its text."""
    content, characters = b"", set()
    for part in pdf.split(b"stream\n")[1:]:
        body = part.split(b"endstream")[0].strip(b"\r\n")
        body = zlib.decompress(body) if body[:1] in (b"x", b"h") else body
        if b"begincmap" in body:
            mapped = re.findall(rb"<[0-9a-fA-F]+> <([0-9a-fA-F]+)>", body)
            characters |= {
                letter for code in mapped for letter in bytes.fromhex(code.decode()).decode("utf-16-be")
            }
        else:
            content += body
    return content, characters


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [94, 1_000_000])
@pytest.mark.parametrize("n_layers", [2, 48])
@pytest.mark.parametrize("n_models", [1, 5])
@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_of_any_size_is_drawn_and_stays_small(tmp_path, name, n_models, n_layers, tokens):
    if tokens > 94 and name not in NORM_CHARTS:
        pytest.skip("drawn from a table that has the same rows whatever the number of tokens")
    if tokens > 94 and n_layers == 48 and n_models > 1:
        pytest.skip("one model has 48 million rows already")
    models = {f"gpt2-size-{at}": n_layers for at in range(n_models)}
    chart = CHARTS[name](models, tokens)
    text, svg, png = save_chart(chart, tmp_path / name, formats=("json", "svg", "png"))
    assert len(json.dumps(json.loads(text.read_text("utf-8")), separators=(",", ":"))) < 3_000_000
    width, height = (float(ElementTree.parse(svg).getroot().get(side)) for side in ("width", "height"))
    assert width < 1_000
    assert struct.unpack(">II", png.read_bytes()[16:24])[0] < 4_200
    assert height < 6_000


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for chart_name in sys.argv[1:] or CHARTS:
        (SNAPSHOTS / f"{chart_name}.json").write_text(
            snapshot(chart_spec(CHARTS[chart_name](FEW, 94))), encoding="utf-8"
        )
