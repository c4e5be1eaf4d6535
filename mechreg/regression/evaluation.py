"""A formula's evaluation: what it sees, the dtypes that patsy reads as what they are, and what a failure says."""

import ast
import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import patsy
import patsy.builtins
from patsy.categorical import guess_categorical

from mechreg.formulas import MAX_COLUMNS, names_in, spline_width
from mechreg.formulas.signatures import NUMPY, called, ufunc_signature
from mechreg.schema import InputError, NumericalError
from mechreg.words import first_line


def _category(data: Any, contrast: Any = None, levels: Any = None) -> Any:
    """Return patsy's mark of a category; levels that are whole numbers are then named 1, 2, not 1.0, 2.0."""
    if isinstance(data, pd.Series) and data.dtype == np.float64:
        whole = data.astype(np.int64) if (data.abs() < 2**53).all() else data
        data = whole if (whole == data).all() else data
    return patsy.builtins.C(data, contrast, levels)


# No Python integers come of these: a power of one can fill the memory.
_NAMES = {
    "np": SimpleNamespace(
        **{name: getattr(np, name) for name in dir(np) if name in NUMPY or ufunc_signature(name)}
    ),
    "C": _category,
    "abs": np.abs,
    "round": np.round,
    "min": np.min,
    "max": np.max,
    "sum": np.sum,
    "len": lambda x: np.float64(np.size(x)),
}
_LARGEST = 1e140  # the squares of a hundred million such numbers still sum without overflow


class _Environment(patsy.EvalEnvironment):
    """What a formula sees beside its columns and patsy's transforms; Python's builtins are not among it."""

    def eval(self, expr: str, source_name: str = "<string>", inner_namespace: Any = ()) -> Any:
        spaces = patsy.eval.VarLookupDict([inner_namespace or {}, *self._namespaces])
        code = compile(expr, source_name, "eval", self.flags, False)
        return eval(code, {"__builtins__": {}}, spaces)

    def subset(self, names: list[str]) -> "_Environment":
        return type(self)([{name: self.namespace[name] for name in names}], self.flags)


def environment() -> patsy.EvalEnvironment:
    """Return what a formula sees beside its columns: the listed functions, and no other name."""
    return _Environment([_NAMES])


def factors_of(model: patsy.ModelDesc) -> list[Any]:
    """Return the factors of both sides of a formula, each once."""
    terms = (*model.lhs_termlist, *model.rhs_termlist)
    return list(dict.fromkeys(factor for term in terms for factor in term.factors))


def learns(factor: Any) -> bool:
    """Return whether a factor learns from all rows before it has a value, as splines and centring do."""
    return factor.memorize_passes_needed({}, environment()) > 0


def value_of(factor: Any, data: pd.DataFrame) -> Any:
    """Return the value of a factor that learns nothing."""
    state: dict[str, Any] = {}
    factor.memorize_passes_needed(state, environment())
    return data[factor.code] if factor.code in data else factor.eval(state, data)


def require_narrow(formula: str, data: pd.DataFrame) -> None:
    """Refuse a design of too many columns, before patsy makes any of them."""
    model = patsy.ModelDesc.from_formula(formula)
    widths = {factor: _width(factor, data) for factor in factors_of(model)}
    columns = sum(math.prod(widths[factor] for factor in term.factors) for term in model.rhs_termlist)
    if max(columns, *widths.values()) > MAX_COLUMNS:
        widest = max(widths, key=lambda factor: widths[factor])
        raise InputError(
            f"its design has up to {max(columns, widths[widest]):,} columns, at most {MAX_COLUMNS:,} can be fitted; "
            f"{widest.code} alone gives {widths[widest]:,}; leave it out, or make fewer levels of it"
        )


def _width(factor: Any, data: pd.DataFrame) -> int:
    """Return how many columns a factor gives at most."""
    tree = ast.parse(factor.code, mode="eval").body
    if learns(factor) and called(tree) != "C":
        return spline_width(tree)
    if learns(factor):  # categories of something learned: no more levels than its columns have
        return max(int(data[name].nunique()) for name in names_in(factor.code))
    value = value_of(factor, data)
    if not guess_categorical(value):
        return 1
    if getattr(value, "levels", None) is not None:  # C(x, levels=[...])
        return len(value.levels)
    return pd.Series(value.data if hasattr(value, "contrast") else value).nunique()


def plain_column(column: pd.Series) -> pd.Series:
    """Return a column as a formula sees it: float64, bool, category (text too), else object."""
    kinds = pd.api.types
    if isinstance(column.dtype, pd.CategoricalDtype):
        # A level that only dropped rows had must not become a column of zeros.
        return column.cat.remove_unused_categories()
    column = column.infer_objects()  # patsy takes numbers held as objects for categories
    if kinds.infer_dtype(column, skipna=True) == "decimal":
        return column.astype(np.float64)
    if kinds.is_bool_dtype(column.dtype):
        return column.astype(bool)
    if kinds.is_complex_dtype(column.dtype):
        raise InputError(f"The column {column.name!r} holds complex numbers; make real ones, such as abs(x).")
    if kinds.is_numeric_dtype(column.dtype):
        return column.astype(np.float64)  # powers of int32 overflow, logarithms of float32 are rounded
    return column.astype("category" if kinds.infer_dtype(column) == "string" else object)


def require_finite(columns: Iterable[tuple[Any, Any]], *, where: str) -> None:
    """Refuse values that are infinite, or of which sums of squares would be."""
    for name, values in columns:
        largest = np.abs(np.asarray(values)).max(initial=0)
        if 0 < largest < 1 / _LARGEST:
            raise NumericalError(
                f"The regression needs numbers whose squares are not 0; {name!r} has values up to {largest:.1e} in "
                f"{where}; scale them up."
            )
        if not largest < _LARGEST:
            came = f"values up to {largest:.1e}, whose squares have no finite sum; scale them down"
            raise NumericalError(
                f"The regression needs finite numbers; {name!r} has "
                f"{came if np.isfinite(largest) else 'infinite values'} in {where}."
            )


def evaluate(build: Callable[[], Any], formula: str, *, where: str) -> Any:
    """Return what ``build`` gives, or say in which group the formula fails."""
    try:
        with np.errstate(all="ignore"):  # infinite and missing values are refused later
            return build()
    except NumericalError:
        raise
    except InputError as error:
        raise type(error)(f"The formula {formula!r} cannot be used in {where}: {error}.") from error
    except Exception as error:  # patsy's, numpy's, pandas'
        raise InputError(
            f"The formula {formula!r} fails in {where}: {first_line(error, root=True)}. (Functions that give missing "
            "values are refused: lags are columns, made by add_lags.)"
        ) from error
