"""A spec carried out: shards made, tables and figures written; what is there already is not made again."""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mechreg import charts, store
from mechreg.corpus import corpus_problems, read_corpus, tokenize
from mechreg.fits import LaggedFits, fit_lagged, formula_columns
from mechreg.lags import add_lags
from mechreg.models import (
    describe_model,
    load_model,
    record_of,
    require_loadable,
    tokenizer_hash,
    weight_hash,
)
from mechreg.norms import BATCH_TOKENS, extract_norms
from mechreg.pages import report_of_run
from mechreg.schema import NORM_COLUMNS, TOKEN_COLUMNS, InputError, did_you_mean
from mechreg.spec import Spec

SHARD_TOKENS = 100_000
FIGURE_FORMATS: tuple[Literal["html", "json", "svg", "png"], ...] = ("html", "json", "svg", "png")


def run_spec(
    spec: Spec,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> Path:
    """Return the run folder that a spec was carried out into.

    The folder holds spec.toml, provenance.json, problems.csv, tokens/, norms/, coefficients.parquet and
    .csv, statistics.csv, summaries.txt, figures/ and report.html. Norms are written shard by shard as they
    are made; the same call after an interruption takes up the shards that are there.

    Parameters
    ----------
    spec : Spec
        `read_spec` reads one from a file.
    out : str or Path, optional
        The run folder; by default ``runs/<name>``.
    device : str
    batch_tokens : int
    progress : bool

    Raises
    ------
    InputError, ModelError
        Whatever can be known before any work is done is refused before: files, models, hooks, formula.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "run"
    >>> folder = run_spec(Spec(models=("mini-s",), corpus="demo"), out=out, progress=False)
    >>> (folder / "report.html").exists()
    True
    """
    began = time.perf_counter()
    documents = read_corpus(spec.corpus)
    below = _check_formula(spec, documents)
    for name in spec.models:
        require_loadable(name)
    folder = store.open_run_folder(Path("runs") / spec.name if out is None else Path(out), spec)

    entries, fits, problems, per_model = [], [], [], []
    for name in spec.models:
        entry, tokens, norms = _norms_of_model(spec, name, documents, folder, device, batch_tokens, progress)
        lagged = add_lags(norms, lags=spec.lags, skip=spec.skip, below=below)
        if below:  # nothing is below the first layer: it is no group of this fit
            lagged = lagged[lagged["layer"] > 0]
        fits.append(
            fit_lagged(_annotated(lagged, tokens, documents, spec.formula), spec.formula, cov=spec.cov)
        )
        problems.append(corpus_problems(documents, tokens, prepend_bos=spec.prepend_bos))
        entries.append(entry)
        per_model.append(norms)
    coefficients = pd.concat([fit.coefficients for fit in fits], ignore_index=True)
    statistics = pd.concat([fit.statistics for fit in fits], ignore_index=True)
    trouble = pd.concat(problems, ignore_index=True).drop_duplicates()
    summaries = "\n\n".join(_summaries(fit) for fit in fits)
    facts = store.provenance(
        spec,
        entries,
        corpus={
            "corpus": spec.corpus,
            "sha256": _corpus_hash(documents),
            "documents": len(documents),
            "left_out": int((documents["problem"] != "").sum()),
        },
        seconds=round(time.perf_counter() - began, 1),
    )
    store.write_table(coefficients, folder / "coefficients.parquet")
    store.write_table(coefficients, folder / "coefficients.csv")
    store.write_table(statistics, folder / "statistics.csv")
    store.write_table(trouble, folder / "problems.csv")
    store.write_text(summaries + "\n", folder / "summaries.txt")
    store.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", folder / "provenance.json")
    _figures(spec, per_model, coefficients, folder / "figures")
    store.write_text(report_of_run(folder), folder / "report.html")
    return folder


def _norms_of_model(
    spec: Spec,
    name: str,
    documents: pd.DataFrame,
    folder: Path,
    device: str,
    batch_tokens: int,
    progress: bool,
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Return a model's provenance, token frame and norm frame, from shards made now or earlier."""
    began = time.perf_counter()
    model = load_model(
        name, backend=spec.backend, processing=spec.processing, dtype=spec.dtype, device=device
    )
    record = record_of(model)
    tokens = tokenize(model, documents, prepend_bos=spec.prepend_bos)
    entry: dict[str, Any] = {
        key: getattr(record, key)
        for key in ("name", "source", "revision", "commit", "backend", "processing", "dtype", "device")
    }
    entry |= {"weights_sha256": weight_hash(model), "tokenizer_sha256": tokenizer_hash(model)}
    config = {
        **entry,
        "hooks": spec.hooks,
        "corpus": _corpus_hash(documents),
        "prepend_bos": spec.prepend_bos,
        "batch_tokens": batch_tokens,
        "shard_tokens": SHARD_TOKENS,
        "schema_version": store.SCHEMA_VERSION,
    }
    config_hash = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    parts = []
    for index, shard in enumerate(_shards(tokens)):
        store_at = {
            h: store.shard_path(folder, "norms", record.name, h, config_hash, index) for h in spec.hooks
        }
        tokens_at = store.shard_path(folder, "tokens", record.name, None, config_hash, index)
        if not all(path.exists() for path in (*store_at.values(), tokens_at)):
            norms = extract_norms(
                model, shard, hooks=spec.hooks, batch_tokens=batch_tokens, progress=progress
            )
            store.write_token_shard(shard, tokens_at)
            for hook, path in store_at.items():
                here = norms[norms["hook"] == hook]
                # The heads of one hook are no column of another's.
                store.write_norm_shard(here.drop(columns="head") if _headless(here) else here, path)
        parts += [store.read_norm_shard(path) for path in store_at.values()]
    description = describe_model(model)
    entry |= {
        "hooks": list(spec.hooks),
        "blocks": int(model.cfg.n_layers),
        "d_model": int(model.cfg.d_model),
        "parameters": int(description.parameters["parameters"].iloc[-1]),
        "prepend_bos": spec.prepend_bos,
        "tokens": len(tokens),
        "windows": int((tokens["position"] == 0).sum()),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return entry, tokens, _stacked(parts)


def _shards(tokens: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the tokens of whole documents, at least SHARD_TOKENS at a time but for the last."""
    counts = tokens.groupby("doc", observed=True, sort=False).size().to_numpy()
    begins = np.cumsum(counts) - counts
    shard_of = np.zeros(len(counts), np.int64)
    for document in range(1, len(counts)):
        first = np.searchsorted(shard_of[:document], shard_of[document - 1])
        full = begins[document] - begins[first] >= SHARD_TOKENS
        shard_of[document] = shard_of[document - 1] + full
    for _, shard in tokens.groupby(np.repeat(shard_of, counts), sort=True):
        yield shard.reset_index(drop=True)


def _stacked(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return norm frames on top of each other, their categories united."""
    whole = pd.concat([part.astype({"hook": "object", "doc": "object", "model": "object"}) for part in parts])
    if "head" in whole.columns:
        whole = whole.assign(head=whole["head"].fillna(-1).astype(np.int16))
    return whole.reset_index(drop=True).astype({key: NORM_COLUMNS[key] for key in ("model", "hook", "doc")})


def _headless(norms: pd.DataFrame) -> bool:
    return "head" in norms.columns and bool((norms["head"] == -1).all())


def _check_formula(spec: Spec, documents: pd.DataFrame) -> tuple[int, ...]:
    """Return the lags in the layer below that the formula asks for; refuse a column that no step makes."""
    asked = formula_columns(spec.formula)
    below = tuple(sorted({int(m[1] or 0) for c in asked if (m := re.fullmatch(r"below(?:_lag(\d+))?", c))}))
    have = {
        *NORM_COLUMNS, *TOKEN_COLUMNS, "log_norm", *(f"lag{lag}" for lag in spec.lags), *documents.columns,
        *("below" if lag == 0 else f"below_lag{lag}" for lag in below),
    } - {"text", "problem"}  # fmt: skip
    for column in sorted(asked):
        if column not in have:
            raise InputError(
                f"The formula {spec.formula!r} needs the column {column!r}; this run has {sorted(have)} "
                f"(lags = {list(spec.lags)}).{did_you_mean(column, have)}"
            )
    return below


def _annotated(
    lagged: pd.DataFrame, tokens: pd.DataFrame, documents: pd.DataFrame, formula: str
) -> pd.DataFrame:
    """Return the lagged frame with the token's and the document's columns that the formula asks for."""
    wanted = [column for column in formula_columns(formula) if column not in lagged.columns]
    of_tokens = [column for column in wanted if column in tokens.columns]
    of_documents = [column for column in wanted if column not in of_tokens]
    for columns, frame, keys in (
        (of_tokens, tokens, ["doc", "window", "position"]),
        (of_documents, documents, ["doc"]),
    ):
        if columns:
            right = frame[[*keys, *columns]].astype({"doc": "str"})
            lagged = lagged.astype({"doc": "str"}).merge(right, on=keys, how="left", validate="many_to_one")
    return lagged


def _summaries(fits: LaggedFits) -> str:
    """Return statsmodels' text of every fit, each under a line that says which it is."""
    keys = [key for key in ("model", "hook", "layer", "head") if key in fits.coefficients.columns]
    return "\n\n".join(
        "  ".join(f"{key} {value}" for key, value in place.items()) + "\n" + str(fits.summary(**place))
        for place in _records(fits.coefficients[keys].drop_duplicates())
    )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _figures(
    spec: Spec, per_model: list[pd.DataFrame], coefficients: pd.DataFrame, folder: Path
) -> dict[str, Path]:
    """Draw norms and betas of every hook; return the svg of each by its title."""
    drawn = {}
    norms = _stacked(per_model)
    for hook in spec.hooks:
        if (
            (coefficients["hook"] == hook).any()
            and "head" in coefficients
            and not _headless(coefficients[coefficients["hook"] == hook])
        ):
            continue  # a panel per head is no figure: the tables have them
        suffix = "" if len(spec.hooks) == 1 else f"-{hook}"
        figures = {
            f"Norms of {hook}": (f"norms{suffix}", charts.plot_norms(norms, hook=hook)),
            f"Betas of {hook}": (
                f"betas{suffix}",
                charts.plot_betas(coefficients[coefficients["hook"] == hook]),
            ),
        }
        for title, (name, chart) in figures.items():
            paths = charts.save_chart(chart, folder / name, formats=FIGURE_FORMATS)
            drawn[title] = next(path for path in paths if path.suffix == ".svg")
    return drawn


def _corpus_hash(documents: pd.DataFrame) -> str:
    digest = hashlib.sha256()
    for doc, text in documents[["doc", "text"]].itertuples(index=False):
        digest.update(json.dumps([doc, text]).encode())
    return digest.hexdigest()
