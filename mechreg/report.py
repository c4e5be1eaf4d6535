"""Tables and charts to one self-contained offline HTML page."""

import base64
import html
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

MODEL_COLUMNS = (
    "name",
    "backend",
    "processing",
    "blocks",
    "d_model",
    "parameters",
    "tokens",
    "windows",
    "seconds",
)
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 "Liberation Sans", Arial, Helvetica, sans-serif; margin: 2rem auto; max-width: 68rem;
  padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8885; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; background: #fff; padding: .5rem; } img { max-width: 100%; height: auto; }
pre { overflow-x: auto; font-size: .8rem; } summary { cursor: pointer; }
"""


def result_table(coefficients: pd.DataFrame, *, alpha: float = 0.05) -> pd.DataFrame:
    """Return one row a model, hook and term: layers, how many are significant, and the betas' range.

    Examples
    --------
    >>> frame = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": [0, 1], "term": "lag1",
    ...                       "estimate": [0.25, 0.5], "p_adjusted": [0.01, 0.2]})
    >>> result_table(frame)[["layers", "significant", "beta_median"]].values.tolist()
    [[2.0, 1.0, 0.375]]
    """
    terms = coefficients[coefficients["term"] != "Intercept"]
    terms = terms.assign(significant=terms["p_adjusted"] < alpha)
    grouped = terms.groupby(["model", "hook", "term"], sort=False, observed=True)
    return grouped.agg(
        layers=("layer", "size"),
        significant=("significant", "sum"),
        beta_min=("estimate", "min"),
        beta_median=("estimate", "median"),
        beta_max=("estimate", "max"),
    ).reset_index()


def answer(results: pd.DataFrame, *, alpha: float = 0.05) -> list[str]:
    """Return what the tables say, one sentence a model and hook.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "term": "lag1", "layers": 4, "significant": 3}
    >>> answer(pd.DataFrame([row | {"beta_median": 0.25}]))
    ['m, attn_out: lag1 differs from zero in 3 of 4 layers (median beta 0.25).']
    """
    sentences = []
    for (model, hook), rows in results.groupby(["model", "hook"], sort=False, observed=True):
        said = ", ".join(
            f"{row.term} {'differs from zero ' if i == 0 else ''}in {row.significant} of {row.layers} layers "
            f"(median beta {row.beta_median:.2f})"
            for i, row in enumerate(rows.itertuples())
        )
        sentences.append(f"{model}, {hook}: {said}.")
    return sentences


def report_html(
    *,
    title: str,
    coefficients: pd.DataFrame,
    statistics: pd.DataFrame,
    results: pd.DataFrame,
    figures: Mapping[str, str],
    problems: pd.DataFrame,
    provenance: Mapping[str, Any],
    summaries: str,
) -> str:
    """Return the page of a run: answer, figures, tables, summaries, provenance; nothing in it is fetched.

    Parameters
    ----------
    title : str
    coefficients, statistics, results, problems : pandas.DataFrame
    figures : mapping of str to str
        Title to SVG; embedded as images, so that nothing in them can run.
    provenance : mapping
    summaries : str

    Examples
    --------
    >>> empty = pd.DataFrame({"model": [], "hook": [], "term": []})
    >>> "<script" in report_html(title="</title><script>", coefficients=empty, statistics=empty,
    ...                          results=empty, figures={}, problems=empty, provenance={"models": []},
    ...                          summaries="")
    False
    """
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in answer(results))
    models = pd.DataFrame(provenance["models"])
    models = models[[column for column in MODEL_COLUMNS if column in models]]
    drawn = "".join(
        f"<h2>{html.escape(name)}</h2>"
        f"<figure><img alt='{html.escape(name, quote=True)}, as in the tables below' "
        f"src='data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}'></figure>"
        for name, svg in figures.items()
    )
    trouble = (
        f"<h2>Documents that could not be used ({len(problems)})</h2>{_table(problems)}"
        if len(problems)
        else ""
    )
    commit = provenance.get("git_commit")
    made_from = f"commit {commit}" if commit else "what it was made from"
    name = html.escape(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} - mechreg</title><style>{STYLE}</style></head><body>
<h1>{name}</h1>
<p><strong>Does the size of the attention update to a token follow from the updates to the tokens before
it?</strong> Significance is at .05 after correction over layers and lags.</p>
{said}{_table(results)}
{drawn}
<h2>Models</h2>{_table(models)}{trouble}
<h2>Coefficients</h2><details><summary>{len(coefficients)} rows</summary>{_table(coefficients)}</details>
<h2>Fit statistics</h2><details><summary>{len(statistics)} rows</summary>{_table(statistics)}</details>
<h2>Summaries</h2><details><summary>statsmodels' own text of every fit</summary>
<pre>{html.escape(summaries)}</pre></details>
<h2>Provenance</h2><details><summary>{html.escape(made_from)}</summary>
<pre>{html.escape(json.dumps(provenance, indent=2, ensure_ascii=False))}</pre></details>
</body></html>
"""


def _table(frame: pd.DataFrame) -> str:
    shown = frame.to_html(index=False, border=0, float_format="{:.4g}".format, na_rep="", escape=True)
    return f"<div class='scroll'>{shown}</div>"
