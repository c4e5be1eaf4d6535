"""What the tests and the examples in docstrings share: checks of types that cost little, and runs without pictures."""

import contextlib
import functools
import gc
import importlib
import inspect
import os
import sys
import typing

import jaxtyping
import pytest
from beartype import BeartypeConf, beartype

# Tests start dozens of processes; where Python is told to write no bytecode each would compile the package again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_by_shape = jaxtyping.jaxtyped  # what --jaxtyping-packages puts around every function of the package
_by_kind = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_closures: set = set()  # those checked already


def has_shapes(hint) -> bool:
    """Return whether a type has axes that jaxtyping must compare, or is a name that it reads better than beartype."""
    if isinstance(hint, str | typing.ForwardRef):
        return True
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(has_shapes(part) for part in typing.get_args(hint))


def checked(function=None, *, typechecker):
    """Return a function whose types are checked, by jaxtyping where they have shapes: a call then costs ten times more.

    A function within a function is made anew at every call; the first of its kind is checked.
    """
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if inspect.isclass(function):
        return _by_shape(function, typechecker=typechecker)
    if "<locals>" in function.__qualname__:
        if function.__code__ in _closures:
            return function
        _closures.add(function.__code__)
    if any(map(has_shapes, function.__annotations__.values())):
        return _by_shape(function, typechecker=typechecker)
    by_kind = _by_kind(function)

    @functools.wraps(function)
    def wrapped(*args, **options):
        return (function if jaxtyping.config.jaxtyping_disable else by_kind)(*args, **options)

    return wrapped


jaxtyping.jaxtyped = checked


@contextlib.contextmanager
def no_pictures():
    """Runs make no figures and no page: these have tests of their own, and take most of a short run's time."""
    carry_out = importlib.import_module("mechreg.run.carry_out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carry_out, "begin_drawing", lambda: None)
        patch.setattr(carry_out, "draw_figures", lambda *args, **options: None)
        patch.setattr(carry_out, "run_report", lambda folder: "")
        yield


@pytest.fixture(scope="module")
def without_pictures():
    """No run of the module makes pictures."""
    with no_pictures():
        yield


@pytest.fixture
def pictureless():
    """No run of the test makes pictures."""
    with no_pictures():
        yield


@pytest.fixture(autouse=True)
def _examples_draw_nothing(request):
    """Runs in the examples of docstrings make no pictures either."""
    with no_pictures() if isinstance(request.node, pytest.DoctestItem) else contextlib.nullcontext():
        yield


def pytest_collection_finish(session):
    """What was imported and collected stays: without it a collection of garbage takes no time, not half a second."""
    gc.collect()
    gc.freeze()
