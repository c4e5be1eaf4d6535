"""A run folder is read by model, hook, layer and source, and nothing else is; and by readers that know no mechreg.

No tolerances: every norm comes back to the bit.
"""

import json
import re
import shutil

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow.dataset as ds
import pytest

import mechreg as mr
from mechreg import store
from mechreg.schema import InputError
from mechreg.spec import Spec

pytestmark = pytest.mark.usefixtures("without_pictures")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "moon"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = np.random.default_rng(0)
    lines = [
        {"doc": f"d{i}", "source": "odd" if i % 2 else "even", "text": " ".join(rng.choice(WORDS, 5 + i))}
        for i in range(12)
    ]
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def folder(save_gpt2, corpus, tmp_path_factory):
    names = (str(save_gpt2("one", seed=1)), str(save_gpt2("two", seed=2)))
    spec = Spec(models=names, corpus=corpus, hooks=("attn_out", "z"))
    return mr.run_spec(spec, out=tmp_path_factory.mktemp("out") / "run", shard_tokens=60, progress=False)


@pytest.fixture(scope="module")
def norms(folder, corpus):
    """The norms by hand, with sources."""
    spec = mr.open_run(folder).spec
    parts = [
        mr.extract_norms(name, mr.read_corpus(corpus), hooks=("attn_out", "z"), progress=False)
        for name in spec["models"]
    ]
    frame = pd.concat(part.astype({"model": "str", "hook": "str", "doc": "str"}) for part in parts)
    return frame.assign(source=["odd" if int(doc[1:]) % 2 else "even" for doc in frame["doc"]])


def by_place(frame: pd.DataFrame) -> pd.Series:
    keys = ["model", "hook", "layer", "head", "doc", "window", "position"]
    frame = frame if "head" in frame else frame.assign(head=-1)
    plain = frame.astype({"model": "str", "hook": "str", "doc": "str", "layer": "int64", "head": "int64"})
    return plain.set_index(keys)["norm"].sort_index()


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"models": ["two"]},
        {"hooks": ["attn_out"]},
        {"hooks": ["z"], "layers": [2]},
        {"layers": [0, 2], "sources": ["odd"]},
        {"models": ["one"], "hooks": ["attn_out"], "layers": [1], "sources": ["even", "odd"]},
    ],
)
def test_what_is_asked_for_comes_back_to_the_bit(folder, norms, asked):
    got = mr.open_run(folder).norms(**asked)
    for name, values in asked.items():
        norms = norms[norms[name.removesuffix("s")].isin(values)]
    pd.testing.assert_series_equal(by_place(got), by_place(norms), rtol=2e-6)  # batches of shards are others


def test_only_the_columns_asked_for_are_read(folder, monkeypatch):
    read = store.reading.read_norm_shard
    columns = []
    table = store.shards.pq.read_table
    monkeypatch.setattr(
        store.shards.pq, "read_table", lambda path, **o: columns.extend(o["columns"]) or table(path, **o)
    )
    mr.open_run(folder).norms(models=["one"], hooks=["attn_out"], layers=[1])
    assert set(columns) == {"doc", "window", "position", "token_id", "layer_1"}
    assert read is store.reading.read_norm_shard


def test_shards_come_one_at_a_time_and_are_whole_documents(folder):
    run = mr.open_run(folder)
    shards = list(run.norm_shards(models=["one"], hooks=["attn_out"]))
    assert len(shards) == run.records["one"]["plan"]["shards"] > 2
    docs = [set(shard["doc"]) for shard in shards]
    assert sum(map(len, docs)) == len(set.union(*docs)) == 12


def test_tokens_have_their_sources(folder):
    tokens = mr.open_run(folder).tokens(models=["one"])
    assert set(tokens["source"]) == {"odd", "even"}
    assert tokens["doc"].nunique() == 12
    with pytest.raises(InputError, match="its own tokens"):
        mr.open_run(folder).tokens()


