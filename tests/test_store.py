"""What is written is whole, reads back as it was, and is never mixed with another run's."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import flip_a_bit

from mechreg import store
from mechreg.frames import norm_frame
from mechreg.schema import NORM_COLUMNS, TOKEN_COLUMNS, InputError
from mechreg.spec import Spec, write_spec

pytestmark = pytest.mark.usefixtures("without_pictures")

SPEC = Spec(models=("mini-s",), corpus="demo")


def token_frame(lengths=(3, 2)) -> pd.DataFrame:
    rows = [
        {"doc": f"d{doc}", "window": 0, "position": position, "token_id": position + 5, "token": "a"}
        for doc, length in enumerate(lengths)
        for position in range(length)
    ]
    return pd.DataFrame(rows).astype(TOKEN_COLUMNS)


def values_of(tokens, *, layers=3, heads=None) -> np.ndarray:
    shape = (layers, *([] if heads is None else [heads]), len(tokens))
    return np.random.default_rng(0).lognormal(3, 1, shape).astype("float32")


PLACE = {"model": "m", "hook": "attn_out"}


def tidy(tokens, values) -> pd.DataFrame:
    """Return the norm frame by hand, a row at a time."""
    rows = []
    for at in np.ndindex(values.shape):
        token = tokens.iloc[at[-1]]
        head = {"head": at[1]} if values.ndim == 3 else {}
        rows.append(
            PLACE | {"layer": at[0]} | head | {"depth": (at[0] + 0.5) / len(values)}
            | {key: token[key] for key in ("doc", "window", "position", "token_id")} | {"norm": values[at]}
        )  # fmt: skip
    return pd.DataFrame(rows).astype(NORM_COLUMNS | ({"head": "int16"} if values.ndim == 3 else {}))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 5), st.sampled_from([None, 1, 3]))
def test_a_norm_shard_reads_back_to_the_bit(tmp_path_factory, lengths, layers, heads):
    tokens = token_frame(lengths)
    values = values_of(tokens, layers=layers, heads=heads)
    both = {"norm": values, "cos_resid": values / 2}
    path = store.write_norm_shard(both, tokens, tmp_path_factory.mktemp("shard") / "norms.parquet", **PLACE)
    frame = tidy(tokens, values)
    frame["cos_resid"] = frame["norm"] / 2
    pd.testing.assert_frame_equal(store.read_norm_shard(path), frame)
    pd.testing.assert_frame_equal(norm_frame(tokens, both, **PLACE), frame)


def test_a_shard_is_wide_and_any_parquet_reader_reads_it(tmp_path):
    tokens = token_frame().assign(surprisal=[np.nan, 0.1, 4.0, np.nan, 0.5], source="news")
    values = values_of(tokens)
    path = store.write_norm_shard(
        {"norm": values}, tokens, tmp_path / "norms.parquet", **PLACE, covariates=["surprisal"]
    )
    wide = pd.read_parquet(path)
    assert wide.columns.tolist() == [
        "doc", "window", "position", "token_id", "surprisal", "source", "layer_0", "layer_1", "layer_2",
    ]  # fmt: skip
    np.testing.assert_array_equal(wide["layer_1"], values[1])
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = map(group.column, range(group.num_columns))
    encodings = {column.path_in_schema: column.encodings for column in columns}
    assert "BYTE_STREAM_SPLIT" in encodings["layer_0"]
    assert "DELTA_BINARY_PACKED" in encodings["position"]
    for layers in (None, [1]):
        for _, layer in store.read_norm_shard(path, layers=layers).groupby("layer"):
            np.testing.assert_array_equal(layer["surprisal"], tokens["surprisal"])


def test_only_the_layers_asked_for_are_read(tmp_path):
    tokens = token_frame()
    values = values_of(tokens, layers=12)
    path = store.write_norm_shard({"norm": values}, tokens, tmp_path / "norms.parquet", **PLACE)
    some, frame = store.read_norm_shard(path, layers=[3, 11]), tidy(tokens, values)
    expected = frame[frame["layer"].isin([3, 11])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected)


def test_values_that_are_not_of_the_tokens_are_refused(tmp_path):
    tokens = token_frame()
    with pytest.raises(InputError, match=r"norm shard of 4 tokens needs as many values; got \(3, 5\)"):
        store.write_norm_shard({"norm": values_of(tokens)}, tokens[:4], tmp_path / "norms.parquet", **PLACE)
    assert not list(tmp_path.iterdir())


def test_a_foreign_parquet_file_is_refused_as_a_shard(tmp_path):
    path = store.write_table(pd.DataFrame({"layer_0": [1.0]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="not a norm shard of schema version"):
        store.read_norm_shard(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = store.write_text("old", tmp_path / "table.csv")
    with pytest.raises(RuntimeError, match="half way"), store.committed(path) as temporary:  # noqa: PT012
        temporary.write_text("new, hal")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_a_killed_writer_never_leaves_a_part_under_the_real_name(tmp_path):
    code = """
        import sys; from pathlib import Path; from mechreg.store import write_text
        i = 0
        while True:
            write_text(str(i % 10) * 2_000_000, Path(sys.argv[1])); i += 1
            if i == 1: print("go", flush=True)
    """
    path = tmp_path / "big.txt"
    for delay in (0.0, 0.013, 0.031, 0.057):
        command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "go\n"
            time.sleep(delay)
            os.kill(writer.pid, signal.SIGKILL)
        text = path.read_text()
        assert len(text) == 2_000_000
        assert len(set(text)) == 1


def test_names_of_models_never_collide_as_folders():
    names = ["gpt2", "gpt2[folded]", "org/model", "org-model", "../x", "a b", "a-b", "."]
    folders = [store.shards.model_folder(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all("/" not in folder and not folder.startswith(".") for folder in folders)


def test_a_run_folder_takes_up_its_own_spec_and_refuses_others(tmp_path):
    for _ in range(2):
        with store.open_run_folder(tmp_path / "run", SPEC) as folder:
            assert (folder / "spec.toml").exists()

    def refused(out, spec, said):
        with pytest.raises(InputError, match=said), store.open_run_folder(out, spec):
            pytest.fail("the folder was opened")

    refused(folder, Spec(models=("mini-m",), corpus="demo"), "holds a run of another spec")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    refused(tmp_path / "mine", SPEC, "is not a run folder")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file" / "run", SPEC, "cannot be")


def test_provenance_names_what_made_the_numbers():
    facts = store.provenance(SPEC, [{"name": "m"}], seconds=1.0)
    assert facts["spec_hash"] == SPEC.digest()
    assert facts["packages"]["numpy"] == np.__version__
    assert {"torch", "transformer-lens", "statsmodels", "mechreg"} <= set(facts["packages"])
    assert facts["seconds"] == 1.0


def test_a_table_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"writes \.csv or \.parquet"):
        store.write_table(pd.DataFrame({"a": [1]}), tmp_path / "t.xlsx")


# ---------------------------------------------------------------------- what is damaged, and what could not be read

STALE = OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize(
    ("raised", "told", "said"),
    [
        (STALE, InputError, "could not be read .Stale file handle., and nothing was changed"),
        (PermissionError(errno.EACCES, "Permission denied"), InputError, "could not be read"),
        (
            OSError("Couldn't deserialize thrift"),
            store.files.DamagedError,
            "is damaged .*deserialize.*makes it again",
        ),
        (pa.ArrowInvalid("no magic bytes"), store.files.DamagedError, "magic bytes"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), store.files.DamagedError, "is damaged"),
        (TypeError("'int' is not iterable"), TypeError, "not iterable"),
        (MemoryError("not enough"), MemoryError, "not enough"),
    ],
)
def test_only_content_is_damaged(tmp_path, raised, told, said):
    with pytest.raises(told, match=said) as error, store.readable(tmp_path / "norms.parquet"):
        raise raised
    assert type(error.value) is told


@pytest.mark.parametrize("layers", ["3", 1.5, [1.5], {"a": 1}, ["1"]])
def test_layers_that_are_none_are_a_callers_error(layers):
    with pytest.raises((InputError, TypeError), match="layers"):  # TypeError: jaxtyping's checks see it first
        store.read_norm_shard(Path("none.parquet"), layers=layers)


def shard_of(run: Path) -> Path:
    path, tokens = (
        store.shard_path(run, "norms", {"name": "m", "config_hash": "0" * 16}, 0, "attn_out"),
        token_frame(),
    )
    return store.write_norm_shard({"norm": values_of(tokens)}, tokens, path, **PLACE)


@pytest.mark.parametrize("ended", [True, False])
def test_a_stale_handle_moves_no_shard(tmp_path, monkeypatch, ended):
    path = shard_of(tmp_path)
    if ended:
        (tmp_path / "spec.toml").write_text(write_spec(SPEC))
        store.write_manifest(tmp_path, SPEC, [])

    def stale(*args, **options):
        raise STALE

    with monkeypatch.context() as patch:
        patch.setattr(store.folder, "digest_of", stale)
        patch.setattr(store.shards.pq, "read_schema", stale)
        with pytest.raises(InputError, match="Stale file handle"):
            store.set_aside_damaged(tmp_path)
    assert path.exists()
    assert store.folder.damaged_shards(tmp_path) == {}


@pytest.mark.parametrize("ended", [True, False])
def test_a_bit_that_flipped_in_a_shard_is_found(tmp_path, ended):
    path = shard_of(tmp_path)
    if ended:
        (tmp_path / "spec.toml").write_text(write_spec(SPEC))
        store.write_manifest(tmp_path, SPEC, [])
    flip_a_bit(path)
    data = path.read_bytes()
    store.set_aside_damaged(tmp_path)
    assert not path.exists()
    (aside,) = (tmp_path / store.folder.SET_ASIDE).iterdir()
    assert aside.read_bytes() == data


def test_a_shard_that_does_not_begin_as_parquet_is_damaged(tmp_path):
    path = shard_of(tmp_path)
    path.write_bytes(b"\0\0\0\0" + path.read_bytes()[4:])
    assert "does not begin as a Parquet file" in str(store.folder.damaged_shards(tmp_path)[path])


# ------------------------------------------------------------------------------------- who writes, and who has died


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        return child.pid


def test_two_writers_of_one_file_have_two_names(tmp_path):
    path = tmp_path / "norms-1"
    with store.committed(path) as one, store.committed(path) as other:
        assert one != other
        one.write_bytes(b"one")
        other.write_bytes(b"one")
    assert path.read_bytes() == b"one"


def test_only_what_the_dead_left_half_written_goes(tmp_path):
    with store.open_run_folder(tmp_path / "run", SPEC) as run:
        pass
    with store.committed(run / "norms" / "m" / "norms-1") as mine:
        mine.write_text("half")
        machine = mine.name.split("-")[1]
        left = {
            f".tmp-{machine}-{dead_process()}-0a-x": False,
            f".tmp-{machine}-{os.getppid()}-0a-x": True,
            f".tmp-00000000-{dead_process()}-0a-x": True,  # of a machine that is not seen from here
            ".tmp-00000000-1-0a-old": False,
            ".tmp-of-another-time": False,
        }
        for name in left:
            (run / name).write_text("half")
            if "old" in name or "another" in name:
                os.utime(run / name, (0, 0))
        with store.open_run_folder(run, SPEC):
            assert {name: (run / name).exists() for name in left} == left
            assert mine.exists()


def lock_without_flock(monkeypatch, run: Path, holder: str) -> None:
    fcntl = pytest.importorskip("fcntl")

    def missing(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", missing)
    run.mkdir()
    (run / ".lock").write_text(holder)


def test_a_dead_owner_on_another_host_is_named_with_the_file_to_delete(monkeypatch, tmp_path):
    lock_without_flock(monkeypatch, tmp_path / "run", "4711\nelsewhere\n")
    os.utime(tmp_path / "run" / ".lock", (time.time() - 3 * 3600,) * 2)
    said = r"process 4711 on elsewhere, for 3 hours.*If that process has died, delete .*\.lock"
    with pytest.raises(InputError, match=said), store.open_run_folder(tmp_path / "run", SPEC):
        pytest.fail("the folder was opened")
    (tmp_path / "run" / ".lock").unlink()
    with store.open_run_folder(tmp_path / "run", SPEC):
        pass


def test_a_dead_owner_on_this_host_is_known(monkeypatch, tmp_path):
    lock_without_flock(monkeypatch, tmp_path / "run", f"{dead_process()}\n{socket.gethostname()}\n")
    with store.open_run_folder(tmp_path / "run", SPEC):
        pass


@pytest.mark.parametrize("place", ["figures", "norms/m"])
def test_nothing_is_written_through_a_link(tmp_path, place):
    with store.open_run_folder(tmp_path / "run", SPEC) as run:
        pass
    (tmp_path / "outside").mkdir()
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=r"is a link to .*outside"), store.open_run_folder(run, SPEC):
        pytest.fail("the folder was opened")


@pytest.mark.parametrize("name", ["r\udcc3\udcb6n", "a\0b"])
def test_a_name_that_no_file_can_have_is_refused_before_any_work(name):
    with pytest.raises(InputError, match=r"PYTHONUTF8=1|null character"):
        store.check_place(Path(name))
    with pytest.raises(InputError, match="give another --out"), store.open_run_folder(Path(name), SPEC):
        pytest.fail("the folder was opened")


# ---------------------------------------------------------------------------------- records are bounded, then believed

PLAN = {
    "shards": 2,
    "documents": 3,
    "windows": 4,
    "tokens": 9,
    "longest": 3,
    "streamed": False,
    "problems": [],
}
RECORD = {
    "name": "m",
    "spec_name": "mini-s",
    "config_hash": "0" * 16,
    "config": {"batch_tokens": 9},
    "facts": {},
}


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 10**9},
        {"shards": 10**9, "documents": 10**9},
        {"shards": True},
        {"shards": -1},
        {"tokens": 3},
    ],
)
def test_a_record_plans_no_more_than_its_documents_allow(tmp_path, change):
    path = store.write_json(RECORD | {"plan": PLAN}, tmp_path / "models" / "m.json")
    assert store.read_record(tmp_path, "m")["plan"] == PLAN
    store.write_json(RECORD | {"plan": PLAN | change}, path)
    with pytest.raises(store.files.DamagedError, match=r"it plans|'shards' must be of type int"):
        store.read_record(tmp_path, "m")


FACTS = {"spec_hash": "", "models": [{"name": "m", "hooks": [], "tokens": 1}], "corpus": {"sha256": ""}}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        [],
        FACTS | {"models": 5},
        FACTS | {"models": ["m"]},
        FACTS | {"corpus": {}},
        FACTS | {"models": [{"name": 1}]},
    ],
)
def test_provenance_without_what_every_run_records_is_refused(tmp_path, facts):
    path = tmp_path / "provenance.json"
    path.write_text(json.dumps(FACTS))
    assert store.read_provenance(tmp_path) == FACTS
    path.write_text(json.dumps(facts))
    with pytest.raises(store.files.DamagedError, match=r"provenance.json' is damaged"):
        store.read_provenance(tmp_path)


def test_the_commit_of_the_folder_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store.provenance(SPEC, [])["git_commit"] is None
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "a"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert store.provenance(SPEC, [])["git_commit"] == commit
