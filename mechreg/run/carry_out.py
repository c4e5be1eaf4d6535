"""From a spec to a run folder: shards, then tables, figures, report and manifest."""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mechreg import store
from mechreg.models import DeviceMap, require_loadable
from mechreg.norms import BATCH_TOKENS, known_measures
from mechreg.outside import for_terminal
from mechreg.report import run_report, same_weights
from mechreg.run.figures import begin_drawing, draw_figures
from mechreg.run.null_tables import nulls_of
from mechreg.run.preflight import (
    Survey,
    check_distinct,
    check_formula,
    check_levels,
    require_fittable,
    require_nulls,
    survey_corpus,
)
from mechreg.run.records import record_of_spec
from mechreg.run.shards import SHARD_TOKENS, ShardMaker, missing_shards
from mechreg.run.tables import tables_of
from mechreg.run.top_tokens import top_of_run
from mechreg.schema import InputError, require_path, require_shared, require_whole_number
from mechreg.spec import Spec

log = logging.getLogger("mechreg")
MakeShards = Callable[[Path, Survey], dict[str, float]]


def run_spec(
    spec: Spec,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    device_map: DeviceMap | None = None,
    batch_tokens: int = BATCH_TOKENS,
    shard_tokens: int = SHARD_TOKENS,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Return the run folder that a spec was carried out into.

    The folder holds spec.toml, provenance.json, problems.csv, models/, tokens/, norms/, coefficients.parquet and
    .csv, statistics.csv, persistence.csv (the lags and their sum, as they are and within documents and positions, and
    the half-life), nulls.csv (where the spec has nulls), summaries.txt, figures/, report.html and, written last,
    _manifest.json. After an interruption the same call makes what is missing or damaged, and ends with the same
    numbers. Where a model has more than a million rows its tables come from sums over shards (`LagSums`), and its
    figure and nulls are of a sample of documents.

    Parameters
    ----------
    spec : Spec
        `read_spec` reads one from a file.
    out : str or Path, optional
        The run folder; by default ``runs/<name>``.
    device : str
    device_map : str or dict, optional
        As for `load_model`: splits a model over several GPUs.
    batch_tokens : int
    shard_tokens : int
        A shard holds whole documents of at least so many tokens.
    resume : bool
        The run must have been begun already.
    progress : bool

    Raises
    ------
    InputError, ModelError
        Before any work: files, models, hooks, formula, a folder of another run or in use. Later: a full disk.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "run"
    >>> folder = run_spec(Spec(models=("mini-s",), corpus="demo"), out=out, progress=False)
    >>> (folder / "report.html").exists()
    True
    """
    require_shared(batch_tokens=batch_tokens)
    require_whole_number(shard_tokens, name="shard_tokens")

    def make(run: Path, survey: Survey) -> dict[str, float]:
        maker = ShardMaker(run, device=device, device_map=device_map, progress=progress)
        seconds = {}
        for name in spec.models:
            began = time.perf_counter()
            shards = maker.prepare(name, survey, batch_tokens=batch_tokens, shard_tokens=shard_tokens)
            for shard in shards:
                maker.make(shard)
            seconds[shards[0].model] = round(time.perf_counter() - began, 1)
        return seconds

    options: dict[str, Any] = {"device": device, "device_map": device_map, "progress": progress}
    return carry_out(spec, make, out=out, resume=resume, **options)


def carry_out(
    spec: Spec,
    make_shards: MakeShards,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    device_map: DeviceMap | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Path:
    """Return the run folder of a spec whose shards something else makes, here or on other machines.

    ``make_shards``, given the folder and the survey of the corpus, returns when no shard is missing: the seconds that
    each model took, where they are known. The other options are `run_spec`'s.
    """
    began = time.perf_counter()
    if not isinstance(spec, Spec):
        raise InputError(f"A run needs a Spec, which read_spec(path) makes of a file; got {spec!r}.")
    folder = Path("runs") / spec.name if out is None else require_path(out, name="out")
    survey = survey_corpus(spec)
    known_measures(spec.measures, spec.hooks, None)
    check_formula(spec, survey.columns)
    require_fittable(spec, survey.usable)
    require_nulls(spec, survey.usable, is_split=device_map is not None)
    check_levels(spec.formula, survey.kinds)
    check_distinct(spec.formula, survey.rows)
    require_loadable(
        *spec.models,
        backend=spec.backend,
        processing=spec.processing,
        device=device,
        device_map=device_map,
        allow_pickle=spec.allow_pickle,
    )
    # Not Path.exists, which raises if the name is too long.
    if resume and not os.path.exists(folder / "spec.toml"):
        raise InputError(f"{str(folder)!r} holds no run to resume; leave out --resume to begin one.")
    with store.open_run_folder(folder, spec):
        begin_drawing()
        store.set_aside_damaged(folder)
        seconds = make_shards(folder, survey)
        missing = missing_shards(folder)
        if missing:
            raise InputError(
                f"{len(missing)} shards of {str(folder)!r} are missing, the first is {tuple(missing[0])}."
            )
        maker = ShardMaker(folder, device=device, device_map=device_map, progress=progress)
        _write_results(folder, spec, survey, seconds, began, maker)
        return folder


def _write_results(
    folder: Path, spec: Spec, survey: Survey, seconds: dict[str, float], began: float, maker: ShardMaker
) -> None:
    records = [record for name in spec.models if (record := record_of_spec(folder, name)) is not None]
    results = [tables_of(folder, spec, record) for record in records]
    both = list(zip(records, results, strict=True))
    nulls = [
        nulls_of(folder, spec, record, tables, partial(maker.same_model, record), progress=maker.progress)
        for record, tables in both
    ]
    coefficients, statistics, persistence = (
        pd.concat([getattr(tables, name) for tables in results], ignore_index=True)
        for name in ("coefficients", "statistics", "persistence")
    )
    problems = [pd.DataFrame(r["plan"]["problems"], columns=["doc", "problem"]) for r in records]
    entries = [
        record["facts"]
        | {key: record["plan"][key] for key in ("tokens", "windows")}
        | {"seconds": seconds.get(record["name"])}
        for record in records
    ]
    for sentence in same_weights(entries):
        log.warning("%s", sentence)
    corpus = {"corpus": spec.corpus, "sha256": survey.sha256, "documents": survey.documents}
    corpus |= {"left_out": survey.left_out, **survey.tags}
    facts = store.provenance(spec, entries, corpus=corpus, seconds=round(time.perf_counter() - began, 1))
    store.remove(folder / "_manifest.json")  # of an earlier completion: its checksums would be out of date
    written = {
        "coefficients.parquet": coefficients,
        "coefficients.csv": coefficients,
        "statistics.csv": statistics,
        "persistence.csv": persistence,
        "problems.csv": pd.concat(problems, ignore_index=True).drop_duplicates(),
    }
    if spec.top_tokens:
        written["top_tokens.parquet"] = top_of_run(store.open_run(folder), spec.top_tokens)
    if any(map(len, nulls)):
        written["nulls.csv"] = pd.concat(nulls, ignore_index=True)
    for name, table in written.items():
        store.write_table(table, folder / name)
    summaries = "\n\n".join(tables.summaries for tables in results)
    store.write_text(for_terminal(summaries) + "\n", folder / "summaries.txt")
    store.write_json(facts, folder / "provenance.json")
    notes = [
        f"{record['name']}: A{tables.sample[1:]}; the tables are of all."
        for record, tables in both
        if tables.sample
    ]
    norms = [tables.norms for tables in results]
    draw_figures(spec, norms, coefficients, folder / "figures", notes=notes)
    store.write_text(run_report(folder), folder / "report.html")
    store.write_manifest(folder, spec, list(written))
