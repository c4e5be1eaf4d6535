"""Tables of the page: files to download, and what is counted or taken apart for it."""

import base64
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from mechreg.outside import for_csv
from mechreg.report.sentences import ALPHA

MODEL_COLUMNS = (
    *("name", "backend", "processing", "dtype", "prepend_bos", "blocks", "d_model", "parameters", "tokens"),
    *("windows", "seconds"),
)
_TESTS = {
    "breusch_godfrey_p": "serial correlation (Breusch-Godfrey)",
    "breusch_pagan_p": "unequal variance (Breusch-Pagan)",
    "jarque_bera_p": "not normal (Jarque-Bera)",
}
_FIT = re.compile(
    r"^model (?P<model>.*?)  hook (?P<hook>.*?)  layer (?P<layer>\d+)(?P<rest>.*)\n"
    r"(?= *OLS Regression Results *$)",
    re.MULTILINE,
)


class Download(NamedTuple):
    """A table as a CSV file in base64."""

    name: str
    data: str
    rows: int


def downloads(tables: Mapping[str, pd.DataFrame | None]) -> list[Download]:
    """Return the tables that have rows as CSV files."""
    files = []
    for name, frame in tables.items():
        if frame is not None and not frame.empty:
            text = for_csv(frame).to_csv(index=False).encode("utf-8", errors="replace")
            files.append(Download(name, base64.b64encode(text).decode(), len(frame)))
    return files


def models_table(provenance: Mapping[str, Any]) -> pd.DataFrame:
    """Return the models of a run with the columns that a reader looks for."""
    models = pd.DataFrame(provenance["models"])
    return models[[column for column in MODEL_COLUMNS if column in models]]


def diagnostics_table(statistics: pd.DataFrame) -> pd.DataFrame:
    """Return in how many layers of every model and hook each diagnostic test rejects, and the median R2."""
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
            row[name] = f"{int((known < ALPHA).sum())} of {len(known)}" if len(known) else "not known"
        rows.append(row)
    return pd.DataFrame(rows)


def summaries_by_hook(summaries: str) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Return the fits in a run's summaries.txt by model and hook: layer, rest (such as a head), statsmodels' text."""
    places = list(_FIT.finditer(summaries))
    ends = [*(place.start() for place in places), len(summaries)][1:]
    fits: dict[tuple[str, str], list[dict[str, str]]] = {}
    for place, end in zip(places, ends, strict=True):
        text = summaries[place.end() : end].strip("\n")
        entry = {"layer": place["layer"], "rest": place["rest"], "text": text}
        fits.setdefault((place["model"], place["hook"]), []).append(entry)
    return fits
