"""Tables and charts to one page: the template filled in, its style sheet, script, charts and tables in it."""

import base64
import contextlib
import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import SimpleNamespace
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from mechreg import charts
from mechreg.charts.save import chart_spec, content_policy, script_json, svg_of, vega_bundle
from mechreg.outside import changed, visible
from mechreg.report.sentences import (
    counted,
    counted_once,
    headline,
    in_words,
    legend,
    same_weights,
    side_by_side,
    sinks_left_out,
)
from mechreg.report.tables import diagnostics_table, downloads, models_table, summaries_by_hook
from mechreg.schema import MechregError, one_or_many

MOST_ROWS = 400  # shown; the file to download has all
# What nobody sees in an image of svg: its words are beside it; and digits of pixels beyond two.
_UNSEEN = re.compile(
    r' (?:(?:aria-[a-z]+|role|class|pointer-events)="[^"]*"|opacity="1")|(?<=\d\.\d\d)\d+(?=[^<>]*>)'
)
Figure = Any  # svg text, an Altair chart, or a Vega-Lite specification


def report_html(
    *,
    title: str,
    coefficients: pd.DataFrame,
    statistics: pd.DataFrame,
    results: pd.DataFrame,
    figures: Mapping[str, Figure | Sequence[Figure]],
    problems: pd.DataFrame,
    provenance: Mapping[str, Any],
    summaries: str,
    formula: str = "",
    spec: str = "",
    persistence: pd.DataFrame | None = None,
    linked: Sequence[Figure] = (),
    universality: pd.DataFrame | None = None,
    profiles: pd.DataFrame | None = None,
    verdict: Sequence[str] = (),
    interventions: pd.DataFrame | None = None,
    nulls: pd.DataFrame | None = None,
    top_tokens: pd.DataFrame | None = None,
) -> str:
    """Return the page of a run; everything is in it and nothing is fetched.

    Names, tokens and texts are escaped wherever they stand, and the page's policy allows no script but its own two.
    Tables are a run's own; ``universality``, ``profiles`` and ``verdict`` are those of `compare_profiles`,
    ``interventions`` is of `intervene`, ``nulls`` of `compare_to_nulls`, ``linked`` of `plot_layer_explorer`, a chart a
    model. ``figures``, by their headings, are svg text, Altair charts or Vega-Lite specifications.
    """
    page = _Charts()
    hooks = list(results["hook"].unique()) if len(results) else [None]
    once = counted_once(results, provenance["models"])
    answers = [_answer(page, hook, once, persistence, nulls) for hook in hooks]
    tables = {
        "coefficients": coefficients, "statistics": statistics, "problems": problems, "persistence": persistence,
        "universality": universality, "profiles": profiles, "interventions": interventions, "nulls": nulls,
        "top_tokens": top_tokens,
    }  # fmt: skip
    contents: dict[str, Any] = tables | {
        "title": title,
        "answers": answers,
        "caveats": dict.fromkeys(answer["context"] for answer in answers),
        "results": side_by_side(results) if len(results) else results,
        "counted": counted(results),
        "legend": legend(results),
        "formula": formula,
        "spec": spec,
        "missing_numbers": _notes(persistence),
        "linked": [page.figure(chart, "Layers", shows=("model", "hook")) for chart in linked],
        "figures": {name: [page.figure(one, name) for one in one_or_many(figures[name])] for name in figures},
        "verdict": verdict,
        "compared": page.by(charts.plot_profiles, profiles, "hook", "term")
        + page.by(charts.plot_agreement, universality, "hook", "term"),
        "against_nulls": page.by(charts.plot_nulls, nulls, "hook"),
        "null_notes": _notes(nulls),
        "doses": page.by(charts.plot_dose_response, interventions, "hook", "edit", "head"),
        "sinks": sinks_left_out(statistics),
        "diagnostics": diagnostics_table(statistics),
        "summaries": summaries_by_hook(summaries),
        "all_summaries": summaries,
        "models": models_table(provenance),
        "same_weights": same_weights(provenance["models"]),
        "provenance": provenance,
        "provenance_text": json.dumps(provenance, indent=2, ensure_ascii=False),
        "files": downloads(tables),
        "most_rows": MOST_ROWS,
    }
    return _template().render(contents | page.code(), names=[])


def _notes(table: pd.DataFrame | None) -> list[str]:
    """Return what a table says of its numbers, each sentence once."""
    return (
        []
        if table is None or "note" not in table
        else [note for note in table["note"].dropna().unique() if note]
    )


