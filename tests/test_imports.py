"""Imports go one way: who may import whom, what stays lazy, and how long the command line takes to start.

The table below is the design's. A busy machine makes a single process late, so one of five fresh ones must be within
the limit; the limits are the design's promises, 1 s for ``import mechreg`` and 0.7 s for ``mechreg --help``.
"""

import ast
import functools
import subprocess
import sys
import time
from pathlib import Path

import pytest
from public import ROOM_OF

import mechreg

PACKAGE = Path(mechreg.__file__).parent
LINES = 400

# In the order of the street: a module never imports one that stands below it.
MAY_IMPORT: dict[str, set[str]] = {
    "schema": set(),
    "outside": set(),
    "words": set(),
    "miniatures": set(),
    "frames": {"schema"},
    "formulas": {"schema"},
    "sinks": {"schema"},
    "spec": {"schema", "formulas", "sinks"},
    "models": {"schema", "miniatures"},
    "corpus": {"schema", "miniatures", "models"},
    "forward": {"schema", "models"},
    "norms": {"schema", "frames", "models", "corpus", "forward"},
    "check": {"schema", "models", "corpus", "forward", "norms"},
    "lags": {"schema", "sinks"},
    "regression": {"schema", "formulas", "lags"},
    "robustness": {"schema", "corpus", "lags", "regression", "formulas"},
    "universality": {"schema", "lags", "regression"},
    "interventions": {"schema", "models", "corpus", "forward", "norms", "regression"},
}
MAY_IMPORT["nulls"] = set(MAY_IMPORT)
MAY_IMPORT["findings"] = set(MAY_IMPORT)
MAY_IMPORT["charts"] = {"schema", "sinks"}
MAY_IMPORT["store"] = {"schema", "spec", "frames"}
MAY_IMPORT["diff"] = {"schema", "store"}
MAY_IMPORT["report"] = {"schema", "charts", "store", "lags"}
MAY_IMPORT["run"] = set(MAY_IMPORT)
MAY_IMPORT["cluster"] = {"schema", "spec", "run"}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
MAY_IMPORT["__main__"] = {"cli"}
for module, allowed in MAY_IMPORT.items():
    if module not in ("schema", "outside", "words", "miniatures", "__main__"):
        allowed |= {
            "outside",
            "words",
        }  # what makes a string from outside safe, and what sentences are made of
MAY_IMPORT["__init__"] = {"schema"}  # to suggest a name; public names are loaded by name, on first use

NEED_ONLY_FRAMES = (
    "schema", "outside", "words", "frames", "formulas", "sinks", "spec", "lags", "regression", "robustness",
    "universality", "charts", "report", "store",
)  # fmt: skip
KNOW_MODELS = {"torch", "transformers", "transformer_lens", "datasets", "tokenizers"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path, package: Path = PACKAGE) -> str:
    """Return the module of the design that a file belongs to: a folder is one module."""
    return path.relative_to(package).parts[0].removesuffix(".py")


