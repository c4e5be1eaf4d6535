"""The verbs, as a person at a terminal meets them."""

import json
import subprocess
import sys

import pytest

from mechreg.cli import main


def mechreg(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "mechreg", *arguments], capture_output=True, text=True, cwd=cwd, timeout=300
    )


def test_without_arguments_it_teaches(capsys):
    assert main([]) == 0
    assert "mechreg demo" in capsys.readouterr().out


def test_inspect_shows_the_architecture_and_the_tokens(capsys):
    assert main(["inspect", "mini-s", "--text", "The cat sat."]) == 0
    out = capsys.readouterr().out
    for word in ("blocks", "d_model", "attention", "blocks.{layer}.hook_attn_out", "12 characters"):
        assert word in out
    rows = out.splitlines()[
        out.splitlines().index(next(r for r in out.splitlines() if "12 characters" in r)) + 3 :
    ]
    ids = [int(row.split()[1]) for row in rows]
    assert out.count("characters, ") == 1
    assert len(ids) == int(out.split("characters, ")[1].split(" tokens")[0])


def test_check_passes_on_a_miniature_and_says_so(capsys):
    assert main(["check", "mini-s"]) == 0
    out = capsys.readouterr().out
    assert "Hugging Face parity" in out
    assert "FAILED" not in out


def test_check_exits_with_1_when_a_check_fails(capsys, monkeypatch):
    from mechreg import check

    monkeypatch.setitem(check.TOLERANCES, "float32", 0.0)  # no float arithmetic is that good
    assert main(["check", "mini-s"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere.toml"], "cannot be read"),
        (["inspect", "./nowhere"], "no model folder"),
        (["inspect", "mini-s", "--text", " "], "--text is empty"),
    ],
)
def test_a_refusal_is_one_sentence_and_exit_code_2(capsys, arguments, said):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("mechreg: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_option_that_does_not_exist_is_refused_with_those_that_do():
    # In a process of its own, without the tests' type checks, which would speak first.
    done = mechreg("inspect", "mini-s", "--backend", "hoked")
    assert (done.returncode, done.stdout) == (2, "")
    assert "backend must be one of 'auto', 'hooked', 'bridge'; got 'hoked'" in done.stderr


def test_debug_shows_the_traceback():
    done = mechreg("run", "nowhere.toml", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_run_from_a_spec_in_a_folder(tmp_path):
    (tmp_path / "a.txt").write_text("The first text is about a cat that sat on a mat all day. " * 4)
    (tmp_path / "b.txt").write_text("Another text, on the other hand, speaks of ships and of the sea. " * 4)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "spec.toml").write_text('name = "two"\nmodels = ["mini-s"]\ncorpus = "*.txt"\ncov = "hc1"\n')
    done = mechreg("run", "spec.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lag1" in done.stdout
    assert "no proof of learned context" in done.stdout
    assert "1 documents could not be used" in done.stdout
    folder = tmp_path / "runs" / "two"
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["models"][0]["name"] == "mini-s"
    assert "empty,empty" in (folder / "problems.csv").read_text()
