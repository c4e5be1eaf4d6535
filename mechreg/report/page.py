"""The page: sections of figures and tables, with everything in it that it needs."""

import base64
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from mechreg import charts
from mechreg.charts.save import chart_spec, content_policy, script_json, vega_bundle
from mechreg.outside import for_page
from mechreg.report.look import SCRIPT, STYLE
from mechreg.report.sentences import headline
from mechreg.report.tables import diagnostics_table, downloads, models_table, summary_entries, table_html
from mechreg.schema import MechregError

QUESTION = "Does the size of the attention update to a token follow from the updates to the tokens before it?"
Figure = Any  # svg text, an Altair chart, or a Vega-Lite specification


def report_html(
    *,
    title: str,
    coefficients: pd.DataFrame,
    statistics: pd.DataFrame,
    results: pd.DataFrame,
    figures: Mapping[str, Figure],
    problems: pd.DataFrame,
    provenance: Mapping[str, Any],
    summaries: str,
    linked: Sequence[Figure] = (),
    universality: pd.DataFrame | None = None,
    profiles: pd.DataFrame | None = None,
    verdict: Sequence[str] = (),
    interventions: pd.DataFrame | None = None,
    nulls: pd.DataFrame | None = None,
) -> str:
    """Return the page of a run; everything is in it and nothing is fetched.

    It has the question and its answer, figures, universality, interventions, diagnostics, statsmodels' summaries,
    models, tables to download and provenance. Names, tokens and texts are data in it, never markup: they are escaped,
    and the page's policy allows no script but its own two.

    Parameters
    ----------
    title : str
    coefficients, statistics, results, problems : pandas.DataFrame
    figures : mapping of str to svg text, Altair chart or Vega-Lite specification
        By their headings. Svg is embedded as an image; a chart is drawn when the page is opened.
    provenance : mapping
    summaries : str
        As in a run's summaries.txt.
    linked : sequence of charts
        What `plot_layer_explorer` gives, a model each.
    universality : pandas.DataFrame, optional
        ``compare_profiles(...).agreement``: drawn where it is of one hook and term.
    profiles : pandas.DataFrame, optional
        ``compare_profiles(...).profiles``: likewise.
    verdict : sequence of str
        ``compare_profiles(...).verdict``.
    interventions : pandas.DataFrame, optional
        What `intervene` gives.
    nulls : pandas.DataFrame, optional
        What `compare_to_nulls` gives; the answer then says what exceeds them.

    Examples
    --------
    >>> empty = pd.DataFrame({"model": [], "hook": [], "term": []})
    >>> "<script" in report_html(title="</title><script>", coefficients=empty, statistics=empty,
    ...                          results=empty, figures={}, problems=empty, provenance={"models": []},
    ...                          summaries="")
    False
    """
    page = _Page()
    said, caveat = headline(results, nulls=nulls)
    entries = summary_entries(summaries)
    if linked:
        page.section("Layer by layer", *[page.linked(chart, entries) for chart in linked])
    for name, figure in figures.items():
        page.section(name, page.figure(figure, name))
    if universality is not None or profiles is not None or verdict:
        page.section("Across models", *_universality(page, universality, profiles, verdict))
    if nulls is not None:
        page.section(
            "Against the nulls",
            *_drawn(page, charts.plot_nulls, nulls, ("hook",)),
            _folded(nulls, "comparisons"),
        )
    if interventions is not None:
        page.section(
            "Interventions",
            *_drawn(page, charts.plot_dose_response, interventions, ("hook", "edit")),
            _folded(interventions, "effects"),
        )
    page.section("Diagnostics", *_diagnostics(statistics))
    page.section("Summaries", *_summaries(entries, summaries))
    page.section("Models and tokens", *_models(provenance, problems))
    tables = {
        "results": results,
        "coefficients": coefficients,
        "statistics": statistics,
        "problems": problems,
        "universality": universality,
        "profiles": profiles,
        "interventions": interventions,
        "nulls": nulls,
    }
    page.section("Tables", _folded(coefficients, "coefficients", printed=True), downloads(tables))
    commit = provenance.get("git_commit")
    made_from = f"commit {commit}" if commit else "what it was made from"
    page.section(
        "Provenance",
        f"<details class='printed'><summary>{for_page(made_from)}</summary>"
        f"<pre>{for_page(json.dumps(provenance, indent=2, ensure_ascii=False))}</pre></details>",
    )
    return page.html(
        title,
        f"<p class='question'>{QUESTION}</p><p class='answer'><strong>{for_page(said)}</strong></p>"
        f"<p class='caveat'>{for_page(caveat)}</p>"
        "<p class='note'>Significant: p &lt; .05 after correction over layers and lags. A beta says what predicts, not "
        f"what causes.</p>{table_html(results, 'Coefficients over the layers', number='{:.3f}')}",
    )


