"""What a user's type checker sees of the package, and that these tests check types and shapes as they run."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from public import ROOM_OF

import mechreg
from mechreg.norms import vector_norms
from mechreg.outside import for_terminal

SCRIPT = """import mechreg as mr

reveal_type(mr.load_model("mini-s"))
mr.fit_laged(1)
"""


def test_the_stub_names_what_the_package_has():
    for name, room in ROOM_OF.items():
        assert getattr(mechreg, name) is getattr(importlib.import_module(f"mechreg.{room}"), name)
    assert set(ROOM_OF) <= set(mechreg.__all__)


@pytest.mark.parametrize(
    "call", [lambda: for_terminal("a", lines=3), lambda: vector_norms(torch.zeros(2, 3))]
)
def test_a_wrong_kind_and_a_wrong_shape_are_seen_while_the_tests_run(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


@pytest.mark.slow
def test_mypy_sees_a_misspelt_name_and_what_a_call_returns(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--cache-dir", ".cache", "script.py"],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(Path(mechreg.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert 'Revealed type is "mechreg.models.protocol.Model"' in done.stdout, done.stdout + done.stderr
    assert 'has no attribute "fit_laged"; maybe "fit_lagged"?' in done.stdout
