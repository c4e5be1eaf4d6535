"""A run folder to its page: its tables and shards are read, its layer explorers drawn."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from mechreg import charts, store
from mechreg.charts.theme import figure_title
from mechreg.lags import add_lags
from mechreg.report.page import report_html
from mechreg.report.sentences import in_words, result_table
from mechreg.schema import MechregError, require_path

# Rows (tokens times layers) of one layer explorer; beyond them it shows the first documents, and says so.
VIEW_ROWS = 1_000_000


def run_report(folder: str | Path) -> str:
    """Return the page of a run from what its folder holds; no model is loaded.

    Tables and provenance are required. Layer explorers need the run's norms; what ``mechreg compare`` leaves in the
    folder (``universality.csv``, ``universality_profiles.csv``, ``universality.txt``), ``interventions.csv`` and
    ``nulls.csv`` are shown if they exist.

    Parameters
    ----------
    folder : str or Path

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
    folder = require_path(folder, name="folder")
    facts = store.read_provenance(folder)
    run = store.open_run(folder)
    coefficients, problems = run.coefficients, _table(run, "problems.csv")
    persistence = _table(run, "persistence.csv")
    return report_html(
        title=str(run.spec.get("name", folder.name)),
        coefficients=coefficients,
        statistics=run.statistics,
        results=result_table(coefficients, persistence, effects=run.spec["effects"]),
        formula=run.spec["formula"],
        spec=_text(folder / "spec.toml"),
        persistence=persistence,
        figures=_figures(folder, coefficients, persistence, run.spec["formula"]),
        problems=pd.DataFrame() if problems is None else problems,
        provenance=facts,
        summaries=_text(folder / "summaries.txt"),
        linked=list(_explorers(run, facts, coefficients)),
        universality=_table(run, "universality.csv"),
        profiles=_table(run, "universality_profiles.csv"),
        verdict=_text(folder / "universality.txt").splitlines(),
        interventions=_table(run, "interventions.csv"),
        nulls=_table(run, "nulls.csv"),
        top_tokens=_table(run, "top_tokens.parquet"),
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
        frame["group"] = frame["group"].astype("object").fillna("")  # as a comparison without groups has it
    return frame


def _text(path: Path) -> str:
    """Return a text of the run, "" where it has none."""
    if not store.is_there(path):
        return ""
    with store.readable(path):
        return path.read_text(encoding="utf-8")


def _figures(
    folder: Path, coefficients: pd.DataFrame, persistence: pd.DataFrame | None, formula: str
) -> dict[str, list[Any]]:
    """Return betas and norms of every hook: norms as they were drawn, betas from the tables."""
    figures: dict[str, list[Any]] = {}
    hooks = list(coefficients["hook"].unique())
    for hook in hooks:
        drawn = folder / "figures" / ("norms.json" if len(hooks) == 1 else f"norms-{hook}.json")
        with contextlib.suppress(MechregError):  # a panel per head, or more models than a figure holds
            figures[f"Betas of {hook}"] = list(_betas(coefficients, persistence, formula, hook))
        if store.is_there(drawn):
            figures[f"Norms of {hook}"] = [store.read_json(drawn)]
    return figures


def _betas(
    coefficients: pd.DataFrame, persistence: pd.DataFrame | None, formula: str, hook: str
) -> Iterator[Any]:
    """Yield the chart of a hook's coefficients, of its lags with and without controls."""
    if persistence is None or persistence.empty:
        fits = SimpleNamespace(
            coefficients=coefficients, formula=formula, adjust="bh"
        )  # as all tables of runs
        yield charts.plot_betas(fits, hook=hook)
        return
    lags = persistence[persistence["term"].isin(coefficients["term"]) & persistence["estimate"].notna()]
    for controls, rows in lags[lags["hook"] == hook].groupby("controls", sort=False):
        title = f"{' and '.join(rows['term'].unique())} of {hook}, {in_words(str(controls))}"
        yield charts.plot_betas(SimpleNamespace(coefficients=rows, adjust="bh"), title=title)


def _explorers(run: store.Run, facts: dict[str, Any], coefficients: pd.DataFrame) -> Iterator[Any]:
    """Yield a layer explorer for every model, at the first hook that can have one."""
    lags, options = run.spec["lags"], {key: run.spec[key] for key in ("lags", "skip", "drop_sinks")}
    terms = [term for term in coefficients["term"].unique() if term in {f"lag{n}" for n in lags}]
    if not run.spec["formula"].replace(" ", "").startswith("log_norm~"):  # the explorer shows log norms
        return
    for model in facts["models"]:
        for hook in model["hooks"] if terms else []:
            rows = coefficients[(coefficients["model"] == model["name"]) & (coefficients["hook"] == hook)]
            norms = _norms(run, model["name"], hook)
            if norms is None or rows.empty:
                continue
            norms = norms[norms["layer"].isin(rows["layer"].unique())]
            norms = norms.assign(special=norms["token_id"].isin(model.get("special_ids", [])))
            try:
                chart = charts.plot_layer_explorer(add_lags(norms, **options), rows, term=terms[0])
            except MechregError:  # fits by head, or terms that the explorer cannot draw
                continue
            shown = len(norms) // norms["layer"].nunique()
            if shown < model["tokens"]:
                part = f"Of the first {shown:,} of {model['tokens']:,} tokens; the coefficients are of all."
                chart.title = figure_title(chart.title.text, [*chart.title.subtitle, part])
            yield chart
            break


def _norms(run: store.Run, model: str, hook: str) -> pd.DataFrame | None:
    """Return the norm frame of one model and hook, with the first document's token strings; None without norms."""
    shards, parts, rows = run.shards("norms", model, hook), [], 0
    for shard in shards:
        if rows < VIEW_ROWS:
            parts.append(_first_documents(store.read_norm_shard(shard), VIEW_ROWS - rows))
            rows += len(parts[-1])
    if not parts:
        return None
    norms = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    # Tokens and norms of a shard have one number; the explorer shows one document, which is in the first.
    numbers = {path.stem.rsplit("-", 1)[1]: path for path in run.shards("tokens", model)}
    path = numbers.get(shards[0].stem.rsplit("-", 1)[1])
    if path is None:
        return norms
    first = norms["doc"].iloc[0]
    own = (norms["doc"] == first).to_numpy()
    tokens = store.read_token_shard(path)
    strings = tokens[tokens["doc"].astype("str") == str(first)].set_index(["window", "position"])["token"]
    column = pd.Series(None, index=norms.index, dtype="object")
    column[own] = strings.reindex(pd.MultiIndex.from_frame(norms.loc[own, ["window", "position"]])).to_numpy()
    return norms.assign(token=column)


def _first_documents(norms: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Return the first whole documents of a shard that have so many rows together, or all of them."""
    sizes = norms["doc"].value_counts(sort=False)[norms["doc"].unique()]
    before = sizes.cumsum() - sizes
    return norms if sizes.sum() <= rows else norms[norms["doc"].isin(before.index[before < rows])]
