"""What comes from outside: frames of other libraries, and strings, made safe for each place where they are shown.

A terminal obeys control characters, a spreadsheet computes what starts with =, Vega looks names up in JavaScript
objects, and a page reads markup: each place has one function here.
"""

import functools
import html
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:  # the command line needs this module and must start fast
    import pandas as pd

P = ParamSpec("P")
R = TypeVar("R")

# Controls, line and paragraph separators, marks that change the direction of a text, and code points that are no
# characters (half of a surrogate pair, U+FFFE, U+FFFF). Joiners and direction marks inside a word stay.
_UNSAFE = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
_UNSEEN = re.compile(f"[{_UNSAFE}]")
_UNPRINTED = re.compile(f"[{_UNSAFE}\r]")
_MANY_LINES = re.compile(f"[{_UNSAFE}\r\n\t]")
# What every JavaScript object has: Vega takes these for entries of its own tables.
_OBJECT_NAMES = {
    "__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__", "__proto__", "constructor",
    "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf",
}  # fmt: skip
# A cell that a spreadsheet would compute, after as many quotes as make it text. A sign before a number stays as it is.
_FORMULA = re.compile(
    r"'*(?:[=@\t\r]|[+-](?!(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$|inf$|nan$|$))", re.IGNORECASE
)


def any_frames(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that gets polars frames, Arrow tables and whatever else narwhals reads as pandas frames.

    Examples
    --------
    >>> import pyarrow as pa
    >>> any_frames(lambda frame: frame.columns.tolist())(pa.table({"norm": [1.0]}))
    ['norm']
    """

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        made: Any = function
        return made(*to_pandas(args), **to_pandas(options))

    return call


def to_pandas(value: Any) -> Any:
    """Return a value in which every frame or series of another library is one of pandas.

    Examples
    --------
    >>> import pyarrow as pa
    >>> to_pandas([pa.table({"norm": [1.0]}), "norm"])[0]["norm"].tolist()
    [1.0]
    """
    if isinstance(value, str):
        return value  # there may be many
    if isinstance(value, list | tuple | dict):
        parts = list(value.values()) if isinstance(value, dict) else value
        made = [to_pandas(part) for part in parts]
        if all(new is old for new, old in zip(made, parts, strict=True)):
            return value
        return dict(zip(value, made, strict=True)) if isinstance(value, dict) else type(value)(made)
    is_frame = hasattr(value, "__arrow_c_stream__") or hasattr(value, "collect_schema")  # eager, or lazy
    if not is_frame or hasattr(value, "iloc"):
        return value
    import narwhals

    frame = narwhals.from_native(value, allow_series=True, pass_through=True)
    frame = frame.collect() if isinstance(frame, narwhals.LazyFrame) else frame
    return frame.to_pandas() if hasattr(frame, "to_pandas") else value


def for_terminal(text: object, *, encoding: str | None = None, lines: bool = True) -> str:
    r"""Return text with control characters as escapes, and those that the terminal's ``encoding`` lacks.

    Line breaks and tabs stay where ``lines`` is true.

    Examples
    --------
    >>> print(for_terminal("\x1b[2Jgpt2"), for_terminal("ö", encoding="ascii"))
    \x1b[2Jgpt2 \xf6
    """
    unsafe = _UNPRINTED if lines else _MANY_LINES
    shown = unsafe.sub(lambda match: repr(match[0])[1:-1], str(text))
    return shown if encoding is None else shown.encode(encoding, "backslashreplace").decode(encoding)


def for_page(text: object) -> str:
    r"""Return text as it may stand in an element, or an attribute in quotes, of a page.

    Examples
    --------
    >>> for_page("<b>\u202eabc")
    '&lt;b&gt;⟨202E⟩abc'
    """
    return html.escape(visible(str(text)), quote=True)


class Printed(str):
    r"""A text of several lines that a prompt shows as it is printed, and a notebook as a table.

    Examples
    --------
    >>> Printed("a  b\n1  2")
    a  b
    1  2
    """

    html: str | None = None  # the same as a table; without it the lines are shown in a fixed pitch

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.html or f"<pre>{for_page(self)}</pre>"


def for_vega(part: Any) -> Any:
    r"""Return a specification whose keys and strings Vega draws as they are.

    JavaScript's own names, such as "constructor", get an invisible no-break space after them.

    Examples
    --------
    >>> for_vega({"values": [{"model": "constructor", "doc": "a\u2028b"}]})
    {'values': [{'model': 'constructor\xa0', 'doc': 'a⟨2028⟩b'}]}
    """
    if isinstance(part, str):
        return f"{part}\xa0" if part in _OBJECT_NAMES else visible(part)
    if isinstance(part, list):
        return [for_vega(entry) for entry in part]
    if isinstance(part, dict):
        return {for_vega(key): for_vega(value) for key, value in part.items()}
    return part


def for_csv(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return a frame with a quote before every string and column name that a spreadsheet would take for a formula.

    Examples
    --------
    >>> import pandas as pd
    >>> for_csv(pd.DataFrame({"doc": ["=1+1", "-1", "a"]}))["doc"].tolist()
    ["'=1+1", '-1', 'a']
    """
    return changed(frame, lambda text: f"'{text}" if _FORMULA.match(text) else text)


def from_csv(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the frame that `for_csv` was given, as far as a CSV file keeps it.

    Examples
    --------
    >>> import pandas as pd
    >>> from_csv(for_csv(pd.DataFrame({"doc": ["=1+1", "'=1"]})))["doc"].tolist()
    ['=1+1', "'=1"]
    """
    return changed(frame, lambda text: text[1:] if text.startswith("'") and _FORMULA.match(text) else text)


def changed(frame: "pd.DataFrame", change: Callable[[str], str]) -> "pd.DataFrame":
    """Return a frame whose strings, in cells and as names of columns, are changed by a function.

    Examples
    --------
    >>> import pandas as pd
    >>> changed(pd.DataFrame({"doc": ["a", "b"], "n": [1, 2]}), str.upper).to_dict("list")
    {'DOC': ['A', 'B'], 'N': [1, 2]}
    """

    def cell(value: Any) -> Any:
        return change(value) if isinstance(value, str) else value

    changed = frame.copy(deep=False)
    for at, kind in enumerate(frame.dtypes):
        if kind.kind == "O":  # strings, objects and categories
            values = list(frame.iloc[:, at])
            made = [cell(value) for value in values]
            if any(new is not old for new, old in zip(made, values, strict=True)):
                changed.isetitem(at, made)
    changed.columns = changed.columns.map(cell)
    return changed


def visible(text: str) -> str:
    r"""Return text whose invisible and direction-changing characters are shown as symbols.

    Examples
    --------
    >>> visible("\x07\u202eabc")
    '␇⟨202E⟩abc'
    """
    return _UNSEEN.sub(_symbol, text)


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\ufffd" if 0xD800 <= code <= 0xDFFF or code >= 0xFFFE else f"⟨{code:04X}⟩"
