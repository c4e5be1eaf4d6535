"""Signatures: the functions and methods that a formula may call, and what each may be given."""

import ast
import math

import numpy as np

MAX_COLUMNS = 2_000  # of a design: its products are then 32 MB

CONTRASTS = {
    "Treatment": "reference:value?",
    "Sum": "omit:value?",
    "Poly": "scores:numbers?",
    "Helmert": "",
    "Diff": "",
}
_SPLINE = "x:number df:whole? knots:knots?"
_BOUNDS = "lower_bound:constant? upper_bound:constant?"
# The parameters in their order and what each may be, a method of _Reader or a list of words. <x> is given by place, =x
# by name alone; those with "?" may be left out.
_SUMMARIES = {
    **dict.fromkeys(("min", "max", "sum", "mean", "median", "cumsum"), ""),
    **dict.fromkeys(("std", "var"), "=ddof:whole?"),
    "quantile": "q:share",
    "round": "decimals:decimals?",
}
FUNCTIONS = {
    "I": "x:number",
    "C": "data:number contrast:contrast? levels:values?",
    "center": "x:number",
    **dict.fromkeys(("standardize", "scale"), "x:number center:flag? rescale:flag? ddof:whole?"),
    "bs": f"{_SPLINE} degree:whole? include_intercept:flag? {_BOUNDS}",
    **dict.fromkeys(("cr", "cc"), f"{_SPLINE} {_BOUNDS} constraints:'center'?"),
    **dict.fromkeys(("abs", "min", "max", "sum", "len"), "<x>:number"),
    "round": "<x>:number decimals:decimals?",
}
METHODS = {
    **_SUMMARIES,
    "clip": "lower:number? upper:number?",
    "abs": "",
    "rank": "=method:'average|min|max|first|dense'? =ascending:flag? =pct:flag?",
    "astype": "dtype:'float|float64|bool'",
    "isin": "values:values",
}
NUMPY = {
    **{name: f"a:number {rest}" for name, rest in _SUMMARIES.items()},
    "percentile": "a:number q:percent",
    "clip": "a:number a_min:number? a_max:number?",
    "where": "<condition>:number <x>:choice <y>:choice",
    "isin": "element:number test_elements:values",
    "digitize": "x:number bins:numbers right:flag?",
    "searchsorted": "a:numbers v:number side:'left|right'?",
}
ONE_NUMBER = ("min", "max", "sum", "len", "mean", "median", "std", "var", "quantile", "percentile")
MULTIPLE = ("bs", "cr", "cc", "te", "C")  # give no single number a row: they stand alone


def called(node: ast.expr) -> str:
    """Return the name of the function that an expression is a call of."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def spline_width(node: ast.expr) -> int:
    """Return the most columns that a checked call of a spline, or of te, gives; 1 for anything else."""
    name = called(node)
    if name not in MULTIPLE or not isinstance(node, ast.Call):
        return 1
    if name == "te":
        return math.prod(spline_width(part) for part in node.args)
    slots = [slot.split(":")[0] for slot in FUNCTIONS[name].split()]
    given = dict(zip(slots, node.args, strict=False)) | {word.arg: word.value for word in node.keywords}
    df, degree, knots = (given.get(key) for key in ("df", "degree", "knots"))
    made = int(getattr(df, "value", None) or 0)
    inner = len(knots.elts) if isinstance(knots, ast.List | ast.Tuple) else 0
    return max(made, inner + int(getattr(degree, "value", None) or 3) + 2 if inner else 0, 1)


def ufunc_signature(name: str) -> str | None:
    """Return the signature of one of numpy's functions of numbers, element by element."""
    function = getattr(np, name, None) if not name.startswith("_") else None
    if not isinstance(function, np.ufunc) or function.signature is not None or function.nout != 1:
        return None
    if not any(kinds.split("->")[0] in ("d", "dd", "?", "??") for kinds in function.types):
        return None
    return " ".join(f"<{name}>:number" for name in "xyz"[: function.nin])
