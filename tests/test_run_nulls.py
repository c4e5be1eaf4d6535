"""Nulls in a run: the numbers of `compare_to_nulls`, made once, kept by the same rules as all of a run.

Compared exactly: the same frames are fitted by the same code.
"""

import functools
import importlib
import json
import logging

import numpy as np
import pandas as pd
import pytest
from run_files import contents, write_corpus

import mechreg as mr
from mechreg.cli import main
from mechreg.cluster import _Worker
from mechreg.nulls import NULLS
from mechreg.report import run_report
from mechreg.run import BATCH_TOKENS, missing_shards, null_tables, sample
from mechreg.schema import InputError
from mechreg.spec import Spec

carry_out = importlib.import_module("mechreg.run.carry_out")
pytestmark = pytest.mark.usefixtures("without_pictures")

SMALL = {"shard_tokens": 40, "progress": False}
KEYS = ["model", "hook", "layer", "term", "null"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts.jsonl", 10)


@pytest.fixture(scope="module")
def whole(tiny, corpus, tmp_path_factory):
    spec = Spec(models=(str(tiny),), corpus=corpus, nulls=NULLS)
    return mr.run_spec(spec, out=tmp_path_factory.mktemp("out") / "whole", **SMALL)


def test_a_run_has_what_compare_to_nulls_gives(tiny, whole):
    table = mr.open_run(whole).table("nulls.csv")
    assert table["note"].isna().all()
    norms = mr.open_run(whole).norms()
    nulls = mr.nulls.null_norms(norms, mr.load_model(tiny, name=norms["model"].iloc[0]))
    expected = mr.compare_to_nulls(mr.fit_lagged(mr.add_lags(norms)), nulls)
    both = [frame.sort_values(KEYS, ignore_index=True) for frame in (table[expected.columns], expected)]
    pd.testing.assert_frame_equal(*both, check_dtype=False, check_categorical=False, rtol=1e-9, atol=1e-9)


def test_nulls_leave_the_sinks_of_the_run_in_their_places(tiny, corpus, tmp_path):
    rules = ("position=2",)
    spec = Spec(models=(str(tiny),), corpus=corpus, nulls=("norm_order",), drop_sinks=rules)
    run = mr.open_run(mr.run_spec(spec, out=tmp_path / "run", **SMALL))
    norms = run.norms()
    nulls = mr.nulls.null_norms(norms, nulls="norm_order", drop_sinks=rules)
    fits = mr.fit_lagged(mr.add_lags(norms, drop_sinks=rules))
    expected = mr.compare_to_nulls(fits, nulls, drop_sinks=rules)["null_estimate"]
    np.testing.assert_allclose(run.table("nulls.csv")["null_estimate"], expected, rtol=1e-9)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "changes",
    [
        {"drop_sinks": ("special", "token_id=3", "position=2")},
        slow({"prepend_bos": True, "skip": 0, "drop_sinks": ("special",)}),
        {"nulls": ("norm_order",), "drop_sinks": ("size>3",)},
        {"effects": ("doc", "position"), "formula": "log_norm ~ lag1 + lag1:C(source)"},
        slow({"keep": "moments", "formula": "log_norm ~ lag1 + layer_below"}),
        {
            "hooks": ("attn_out", "z"),
            "nulls": ("token_order", "token_identity"),
            "formula": "log_norm ~ lag1",
        },
        slow({"cov": "hc3", "nulls": ("norm_order",), "formula": "log_norm ~ lag1 + surprisal"}),
    ],
)
def test_nulls_are_of_the_rows_and_terms_of_the_run(tiny, corpus, tmp_path, caplog, changes):
    spec = Spec(**({"models": (str(tiny),), "corpus": corpus, "nulls": NULLS} | changes))
    run = mr.open_run(mr.run_spec(spec, out=tmp_path / "run", **SMALL))
    assert "missing" not in caplog.text
    keys = [key for key in (*KEYS[:-1], "head") if key in run.coefficients]
    own = run.coefficients.query("term != 'Intercept'").set_index(keys)
    for null in spec.nulls:
        table = run.table("nulls.csv")
        rows = table[table["null"] == null].set_index(keys)
        pd.testing.assert_series_equal(rows["estimate"].sort_index(), own["estimate"].sort_index(), rtol=1e-7)
        assert (rows["n"].sort_index() == own["n"].sort_index()).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": 1}, "two documents or more, since documents are drawn; the corpus has 1"),
        ({"formula": "cos_resid ~ lag1", "measures": ("norm", "cos_resid")}, "outcome of .* is 'cos_resid'"),
        (
            {"formula": "log_norm ~ lag1 + cos_resid", "measures": ("cos_resid",)},
            "no 'cos_resid'; leave that",
        ),
        ({"nulls": "random_weights", "formula": "log_norm ~ lag1 + surprisal"}, "has no 'surprisal'"),
        ({"formula": "log_norm ~ lag1 + is_repeat"}, "'token_order' reads .* no 'is_repeat'"),
        ({"effects": "token_id"}, "'token_order' reads .* no 'token_id'"),
        ({"drop_sinks": "size"}, "drop_sinks = 'size' would leave out other tokens"),
        ({"nulls": "token_orders"}, "must be one of .* Did you mean 'token_order'"),
        ({"nulls": ["norm_order", "norm_order"]}, "nulls must be distinct"),
    ],
)
def test_nulls_that_cannot_be_made_are_refused_before_any_work(tiny, corpus, tmp_path, changes, said):
    asked = {"models": (str(tiny),), "corpus": corpus, "nulls": ("token_order",)} | changes
    if asked["corpus"] == 1:
        asked["corpus"] = write_corpus(tmp_path / "one.jsonl", 1)
    with pytest.raises(InputError, match=said):
        mr.run_spec(Spec(**asked), out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_random_weights_of_a_model_on_several_devices_are_refused(tiny, corpus, tmp_path):
    spec = Spec(models=(str(tiny),), corpus=corpus, nulls="random_weights")
    with pytest.raises(InputError, match="made on one device; leave it, or --device-map, out"):
        mr.run_spec(spec, out=tmp_path / "run", device_map="auto", **SMALL)


def test_finished_nulls_are_kept_and_lost_or_damaged_ones_are_made_again(
    tiny, corpus, whole, tmp_path, caplog, monkeypatch
):
    spec = Spec(models=(str(tiny),), corpus=corpus, nulls=NULLS)
    made = []

    def dies(norms, *args, nulls, **options):
        made.append(nulls)
        if len(made) == 3:
            raise KeyboardInterrupt
        return mr.nulls.null_norms(norms, *args, nulls=nulls, **options)

    monkeypatch.setattr(null_tables, "null_norms", dies)
    with pytest.raises(KeyboardInterrupt):
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    folder = mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    assert made == [*NULLS[:3], *NULLS[2:]]
    files = [path.relative_to(whole) for path in sorted((whole / "nulls").rglob("*.parquet"))]
    assert [path.parts[-2] for path in files] == sorted(NULLS)
    assert {path.as_posix() for path in files} | {"nulls.csv"} <= set(
        json.loads((folder / "_manifest.json").read_text())["files"]
    )
    same = [*files, "nulls.csv"]
    assert [(folder / path).read_bytes() for path in same] == [(whole / path).read_bytes() for path in same]
    assert contents(folder) == contents(whole)

    (folder / files[0]).unlink()
    (folder / files[1]).write_bytes((whole / files[1]).read_bytes()[:-9])
    with caplog.at_level(logging.WARNING, logger="mechreg"):
        mr.run_spec(spec, out=folder, **SMALL)
    assert files[1].name in caplog.text
    assert contents(folder) == contents(whole)
    assert [(folder / path).read_bytes() for path in same] == [(whole / path).read_bytes() for path in same]


@pytest.mark.slow
def test_nulls_of_a_large_run_are_of_the_sample_and_the_page_says_so(tiny, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(carry_out, "run_report", run_report)
    monkeypatch.setattr(sample, "SAMPLE_TOKENS", 100)
    monkeypatch.setattr(sample, "SAMPLE_SHARDS", 3)
    monkeypatch.setattr(sample, "STATSMODELS_ROWS", 10)
    tables = {}
    for keep in ("norms", "moments"):
        spec = Spec(models=(str(tiny),), corpus=corpus, keep=keep, nulls=("norm_order", "token_order"))
        folder = mr.run_spec(spec, out=tmp_path / keep, **SMALL)
        tables[keep] = mr.open_run(folder).table("nulls.csv")
        page = (folder / "report.html").read_text()
        (note,) = tables[keep]["note"].unique()
        assert note.startswith("The numbers of tiny come from a sample of ")
        assert f"<p>{note}</p>" in page
        assert "Beside the nulls: lag1 is above norm order in" in page
        assert tables[keep]["n_docs"].max() < 10
    pd.testing.assert_frame_equal(tables["norms"], tables["moments"])


def test_a_null_that_cannot_be_made_is_named_and_the_run_completes(
    tiny, corpus, tmp_path, monkeypatch, caplog
):
    def compare(fits, nulls, **options):
        if "norm_order" in nulls:
            raise InputError("no such thing")
        return mr.compare_to_nulls(fits, nulls, **options)

    monkeypatch.setattr(null_tables, "compare_to_nulls", compare)
    spec = Spec(models=(str(tiny),), corpus=corpus, nulls=("norm_order", "token_identity"))
    folder = mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    assert "The null norm_order of tiny is missing: no such thing" in caplog.text
    assert mr.open_run(folder).table("nulls.csv")["null"].unique().tolist() == ["token_identity"]


def test_nulls_of_shards_that_workers_made_are_those_of_a_run(tiny, corpus, whole, tmp_path):
    def make(run, survey):
        for worker in [_Worker(str(run), "auto", None) for _ in range(2)]:
            worker.prepare(str(tiny), survey, BATCH_TOKENS, SMALL["shard_tokens"])
        for shard in missing_shards(run):
            worker.make(shard)
        return {}

    spec = Spec(models=(str(tiny),), corpus=corpus, nulls=NULLS)
    folder = carry_out.carry_out(spec, make, out=tmp_path / "run")
    assert contents(folder) == contents(whole)
    assert (folder / "nulls.csv").read_bytes() == (whole / "nulls.csv").read_bytes()


def test_the_command_line_takes_nulls_and_says_what_exceeds_them(tiny, corpus, tmp_path, capsys):
    options = ["--models", str(tiny), "--corpus", corpus, "--out", str(tmp_path / "run")]
    assert main(["run", *options, "--nulls", "norm_order,token_identity"]) == 0
    said = capsys.readouterr().out
    assert "Beside the nulls: lag1 is above norm order in" in said
    assert "says that neighbours are alike, not why" in said
    assert "above token identity in" in said
    assert mr.open_run(tmp_path / "run").spec["nulls"] == ["norm_order", "token_identity"]
    assert main(["run", *options, "--nulls", "norm_order,token_identity"]) == 0
    assert "already complete" in capsys.readouterr().out