@functools.cache
def imports_of(path: Path, package: Path = PACKAGE) -> set[str]:
    """Return the dotted names that a file imports anywhere in it, also inside functions."""
    here = ["mechreg", *path.relative_to(package).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = here[: -node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def ours_of(path: Path, package: Path = PACKAGE) -> set[str]:
    """Return the modules of ours that a file imports; a public name counts as the module that has it."""
    names = {name.split(".")[1] for name in imports_of(path, package) if name.startswith("mechreg.")}
    return {ROOM_OF.get(name, name) for name in names} - {"__version__"}


def wrong_imports(path: Path, package: Path = PACKAGE) -> set[str]:
    module = module_of(path, package)
    return ours_of(path, package) - MAY_IMPORT[module] - {module}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_the_table_itself_goes_one_way():
    order = list(MAY_IMPORT)
    for module, allowed in MAY_IMPORT.items():
        assert allowed <= set(order[: order.index(module)])


def test_a_module_imports_only_what_the_table_allows():
    assert {relative(path) for path in FILES if module_of(path) not in MAY_IMPORT} == set()
    assert {relative(path): wrong for path in FILES if (wrong := wrong_imports(path))} == {}


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("charts.py", "from mechreg.regression import fit_lagged", {"regression"}),
        ("charts/bars.py", "from mechreg import regression", {"regression"}),
        ("charts/bars.py", "from ..regression import fit_lagged", {"regression"}),
        (
            "charts/bars.py",
            "from .theme import INK\nfrom . import theme\nfrom mechreg.charts import theme",
            set(),
        ),
        ("charts.py", "from mechreg import fit_lagged", {"regression"}),
        ("charts.py", "import mechreg.regression", {"regression"}),
        ("charts.py", "def plot():\n    from .regression import fit_lagged", {"regression"}),
        ("charts.py", "from mechreg.schema import require\nfrom mechreg import __version__", set()),
        ("schema.py", "from mechreg import lags", {"lags"}),
        ("__init__.py", "from mechreg.lags import add_lags", {"lags"}),
        ("cluster.py", "from mechreg.run import run\nfrom mechreg.store import open_run", {"store"}),
    ],
)
def test_an_import_against_the_street_would_be_seen(file, line, wrong, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    assert wrong_imports(path, tmp_path) == wrong


def test_only_models_imports_transformer_lens():
    users = {
        module_of(path)
        for path in FILES
        if any(n.split(".")[0] == "transformer_lens" for n in imports_of(path))
    }
    assert users == {"models"}


def test_a_step_that_needs_only_a_frame_knows_no_models():
    of_frames = [path for path in FILES if module_of(path) in NEED_ONLY_FRAMES]
    loaded = {relative(path): {name.split(".")[0] for name in imports_of(path)} for path in of_frames}
    assert {name: wrong for name, packages in loaded.items() if (wrong := packages & KNOW_MODELS)} == {}


def test_no_module_is_named_after_nothing():
    names = {part.removesuffix(".py") for path in FILES for part in path.relative_to(PACKAGE).parts}
    assert names & {"utils", "util", "helpers", "helper", "common", "misc", "shared", "tools"} == set()


def test_a_module_stays_short_enough_to_be_read():
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    too_long = {name: count for name, count in lines.items() if count > LINES}
    assert too_long == {}, "make it a folder of the same name, split by idea"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"no 'fit_lag'\. Did you mean 'fit_lagged'"):
        _ = mechreg.fit_lag
    assert not hasattr(mechreg, "__path_of_nothing__")
    assert set(ROOM_OF) <= set(dir(mechreg)) <= set(mechreg.__all__)


def loaded_by(statement: str) -> set[str]:
    """Return the top-level packages that a fresh Python has loaded after a statement."""
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_mechreg_loads_nothing_heavy():
    loaded = loaded_by("import mechreg")
    assert "mechreg" in loaded
    heavy = KNOW_MODELS | {"statsmodels", "pandas", "numpy", "scipy", "altair", "pyarrow", "vl_convert"}
    assert loaded & heavy == set()


def test_steps_that_need_only_frames_load_no_models():
    there = [
        name for name in NEED_ONLY_FRAMES if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
    ]
    assert {"schema", "spec", "lags"} <= set(there)
    assert loaded_by("import " + ", ".join(f"mechreg.{name}" for name in there)) & KNOW_MODELS == set()


def test_reading_texts_loads_no_models():
    statement = "import mechreg\nmechreg.read_corpus(['A text.'])"
    assert loaded_by(statement) & KNOW_MODELS == set()


def one_of_five_within(seconds: float, *command: str) -> bool:
    """Return whether one of at most five runs of a command ends within the time."""
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        if time.perf_counter() - began < seconds:
            return True
    return False


def test_import_mechreg_takes_less_than_a_second():
    assert one_of_five_within(1.0, sys.executable, "-c", "import mechreg")


def test_help_takes_less_than_seven_tenths_of_a_second():
    assert one_of_five_within(0.7, sys.executable, "-m", "mechreg", "--help")


INSTALLED = Path(sys.executable).parent / "mechreg"


@pytest.mark.skipif(not INSTALLED.exists(), reason="the package is not installed beside this Python")
def test_help_of_the_installed_command_takes_no_longer():
    assert one_of_five_within(0.7, str(INSTALLED), "--help")
