"""Ray workers make what one process makes, byte for byte, whatever becomes of them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from ray_stand_in import Died, StandIn
from run_files import contents, shards_of, write_corpus

import mechreg as mr
from mechreg.cli import main
from mechreg.cluster import _hired, _in_turn, _Task, _Worker, run_on_ray
from mechreg.schema import InputError
from mechreg.spec import Spec

pytestmark = pytest.mark.usefixtures("without_pictures")

try:
    import ray
except ImportError:
    ray = None
needs_ray = pytest.mark.skipif(ray is None, reason="ray is not installed (pip install 'mechreg[ray]')")


def test_without_ray_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'mechreg\[ray\]'"):
        run_on_ray(Spec(models=("mini-s",), corpus="demo"))


@pytest.mark.parametrize(
    ("options", "said"), [({"workers": 0}, "workers must be"), ({"gpus_per_worker": -1}, "gpus_per_worker")]
)
@needs_ray
def test_options_that_no_cluster_can_have_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        run_on_ray(Spec(models=("mini-s",), corpus="demo"), **options)


def test_an_unknown_engine_lists_the_right_ones(tmp_path, capsys):
    file = tmp_path / "spec.toml"
    file.write_text('models = ["mini-s"]\ncorpus = "demo"\n')
    assert main(["run", str(file), "--engine", "spark"]) == 2
    assert "'local', 'ray'" in capsys.readouterr().err


def parents_of(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found


def our_workers() -> list[int]:
    """Return the process ids of the actors that this process started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::_Worker") and os.getpid() in parents_of(int(entry.name)):
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    ("kills", "given_up"),
    [({}, None), ({3: 1}, None), ({0: 2, 4: 2}, None), ({2: 99}, 2), ({5: 3}, 5), ({1: 99, 4: 99}, 1)],
)
def test_a_shard_that_kills_its_workers_is_given_up_and_named(kills, given_up, monkeypatch):
    made, left, ray = [], dict(kills), StandIn()

    class Fatal:
        def __init__(self, *about):
            assert about == ("run", "cpu")

        def make(self, number):
            if left.get(number, 0) > 0:
                left[number] -= 1
                raise Died("the worker died")
            made.append(number)

    monkeypatch.setattr("mechreg.cluster._Worker", Fatal)
    pool = _hired(ray, 2, 0, ("run", "cpu"))
    tasks = [_Task(f"Shard {number} of 'm'", "make", (number,)) for number in range(6)]
    fatal = {number for number, deaths in kills.items() if deaths >= 3}
    if fatal:
        with pytest.raises(InputError, match=f"Shard {given_up} of 'm' killed 3 workers"):
            _in_turn(ray, pool, tasks)
    else:
        _in_turn(ray, pool, tasks)
    assert sorted(made) == sorted({*range(6)} - fatal)  # the others are made first
    assert ray.started == 2 + sum(min(deaths, 3) for deaths in kills.values())


def test_what_a_worker_raises_is_not_tried_again(monkeypatch):
    asked, ray = [], StandIn()

    class Refusing:
        def make(self, number):
            asked.append(number)
            raise InputError("not this one")

    monkeypatch.setattr("mechreg.cluster._Worker", Refusing)
    with pytest.raises(InputError, match=r"^not this one$"):
        _in_turn(ray, _hired(ray, 1, 0, ()), [_Task("Shard 0 of 'm'", "make", (0,))] * 2)
    assert asked == [0]


@needs_ray
def test_ray_gives_a_shard_up_too(tiny, tmp_path, monkeypatch):
    spec = Spec(models=(str(tiny),), corpus=write_corpus(tmp_path / "texts.jsonl", 12))
    monkeypatch.setattr(_Worker, "make", lambda self, shard: os._exit(1) if shard.number == 1 else None)
    with pytest.raises(InputError, match="Shard 1 of 'tiny' killed 3 workers"):
        run_on_ray(spec, out=tmp_path / "run", workers=1, shard_tokens=40)


@needs_ray
@pytest.mark.parametrize("keep", ["norms", pytest.param("moments", marks=pytest.mark.slow)])
def test_two_workers_one_of_them_killed_make_what_one_process_makes(save_gpt2, tmp_path, keep):
    corpus = write_corpus(tmp_path / "texts.jsonl", 100)
    spec = Spec(
        models=(str(save_gpt2("one", seed=1)), str(save_gpt2("two", seed=2))), corpus=corpus, keep=keep
    )
    whole = mr.run_spec(spec, out=tmp_path / "whole", shard_tokens=40, progress=False)
    many = len(shards_of(whole))
    killed = []

    def kill_one():
        while not killed:
            done = len([path for path in shards_of(tmp_path / "run") if "tokens" not in path.name])
            workers = our_workers()
            if done > many // 8 and len(workers) == 2:
                os.kill(workers[0], signal.SIGKILL)
                killed.append((workers[0], done))
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    run = run_on_ray(spec, out=tmp_path / "run", workers=2, shard_tokens=40)
    assert killed, "the run ended before a worker was killed"
    assert killed[0][1] < many * 2 / 3
    assert contents(run) == contents(whole)


@pytest.mark.slow
def test_shards_made_one_by_one_by_any_launcher_are_those_of_a_run(tiny, tmp_path):
    """What a job array does: each process makes one shard, in any order, and a last one writes the tables."""
    spec = Spec(models=(str(tiny),), corpus=write_corpus(tmp_path / "texts.jsonl", 12))
    whole = mr.run_spec(spec, out=tmp_path / "whole", shard_tokens=40, progress=False)
    expected = contents(whole)
    for path in shards_of(whole):
        if "norms" in path.name:
            path.unlink()
    missing = mr.run.missing_shards(whole)
    assert len(missing) > 3
    code = "import sys, mechreg; print(mechreg.run.make_shard(sys.argv[1], (sys.argv[2], int(sys.argv[3]))))"
    first = [sys.executable, "-c", code, str(whole), *map(str, missing[-1])]
    made = subprocess.run(first, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(made).read_bytes() == expected[Path(made).relative_to(whole).as_posix()]
    assert mr.run.missing_shards(whole) == missing[:-1]
    for shard in missing:  # the last one again: it is there
        mr.run.make_shard(whole, shard)
    assert mr.run.missing_shards(whole) == []
    assert contents(whole) == expected
    with pytest.raises(InputError, match="has no shard 99"):
        mr.run.make_shard(whole, ("tiny", 99))
    record = whole / "models" / "tiny.json"
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "plan"}))
    with pytest.raises(InputError, match="not known yet"):
        mr.run.missing_shards(whole)


@pytest.mark.slow
def test_the_job_array_of_the_how_to_makes_what_one_process_makes(tiny, tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text(encoding="utf-8")
    script = page.split("with `make_shards.py`:\n")[1].split("\nOnly one")[0]
    (tmp_path / "make_shards.py").write_text(textwrap.dedent(script))
    spec = Spec(models=(str(tiny),), corpus=write_corpus(tmp_path / "texts.jsonl", 12))
    run = mr.run_spec(spec, out=tmp_path / "run", shard_tokens=40, progress=False)
    expected = contents(run)
    for path in (run / "norms").rglob("*.parquet"):
        path.unlink()
    shards, left = len(mr.run.missing_shards(run)), []
    for job in ("0", "1"):
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": job, "SLURM_ARRAY_TASK_COUNT": "2"}
        command = [sys.executable, "make_shards.py", str(run)]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
        left.append(len(mr.run.missing_shards(run)))
    assert left == [shards // 2, 0]
    assert contents(mr.run_spec(spec, out=run, shard_tokens=40, resume=True, progress=False)) == expected