class _Page:
    """The sections of a page as they are written, and the specifications of its charts."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.body: list[str] = []
        self.specs: list[dict[str, Any]] = []

    def section(self, name: str, *parts: str) -> None:
        self.names.append(name)
        at = len(self.names)
        self.body.append(
            f"<section aria-labelledby='s{at}'><h2 id='s{at}'>{for_page(name)}</h2>{''.join(parts)}</section>"
        )

    def figure(self, figure: Figure, name: str, *, attributes: str = "", below: str = "") -> str:
        """Return a figure: its title and caption as text of the page, its marks, and what it shows in words."""
        if isinstance(figure, str):
            source = base64.b64encode(figure.encode()).decode()
            return (
                f"<figure><img alt='{for_page(name)}, as in the tables below' "
                f"src='data:image/svg+xml;base64,{source}'></figure>"
            )
        spec = dict(figure) if isinstance(figure, Mapping) else chart_spec(figure)
        heading, caption = _title(spec.pop("title", ""))
        words = str(spec.get("description", heading or name))
        self.specs.append(spec)
        at = len(self.specs)
        return (
            f"<figure aria-labelledby='c{at}'><figcaption id='c{at}'><strong>{for_page(heading or name)}</strong>"
            f"{for_page(caption)}</figcaption>"
            f"<div class='chart' data-spec='spec{at}' tabindex='0' role='region' "
            f"aria-label='{for_page(heading or name)}, chart'{attributes}></div>{below}"
            f"<details class='words'><summary>This chart in words</summary><p>{for_page(words)}</p></details>"
            f"<noscript><p>{for_page(words)}</p></noscript></figure>"
        )

    def linked(self, figure: Figure, entries: list[dict[str, str]]) -> str:
        """Return a linked view, which shows the statsmodels summary of the layer that is chosen in it."""
        spec = dict(figure) if isinstance(figure, Mapping) else chart_spec(figure)
        about = spec.get("usermeta", {})
        attributes = "".join(
            f" data-{key}='{for_page(str(about[key]))}'" for key in ("model", "hook") if key in about
        )
        below = (
            "<details class='chosen' hidden><summary></summary><pre tabindex='0'></pre></details>"
            if entries
            else ""
        )
        return self.figure(spec, "Layers", attributes=attributes, below=below)

    def html(self, title: str, top: str) -> str:
        specs = {f"spec{at}": script_json(spec) for at, spec in enumerate(self.specs, 1)}
        packed = {}
        try:
            packed = {"vega": vega_bundle()} | specs if specs else {}
        except MechregError as error:  # the tables are the answer; the charts show it
            top += f"<p class='note'>The {len(specs)} charts of this page are missing: {for_page(error)}</p>"
        policy = content_policy([packed["vega"], SCRIPT] if packed else [])
        links = "".join(f"<a href='#s{at}'>{for_page(name)}</a>" for at, name in enumerate(self.names, 1))
        data = "".join(_packed(name, text) for name, text in packed.items())
        code = f"{data}<script>{SCRIPT}</script>\n" if packed else ""
        return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{for_page(title)} - mechreg</title><style>{STYLE}</style></head><body>
<a class="skip" href="#main">To the results</a>
<header><h1>{for_page(title)}</h1>{top}</header>
<nav aria-label="Sections">{links}</nav>
<main id="main">{"".join(self.body)}</main>
{code}</body></html>
"""


