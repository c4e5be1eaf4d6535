"""Formulas are data: the expressions that one may hold, checked node by node, and the columns that it uses.

patsy evaluates a formula's factors as Python, and a formula may come in a spec from elsewhere. So every node of a
factor's syntax tree has to be on the list below; what is not listed is refused before anything is evaluated.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import patsy
from patsy.parse_formula import parse_formula

from mechreg.formulas.signatures import (
    CONTRASTS,
    FUNCTIONS,
    MAX_COLUMNS,
    METHODS,
    MULTIPLE,
    NUMPY,
    ONE_NUMBER,
    called,
    spline_width,
    ufunc_signature,
)
from mechreg.schema import InputError, did_you_mean
from mechreg.words import first_line

_MAX_TERMS = 4_000  # of patsy's term algebra, before equal ones are united
_MAX_LENGTH = 20_000  # characters
_MOST = 100  # degrees of freedom, knots

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}  # fmt: skip
_OF_TRUTH = (ast.BitAnd, ast.BitOr, ast.BitXor, ast.Invert)
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def formula_columns(formula: str) -> tuple[str, ...]:
    """Return the names of the frame's columns that a formula uses, in order of appearance.

    A formula holds columns, numbers, arithmetic, comparisons, ``& | ~``, ``Q('a name')`` and calls of the functions
    and methods listed in this module, with the arguments listed there. It is checked, never evaluated, here.

    Examples
    --------
    >>> formula_columns("log_norm ~ lag1 * C(source, Sum) + bs(position, df=4) + np.log(surprisal)")
    ('log_norm', 'lag1', 'source', 'position', 'surprisal')
    """
    hint = "write it like 'log_norm ~ lag1 + lag2'"
    if not isinstance(formula, str):
        raise InputError(f"A formula is text; got {formula!r}; {hint}.")
    if len(formula) > _MAX_LENGTH:
        raise InputError(f"A formula has at most {_MAX_LENGTH:,} characters; this one has {len(formula):,}.")
    try:
        tree = parse_formula(formula)
        _count_terms(tree, formula)
        parsed = patsy.ModelDesc.from_formula(formula)
        outcome, terms = parsed.lhs_termlist, parsed.rhs_termlist
        codes = dict.fromkeys(factor.code for term in (*outcome, *terms) for factor in term.factors)
        trees = [ast.parse(code, mode="eval").body for code in codes]
        names = dict.fromkeys(name for tree in trees for name in _Reader(formula, tree).names)
    except InputError:
        raise
    except (RecursionError, MemoryError) as error:
        raise InputError(
            f"The formula {formula[:60]!r}... cannot be read: it has too many terms or is nested too deeply."
        ) from error
    except Exception as error:  # patsy's own, or Python's where a factor is no expression
        raise InputError(
            f"The formula {formula!r} cannot be read: {first_line(error, root=True)}; {hint}."
        ) from error
    if len(outcome) != 1 or len(outcome[0].factors) != 1 or not terms:
        raise InputError(f"The formula {formula!r} needs one outcome and at least one term; {hint}.")
    return tuple(names)


def _count_terms(tree: Any, formula: str) -> int:
    """Return how many terms patsy will make of a formula's syntax tree, or refuse too many before it does."""
    if tree.type == "**":
        base, count = _count_terms(tree.args[0], formula), 0
        if base == 1:
            raise InputError(f"The formula {formula[:200]!r} has a power of one term; write I(x**2).")
        exponent = str(tree.args[1].token.extra) if tree.args[1].type in ("ONE", "NUMBER") else ""
        most = int(exponent) if exponent.isdecimal() and len(exponent) < 10 else _MAX_TERMS
        for power in range(1, min(base, most) + 1):
            count += base**power
            if count > _MAX_TERMS:
                break
    else:
        counts = [_count_terms(part, formula) for part in tree.args]
        count = sum(counts) if counts else 1
        if tree.type in (":", "*"):
            count = math.prod(counts) + (count if tree.type == "*" else 0)
    if count > _MAX_TERMS:
        raise InputError(
            f"The formula {formula[:200]!r} has more than {_MAX_TERMS:,} terms once its '*', ':' and '**' are "
            "multiplied out; name the terms that you need."
        )
    return count


