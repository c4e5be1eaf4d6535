"""The page in a real browser: it loads offline, a choice of layer moves its charts, hostile strings do nothing.

Nothing here is compared by pixels: what is asked is the console, the requests, the document and Vega's own signals.
"""

import base64
import re

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, opened

import mechreg as mr
from mechreg.report import headline, report_html, result_table
from mechreg.report.tables import summaries_by_hook

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "javascript:document.title='owned'",
    "\u2028\u2029'\"`${1}",
    "\u202etfel ot thgir\u200f",
    "\ufffd",
    "\x07\x00",
    " '>\"><svg onload=document.title='owned'>",
]
NAME = "m<img src=x onerror=document.title='owned'>'\"&amp;</script>"


def lagged_frame(n_layers=4, per=60, docs=6, model=NAME) -> pd.DataFrame:
    rng, parts = np.random.default_rng(0), []
    tokens = np.array([*HOSTILE, " the", " cat", "\n"], dtype=object)[
        rng.integers(0, len(HOSTILE) + 3, per * docs)
    ]
    for layer in range(n_layers):
        parts.append(
            pd.DataFrame(
                {
                    "model": model,
                    "hook": "attn_out",
                    "layer": layer,
                    "depth": (layer + 0.5) / n_layers,
                    "doc": np.repeat([f"{HOSTILE[0]}-{at}" for at in range(docs)], per),
                    "window": 0,
                    "position": np.tile(np.arange(per), docs),
                    "token_id": 0,
                    "token": tokens,
                    "norm": np.exp(layer + 0.3 * rng.normal(size=per * docs)),
                }
            )
        )
    return mr.add_lags(pd.concat(parts, ignore_index=True))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    lagged = lagged_frame()
    fits = mr.fit_lagged(lagged)
    summaries = "\n\n".join(
        f"model {NAME}  hook attn_out  layer {layer}\n{fits.summary(layer=layer)}" for layer in range(4)
    )
    html = report_html(
        title=HOSTILE[0],
        coefficients=fits.coefficients,
        statistics=fits.statistics,
        results=result_table(fits.coefficients),
        figures={f"Norms {HOSTILE[1]}": mr.plot_norms(lagged), "Betas": mr.plot_betas(fits.coefficients)},
        problems=pd.DataFrame({"doc": HOSTILE[:2], "problem": "empty"}),
        provenance={"models": [{"name": NAME, "tokens": 360}], "corpus": {"corpus": HOSTILE[1]}},
        summaries=summaries,
        linked=[mr.plot_layer_explorer(lagged, fits.coefficients, layer=0)],
        verdict=[HOSTILE[2], HOSTILE[3]],
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def ready(tab) -> None:
    tab.wait_for("document.documentElement.dataset.ready", seconds=60)


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_loads_offline_and_hostile_strings_do_nothing(page, width, dark):
    with opened(page, width=width, dark=dark) as tab:
        ready(tab)
        assert tab.console == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in tab.requests)
        assert tab.evaluate("document.title") == f"{HOSTILE[0]} - mechreg"
        assert tab.evaluate("document.querySelectorAll('img[src=x], svg[onload]').length") == 0
        assert tab.evaluate("document.querySelectorAll('.chart[data-drawn=yes] svg.marks').length") == 3
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert tab.evaluate(
            "[...document.querySelectorAll('.chart')].every(c => c.getAttribute('aria-label'))"
        )
        light = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light != dark


def test_a_page_with_its_charts_and_vega_stays_small_enough_to_send(page):
    assert page.stat().st_size < 1_200_000


@needs_browser
@pytest.mark.slow
def test_four_models_of_48_layers_stay_under_4_megabytes(tmp_path):
    frames = [lagged_frame(n_layers=48, per=400, docs=10, model=f"m{at}") for at in range(4)]
    fits = [mr.fit_lagged(frame) for frame in frames]
    coefficients = pd.concat([fit.coefficients for fit in fits], ignore_index=True)
    html = report_html(
        title="large",
        coefficients=coefficients,
        statistics=pd.concat([fit.statistics for fit in fits], ignore_index=True),
        results=result_table(coefficients),
        figures={
            "Norms": mr.plot_norms(pd.concat(frames, ignore_index=True)),
            "Betas": mr.plot_betas(coefficients),
        },
        problems=pd.DataFrame(),
        provenance={"models": [{"name": f"m{at}"} for at in range(4)]},
        summaries="\n\n".join(
            f"model m{at}  hook attn_out  layer {layer}\n{fit.summary(layer=layer)}"
            for at, fit in enumerate(fits)
            for layer in range(48)
        ),
        linked=[
            mr.plot_layer_explorer(*pair)
            for pair in zip(frames, [fit.coefficients for fit in fits], strict=True)
        ],
    )
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    assert len(html.encode()) < 4_000_000
    with opened(tmp_path / "report.html") as tab:
        ready(tab)
        assert tab.console == []
        assert tab.evaluate("document.querySelectorAll('.chart[data-drawn=yes] svg.marks').length") == 6


@needs_browser
def test_on_paper_the_page_is_light_and_has_its_tables_and_every_chart_whole(page):
    with opened(page, width=720, dark=True, media="print") as tab:
        ready(tab)
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.evaluate("getComputedStyle(document.querySelector('.chart svg.marks')).filter") == "none"
        assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        shown = "[...document.querySelectorAll('details')].filter(d => d.getBoundingClientRect().height > 0)"
        assert tab.evaluate(f"{shown}.map(d => d.className)") == ["printed", "printed"]
        assert tab.evaluate(
            "document.querySelector('.printed td').checkVisibility({contentVisibilityAuto: true})"
        )
        assert tab.evaluate("document.querySelector('.printed td').getBoundingClientRect().height > 5")
        room = "document.querySelector('main').clientWidth"
        assert tab.evaluate(
            f"[...document.querySelectorAll('svg.marks')].every(s => s.getBoundingClientRect().width <= {room})"
        )


