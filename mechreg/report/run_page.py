"""A run folder to its page: its tables and shards are read, its linked views drawn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mechreg import charts, store
from mechreg.charts.theme import figure_title
from mechreg.lags import add_lags
from mechreg.report.page import report_html
from mechreg.report.sentences import result_table
from mechreg.schema import MechregError

# Rows (tokens times layers) of one linked view; beyond them it shows the first documents, and says so.
VIEW_ROWS = 1_000_000


def run_report(folder: str | Path) -> str:
    """Return the page of a run from what its folder holds; no model is loaded.

    Tables, summaries and provenance are needed. The linked views are made from the norms and tokens where those are
    there. What ``mechreg compare`` leaves in the folder (``universality.csv``, ``universality_profiles.csv``, and
    ``universality.txt``, a sentence a line), ``interventions.csv`` and ``nulls.csv`` are shown where they are there.

    Parameters
    ----------
    folder : str or Path
        A run folder, as `run_spec` leaves it.

    Returns
    -------
    str
        HTML; the same folder gives the same page.

    Raises
    ------
    InputError
        Not the folder of a finished run.

    Examples
    --------
    >>> run_report("no-such-folder")
    Traceback (most recent call last):
    mechreg.schema.InputError: 'no-such-folder' is not the folder of a finished run; mechreg run makes one.
    """
    folder = Path(folder)
    facts = store.read_provenance(folder)
    run = store.open_run(folder)
    spec, coefficients = run.spec, run.coefficients
    return report_html(
        title=str(spec.get("name", folder.name)),
        coefficients=coefficients,
        statistics=run.statistics,
        results=result_table(coefficients),
        figures=_figures(folder, coefficients),
        problems=pd.DataFrame() if (problems := _table(run, "problems.csv")) is None else problems,
        provenance=facts,
        summaries=_text(folder / "summaries.txt"),
        linked=list(_linked(run, spec, facts, coefficients)),
        universality=_table(run, "universality.csv"),
        profiles=_table(run, "universality_profiles.csv"),
        verdict=_text(folder / "universality.txt").splitlines(),
        interventions=_table(run, "interventions.csv"),
        nulls=_table(run, "nulls.csv"),
    )


def _table(run: store.Run, name: str) -> pd.DataFrame | None:
    """Return a table of the run; None where it has none, or one without a column."""
    path = run.path / name
    if not store.is_there(path):
        return None
    with store.readable(path):
        if not path.read_bytes().strip():
            return None
    frame = run.table(name)
    if "group" in frame:
        frame["group"] = frame["group"].fillna("")  # as a comparison without groups has it
    return frame


def _text(path: Path) -> str:
    """Return a text of the run, "" where it has none."""
    if not store.is_there(path):
        return ""
    with store.readable(path):
        return path.read_text(encoding="utf-8")


def _figures(folder: Path, coefficients: pd.DataFrame) -> dict[str, Any]:
    """Return norms and betas of every hook: norms as they were drawn, betas from the table."""
    figures: dict[str, Any] = {}
    hooks = list(coefficients["hook"].unique())
    for hook in hooks:
        drawn = folder / "figures" / ("norms.json" if len(hooks) == 1 else f"norms-{hook}.json")
        if store.is_there(drawn):
            figures[f"Norms of {hook}"] = store.read_json(drawn)
        try:
            figures[f"Betas of {hook}"] = charts.plot_betas(coefficients, hook=hook)
        except MechregError:  # a panel per head, or more models than a figure holds: the tables have them
            continue
    return figures


def _linked(
    run: store.Run, spec: dict[str, Any], facts: dict[str, Any], coefficients: pd.DataFrame
) -> Iterator[Any]:
    """Yield a linked view of every model, at the first hook that can have one."""
    terms = [term for term in coefficients["term"].unique() if term in {f"lag{n}" for n in spec["lags"]}]
    for model in facts["models"]:
        for hook in model["hooks"] if terms else []:
            rows = coefficients[(coefficients["model"] == model["name"]) & (coefficients["hook"] == hook)]
            norms = _norms(run, model["name"], hook)
            if norms is None or rows.empty:
                continue
            norms = norms[norms["layer"].isin(rows["layer"].unique())]
            shown = len(norms) // norms["layer"].nunique()
            try:
                lagged = add_lags(norms, lags=spec["lags"], skip=spec["skip"])
                chart = charts.plot_layer_explorer(lagged, rows, term=terms[0])
                if shown < model["tokens"]:
                    said = (
                        f"Of the first {shown:,} of {model['tokens']:,} tokens; the coefficients are of all."
                    )
                    chart.title = figure_title(chart.title.text, [*chart.title.subtitle, said])
                yield chart
            except MechregError:  # heads, or a formula whose terms stand for something else
                continue
            break


def _norms(run: store.Run, model: str, hook: str) -> pd.DataFrame | None:
    """Return the norm frame of one model and hook with token strings; None where the folder holds none."""
    parts: list[pd.DataFrame] = []
    tokens: list[pd.DataFrame] = []
    rows = 0
    strings_of = {_number(path): path for path in run.shards("tokens", model)}
    for shard in run.shards("norms", model, hook):
        part = _first_documents(store.read_norm_shard(shard), VIEW_ROWS - rows)
        rows += len(part)
        parts.append(part)
        if _number(shard) in strings_of:
            tokens.append(store.read_token_shard(strings_of[_number(shard)]))
        if rows >= VIEW_ROWS:
            break
    if not parts:
        return None
    norms = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    if not tokens:
        return norms
    # Strings are needed of one document alone: the view shows one.
    first = str(norms["doc"].iloc[0])
    strings = pd.concat(tokens, ignore_index=True)
    strings = strings[strings["doc"] == first]
    own = (norms["doc"].astype("str") == first).to_numpy()
    keys = pd.MultiIndex.from_frame(norms.loc[own, ["window", "position"]])
    found = strings.set_index(["window", "position"])["token"].reindex(keys).to_numpy()
    column = pd.Series(None, index=norms.index, dtype="object")
    column[own] = found
    return norms.assign(token=column)


def _first_documents(norms: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Return the first whole documents of a shard that have so many rows together, or all of them."""
    sizes = norms["doc"].value_counts(sort=False)[norms["doc"].unique()]
    before = sizes.cumsum() - sizes
    return norms if sizes.sum() <= rows else norms[norms["doc"].isin(before.index[before < rows])]


def _number(shard: Path) -> str:
    """Return the running number of a shard, which its tokens and norms share."""
    return shard.stem.rsplit("-", 1)[1]