def _packed(name: str, text: str) -> str:
    """Return text as data for the page's script, compressed: rows repeat their keys, and take a quarter then."""
    data = base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
    return f'<script type="application/gzip" id="{name}">{data}</script>\n'


def _title(title: Any) -> tuple[str, str]:
    """Return the text and the caption of a specification's title."""

    def joined(text: Any) -> str:
        return " ".join(map(str, text)) if isinstance(text, list) else str(text)

    if isinstance(title, Mapping):
        return joined(title.get("text", "")), joined(title.get("subtitle", ""))
    return joined(title), ""


def _drawn(
    page: _Page, plot: Callable[[pd.DataFrame], Any], frame: pd.DataFrame, keys: Sequence[str]
) -> list[str]:
    """Return the figure of a frame for every hook, edit or term of it, or why there is none."""
    parts = []
    for names, rows in frame.groupby([key for key in keys if key in frame], sort=False, observed=True):
        where = ", ".join(map(str, names))
        try:
            parts.append(page.figure(plot(rows.reset_index(drop=True)), where))
        except MechregError as error:
            parts.append(f"<p class='note'>No chart of {for_page(where)}: {for_page(str(error))}</p>")
    return parts


def _universality(
    page: _Page, agreement: pd.DataFrame | None, profiles: pd.DataFrame | None, verdict: Sequence[str]
) -> list[str]:
    said = "".join(f"<li>{for_page(sentence)}</li>" for sentence in verdict)
    parts = [f"<ul>{said}</ul>"] if said else []
    for plot, frame in ((charts.plot_profiles, profiles), (charts.plot_agreement, agreement)):
        if frame is not None:
            parts += _drawn(page, plot, frame, ("hook", "term"))
    return parts if agreement is None else [*parts, _folded(agreement, "rows")]


def _diagnostics(statistics: pd.DataFrame) -> list[str]:
    counted = diagnostics_table(statistics)
    if counted.empty:
        return [_folded(statistics, "fits")]
    return [
        "<p>In how many layers a test finds what the fit does not account for (p &lt; .05, not adjusted). Serial "
        "correlation left in the residuals biases the betas of a lagged outcome; unequal variance and heavy tails do "
        "not, and clustered standard errors allow for them.</p>",
        table_html(counted, "Diagnostics over the layers", number="{:.3f}"),
        _folded(statistics, "fits"),
    ]


def _summaries(entries: list[dict[str, str]], summaries: str) -> list[str]:
    """Return statsmodels' text of every fit, each to be opened on its own, below its model and hook."""
    if not entries:
        text = f"<pre tabindex='0'>{for_page(summaries)}</pre>"
        return [f"<details><summary>statsmodels' own text of every fit</summary>{text}</details>"]
    parts, groups = ["<p>statsmodels' own text of every fit.</p>"], pd.DataFrame(entries)
    for (model, hook), rows in groups.groupby(["model", "hook"], sort=False):
        fits = "".join(
            f"<details class='fit' data-model='{for_page(model)}' data-hook='{for_page(hook)}' "
            f"data-layer='{for_page(row['layer'])}'><summary>layer {for_page(row['layer'])}"
            f"{for_page(row['rest'])}</summary><pre tabindex='0'>{for_page(row['text'])}</pre></details>"
            for row in rows.to_dict("records")
        )
        parts.append(
            f"<details><summary>{for_page(model)}, {for_page(hook)}: {len(rows)} layers</summary>{fits}</details>"
        )
    return parts


def _models(provenance: Mapping[str, Any], problems: pd.DataFrame) -> list[str]:
    parts = [table_html(models_table(provenance), "Models")]
    corpus = provenance.get("corpus")
    if isinstance(corpus, Mapping):
        facts = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in corpus.items())
        parts.append(f"<p class='note'>Corpus: {for_page(facts)}</p>")
    if len(problems):
        parts.append(
            f"<h3>Documents that could not be used ({len(problems)})</h3>{table_html(problems, 'Documents left out')}"
        )
    return parts


def _folded(frame: pd.DataFrame, noun: str, *, printed: bool = False) -> str:
    kind = " class='printed'" if printed else ""
    return f"<details{kind}><summary>{len(frame):,} {noun}</summary>{table_html(frame, noun)}</details>"
