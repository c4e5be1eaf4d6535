"""Runs that were killed, filled the disk, lost their drive or their bits end with the bytes of one that was not.

No tolerances: shards, tables and the manifest are compared byte for byte. `killing.py` kills real processes; the
rest is here.
"""

import importlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from killing import flip_a_bit
from run_files import contents, shards_of, write_corpus

import mechreg as mr
from mechreg import store
from mechreg.charts import drawing
from mechreg.charts.save import vega_bundle
from mechreg.cli import main
from mechreg.report import run_report
from mechreg.run import shards as run_module
from mechreg.run.figures import draw_figures
from mechreg.schema import InputError
from mechreg.spec import Spec

carry_out = importlib.import_module("mechreg.run.carry_out")
pytestmark = pytest.mark.usefixtures("without_pictures")

KILLING = Path(__file__).with_name("killing.py")
SMALL = {"shard_tokens": 40, "progress": False}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts.jsonl", 20)


@pytest.fixture(scope="module")
def spec(tiny, corpus):
    return Spec(models=(str(tiny),), corpus=corpus, name="small")


@pytest.fixture(scope="module")
def whole(spec, tmp_path_factory):
    return mr.run_spec(spec, out=tmp_path_factory.mktemp("out") / "whole", **SMALL)


@pytest.fixture
def copy(whole, tmp_path):
    """A finished run to be harmed."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def kill(tiny, corpus, folder, *options) -> dict:
    done = subprocess.run(
        [sys.executable, str(KILLING), str(tiny), corpus, str(folder), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(mr.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_killed_at_a_random_moment_ends_with_the_same_bytes(tiny, corpus, tmp_path):
    assert kill(tiny, corpus, tmp_path / "runs", "--kills", "1", "--without-pictures")["kills"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "kills"), [("norms", "40"), ("moments", "20")])
def test_and_at_many(tiny, tmp_path, keep, kills):
    corpus = write_corpus(tmp_path / "texts.jsonl", 400)
    sums = kill(tiny, corpus, tmp_path / "runs", "--kills", kills, "--keep", keep, "--seed", "1")
    assert sums["kills"] == int(kills)
    assert sums["broken"] == 0


@pytest.mark.parametrize("ended", [True, False])
def test_damaged_shards_are_found_named_set_aside_and_made_again_and_no_others(
    copy, whole, spec, caplog, monkeypatch, ended
):
    tokens, norms = (sorted((copy / kind).rglob("*.parquet")) for kind in ("tokens", "norms"))
    cut = norms[0].read_bytes()[:-100]
    norms[0].write_bytes(cut)
    flip_a_bit(norms[2])
    flip_a_bit(tokens[1])
    norms[4].unlink()
    if not ended:
        (copy / "_manifest.json").unlink()
    damaged = [norms[0], norms[2], tokens[1]]
    assert set(mr.open_run(copy).damaged()) == set(damaged)
    passes, made = run_module.window_norms, []
    monkeypatch.setattr(run_module, "window_norms", lambda *a, **o: made.append(1) or passes(*a, **o))
    with caplog.at_level(logging.WARNING, logger="mechreg"):
        mr.run_spec(spec, out=copy, **SMALL)
    assert contents(copy) == contents(whole)
    assert len(made) == 3  # the tokens of a shard are written again without its norms
    for path in damaged:
        assert any(path.name in record.getMessage() for record in caplog.records), path
    assert len(list((copy / store.folder.SET_ASIDE).iterdir())) == len(damaged)
    assert cut in [path.read_bytes() for path in (copy / store.folder.SET_ASIDE).iterdir()]
    assert mr.open_run(copy).damaged() == []


def test_of_a_shard_that_was_half_made_only_what_lacks_is_written(tiny, corpus, tmp_path):
    """Found by a kill between the moments of a shard and its norms."""
    spec = Spec(models=(str(tiny),), corpus=corpus, hooks=("attn_out", "mlp_out"), keep="moments")
    run = mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    expected = contents(run)
    for lost in ("moments", "attn_out", "mlp_out"):
        gone = next(path for path in shards_of(run) if lost in path.parts)
        gone.unlink()
        before = {path: path.stat().st_mtime_ns for path in shards_of(run)}
        mr.run.make_shard(run, mr.run.missing_shards(run)[0])
        assert before.items() <= {path: path.stat().st_mtime_ns for path in shards_of(run)}.items(), lost
        assert contents(run) == expected


def test_other_weights_corpora_and_batches_refuse_to_go_on(copy, spec, tiny, corpus, save_gpt2, tmp_path):
    before = contents(copy)
    with pytest.raises(InputError, match=r"batch_tokens of 'tiny' was 2048 when .* and is 64 now"):
        mr.run_spec(spec, out=copy, batch_tokens=64, **SMALL)
    text = Path(corpus).read_text()
    Path(corpus).write_text(text.replace("cat", "dog", 1))
    try:
        with pytest.raises(InputError, match="hash of the corpus of 'tiny'"):
            mr.run_spec(spec, out=copy, **SMALL)
    finally:
        Path(corpus).write_text(text)
    weights, other = tiny / "model.safetensors", save_gpt2(seed=1) / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(other.read_bytes())
    try:
        with pytest.raises(InputError, match="hash of the weights of 'tiny'"):
            mr.run_spec(spec, out=copy, **SMALL)
        next((copy / "norms").rglob("*.parquet")).unlink()
        with pytest.raises(InputError, match="hash of the weights of 'tiny'"):  # a worker's own look
            mr.run.make_shard(copy, mr.run.missing_shards(copy)[0])
    finally:
        weights.write_bytes(kept)
    mr.run.make_shard(copy, mr.run.missing_shards(copy)[0])
    assert contents(copy) == before


def test_a_second_process_is_told_and_a_killed_one_leaves_no_lock(copy, spec, tmp_path, capsys):
    code = (
        "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(copy / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        try:
            with pytest.raises(InputError, match="Another process is working in"):
                mr.run_spec(spec, out=copy, **SMALL)
            file = tmp_path / "spec.toml"
            file.write_text((copy / "spec.toml").read_text())
            assert main(["run", str(file), "--resume", "--out", str(copy)]) == 2
            assert "Another process" in capsys.readouterr().err
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    with store.open_run_folder(copy, spec):
        pass


def test_the_lock_is_free_after_a_failure(spec, tmp_path):
    with pytest.raises(RuntimeError), store.open_run_folder(tmp_path / "run", spec):
        raise RuntimeError
    FileLock(tmp_path / "run" / ".lock", timeout=0).acquire().lock.release()


def test_resume_wants_a_run(tmp_path, capsys):
    file = tmp_path / "spec.toml"
    file.write_text('models = ["mini-s"]\ncorpus = "demo"\n')
    assert main(["run", str(file), "--resume", "--out", str(tmp_path / "none")]) == 2
    assert "holds no run to resume" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def mount(folder: Path, size: str, *, again: bool = False) -> None:
    option = f"{'remount,' if again else ''}size={size}"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)], check=True, capture_output=True
    )


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount(disk, "40k")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system needs the right to mount one ({error})")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_and_with_room_the_run_goes_on(spec, whole, small_disk):
    failures = 0
    for kilobytes in (40, 64, 96, 128, 400, 800, 1600):
        mount(small_disk, f"{kilobytes}k", again=True)
        before = {path: path.stat().st_mtime_ns for path in shards_of(small_disk / "run")}
        try:
            mr.run_spec(spec, out=small_disk / "run", **SMALL)
        except InputError as error:
            assert "No space left on device" in str(error)  # noqa: PT017
            failures += 1
        assert before.items() <= {p: p.stat().st_mtime_ns for p in shards_of(small_disk / "run")}.items()
        assert store.folder.damaged_shards(small_disk / "run") == {}
    mount(small_disk, "40m", again=True)
    mr.run_spec(spec, out=small_disk / "run", **SMALL)
    assert failures >= 4
    assert contents(small_disk / "run") == contents(whole)


def test_a_limit_on_files_is_told_like_a_full_disk(spec, whole, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
    try:
        with pytest.raises(InputError, match="File too large"):
            mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    assert contents(tmp_path / "run") == contents(whole)


def test_a_drive_that_goes_away_and_comes_back(spec, whole, tmp_path, monkeypatch):
    passes, made = run_module.window_norms, []

    def unplugging(*args, **options):
        made.append(1)
        if len(made) == 3:
            (tmp_path / "run").rename(tmp_path / "gone")
        return passes(*args, **options)

    monkeypatch.setattr(run_module, "window_norms", unplugging)
    with pytest.raises(InputError, match=r"the same command continues|has no shard"):
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)  # what was written where the drive should be
    (tmp_path / "gone").rename(tmp_path / "run")
    mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    assert contents(tmp_path / "run") == contents(whole)


def test_the_manifest_says_what_is_there(whole, spec):
    manifest = json.loads((whole / "_manifest.json").read_text())
    assert manifest["schema_version"] == store.SCHEMA_VERSION
    assert manifest["spec_sha256"] == spec.digest()
    listed = {
        name
        for name in manifest["files"]
        if not name.startswith(("coeff", "spec", "stat", "problems", "persistence"))
    }
    assert listed == {path.relative_to(whole).as_posix() for path in shards_of(whole)}
    for name, about in manifest["files"].items():
        assert store.files.digest_of(whole / name) == about["sha256"]
        assert (whole / name).stat().st_size == about["bytes"]


def test_shards_of_other_content_are_made_again(copy, whole, spec):
    norms, tokens = (next((copy / kind).rglob("*.parquet")) for kind in ("norms", "tokens"))
    for path, content in ((norms, b"PAR1 and no more"), (tokens, norms.read_bytes())):
        path.write_bytes(content)
    (copy / "_manifest.json").unlink()
    mr.run_spec(spec, out=copy, **SMALL)
    assert contents(copy) == contents(whole)
    assert len(list((copy / store.folder.SET_ASIDE).iterdir())) == 2


@pytest.mark.parametrize("raised", [ConnectionResetError("peer"), BrokenPipeError("gone"), TypeError("ours")])
def test_what_the_maker_of_shards_raises_is_no_word_about_the_drive(copy, spec, raised):
    def make(run, survey):
        raise raised

    with pytest.raises(type(raised)) as error:
        mr.run.carry_out(spec, make, out=copy)
    assert error.value is raised


def test_a_plan_that_no_tokens_bear_out_is_no_plan(copy):
    """With documents to match: a milliard shards are not looked for."""
    record = copy / "models" / "tiny.json"
    facts = json.loads(record.read_text())
    facts["plan"] |= dict.fromkeys(("shards", "documents", "windows", "tokens"), 10**9)
    record.write_text(json.dumps(facts))
    with pytest.raises(InputError, match="some of its tokens are missing"):
        mr.run.missing_shards(copy)


def test_a_run_without_pictures_is_whole(copy, whole, spec, monkeypatch, caplog):
    """As where the process that draws dies for want of memory."""

    def dead(request):
        raise InputError("The process that draws charts ended early.")

    vega_bundle.cache_clear()
    monkeypatch.setattr(carry_out, "draw_figures", draw_figures)
    monkeypatch.setattr(carry_out, "run_report", run_report)
    monkeypatch.setattr(drawing._DRAWER, "ask", dead)
    with caplog.at_level(logging.WARNING, logger="mechreg"):
        mr.run_spec(spec, out=copy, **SMALL)
    assert contents(copy) == contents(whole)
    assert not list((copy / "figures").rglob("*"))
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "norms is missing: The process that draws charts ended early" in said
    assert "betas is missing" in said
    page = (copy / "report.html").read_text()
    assert "charts of this page are missing: The process that draws charts ended early" in page
    assert "Coefficients over the layers" in page
    assert "vegaEmbed" not in page