class _Reader:
    """Checks one factor of a formula and collects its columns' names."""

    def __init__(self, formula: str, factor: ast.expr) -> None:
        self.formula = formula
        self.names: dict[str, None] = {}
        self._factor(factor)
        if not _is_by_row(factor):
            raise self._refused(
                factor, "is a single number; write something with a value in each row, like I(x - x.mean())"
            )

    def _factor(self, node: ast.expr) -> None:
        """Check what stands between the formula's own operators: a transform of any width, or a number."""
        name = called(node)
        if name == "te":
            self._te(node)  # type: ignore[arg-type]
        elif name in MULTIPLE:
            self._call(node, name, FUNCTIONS[name])  # type: ignore[arg-type]
        else:
            self.number(node)

    def number(self, node: ast.expr) -> None:
        """Check an expression of columns and numbers."""
        match node:
            case ast.Constant():
                self.constant(node)
            case ast.Name():
                self._name(node.id, node)
            case ast.BinOp() if isinstance(node.op, (*_OPERATORS, *_OF_TRUTH)):
                self.number(node.left)
                self.number(node.right)
                self._folded(node)
            case ast.UnaryOp() if isinstance(node.op, (*_OPERATORS, *_OF_TRUTH)):
                self.number(node.operand)
            case ast.Compare(ops=[op]) if isinstance(op, _COMPARISONS):
                allowed = self.choice if isinstance(op, ast.Eq | ast.NotEq) else self.number
                for side in (node.left, *node.comparators):
                    allowed(side)
            case ast.Compare(ops=[_, _, *_]) | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                raise self._refused(node, "has no single truth value; write & | ~: (0 < x) & ~(x > 5)")
            case ast.Call():
                self._any_call(node)
            case _:
                raise self._refused(node)

    def choice(self, node: ast.expr) -> None:
        """Check an expression, or a plain string."""
        if not _is(node, str):
            self.number(node)

    def constant(self, node: ast.expr) -> None:
        if self._folded(node) is None:
            raise self._refused(node, "" if isinstance(node, ast.Constant) else "must be a literal number")

    def whole(self, node: ast.expr) -> None:
        if not re.fullmatch(rf"\d\d?|{_MOST}", ast.unparse(node)):
            raise self._refused(node, f"must be a whole number from 0 to {_MOST}")

    def decimals(self, node: ast.expr) -> None:
        if not re.fullmatch(r"-?\d\d?", ast.unparse(node)):
            raise self._refused(node, "must be a whole number")

    def flag(self, node: ast.expr) -> None:
        if not _is(node, bool):
            raise self._refused(node, "must be True or False")

    def share(self, node: ast.expr, most: int = 1) -> None:
        self.constant(node)
        if not 0 <= _value_of(node) <= most:
            raise self._refused(node, f"must be between 0 and {most}")

    def percent(self, node: ast.expr) -> None:
        self.share(node, 100)

    def value(self, node: ast.expr) -> None:
        if not _is(node, str, bool):
            self.constant(node)

    def values(self, node: ast.expr) -> None:
        for entry in self._entries(node):
            self.value(entry)

    def numbers(self, node: ast.expr) -> None:
        for entry in self._entries(node):
            self.constant(entry)

    def knots(self, node: ast.expr) -> None:
        if len(self._entries(node)) > _MOST:
            raise self._refused(node, f"must have at most {_MOST} entries")
        self.numbers(node)

    def contrast(self, node: ast.expr) -> None:
        """Check a contrast's name, a call of it, or a matrix of numbers."""
        if isinstance(node, ast.List):
            for row in node.elts:
                self.numbers(row)
            return
        name = node.func if isinstance(node, ast.Call) else node
        if not isinstance(name, ast.Name) or name.id not in CONTRASTS:
            raise self._refused(node, f"must be one of {', '.join(CONTRASTS)}")
        if isinstance(node, ast.Call):
            self._call(node, name.id, CONTRASTS[name.id])

    def _entries(self, node: ast.expr) -> list[ast.expr]:
        if not isinstance(node, ast.List | ast.Tuple):
            raise self._refused(node, "must be a list of literal numbers or strings")
        return node.elts

    def _name(self, name: str, node: ast.expr) -> None:
        if name.startswith("__") or name == "np" or not name:
            raise self._refused(node, "is not a column name")
        self.names[name] = None

    def _folded(self, node: ast.expr) -> float | None:
        """Return the value of an expression of numbers alone; one that no double holds is refused."""
        try:
            value = _value_of(node)
        except (ArithmeticError, ValueError) as error:
            raise self._refused(node, f"is not a number that fits in double precision ({error})") from error
        if value is not None and (isinstance(value, complex) or not math.isfinite(value)):
            raise self._refused(node, "is not a number that fits in double precision")
        return value

    def _any_call(self, node: ast.Call) -> None:
        """Check a call of a function, of numpy's, or of a column's method."""
        function = node.func
        if isinstance(function, ast.Attribute):
            if isinstance(function.value, ast.Name) and function.value.id == "np":
                signature = NUMPY.get(function.attr) or ufunc_signature(function.attr)
                if signature is None:
                    raise self._refused(function)
                return self._call(node, ast.unparse(function), signature)
            if function.attr in ("shift", "diff"):
                raise self._refused(node, "gives missing values; lags are columns, made by add_lags")
            if function.attr not in METHODS or _value_of(function.value) is not None:
                raise self._refused(function)
            self.number(function.value)
            return self._call(node, function.attr, METHODS[function.attr])
        name = ast.unparse(function)
        if name == "Q":
            return self._quoted(node)
        if name in MULTIPLE:
            raise self._refused(node, f"has {name}() inside something else; it stands alone, between + * :")
        if name not in FUNCTIONS:
            hint = did_you_mean(name, FUNCTIONS)
            raise InputError(
                f"The formula {self.formula!r} calls {name!r}, which is not known; write np.{name} if it is "
                f"numpy's, or use one of Q, te, {', '.join(FUNCTIONS)}; for anything else add a column to the "
                f"frame first.{hint}"
            )
        return self._call(node, name, FUNCTIONS[name])

    def _call(self, node: ast.Call, name: str, signature: str) -> None:
        """Check the arguments of a call against its signature."""
        slots = dict(slot.split(":") for slot in signature.split())
        by_place = [slot for slot in slots if not slot.startswith("=")]
        given = list(zip(by_place, node.args, strict=False))
        for keyword in node.keywords:
            slot = f"={keyword.arg}" if f"={keyword.arg}" in slots else str(keyword.arg)
            given.append((slot, keyword.value))
        names = [slot for slot, _ in given]
        needed = {slot for slot, kind in slots.items() if not kind.endswith("?")}
        fits = (
            len(node.args) <= len(by_place)
            and len(set(names)) == len(names)
            and needed <= set(names) <= set(slots)
        )
        if not fits or any(isinstance(argument, ast.Starred) for argument in node.args):
            wanted = ", ".join(f"[{slot}]" if kind.endswith("?") else slot for slot, kind in slots.items())
            raise self._refused(node, f"does not fit {name}({wanted.replace('=', '')})")
        for slot, argument in given:
            if not (slots[slot].endswith("?") and _is(argument, type(None))):
                self._argument(argument, slots[slot].rstrip("?"))

    def _argument(self, node: ast.expr, kind: str) -> None:
        words = kind.strip("'").split("|")
        if not kind.startswith("'"):
            getattr(self, kind)(node)
        elif not _is(node, str) or ast.literal_eval(node) not in words:
            raise self._refused(node, f"must be {' or '.join(map(repr, words))}")

    def _quoted(self, node: ast.Call) -> None:
        match node:
            case ast.Call(args=[ast.Constant(value=str(name))], keywords=[]):
                self._name(name, node)
            case _:
                raise self._refused(node, "takes one column's name: Q('a name with spaces')")

    def _te(self, node: ast.Call) -> None:
        """Check a tensor product of splines: as many columns as the product of theirs."""
        fits = all(word.arg == "constraints" and _is(word.value, str) for word in node.keywords)
        if not node.args or not fits or any(called(part) not in ("bs", "cr", "cc") for part in node.args):
            raise self._refused(node, "does not fit te(spline, ..., [constraints]), with bs(), cr() or cc()")
        for spline in node.args:
            self._factor(spline)
        if spline_width(node) > MAX_COLUMNS:
            raise self._refused(node, f"gives more than {MAX_COLUMNS:,} columns; lower the splines' df")

    def _refused(self, node: ast.AST, why: str = "") -> InputError:
        why = why or (
            "is not among what a formula may hold: columns, numbers, arithmetic, comparisons, numpy's element-wise "
            "functions (np.log, np.sqrt, ...) and summaries such as np.mean; for anything else add a column to the "
            "frame first"
        )
        code = ast.unparse(node)
        code = code if len(code) <= 80 else f"{code[:77]}..."
        return InputError(f"The formula {self.formula[:200]!r} uses {code!r}, which {why}.")