def test_tables_and_names(folder):
    run = mr.open_run(folder)
    assert (run.models, run.hooks) == (["one", "two"], ["attn_out", "z"])
    pd.testing.assert_frame_equal(run.coefficients, pd.read_parquet(folder / "coefficients.parquet"))
    assert len(run.statistics) == 2 * (3 + 3 * 4)
    assert "one, two" in repr(run)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"models": ["ona"]}, "Did you mean 'one'"),
        ({"hooks": ["mlp_out"]}, "hooks must be one of"),
        ({"hooks": ["attn_out", "attn_out"]}, "each once"),
        ({"layers": [7]}, "must be one of 0, 1, 2; got 7"),
        ({"sources": ["nowhere"]}, "has no norms of"),
    ],
)
def test_what_is_not_there_is_refused(folder, asked, said):
    with pytest.raises(InputError, match=said):
        mr.open_run(folder).norms(**asked)


def test_a_run_shows_itself_in_a_notebook_and_says_when_it_has_not_ended(folder, tmp_path):
    run = mr.open_run(folder)
    cells = re.findall("<td>(.*?)</td>", run._repr_html_())
    made = len(run.shards("norms", "one", "attn_out"))
    tokens = [str(len(run.tokens(models=[name]))) for name in run.models]
    assert (cells[0], cells[7]) == ("one", "two")
    assert cells[4:7] == ["12", tokens[0], f"{made} of {made}"]
    assert cells[11:14] == ["12", tokens[1], f"{made} of {made}"]
    assert "not ended" not in run._repr_html_()
    begun = tmp_path / "<b>begun"
    shutil.copytree(folder, begun, ignore=shutil.ignore_patterns("coefficients*", "norms-*-00000*"))
    page = mr.open_run(begun)._repr_html_()
    assert f"{made - 1} of {made}" in page
    assert "The run has not ended" in page
    assert "<b>" not in page


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        mr.open_run(tmp_path)


def test_pandas_and_pyarrow_read_the_folder_without_mechreg(folder, norms):
    wide = pd.read_parquet(folder / "norms" / "one" / "attn_out")  # a folder, as it is
    here = norms[(norms["model"] == "one") & (norms["hook"] == "attn_out")]
    assert len(wide) == len(here) / 3
    layer = here[here["layer"] == 1].set_index(["doc", "window", "position"])["norm"]
    mine = wide.astype({"doc": "str"}).set_index(["doc", "window", "position"])["layer_1"]
    pd.testing.assert_series_equal(mine.sort_index(), layer.sort_index(), check_names=False, rtol=2e-6)
    dataset = ds.dataset(folder / "norms" / "two" / "attn_out")
    odd = dataset.to_table(columns=["layer_0"], filter=ds.field("source") == "odd")
    two = norms[(norms["model"] == "two") & (norms["hook"] == "attn_out") & (norms["layer"] == 0)]
    assert len(odd) == (two["source"] == "odd").sum()
    assert mr.open_run(folder).dataset("two", "attn_out").count_rows() == dataset.count_rows()


def test_polars_reads_the_folder(folder):
    place = folder / "norms" / "one" / "attn_out"
    wide, same = polars.read_parquet(place), pd.read_parquet(place)  # the folder, as it is
    assert wide["doc"].cast(str).to_list() == list(same["doc"])
    np.testing.assert_array_equal(wide["layer_1"].to_numpy(), same["layer_1"])


def test_duckdb_reads_the_folder(folder):
    place = folder / "norms" / "one" / "attn_out"
    of_source = f"from '{place}/*.parquet' where source = 'odd'"
    [(count, mean)] = duckdb.sql(f"select count(*), avg(layer_1) {of_source}").fetchall()
    odd = pd.read_parquet(place).query("source == 'odd'")
    assert count == len(odd)
    assert mean == pytest.approx(odd["layer_1"].astype(float).mean(), rel=1e-12)


def test_a_spec_without_a_key_is_one_with_its_default(folder, tmp_path):
    """Found by the fuzzer: a damaged line that became a comment."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    spec = (copy / "spec.toml").read_text()
    assert "\nhooks = " in spec
    (copy / "spec.toml").write_text(
        spec.replace("\nhooks = ", "\n# hooks = ").replace("\nkeep = ", "\n# keep = ")
    )
    manifest = json.loads((copy / "_manifest.json").read_text())
    del manifest["files"]["spec.toml"]  # as earlier versions wrote it
    (copy / "_manifest.json").write_text(json.dumps(manifest))
    opened = mr.open_run(copy)
    assert opened.hooks == ["attn_out"]
    assert opened.spec["keep"] == "norms"
