"""Every command and every snippet of the README runs, in an empty folder, as a reader would run it."""

import re
import shlex
from pathlib import Path

import pytest

from mechreg.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_python_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    assert len(blocks("python")) == 1
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), names)
    assert (tmp_path / "figures" / "betas.png").exists()


def test_the_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (spec,) = blocks("toml")
    (tmp_path / "spec.toml").write_text(spec)
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("mechreg ")]
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(command, comments=True)[1:]) == 0, command


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_make_targets_are_there(target):
    assert re.search(rf"^make {target}\b", "\n".join(blocks("sh")), flags=re.MULTILINE)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_every_file_that_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert local
    for link in local:
        assert (ROOT / link).exists(), link
