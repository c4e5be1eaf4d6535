"""Strings from outside are safe in a terminal, a CSV file, a chart and a page, and ordinary ones stay as they are."""

import base64
import io

import pandas as pd
import pytest
from chart_frames import CHARTS

from mechreg import plot_betas, plot_specifications
from mechreg.charts.drawing import _DRAWER, drawn
from mechreg.charts.save import VEGA_LITE, chart_files, chart_spec
from mechreg.cli.terminal import error_sentence, say
from mechreg.outside import for_csv, for_page, for_terminal, for_vega, from_csv
from mechreg.report import report_html
from mechreg.report.tables import downloads
from mechreg.schema import InputError
from mechreg.store import write_table
from mechreg.store.files import read_table

ORDINARY = (
    *("gpt2", "org/model@main", "a b", "Ångström", "中文", "👩‍💻", "می‌خواهم", "שלום"),
    *("-1", "+2.5e-3", "-", "<b>", "'quoted'"),
)
JAVASCRIPT = ("constructor", "toString", "valueOf", "hasOwnProperty", "__proto__")


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_string_stays_as_it_is(text):
    assert for_terminal(text) == text
    assert for_vega([text, {text: text}]) == [text, {text: text}]
    assert for_csv(pd.DataFrame({text: [text]})).to_dict("list") == {text: [text]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
        ("a\rb", r"a\rb"),
        ("a\x9b31m\x7f", r"a\x9b31m\x7f"),
        ("a\nb\tc", "a\nb\tc"),
        ("\udcc3", r"\udcc3"),
    ],
)
def test_a_terminal_shows_what_it_would_obey(text, shown, capsys):
    assert for_terminal(text) == shown
    say(text)
    assert capsys.readouterr().out == shown + "\n"


def test_a_terminal_without_the_characters_gets_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    say("runs/ö: β ≥ 0")
    stream.flush()
    assert stream.buffer.getvalue() == rb"runs/\xf6: \u03b2 \u2265 0" + b"\n"


def test_an_error_is_one_line():
    assert error_sentence(InputError("no 'a\nb\x1b[31m'")) == r"no 'a\nb\x1b[31m'"


FORMULAS = ("=1+1", "=cmd|' /C calc'!A0", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "'=1", "''=1")


def test_a_spreadsheet_gets_text_and_pandas_the_same_values_back(tmp_path):
    table = pd.DataFrame({"=doc": [*FORMULAS, *ORDINARY, None], "n": 1.5}).astype({"=doc": "category"})
    write_table(table, tmp_path / "table.csv")
    lines = pd.read_csv(tmp_path / "table.csv")
    assert lines.columns.tolist() == ["'=doc", "n"]
    written = lines["'=doc"].tolist()
    assert [cell[0] for cell in written[: len(FORMULAS)]] == ["'"] * len(FORMULAS)
    assert written[len(FORMULAS) : -1] == list(ORDINARY)
    back = read_table(tmp_path / "table.csv")
    assert back["=doc"].tolist()[:-1] == [*FORMULAS, *ORDINARY]
    assert from_csv(for_csv(table))["=doc"].tolist()[:-1] == [*FORMULAS, *ORDINARY]
    assert "'=1" in base64.b64decode(downloads({"t": table})[0].data).decode()


def test_a_page_turns_no_text_round():
    assert for_page("\u202e<a href='x'>") == "⟨202E⟩&lt;a href=&#x27;x&#x27;&gt;"
    empty = pd.DataFrame({"model": [], "hook": [], "term": []})
    frames = dict.fromkeys(("coefficients", "statistics", "results"), empty)
    hostile = pd.DataFrame({"doc\u202e": ["\u202eabc<b>", None], "n": [1.0, None]})
    page = report_html(
        **frames, title="\u202e", problems=hostile, figures={}, provenance={"models": []}, summaries=""
    )
    assert "\u202e" not in page
    assert "<b>" not in page
    assert "⟨202E⟩abc&lt;b&gt;" in page


@pytest.mark.parametrize("name", ["plot_profiles", "plot_agreement", "plot_betas"])
@pytest.mark.parametrize("model", ["constructor", "a\u2028b", "\u202egnp"])
def test_a_chart_draws_a_model_of_any_name(name, model):
    svg = drawn("svg", spec=chart_spec(CHARTS[name]({model: 2, "other": 2}, 94)), version=VEGA_LITE)
    plain = drawn(
        "svg", spec=chart_spec(CHARTS[name]({"m" * len(model): 2, "other": 2}, 94)), version=VEGA_LITE
    )
    assert svg.count("<path") == plain.count("<path") > 10
    assert svg.count("<text") == plain.count("<text") > 5
    assert "\u202e" not in svg


def test_a_specification_of_any_name_is_drawn(tmp_path):
    row = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "term": "lag1", "estimate": 0.3}
    row |= {
        "conf_low": 0.2,
        "conf_high": 0.4,
        "r_squared": 0.2,
        "held_out_r_squared": 0.1,
        "n": 9,
        "n_docs": 9,
    }
    table = pd.DataFrame([row | {"specification": name} for name in ('q"\\', "toString", "my constructor")])
    assert len(chart_files(plot_specifications(table), tmp_path / "a", formats=("svg",))) == 1


@pytest.mark.parametrize("name", JAVASCRIPT)
def test_names_that_javascript_has_are_drawn_as_they_are(name):
    assert for_vega(name) == f"{name}\xa0"


def test_what_vega_says_while_it_draws_is_an_error():
    spec = CHARTS["plot_betas"]({"constructor": 2}, 94).to_dict()
    with pytest.raises(ValueError, match="Operator not defined"):
        drawn("svg", spec=spec, version=VEGA_LITE)


def test_the_end_of_the_drawing_process_is_a_sentence_and_the_next_chart_is_drawn(tmp_path):
    chart = plot_betas(CHARTS_FRAME)
    chart_files(chart, tmp_path / "a", formats=("svg",))
    process = _DRAWER.process
    process.kill()
    _DRAWER.process.poll = lambda: None  # the end comes between the look and the request
    with pytest.raises(InputError, match="process that draws charts ended early"):
        chart_files(chart, tmp_path / "a", formats=("svg",))
    assert len(chart_files(chart, tmp_path / "a", formats=("svg", "png"))) == 2


CHARTS_FRAME = pd.DataFrame(
    [
        {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "term": "lag1", "estimate": 0.3}
        | {"std_error": 0.1, "df": 88, "conf_low": 0.1, "conf_high": 0.5, "p_adjusted": 0.003, "n": 91}
        | {"n_docs": 1, "cov_type": "nonrobust"}
    ]
)