def test_every_chart_is_a_picture_in_the_page_before_a_script_runs(page):
    html = page.read_text(encoding="utf-8")
    pictures = re.findall(
        r'<div class="chart"[^>]*><img alt="[^"]+" src="data:image/svg\+xml;base64,([^"]+)"', html
    )
    assert len(pictures) == 3
    assert all(base64.b64decode(picture).startswith(b"<svg ") for picture in pictures)


SLIDER = "document.querySelector('.vega-bindings input[type=range]')"
TOLD = (
    "[...document.querySelectorAll('.chart svg.marks text')].map(t => t.textContent)"
    ".find(t => t.startsWith('layer ') && t.includes('beta'))"
)
FILLS = (
    "[...document.querySelector('.chart[data-model] svg.marks').querySelectorAll('path')]"
    ".map(p => p.getAttribute('fill') + p.getAttribute('d')).join()"
)


@needs_browser
def test_a_layer_is_chosen_by_key_and_by_click_and_all_panels_follow(page):
    with opened(page) as tab:
        ready(tab)
        assert tab.evaluate(TOLD).startswith("layer 0:")
        before = tab.evaluate(FILLS)
        tab.evaluate(f"{SLIDER}.focus()")
        tab.press("ArrowRight", 39)
        tab.wait_for(f"({TOLD}).startsWith('layer 1:')")
        assert tab.evaluate(FILLS) != before
        assert tab.evaluate("document.querySelector('.chosen summary').textContent").endswith("layer 1")
        assert "OLS Regression Results" in tab.evaluate("document.querySelector('.chosen pre').textContent")
        tab.evaluate("document.querySelector('.chart[data-model]').scrollIntoView()")
        # The last layer is at the right end of the profile: beside its beta, where nothing but the column is.
        place = tab.evaluate(
            "(() => { const p = document.querySelector('.chart[data-model] svg.marks path[aria-label*=\"layer: 3\"]');"
            "const b = p.getBoundingClientRect(); return [b.left + b.width / 2, b.top - 12]; })()"
        )
        tab.click(*place)
        tab.wait_for(f"({TOLD}).startsWith('layer 3:')")
        assert tab.evaluate(f"{SLIDER}.value") == "3"
        shaded = tab.evaluate(FILLS)
        tab.evaluate("document.querySelector('.vega-bindings input[type=radio]').click()")
        tab.evaluate("new Promise(r => setTimeout(r, 200))")
        assert tab.evaluate(FILLS) != shaded
        assert tab.console == []


def test_every_summary_is_found_in_a_runs_text():
    text = "\n\n".join(
        f"model a  b  hook z  layer {n}  head 1\n   OLS Regression Results   \nbody {n}" for n in (0, 11)
    )
    first, last = summaries_by_hook(text)["a  b", "z"]
    assert (first["layer"], first["rest"]) == ("0", "  head 1")
    assert last["text"].endswith("body 11")
    assert "body 11" not in first["text"]


def test_the_answer_names_the_nulls_or_says_that_there_are_none():
    lagged = lagged_frame(model="m")
    results = result_table(mr.fit_lagged(lagged).coefficients)
    nulls = pd.DataFrame(
        {
            "hook": "attn_out",
            "term": "lag1",
            "null": "token_order",
            "excess": [0.2, -0.1],
            "p_value": [0.01, 0.01],
        }
    )
    said, _, context = headline(results, nulls=nulls)
    assert said.startswith("No:")
    assert "token order in 1 of 2 layers (median excess 0.05)" in context
    assert "effect of context" in headline(results)[2]


def test_universality_and_interventions_are_drawn_or_the_reason_is_given():
    lagged = pd.concat([lagged_frame(model="a", docs=8), lagged_frame(model="b", docs=8)], ignore_index=True)
    fits = mr.fit_lagged(lagged)
    uni = mr.compare_profiles(fits, draws=199)
    row = {
        "model": "a",
        "hook": "attn_out",
        "layer": 0,
        "depth": 0.5,
        "edit": "scale",
        "control": "none",
        "measure": "kl",
        "measured_layer": -1,
        "offset": -1,
        "conf_low": 0.0,
        "conf_high": 0.2,
        "n": 90,
        "n_docs": 3,
        "estimate": 0.1,
    }
    empty = pd.DataFrame()
    common = {
        "title": "t",
        "coefficients": fits.coefficients,
        "statistics": fits.statistics,
        "results": result_table(fits.coefficients),
        "figures": {},
        "problems": empty,
        "provenance": {"models": []},
        "summaries": "",
    }
    doses = pd.DataFrame([row | {"dose": 0.0}, row | {"dose": 1.0}])
    page = report_html(
        **common, universality=uni.agreement, profiles=uni.profiles, verdict=uni.verdict, interventions=doses
    )
    assert "lag1 of attn_out by relative depth, in 2 models" in page
    assert "Concordance of lag1 profiles for attn_out" in page
    assert "attn_out scaled: effects by dose and layer" in page
    assert all(
        word in page for word in ('<h2 id="s1">Across models', "universality.csv", "interventions.csv")
    )
    alone = report_html(**common, interventions=doses.head(1))
    assert "No chart of attn_out, scale: plot_dose_response" in alone
