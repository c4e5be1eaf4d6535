"""What a user's type checker sees of the package: a misspelt name is an error, a right one has a type."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from public import ROOM_OF

import mechreg

SCRIPT = """import mechreg as mr

reveal_type(mr.load_model("mini-s"))
mr.fit_laged(1)
"""


def test_the_stub_names_what_the_package_has():
    for name, room in ROOM_OF.items():
        assert getattr(mechreg, name) is getattr(importlib.import_module(f"mechreg.{room}"), name)
    assert set(ROOM_OF) <= set(mechreg.__all__)


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
