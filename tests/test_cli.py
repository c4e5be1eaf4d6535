"""The verbs, as a person at a terminal meets them."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest

import mechreg as mr
from mechreg import cli, store
from mechreg.cli import START, main, parser
from mechreg.spec import Spec, parse_spec, read_spec

pytestmark = pytest.mark.usefixtures("without_pictures")


def mechreg(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "mechreg", *arguments], capture_output=True, text=True, cwd=cwd, timeout=300
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A corpus of the demo's first eight documents, in a file."""
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    mr.read_corpus("demo").head(8)[["doc", "text"]].to_json(path, orient="records", lines=True)
    return path


@pytest.fixture(scope="module")
def run(texts):
    """The folder of a run of two seeds of one size; not to be written to."""
    spec = mr.Spec(models=("mini-s", "mini-s-b"), corpus=str(texts), name="seeds")
    return mr.run_spec(spec, out=texts.parent / "seeds", progress=False)


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copied")


def verbs() -> dict:
    (group,) = (action for action in parser()._actions if action.choices and "demo" in action.choices)
    return dict(group.choices)


def test_without_arguments_it_teaches_commands_that_exist(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == START
    taught = [line.strip() for line in START.splitlines() if line.startswith("  mechreg ")]
    assert len(taught) == 4
    for command in taught:
        assert parser().parse_args(shlex.split(command)[1:]).verb


@pytest.mark.parametrize("name", verbs())
def test_the_help_of_every_command_has_an_example_that_it_takes(name):
    example = verbs()[name].format_help().split("Example: ")[1]
    commands = [
        line.split(" > ")[0] for line in map(str.strip, example.splitlines()) if line.startswith("mechreg")
    ]
    assert commands
    for command in commands:
        assert shlex.split(command)[:2] == ["mechreg", name]
        assert parser().parse_args(shlex.split(command)[1:]).verb


def test_an_unforeseen_error_is_one_sentence_too(capsys, monkeypatch):
    def fail(path):
        raise ZeroDivisionError("a line\nand another")

    monkeypatch.setattr("mechreg.spec.read_spec", fail)
    assert main(["run", "x.toml"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "mechreg: unexpected error (ZeroDivisionError: a line and another); the same command with --debug "
        "shows where.\n"
    )
    with pytest.raises(ZeroDivisionError):
        main(["run", "x.toml", "--debug"])


def test_a_closed_pipe_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "mechreg"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


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
    from mechreg.check import contract

    monkeypatch.setattr(contract, "ROUNDINGS", 0.0)
    monkeypatch.setattr(contract, "EPSILONS", 0.0)  # no float arithmetic is that good
    assert main(["check", "mini-s"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere.toml"], "cannot be read"),
        (["inspect", "./nowhere"], "no model folder"),
        (["inspect", "mini-s", "--text", " "], "--text is empty"),
        (["inspekt", "mini-s"], "Did you mean 'inspect'?"),
        (["run"], "needs a spec file, or --models and --corpus"),
        (["run", "spec.toml", "--models", "mini-s"], "not both"),
        (["run", "--models", "mini-s"], "needs --models and --corpus; got models"),
        (["run", "--models", "mini-s", "--corpus", "demo", "--formula", "log_norm ~"], "formula"),
    ],
)
def test_a_refusal_is_one_sentence_and_exit_code_2(capsys, arguments, said):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("mechreg: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("compare --draws", "5", "a whole number from 199 to 1000000; got 5"),
        ("compare --draws", "many", "a whole number from 199 to 1000000; got 'many'"),
        ("compare --margin", "0", "a number above 0, for example 0.1; got 0.0"),
        ("compare --margin", "inf", "a finite number above 0, for example 0.1; got inf"),
        ("compare --seed", "-1", "a whole number, 0 or more; got -1"),
        ("diff --within", "-1", "a number, 0 or more; got -1.0"),
        ("intervene --seed", "-1", "a whole number, 0 or more; got -1"),
        ("intervene --documents", "0", "a whole number, 1 or more; got 0"),
        ("replicate --documents", "0", "a whole number, 1 or more; got 0"),
        ("run --workers", "0", "a whole number, 1 or more; got 0"),
        ("run --gpus-per-worker", "nan", "a number, 0 or more; got nan"),
        ("demo --batch-tokens", "0", "a whole number, 1 or more; got 0"),
    ],
)
def test_a_number_is_refused_with_the_least_that_its_help_has(capsys, option, value, said):
    verb, option = option.split()
    assert main([verb, f"{option}={value}"]) == 2
    assert capsys.readouterr().err == f"mechreg: {option} must be {said}; see mechreg {verb} --help.\n"
    help_of = " ".join(verbs()[verb].format_help().split("Example:")[0].split()).split(f" {option} ")[-1]
    least = re.search(r"(?:from|above) (\d+)|(\d+) or more", said)
    assert f"{least[1] or least[2]} or more" in help_of or f"above {least[1]}" in help_of


def test_what_verbs_refuse_without_the_functions_is_what_the_functions_have():
    from mechreg.cli.compare import LEAST_DRAWS
    from mechreg.cli.intervene import ABLATIONS, ALIGNMENTS
    from mechreg.cli.replicate import NAMES
    from mechreg.findings import FINDINGS
    from mechreg.interventions.edits import Align, Replacement
    from mechreg.universality.comparison import MIN_DRAWS

    assert LEAST_DRAWS == MIN_DRAWS
    assert get_args(Replacement) == ABLATIONS
    assert get_args(Align) == ALIGNMENTS
    assert tuple(FINDINGS) == NAMES


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("run --models ./nowhere --corpus demo", "no model folder"),
        (
            "run --models mini-s --corpus nowhere.txt",
            "nowhere.txt'; give a file, a glob in quotes",
        ),
        ("inspect ./nowhere", "no model folder"),
        ("inspect nowhere.gguf", "no model file"),
        ("inspect mini-s@main", "'mini-s' is on this machine, and only models on the hub have revisions"),
        ("inspect mini-s --revision main", "only models on the hub have revisions; leave out 'main'"),
        ("inspect gpt2@main --revision x", "has its revision in its name; leave out the other one, 'x'"),
        ("check ./nowhere", "no model folder"),
        ("intervene ./nowhere --edit scale=2", "no model folder"),
        (
            "intervene mini-s --edit scale=2 --corpus nowhere.txt",
            "There is no file 'nowhere.txt'; give a file, a glob",
        ),
        (
            "intervene mini-s --edit patch=nowhere.txt",
            "There is no file 'nowhere.txt'; give a file, a glob in quotes",
        ),
        ("intervene mini-s --edit scale=2 --align end", "is of --edit patch=CORPUS, and there is none"),
        (
            "intervene mini-s --edit patch=demo --align middle",
            "--align must be one of 'exact', 'start', 'end'",
        ),
        ("replicate", "needs a finding: lagged_norms, "),
        ("replicate norm_grwth", "Did you mean 'norm_growth'?"),
        ("replicate norm_growth --models ./nowhere", "no model folder"),
        (
            "replicate norm_growth --models mini-s --corpus nowhere.txt",
            "There is no file 'nowhere.txt'; give a file",
        ),
        ("compare ./nowhere", "is not a run folder"),
        ("diff ./nowhere ./elsewhere", "is not a run folder"),
        ("report ./nowhere", "is not the folder of a finished run"),
    ],
)
def test_a_wrong_path_is_refused_before_torch_is_imported(command, said):
    code = f"import sys; from mechreg.cli import main; main({shlex.split(command)}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert said in done.stderr
    assert done.stdout == "False\n"


