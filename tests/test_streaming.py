"""A corpus read as a stream, and tables from sums over shards, are those of all at once.

Streams are compared exactly. Sums over shards against `fit_lagged` on the whole frame: 1e-9 relative, which is what
`LagSums` promises.
"""

import dataclasses
import gzip
import importlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mechreg as mr
from mechreg.corpus import read_corpus, stream_corpus
from mechreg.regression import LagSums
from mechreg.report import run_report
from mechreg.run import refit_stored, sample
from mechreg.run.figures import draw_figures
from mechreg.run.preflight import is_summable
from mechreg.run.refit_stored import merged
from mechreg.schema import InputError
from mechreg.spec import Spec

carry_out = importlib.import_module("mechreg.run.carry_out")
pytestmark = pytest.mark.usefixtures("without_pictures")

SMALL = {"shard_tokens": 40, "progress": False}
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "moon", "old", "man"]


def lines_of(documents: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "doc": f"d{i}",
            "source": ["odd", "even", "third"][i % 3],
            "text": " ".join(rng.choice(WORDS, 5 + i % 30)),
            "year": 1900 + i % 7,
        }
        for i in range(documents)
    ]


def write_lines(path, lines) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


# ----------------------------------------------------------------------------------------------------- streams


def write_all_kinds(folder, lines) -> dict[str, str]:
    frame = pd.DataFrame(lines)
    write_lines(folder / "a.jsonl", lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
    frame.to_csv(folder / "a.csv", index=False)
    pq.write_table(pa.Table.from_pandas(frame), folder / "a.parquet")
    (folder / "txt").mkdir()
    for line in lines[:40]:
        (folder / "txt" / f"{line['doc']}.txt").write_text(line["text"])
    return {
        "jsonl": f"{folder}/a.jsonl", "gz": f"{folder}/a.jsonl.gz", "csv": f"{folder}/a.csv",
        "parquet": f"{folder}/a.parquet", "txt": f"{folder}/txt/*.txt", "demo": "demo",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "gz", "csv", "parquet", "txt", "demo"])
@pytest.mark.parametrize("characters", [1, 5_000, 10**9])
def test_the_parts_of_a_stream_are_the_corpus(kind, characters, tmp_path):
    corpus = write_all_kinds(tmp_path, lines_of(1_500))[kind]
    parts = list(stream_corpus(corpus, characters=characters))
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), read_corpus(corpus))
    assert all(part["text"].str.len().sum() >= characters for part in parts[:-1])
    if characters == 1 and kind not in ("demo",):
        assert len(parts) > 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.dictionaries(st.sampled_from(["doc", "text", "id", "x"]), st.text(max_size=9), max_size=3).map(
                lambda row: json.dumps(row).encode()
            ),
        ),
        max_size=6,
    )
)
def test_of_any_json_lines_a_stream_says_what_reading_says(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"\n".join(lines))

    def outcome(read):
        try:
            return read()
        except InputError as error:
            return str(error)

    whole = outcome(lambda: read_corpus(str(path)))
    parts = outcome(lambda: pd.concat(list(stream_corpus(str(path))), ignore_index=True))
    if isinstance(whole, str):
        assert parts == whole
    else:
        pd.testing.assert_frame_equal(parts, whole)


def test_lines_that_lack_a_column_do_not_lose_it(tmp_path):
    long = "word " * 20_000
    lines = [{"id": "a", "text": long, "year": 1}, {"text": long}, {"id": "c", "text": "x"}]
    corpus = write_lines(tmp_path / "a.jsonl", lines)
    parts = list(stream_corpus(corpus, characters=10))
    assert len(parts) == 3
    assert pd.concat(parts)["doc"].tolist() == read_corpus(corpus)["doc"].tolist() == ["a", "a-1", "c"]


