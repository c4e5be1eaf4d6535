"""Every analysis runs on the miniatures, ends with an answer, and leaves its figures where it says."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from public import ROOM_OF

from mechreg import miniatures

ROOT = Path(__file__).parents[1]
# Those that take longer on three models; make figures runs them on all.
ON_ONE_MODEL = ("01_lagged_norms", "03_part_of_speech", "04_causal_scaling", "05_sources", "11_nature")
# About ten seconds to half a minute each even so, of functions that have quick tests of their own.
SLOW = (
    "02_universality_gpt2_sizes",
    "03_part_of_speech",
    "04_causal_scaling",
    "05_sources",
    "06_coverage",
    "07_nulls",
    "08_specifications",
    "10_training",
    "11_nature",
    "12_tokens",
    "13_vectors",
)
ANALYSES = [  # 09 needs a real model
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in sorted((ROOT / "analyses").glob("[0-9]*.py"))
    if path.stem != "09_pretrained"
]


@pytest.mark.parametrize("script", ANALYSES)
def test_an_analysis_runs(script, tmp_path, monkeypatch, capsys):
    # A copy in a folder of the same shape: figures drawn by a test must not land in the checkout.
    copy = tmp_path / "analyses" / script.name
    copy.parent.mkdir()
    copy.write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    models = ["mini-s"] if script.stem in ON_ONE_MODEL else []
    if script.stem == "10_training":  # two seeds stand for two checkpoints
        for step, name in ((0, "mini-s"), (64, "mini-s-b")):
            shutil.copytree(miniatures.folder(name), tmp_path / f"step{step}")
            models.append(str(tmp_path / f"step{step}"))
    monkeypatch.setattr(sys, "argv", [str(copy), *models])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(copy), run_name="__main__")
    assert "Question:" in script.read_text(encoding="utf-8")
    assert list((tmp_path / "figures").glob("*.svg"))
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_the_gallery_draws_every_chart_and_its_page(tmp_path):
    copy = tmp_path / "analyses" / "gallery.py"
    copy.parent.mkdir()
    copy.write_text((ROOT / "analyses" / "gallery.py").read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, str(copy), "mini-s", "mini-s-b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = {path.stem for path in (tmp_path / "figures" / "gallery").glob("*.svg")}
    assert {f"plot_{name.removesuffix('_by')}" for name in drawn} == {
        name for name in ROOM_OF if name.startswith("plot_")
    }
    page = (tmp_path / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert page.count("](figures/gallery/") == len(drawn)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "says"),
    [
        ("extraction.py", ["--tokens", "300", "--rounds", "1"], "mechreg bridge"),
        ("latency.py", ["--rounds", "1"], "extract_norms takes"),
    ],
)
def test_a_benchmark_of_speed_runs(script, options, says):
    command = [
        sys.executable,
        str(ROOT / "analyses" / "benchmarks" / script),
        str(miniatures.folder("mini-s")),
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


@pytest.mark.slow
def test_the_matrix_of_architectures_judges_one_and_keeps_the_verdict(tmp_path):
    copy = tmp_path / "analyses" / "architectures.py"
    copy.parent.mkdir()
    copy.write_text((ROOT / "analyses" / "architectures.py").read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(copy), "granite", "gemma4"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "build" / "architectures").glob("[0-9]*.json")
    granite, gemma4 = json.loads(file.read_text())[::-1]
    assert granite["place"] == "self_attn x 0.5"
    assert max(granite[key] for key in ("loads", "sum", "parity", "batch", "scale")) < 1e-5
    assert "with parts beside its text (audio_config, vision_config)" in gemma4["reason"]
    assert not (tmp_path / "docs").exists()


def test_the_page_of_architectures_has_enough_of_them():
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    counts = re.findall(r"^(\d+) families: (\d+) right", page, flags=re.MULTILINE)
    assert len(counts) == 2
    assert all(int(tried) >= 50 and int(right) >= 50 for tried, right in counts)


@pytest.mark.slow
def test_the_regression_benchmark_runs(tmp_path):
    script = ROOT / "analyses" / "benchmarks" / "regression.py"
    small = ["--rows", "2000", "--documents", "20", "--layers", "2", "--rounds", "1", "--shards", "2"]
    out = ["--out", str(tmp_path / "tables.json")]
    done = subprocess.run(
        [sys.executable, str(script), *small, *out], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    tables = json.loads((tmp_path / "tables.json").read_text())
    assert [row["rows"] for row in tables["memory"]] == [2 * 200 * 2]
    assert len(tables["speed"]) == 5
    assert all(row["speed_over_loop"] > 0 for row in tables["speed"])