@pytest.mark.parametrize("model", [["gpt2@x"], ["gpt2", "--revision", "x"]])
def test_a_revision_is_named_where_the_hub_is_away(model, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mechreg", "inspect", *model],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr.startswith("mechreg: 'gpt2@x' is no folder and no miniature")
    assert "Did you mean" not in done.stderr


def test_an_option_that_does_not_exist_is_refused_with_those_that_do(capsys, tmp_path):
    (tmp_path / "spec.toml").write_text('models = ["mini-s"]\ncorpus = "demo"\n')
    assert main(["run", str(tmp_path / "spec.toml"), "--engine", "rai"]) == 2
    assert "--engine must be one of 'local', 'ray'; got 'rai'. Did you mean 'ray'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("run", "nowhere.toml", "--debug"), ("--debug", "run", "nowhere.toml")])
def test_debug_shows_the_traceback(command):
    done = mechreg(*command)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_spec_to_begin_with_has_every_key_with_its_default(tmp_path, capsys):
    file = tmp_path / "spec.toml"
    assert main(["init", str(file)]) == 0
    assert main(["init", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err
    spec, text = read_spec(file), file.read_text()
    assert spec == Spec(models=("mini-s", "mini-m"), corpus="demo", name="study")
    assert parse_spec(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)) == spec
    assert all(f"{field.name} = " in text for field in fields(Spec))


def test_a_finished_run_is_not_done_again_until_something_changes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / "texts" / f"{name}.txt").write_text(
            f"A cat that sat on {name} mat saw ships on the sea. " * 4
        )
    command = [
        "run",
        "--models",
        "mini-s",
        "--corpus",
        "texts/*.txt",
        "--formula",
        "log_norm ~ lag1",
        "--name",
        "one",
    ]
    assert main(command) == 0
    assert "Report: runs/one/report.html" in capsys.readouterr().out
    assert read_spec("runs/one/spec.toml").corpus == str(tmp_path / "texts" / "*.txt")
    carried = []
    monkeypatch.setattr("mechreg.run.run_spec", lambda spec, **_: carried.append(spec) or Path("runs/one"))
    assert main(command) == 0
    assert "runs/one is already complete" in capsys.readouterr().out
    (tmp_path / "texts" / "d.txt").write_text("Another text.")
    assert main(command) == 0
    assert len(carried) == 1
    assert main([*command[:-1], "two"]) == 0
    assert len(carried) == 2


@pytest.mark.slow  # test_readme runs a spec too
def test_run_from_a_spec_in_a_folder(tmp_path):
    (tmp_path / "a.txt").write_text("The first text is about a cat that sat on a mat all day. " * 4)
    (tmp_path / "b.txt").write_text("Another text, on the other hand, speaks of ships and of the sea. " * 4)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "spec.toml").write_text('name = "two"\nmodels = ["mini-s"]\ncorpus = "*.txt"\ncov = "hc1"\n')
    done = mechreg("run", "spec.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lag1" in done.stdout
    assert "within documents and positions" in done.stdout
    assert "This does not show an effect of context" in done.stdout
    assert "1 documents could not be used" in done.stdout
    folder = tmp_path / "runs" / "two"
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["models"][0]["name"] == "mini-s"
    assert "empty,empty" in (folder / "problems.csv").read_text()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_tells_speed_and_time_left_on_a_terminal_and_nothing_elsewhere(
    monkeypatch, texts, tmp_path, capfd
):
    command = [
        "intervene",
        "mini-s",
        "--corpus",
        str(texts),
        "--edit",
        "scale=2",
        "--layers",
        "0",
        "--documents",
    ]
    assert main([*command, "1"]) == 0
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main([*command, "8"]) == 0
    bars = sys.stderr.getvalue()
    assert re.search(r"\d%\|.*\[\d\d:\d\d<(\d\d:\d\d|\?), .*tok/s\]", bars), bars


def test_compare_says_the_verdict_and_writes_its_tables(run, tmp_path, capsys):
    out = tmp_path / "compared"
    command = ["compare", str(run), "--margin", "0.2", "--draws", "199", "--out", str(out)]
    assert main([*command, "--groups", "mini-s=s,mini-s-b=s"]) == 0
    said = capsys.readouterr().out
    norms = mr.extract_norms(["mini-s", "mini-s-b"], mr.read_spec(run / "spec.toml").corpus, progress=False)
    expected = mr.compare_profiles(
        mr.fit_lagged(mr.add_lags(norms)), margin=0.2, draws=199, groups={"mini-s": "s", "mini-s-b": "s"}
    )
    assert said.startswith("\n".join(expected.verdict))
    assert (out / "universality.txt").read_text() == "\n".join(expected.verdict) + "\n"
    for name, table in {"": expected.agreement, "_equivalence": expected.equivalence}.items():
        written = pd.read_csv(out / f"universality{name}.csv", keep_default_na=True)
        # The csv has every digit; its reader may lose the last.
        pd.testing.assert_series_equal(written["estimate"], table["estimate"], rtol=1e-12)
    assert (out / "figures" / "universality_profiles.svg").exists()


def test_what_compare_left_in_a_run_is_in_its_report(copied, tmp_path):
    assert main(["compare", str(copied), "--draws", "199"]) == 0
    assert main(["report", str(copied), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    first = (copied / "universality.txt").read_text().splitlines()[0]
    assert f"<li>{first}</li>" in page
    assert "lag1 of attn_out by relative depth, in 2 models" in page
    assert "Colour: group" not in page  # without groups a model has its own colour, after the csv as before
    assert "Concordance of lag1 profiles" in page


def test_compare_refuses_runs_that_cannot_be_compared(run, copied, tmp_path, capsys):
    def said(*arguments):
        assert main(["compare", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "with --out FOLDER" in said(run, copied)
    assert "The model 'mini-s' is in more than one of the runs" in said(run, copied, "--out", tmp_path / "x")
    assert "is not a run folder" in said(tmp_path)
    assert "--groups must be MODEL=GROUP" in said(run, "--groups", "mini-s")
    facts = json.loads((copied / "provenance.json").read_text())
    facts["corpus"]["sha256"] = "another"
    (copied / "provenance.json").write_text(json.dumps(facts))
    assert "differs from" in said(run, copied, "--out", tmp_path / "x")
    (shard,) = (copied / "norms" / "mini-s" / "attn_out").iterdir()
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "is damaged" in said(copied)
    shard.unlink()
    assert "is gone" in said(copied)
    assert not (tmp_path / "x").exists()


def test_intervene_prints_a_table_and_saves_what_the_function_gives(texts, tmp_path, capsys):
    out = tmp_path / "effects.csv"
    command = ["intervene", "mini-s", "--corpus", str(texts), "--documents", "2", "--layers", "0,2-3"]
    assert main([*command, "--edit", "scale=0,2", "--edit", "ablate=mean", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    documents = mr.read_corpus(str(texts)).head(2)
    edits = [mr.Scale(0.0), mr.Scale(2.0), mr.Ablate("mean")]
    expected = mr.intervene("mini-s", documents, edits, layers=[0, 2, 3], positions=1, progress=False)
    written = pd.read_csv(out)
    # The csv has every digit; its reader may lose the last.
    pd.testing.assert_series_equal(written["estimate"], expected["estimate"], rtol=1e-12)
    loss = expected.query("measure == 'loss' and edit == 'ablate_mean' and offset == -1 and layer == 2")
    assert f"{loss['estimate'].item():.4f}" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "effects.csv",
        "effects_scale.html",
        "effects_scale.svg",
    ]


def test_intervene_edits_the_heads_asked_for_and_patches_from_another_corpus(tmp_path, capsys):
    texts = {"asked.jsonl": ["The cat sat", "A dog ran"], "other.jsonl": ["The dog sat", "A cat ran"]}
    for name, lines in texts.items():
        pd.DataFrame({"text": lines}).to_json(tmp_path / name, orient="records", lines=True)
    asked, other = (str(tmp_path / name) for name in texts)
    command = ["intervene", "mini-s", "--corpus", asked, "--edit", f"patch={other}", "--positions", "all"]
    command += ["--hook", "z", "--layers", "1", "--heads", "0,2", "--out", str(tmp_path / "effects.csv")]
    assert main(command) == 0
    expected = mr.intervene(
        "mini-s",
        texts["asked.jsonl"],
        mr.Patch(texts["other.jsonl"]),
        hook="z",
        layers=1,
        heads=[0, 2],
        progress=False,
    )
    assert set(expected["head"]) == {0, 2}
    written = pd.read_csv(tmp_path / "effects.csv")
    # The csv has every digit; its reader may lose the last.
    pd.testing.assert_series_equal(written["estimate"], expected["estimate"], rtol=1e-12)
    longer = tmp_path / "longer.txt"
    longer.write_text("The dog sat down")
    command = ["intervene", "mini-s", "--corpus", asked, "--documents", "1", "--layers", "1", "--edit"]
    assert main([*command, f"patch={longer}"]) == 2
    assert "give prompts of equal length, or align='start' or 'end' (--align)" in capsys.readouterr().err
    assert main([*command, f"patch={longer}", "--align", "end"]) == 0
    scaled = ["intervene", "mini-s", "--corpus", asked, "--edit", "scale=0,2", "--hook", "z", "--layers", "1"]
    assert main([*scaled, "--heads", "0,2", "--out", str(tmp_path / "scaled.csv")]) == 0
    charts = sorted(path.name for path in tmp_path.glob("scaled*.svg"))
    assert charts == ["scaled_head0.svg", "scaled_head2.svg"]
    assert "z of head 2 scaled" in (tmp_path / "scaled_head2.svg").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["intervene", "mini-s", "--edit", "scale=2", "--heads", "0", "--documents", "1"]) == 2
    assert "heads= needs hook='z'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--edit", "patch="], "--edit must be scale=0.5"),
        (["--edit", "scale=2", "--heads", "first"], "--heads must be whole numbers"),
        (["--edit", "scale"], "--edit must be scale=0.5"),
        (["--edit", "double=2"], "--edit must be scale=0.5"),
        (["--edit", "scale=half"], "--edit must be scale=0.5"),
        (["--edit", "ablate=nothing"], "--edit must be scale=0.5"),
        (["--edit", "scale=2", "--layers", "last"], "--layers must be whole numbers"),
        (["--edit", "scale=2", "--documents", "0"], "--documents must be a whole number, 1 or more"),
        (["--edit", "scale=2", "--out", "effects.xlsx"], "--out must end in .csv or .parquet"),
    ],
)
def test_intervene_refuses_what_it_cannot_read(arguments, said, capsys):
    assert main(["intervene", "mini-s", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_diff_of_a_run_and_its_copy_finds_nothing(run, copied, capsys):
    assert main(["diff", str(run), str(copied)]) == 0
    assert capsys.readouterr().out == "No number moved.\n"


def test_diff_shows_what_moved_and_what_was_upgraded(run, copied, tmp_path, capsys):
    (copied / "_manifest.json").unlink()  # by which a table that was changed by hand is damaged
    table = pd.read_parquet(copied / "coefficients.parquet")
    at = table.index[(table["model"] == "mini-s-b") & (table["layer"] == 2) & (table["term"] == "lag2")][0]
    table.loc[at, "estimate"] += 3 * table.loc[at, "std_error"]
    table.to_parquet(copied / "coefficients.parquet")
    facts = json.loads((copied / "provenance.json").read_text())
    old = facts["packages"]["transformer-lens"]
    facts["packages"]["transformer-lens"] = "99.1"
    (copied / "provenance.json").write_text(json.dumps(facts))
    assert main(["diff", str(run), str(copied), "--out", str(tmp_path / "moved.csv")]) == 1
    said = capsys.readouterr().out
    assert re.search(r"estimate +1 +\S+ +3 +\S+ +mini-s-b attn_out layer 2 lag2\n", said)
    assert f"packages.transformer-lens: {old} -> 99.1" in said
    assert said.endswith("1 number moved.\n")
    moved = pd.read_csv(tmp_path / "moved.csv")
    assert moved["std_errors"].tolist() == [pytest.approx(3)]
    assert main(["diff", str(run), str(copied), "--within", "3.01"]) == 0
    assert main(["diff", str(run), str(tmp_path / "nowhere")]) == 2


def test_diff_names_a_model_of_one_run_once(run, copied, capsys):
    (copied / "_manifest.json").unlink()
    for name in ("coefficients.parquet", "statistics.csv"):
        table = store.files.read_table(copied / name)
        store.write_table(table[table["model"] != "mini-s-b"], copied / name)
    facts = json.loads((copied / "provenance.json").read_text())
    facts["models"] = [model for model in facts["models"] if model["name"] != "mini-s-b"]
    (copied / "provenance.json").write_text(json.dumps(facts))
    assert main(["diff", str(run), str(copied)]) == 1
    said = capsys.readouterr().out
    assert f"Provenance:\n  models.mini-s-b: in {run} only\n" in said
    assert said.count("mini-s-b") == 3  # in either table, and here
    assert re.search(r"\n0 numbers moved, [\d,]+ numbers in one run only\.\n$", said)


def complete(script: str, *words: str) -> list[str]:
    """Return what bash offers for the last of the words."""
    line = " ".join(map(shlex.quote, words))
    code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_mechreg; echo; "
    code += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_commands_models_and_options(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert complete(script, "mechreg", "comp") == ["compare", "completion"]
    assert complete(script, "mechreg", "inspect", "mini-s") == ["mini-s", "mini-s-b"]
    assert complete(script, "mechreg", "check", "mini-s", "--backend", "") == ["auto", "hooked", "bridge"]


@pytest.mark.parametrize("keep", ["norms", "moments"])
@pytest.mark.parametrize("more", ["surprisal", "layer_below"])
def test_compare_takes_runs_of_norms_and_of_sums_with_covariates_and_the_layer_below(
    texts, tmp_path, capsys, keep, more
):
    formula = f"log_norm ~ lag1 + {more}"
    spec = mr.Spec(models=("mini-s", "mini-s-b"), corpus=str(texts), formula=formula, keep=keep)
    folder = mr.run_spec(spec, out=tmp_path / "run", progress=False)
    assert main(["compare", str(folder), "--draws", "199"]) == 0
    n = 3 if more == "layer_below" else 4
    assert (
        f"lag1 of attn_out in 2 models: mini-s ({n} layers), mini-s-b ({n} layers)" in capsys.readouterr().out
    )
    expected = mr.open_run(folder).coefficients.query("term == 'lag1'")["estimate"]
    written = pd.read_csv(folder / "universality_profiles.csv")["estimate"]
    np.testing.assert_allclose(written, expected, rtol=1e-6)


def test_a_terminal_and_a_locale_of_ascii_hinder_no_verb(run, tmp_path):
    shutil.copytree(run, tmp_path / "ö")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "mechreg", "diff", "ö", str(run), "--out", "ä.csv"],
        cwd=tmp_path,
        env=os.environ | ascii_only,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"Table: \\xe4.csv\nNo number moved.\n"
    assert (tmp_path / "ä.csv").exists()


@pytest.mark.parametrize("command", [["completion", "bash"], []])
def test_a_closed_output_is_said_and_is_no_failure(command):
    shell = f"{shlex.join([sys.executable, '-m', 'mechreg', *command])} >&-"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True)
    said = "mechreg: standard output is closed; everything but printing was done.\n"
    assert (done.returncode, done.stderr) == (0, said)


@pytest.mark.parametrize(
    "raised", [BrokenPipeError(32, "Broken pipe"), ConnectionResetError(104, "reset by peer")]
)
def test_a_connection_that_breaks_off_is_neither_the_output_nor_the_disk(capsys, monkeypatch, raised):
    def broken(args):
        raise raised

    monkeypatch.setattr(cli, "_start", broken)
    assert main([]) == 2
    assert "a connection broke off" in capsys.readouterr().err