def test_an_id_that_comes_twice_is_named_wherever_it_is(tmp_path):
    lines = lines_of(600)
    lines[599]["doc"] = "d3"
    with pytest.raises(InputError, match="the first is 'd3'"):
        list(stream_corpus(write_lines(tmp_path / "a.jsonl", lines), characters=100))


def test_a_corpus_without_text_is_refused_as_when_it_is_read(tmp_path):
    corpus = write_lines(tmp_path / "a.jsonl", [{"text": ""}, {"text": " "}])
    for read in (read_corpus, lambda corpus: list(stream_corpus(corpus))):
        with pytest.raises(InputError, match=r"no usable text .documents read: 1 empty, 1 whitespace"):
            read(corpus)


# ------------------------------------------------------------------------------------------- sums over shards


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("corpus") / "texts.jsonl", lines_of(30))


@pytest.fixture(scope="module")
def norms(tiny, corpus, tmp_path_factory):
    """The run that keeps all norms and is fitted by statsmodels."""
    spec = Spec(models=(str(tiny),), corpus=corpus)
    return mr.run_spec(spec, out=tmp_path_factory.mktemp("norms") / "run", **SMALL)


def close(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("formula", "cov"),
    [
        pytest.param("log_norm ~ lag1 + lag2", "auto", marks=pytest.mark.slow),
        pytest.param("log_norm ~ lag1 + lag2", "hac", marks=pytest.mark.slow),
        ("log_norm ~ lag1 + layer_below_lag1 + C(source) + year", "crv1"),
    ],
)
def test_only_moments_kept_give_the_tables_of_all_norms(tiny, corpus, tmp_path, formula, cov):
    tables = {}
    for keep in ("norms", "moments"):
        spec = Spec(models=(str(tiny),), corpus=corpus, keep=keep, formula=formula, cov=cov)
        run = mr.run_spec(spec, out=tmp_path / keep, **SMALL)
        tables[keep] = mr.open_run(run)
    close(tables["moments"].coefficients, tables["norms"].coefficients)
    close(tables["moments"].statistics, tables["norms"].statistics)
    both = [
        tables[keep].table("persistence.csv").query("controls == 'none'") for keep in ("norms", "moments")
    ]
    close(*(rows[["layer", "estimate", "conf_low", "conf_high"]] for rows in both))


