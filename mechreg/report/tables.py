"""Tables of the page: as HTML, as files to download, and what is counted or taken apart for them."""

import base64
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechreg.outside import changed, for_csv, for_page, visible

MODEL_COLUMNS = (
    *("name", "backend", "processing", "dtype", "prepend_bos", "blocks", "d_model", "parameters", "tokens"),
    *("windows", "seconds"),
)
MOST_ROWS = 400  # shown; the file to download has all
_TESTS = {
    "breusch_godfrey_p": "serial correlation (Breusch-Godfrey)",
    "breusch_pagan_p": "unequal variance (Breusch-Pagan)",
    "jarque_bera_p": "not normal (Jarque-Bera)",
}
_PLACE = re.compile(r"model (?P<model>.*?)  hook (?P<hook>.*?)  layer (?P<layer>\d+)(?P<rest>.*)")


def table_html(frame: pd.DataFrame, caption: str, *, number: str = "{:.4g}") -> str:
    """Return a frame as a table that scrolls sideways; beyond 400 rows it ends, and says so."""
    shown = changed(frame.head(MOST_ROWS), visible).to_html(
        index=False, border=0, float_format=number.format, na_rep="", escape=True
    )
    shown = shown.replace("<th>", "<th scope='col'>")
    more = (
        f"<p class='note'>The first {MOST_ROWS} of {len(frame):,} rows; all are in the file below.</p>"
        if len(frame) > MOST_ROWS
        else ""
    )
    name = for_page(caption)
    return f"<div class='scroll' tabindex='0' role='region' aria-label='{name}'>{shown}</div>{more}"


def downloads(tables: Mapping[str, pd.DataFrame | None]) -> str:
    """Return links to the tables as CSV files, which are in the links themselves."""
    links = []
    for name, frame in tables.items():
        if frame is None or frame.empty:
            continue
        text = for_csv(frame).to_csv(index=False).encode("utf-8", errors="replace")
        links.append(
            f"<li><a download='{name}.csv' href='data:text/csv;charset=utf-8;base64,{base64.b64encode(text).decode()}'>"
            f"{name}.csv</a> ({len(frame):,} rows)</li>"
        )
    return (
        f"<p class='downloads-title'>To download:</p><ul class='downloads'>{''.join(links)}</ul>"
        if links
        else ""
    )


def models_table(provenance: Mapping[str, Any]) -> pd.DataFrame:
    """Return the models of a run with the columns that a reader looks for."""
    models = pd.DataFrame(provenance["models"])
    return models[[column for column in MODEL_COLUMNS if column in models]]


def diagnostics_table(statistics: pd.DataFrame, *, alpha: float = 0.05) -> pd.DataFrame:
    """Return in how many layers of every model and hook each diagnostic test rejects, and the median R2.

    Examples
    --------
    >>> frame = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": [0, 1], "r_squared": [0.25, 0.5],
    ...                       "jarque_bera_p": [0.01, 0.2]})
    >>> diagnostics_table(frame).values.tolist()
    [['m', 'attn_out', 2, 0.375, '1 of 2']]
    """
    tests = {column: name for column, name in _TESTS.items() if column in statistics}
    if not tests or "r_squared" not in statistics:
        return pd.DataFrame()
    rows = []
    for (model, hook), part in statistics.groupby(["model", "hook"], sort=False, observed=True):
        row = {
            "model": model,
            "hook": hook,
            "fits": len(part),
            "median R2": float(part["r_squared"].median()),
        }
        if "durbin_watson" in part:
            row["median Durbin-Watson"] = float(part["durbin_watson"].median())
        for column, name in tests.items():
            known = part[column].dropna()
            row[name] = f"{int((known < alpha).sum())} of {len(known)}" if len(known) else "not known"
        rows.append(row)
    return pd.DataFrame(rows)


def summary_entries(summaries: str) -> list[dict[str, str]]:
    """Return the fits in a run's summaries.txt: model, hook, layer, what else tells it, and statsmodels' text.

    Examples
    --------
    >>> text = "model m  hook attn_out  layer 3  head 1\\n      OLS Regression Results\\n====\\n"
    >>> summary_entries(text)[0]["layer"], summary_entries(text)[0]["rest"]
    ('3', '  head 1')
    """
    entries: list[dict[str, str]] = []
    body: list[str] = []
    lines = summaries.split("\n")
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        place = _PLACE.fullmatch(line) if after.strip() == "OLS Regression Results" else None
        if place:
            body = []
            entries.append({**place.groupdict(), "text": ""})
        elif entries:
            body.append(line)
            entries[-1]["text"] = "\n".join(body).strip("\n")
    return entries