def names_in(factor: str) -> tuple[str, ...]:
    """Return the columns that a factor uses."""
    return tuple(_Reader(factor, ast.parse(factor, mode="eval").body).names)


def _is_by_row(node: ast.AST) -> bool:
    """Return whether an expression has a value of its own in every row."""
    if isinstance(node, ast.Name):
        return True
    if not isinstance(node, ast.Call):
        return any(map(_is_by_row, ast.iter_child_nodes(node)))
    method, given = called(node), [*node.args, *(word.value for word in node.keywords)]
    if isinstance(node.func, ast.Attribute):
        method = node.func.attr
        if ast.unparse(node.func.value) != "np":
            given.append(node.func.value)
    return method == "Q" or (method not in ONE_NUMBER and any(map(_is_by_row, given)))


def _is(node: ast.expr, *kinds: type) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in kinds


def _value_of(node: ast.expr) -> Any:
    """Return the value of an expression of numbers alone, computed in double precision, else None."""
    match node:
        case ast.Constant(value=bool()) | ast.Constant(value=str()):
            return None
        case ast.Constant(value=int() | float()):
            return float(node.value)  # type: ignore[arg-type]
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            value = _value_of(node.operand)
            return None if value is None else _OPERATORS[type(node.op)](value)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            sides = _value_of(node.left), _value_of(node.right)
            return None if None in sides else _OPERATORS[type(node.op)](*sides)
    return None