@pytest.mark.slow
def test_of_a_large_run_a_sample_is_drawn_and_the_caption_says_so(tiny, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(carry_out, "draw_figures", draw_figures)
    monkeypatch.setattr(carry_out, "run_report", run_report)
    monkeypatch.setattr(sample, "SAMPLE_TOKENS", 100)
    monkeypatch.setattr(sample, "SAMPLE_SHARDS", 3)
    runs = {}
    for keep in ("norms", "moments"):
        monkeypatch.setattr(sample, "STATSMODELS_ROWS", 10)
        spec = Spec(models=(str(tiny),), corpus=corpus, keep=keep)
        runs[keep] = mr.run_spec(spec, out=tmp_path / keep, **SMALL)
    drawn = {keep: json.loads((run / "figures" / "norms.json").read_text()) for keep, run in runs.items()}
    caption = " ".join(drawn["norms"]["title"]["subtitle"])
    assert "A sample of 6 of 30 documents" in caption
    assert "the tables are of all" in caption
    assert drawn["norms"] == drawn["moments"]  # the same documents, whatever was kept
    assert "Coefficients over the layers" in (runs["moments"] / "report.html").read_text()
    kept = mr.open_run(runs["moments"]).norms()
    assert kept["doc"].nunique() == 6
    assert len(list((runs["moments"] / "norms").rglob("*.parquet"))) == 3
    whole = mr.open_run(runs["norms"]).norms()
    assert whole["doc"].nunique() == 30
    sizes = whole.groupby("doc", observed=True).size()
    assert kept.astype({"doc": "str"}).groupby("doc").size().to_dict().items() <= sizes.to_dict().items()
    close(mr.open_run(runs["moments"]).coefficients, mr.open_run(runs["norms"]).coefficients)
    assert "sums of products" in (runs["norms"] / "summaries.txt").read_text()
    for keep, docs, note in (
        ("moments", 6, "These numbers come from a sample of 6 documents."),
        ("norms", 30, ""),
    ):
        lag1 = mr.open_run(runs[keep]).table("persistence.csv").query("term == 'lag1'").groupby("controls")
        assert lag1["n_docs"].max().to_dict() == {"none": 30, "doc": 30, "doc + position": docs}
        assert lag1["note"].last().fillna("")["doc + position"] == note


@pytest.mark.parametrize(
    "changes",
    [
        {"effects": ("doc", "position")},
        {"formula": "log_norm ~ lag1 + layer_below + position", "drop_sinks": ("size>3",)},
    ],
)
def test_a_large_run_is_fitted_some_layers_at_a_time_with_the_same_numbers(
    tiny, corpus, tmp_path, monkeypatch, changes
):
    spec = Spec(models=(str(tiny),), corpus=corpus, **changes)
    assert not is_summable(spec)
    whole = mr.open_run(mr.run_spec(spec, out=tmp_path / "whole", **SMALL))
    monkeypatch.setattr(sample, "STATSMODELS_ROWS", 10)
    monkeypatch.setattr(refit_stored, "MOST_ROWS", 10)
    layers_read = []

    def counted(norms, *args, make=refit_stored.lagged_norms, **options):
        layers_read.append(norms["layer"].nunique())
        return make(norms, *args, **options)

    monkeypatch.setattr(refit_stored, "lagged_norms", counted)
    large = mr.open_run(mr.run_spec(spec, out=tmp_path / "large", **SMALL))
    close(large.coefficients, whole.coefficients)
    close(large.statistics, whole.statistics)
    assert (large.path / "summaries.txt").read_text().count("OLS Regression Results") == len(whole.statistics)
    columns = ["term", "controls", "layer", "estimate", "df", "p_adjusted", "n"]
    both = (run.table("persistence.csv").query("term != 'half_life'")[columns] for run in (large, whole))
    close(*(table.sort_values(columns[:3], ignore_index=True) for table in both))
    assert max(layers_read[2:]) <= 2  # with the layer below; the first two are of the sample


def test_stored_norms_answer_another_question_without_the_model(norms):
    run = mr.open_run(norms)
    lagged = mr.add_lags(run.norms(), lags=(1, 3), skip=2)
    lagged = lagged.astype({"doc": "str"}).merge(
        run.tokens().astype({"doc": "str"})[["doc", "window", "position", "source"]],
        on=["doc", "window", "position"],
    )
    formula = "log_norm ~ lag1 + lag3 + C(source)"
    moments = mr.run.run_moments(norms, formula, skip=2)
    close(moments.coefficients(), mr.fit_lagged(lagged, formula).coefficients)
    within = mr.run.run_moments(norms, formula.removesuffix(" + C(source)"), skip=2, effects="doc")
    close(within.coefficients(), mr.fit_lagged(lagged, "log_norm ~ lag1 + lag3", effects="doc").coefficients)
    both = mr.run.run_moments(norms, "log_norm ~ lag1", skip=2, effects=("doc", "position"))
    fits = mr.fit_lagged(lagged, "log_norm ~ lag1", effects=("doc", "position"), cov="crv1")
    close(both.coefficients(cov="crv1"), fits.coefficients)
    with pytest.raises(InputError, match="needs the column 'surprisal'"):
        mr.run.run_moments(norms, "log_norm ~ lag1 + surprisal")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cov": "hc3"}, "needs all rows"),
        ({"formula": "log_norm ~ lag1 + bs(position, df=4)"}, "needs all rows"),
        ({"formula": "log_norm ~ center(lag1)"}, "needs all rows"),
        ({"effects": ("doc", "position")}, "effects beside 'doc'"),
    ],
)
def test_what_moments_alone_cannot_answer_is_refused_before_any_work(tiny, corpus, tmp_path, changes, said):
    spec = Spec(models=(str(tiny),), corpus=corpus, keep="moments", **changes)
    assert not is_summable(spec)
    with pytest.raises(InputError, match=said):
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_sums_that_were_kept_are_those_of_the_norms_and_of_no_other_regression(tiny, corpus, tmp_path):
    spec = Spec(models=(str(tiny),), corpus=corpus, keep="moments")
    run = mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    again = mr.run_spec(dataclasses.replace(spec, keep="norms"), out=tmp_path / "again", **SMALL)
    close(mr.run.run_moments(run).coefficients(), mr.run.run_moments(again).coefficients())
    for other in ({"formula": "log_norm ~ lag1"}, {"skip": 2}, {"hooks": "attn_out"}):
        with pytest.raises(InputError, match="keeps the sums of its own regression, and no norms but"):
            mr.run.run_moments(run, **other)