def _answer(
    page: "_Charts", hook: str | None, results: pd.DataFrame, persistence: pd.DataFrame | None, nulls: Any
) -> dict[str, Any]:
    """Return the sentences on one hook, and the figure of its persistence."""
    shown = results[results["hook"] == hook] if len(results) else results
    answer, sample, context = headline(shown, nulls=nulls)
    figure = None
    if persistence is not None and len(persistence):
        lags = persistence[(persistence["hook"] == hook) & persistence["df"].notna()]
        sums = lags[lags["term"] == lags["term"].iloc[-1]] if len(lags) else lags
        rows = sums.assign(controls=sums["controls"].map(in_words))
        with contextlib.suppress(MechregError):  # a panel per head, or more models than a figure holds
            term = f"{rows['term'].iloc[0]} of {hook}" if len(rows) else ""
            sums = SimpleNamespace(coefficients=rows, adjust="bh")  # as all tables of runs
            chart = charts.plot_betas(sums, by="controls", terms=rows["term"].iloc[0], height=150, title=term)
            figure = page.figure(chart, "Persistence")
    return {"hook": hook, "answer": answer, "sample": sample, "context": context, "figure": figure}


@dataclass
class _Drawn:
    """A figure as the template shows it: svg in base64, the number of a chart, or why there is none."""

    name: str
    caption: str = ""
    words: str = ""
    svg: str = ""
    number: int = 0
    shows: dict[str, str] = field(default_factory=dict)
    problem: str = ""


class _Charts:
    """The specifications of a page's charts, numbered in the order in which they are drawn."""

    def __init__(self) -> None:
        self.specs: list[dict[str, Any]] = []

    def figure(self, figure: Figure, name: str, *, shows: Sequence[str] = ()) -> _Drawn:
        """Return a figure; a chart's title and description become text of the page."""
        if isinstance(figure, str):
            return _Drawn(name, svg=base64.b64encode(figure.encode()).decode())
        spec = dict(figure) if isinstance(figure, Mapping) else chart_spec(figure)
        title = spec.pop("title", "")
        title = title if isinstance(title, Mapping) else {"text": title}
        heading, caption = (
            " ".join(map(str, one_or_many(title.get(key, "")))) for key in ("text", "subtitle")
        )
        about = spec.get("datasets", {}).get("layers", [{}])[0]  # of a layer explorer: whose layers
        self.specs.append(spec)
        svg = ""
        with contextlib.suppress(MechregError, ValueError):  # shown by the script, or said to be missing
            svg = base64.b64encode(_UNSEEN.sub("", svg_of(spec)).encode()).decode()
        return _Drawn(
            name=heading or name,
            caption=caption,
            words=str(spec.get("description", heading or name)),
            svg=svg,
            number=len(self.specs),
            shows={key: str(about[key]) for key in shows if key in about},
        )

    def by(self, plot: Callable[[pd.DataFrame], Any], frame: pd.DataFrame | None, *keys: str) -> list[_Drawn]:
        """Return a figure of every hook, edit or term of a frame, or why it cannot be drawn."""
        figures: list[_Drawn] = []
        if frame is None:
            return figures
        for names, rows in frame.groupby([key for key in keys if key in frame], sort=False, observed=True):
            name = ", ".join(map(str, names))
            try:
                figures.append(self.figure(plot(rows.reset_index(drop=True)), name))
            except MechregError as error:
                figures.append(_Drawn(name, problem=str(error)))
        return figures

    def code(self) -> dict[str, Any]:
        """Return style, script, charts and Vega as the template has them, and the policy that allows no others."""
        here = resources.files("mechreg.report")
        css, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
        scripts, missing = dict[str, str](), ""
        try:
            if self.specs:
                scripts = {"vega": vega_bundle()}
                scripts |= {f"spec{at}": script_json(spec) for at, spec in enumerate(self.specs, 1)}
        except MechregError as error:  # the page is still useful without charts: the tables hold the results
            missing = f"The {len(self.specs)} charts of this page are missing: {error}"
        return {
            "css": css,
            "script": script,
            "packed": {name: _packed(text) for name, text in scripts.items()},
            "policy": content_policy([scripts["vega"], script] if scripts else []),
            "missing": missing,
        }


@cache
def _template() -> jinja2.Template:
    """Return the page's template, which escapes every string, and shows the characters in it that are not seen."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mechreg.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    environment.filters["rows"] = _rows
    environment.filters["count"] = "{:,}".format
    return environment.get_template("template.html.j2")


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _rows(frame: pd.DataFrame, number: str) -> Markup:
    """Return the first rows of a frame as an HTML table, each cell with its column's name, which a phone shows."""
    shown = changed(frame.head(MOST_ROWS).dropna(axis="columns", how="all"), visible)
    names = [escape(visible(str(name))) for name in shown]
    cells = [[_cell(value, number) for value in shown.iloc[:, at]] for at in range(len(names))]
    head = Markup("").join(Markup("<th scope='col'>{}</th>").format(name) for name in names)
    cell = Markup('<td data-label="{}">{}</td>')
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(map(cell.format, names, row)))
        for row in zip(*cells, strict=True)
    )
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def _cell(value: Any, number: str) -> str:
    """Return what a cell shows: nothing where nothing is known, whole numbers with separators of thousands."""
    if isinstance(value, str | bool | np.bool_) or not isinstance(value, int | float | np.number):
        return "" if value is None or value is pd.NA else str(value)
    if np.isnan(value):
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else number.format(value)


def _packed(text: str) -> str:
    """Return text as data for the page's script, compressed: rows repeat their keys, and shrink to a quarter."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
