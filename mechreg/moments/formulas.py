"""Formulas: the columns they use, the dtypes in which patsy reads these, and what a formula's failure says."""

import ast
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import patsy
import patsy.builtins

from mechreg.schema import InputError

# A formula may come in a spec from elsewhere, and patsy evaluates it as Python. So all that it may call is patsy's
# functions and what computes on columns: none of these opens a file or runs a command.
# fmt: off
_SUMMARIES = ("min", "max", "sum", "mean", "median", "std", "var", "quantile", "cumsum", "diff", "round", "clip")
_FUNCTIONS = (*patsy.builtins.__all__, "abs", "round", "min", "max", "sum", "len", "int", "float", "bool", "str")
# fmt: on
_METHODS = (*_SUMMARIES, "abs", "rank", "shift", "astype", "isin")
_NUMPY = (*_SUMMARIES, "where", "isin", "percentile", "digitize", "searchsorted")  # and its element-wise ones
_CONTRASTS = ("Treatment", "Sum", "Poly", "Helmert", "Diff")  # named without a call: C(source, Sum)


def formula_columns(formula: str) -> tuple[str, ...]:
    """Return the names of the frame's columns that a formula uses, in order of appearance.

    Raises
    ------
    InputError
        The formula cannot be parsed, has not exactly one outcome, or calls a function that is not known: only
        patsy's, and those of numpy and pandas that compute on columns, so that no formula runs a command.

    Examples
    --------
    >>> formula_columns("log_norm ~ lag1 * C(source, Sum) + bs(position, df=4) + np.log(surprisal)")
    ('log_norm', 'lag1', 'source', 'position', 'surprisal')
    """
    example = "write it like 'log_norm ~ lag1 + lag2'"
    try:
        parsed = patsy.ModelDesc.from_formula(formula)
        outcome, terms = parsed.lhs_termlist, parsed.rhs_termlist
        codes = [factor.code for term in (*outcome, *terms) for factor in term.factors]
        trees = [ast.parse(code, mode="eval") for code in codes]
    except Exception as error:  # patsy's own, or Python's where a factor is no expression
        raise InputError(
            f"The formula {formula!r} cannot be read: {first_line(error)}; {example}."
        ) from error
    if len(outcome) != 1 or len(outcome[0].factors) != 1 or not terms:
        raise InputError(f"The formula {formula!r} needs one outcome and at least one term; {example}.")
    names: dict[str, None] = {}
    for tree in trees:
        _require_known_functions(tree, formula)
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Name) or node.id in ("np", *_CONTRASTS):
                continue
            if id(node) not in calls:
                names[node.id] = None
            elif node.id == "Q":  # Q('a name with spaces')
                names |= {
                    str(arg.value): None for arg in calls[id(node)].args if isinstance(arg, ast.Constant)
                }
    return tuple(names)


def _require_known_functions(tree: ast.AST, formula: str) -> None:
    """Check that an expression calls, and takes attributes of, nothing but what computes on columns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_numpy = isinstance(node.value, ast.Name) and node.value.id == "np"
            is_ufunc = of_numpy and isinstance(getattr(np, node.attr, None), np.ufunc)
            if not is_ufunc and node.attr not in (_NUMPY if of_numpy else _METHODS):
                raise InputError(
                    f"The formula {formula!r} uses {ast.unparse(node)!r}, which is not among what a formula may "
                    "call: numpy's element-wise functions (np.log, np.sqrt, ...) and summaries such as np.mean; "
                    "for anything else add a column to the frame first."
                )
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            if name not in _FUNCTIONS:
                raise InputError(
                    f"The formula {formula!r} calls {name!r}, which is not known; write np.{name} if it is "
                    f"numpy's, or use one of {', '.join(patsy.builtins.__all__)}."
                )


def plain_column(column: pd.Series, name: str, formula: str) -> pd.Series:
    """Return a column in the dtype that patsy reads as what it is: float64, bool, category, else object."""
    kinds = pd.api.types
    if isinstance(column.dtype, pd.CategoricalDtype):
        # A level that only dropped rows had must not become a column of zeros.
        return column.cat.remove_unused_categories()
    column = column.infer_objects()  # patsy takes numbers held as objects for categories
    if kinds.infer_dtype(column, skipna=True) == "decimal":
        return column.astype(np.float64)
    if kinds.is_bool_dtype(column.dtype):
        return column.astype(bool)
    if kinds.is_integer_dtype(column.dtype) and re.search(rf"\bC\(\s*{re.escape(name)}\b", formula):
        return column.astype(np.int64)  # levels are then named 1, 2, not 1.0, 2.0
    if kinds.is_numeric_dtype(column.dtype):
        return column.astype(np.float64)  # powers of int32 overflow, logarithms of float32 are rounded
    return column.astype(object)


def evaluate(build: Callable[[], Any], formula: str, *, where: str) -> Any:
    """Return what ``build`` gives, or say in which group the formula fails."""
    try:
        with np.errstate(all="ignore"):  # what comes of it is refused
            return build()
    except InputError as error:
        raise InputError(f"The formula {formula!r} cannot be used in {where}: {error}.") from error
    except Exception as error:  # a formula calls any function, which may raise anything
        raise InputError(
            f"The formula {formula!r} fails in {where}: {first_line(error)}. (Functions that give missing values, "
            "like shift, are refused: lags are columns, made by add_lags.)"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of what went wrong in the first place."""
    while error.__cause__ is not None:  # statsmodels and patsy wrap what the function itself says
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