def test_functions_of_all_rows_are_answered_from_stored_norms(norms):
    formula = "log_norm ~ lag1 + center(position)"
    expected = mr.fit_lagged(mr.add_lags(mr.open_run(norms).norms()), formula).coefficients
    close(mr.run.run_moments(norms, formula).coefficients(), expected)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 8])
def test_sums_merged_in_pairs_are_the_sums(parts):
    rng = np.random.default_rng(0)
    place = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "window": 0}
    frames = [
        pd.DataFrame({"doc": f"d{i}", "position": range(30), "norm": rng.lognormal(size=30)}).assign(**place)
        for i in range(parts + 1)
    ]
    lagged = [mr.add_lags(frame) for frame in frames]

    def sums(frame):
        moments = LagSums()
        moments.update(frame)
        return moments

    whole = merged(map(sums, [pd.concat(lagged[:2]), *lagged[2:]]))
    close(whole.coefficients(), mr.fit_lagged(pd.concat(lagged)).coefficients)


@pytest.mark.parametrize("shards", [1, 2, 20, 21, 1000])
def test_the_sample_is_drawn_from_all_parts_of_the_corpus(shards):
    drawn = sample.shards_of_sample(shards)
    assert drawn[0] == 0
    assert drawn[-1] == shards - 1
    assert len(set(drawn)) == len(drawn) == min(shards, 20)


def lagged_of(docs) -> pd.DataFrame:
    place = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "window": 0, "source": "news"}
    rng = np.random.default_rng(0)
    frames = [
        pd.DataFrame({"doc": pd.Series([doc] * 20), "position": range(20), "norm": rng.lognormal(size=20)})
        for doc in docs
    ]
    return mr.add_lags(pd.concat(frames, ignore_index=True).assign(**place))


@pytest.mark.parametrize("again", [["1", "2", "3"], [1.0, 2.0, 3.0], np.array([1, 2, 3], np.int8)])
def test_documents_are_the_same_whatever_holds_their_ids(again):
    moments = LagSums()
    moments.update(lagged_of([1, 2, 3]))
    with pytest.raises(InputError, match="document 1 of model m, hook attn_out, layer 0 came before"):
        moments.update(lagged_of(again))


def test_ids_that_are_one_text_are_refused_by_sums():
    frame = lagged_of(["a", "b"])
    frame["doc"] = frame["doc"].astype(object).replace({"a": 1, "b": "1"})
    with pytest.raises(InputError, match="finds documents whose ids are the same as text, such as 1 and '1'"):
        LagSums().update(frame)


@pytest.mark.parametrize("formula", ["log_norm ~ lag1 + source", "log_norm ~ lag1 * C(source)"])
def test_a_category_of_one_level_does_not_vanish(formula):
    with pytest.raises(
        InputError, match=r"source.* has one level here, which explains nothing; leave it out"
    ):
        mr.fit_lagged(lagged_of(["a", "b", "c"]), formula)
