"""Names and dtypes of every column, names of options, the checks of both, and the error types."""

import difflib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the command line reads the error types from here and must start fast
    import pandas as pd


class MechregError(Exception):
    """Anything that mechreg refuses; the command line shows its one sentence and exits with 2."""


class InputError(MechregError, ValueError):
    """An argument, file or text that cannot be used as it is; the message says what to do."""


class SchemaError(InputError):
    """A frame without the columns that a step needs."""


class ModelError(MechregError, RuntimeError):
    """A model that cannot be loaded, or whose hook points do not behave as they must."""


class NumericalError(MechregError, ArithmeticError):
    """A number that must not be used: NaN, infinite, or a logarithm of zero."""


# The options that a spec names too: it is read without importing the modules that carry them out.
Hook = Literal["resid_pre", "z", "result", "attn_out", "resid_mid", "mlp_out", "resid_post"]
Backend = Literal["auto", "hooked", "bridge"]
Processing = Literal["raw", "folded"]
Dtype = Literal["float32", "float64", "bfloat16", "float16", "bfloat16-autocast"]
AUTOCAST = "bfloat16-autocast"  # float32 weights, products in bfloat16
Keep = Literal["norms", "moments"]
Cov = Literal["auto", "nonrobust", "hc0", "hc1", "hc2", "hc3", "hac", "crv1", "crv3", "jackknife"]

# What tells one token of a corpus from another, and one regression from another.
TOKEN_KEYS = ("doc", "window", "position")
GROUP_KEYS = ("model", "hook", "layer")

MAX_LAGS = 256  # each is a column as long as the frame

DOCUMENT_COLUMNS = {"doc": "str", "text": "str", "source": "str", "problem": "str"}
TOKEN_COLUMNS = {
    "doc": "category",
    "window": "int32",
    "position": "int32",
    "token_id": "int32",
    "token": "str",
}
NORM_COLUMNS = {
    "model": "category",
    "hook": "category",
    "layer": "int16",
    "depth": "float64",
    "doc": "category",
    "window": "int32",
    "position": "int32",
    "token_id": "int32",
    "norm": "float32",
}
COEFFICIENT_COLUMNS = {
    "model": "str",
    "hook": "str",
    "layer": "int64",
    "depth": "float64",
    "term": "str",
    "estimate": "float64",
    "std_error": "float64",
    "statistic": "float64",
    "df": "float64",
    "p_value": "float64",
    "conf_low": "float64",
    "conf_high": "float64",
    "p_adjusted": "float64",
    "n": "int64",
    "n_docs": "int64",
    "n_dropped": "int64",
    "r_squared": "float64",
    "adj_r_squared": "float64",
    "cov_type": "str",
}
STATISTICS_COLUMNS = {
    "model": "str",
    "hook": "str",
    "layer": "int64",
    "depth": "float64",
    "n": "int64",
    "n_docs": "int64",
    "r_squared": "float64",
    "adj_r_squared": "float64",
    "f_statistic": "float64",
    "f_p_value": "float64",
    "aic": "float64",
    "bic": "float64",
    "residual_sd": "float64",
    "breusch_godfrey": "float64",
    "breusch_godfrey_p": "float64",
    "breusch_pagan": "float64",
    "breusch_pagan_p": "float64",
    "jarque_bera": "float64",
    "jarque_bera_p": "float64",
    "durbin_watson": "float64",
}

# A model whose weights were processed carries it in its name, so that no join, file or chart can lose it.
FOLDED_SUFFIX = "[folded]"


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string."""
    if not isinstance(name, str):
        return ""
    others = [other for other in known if isinstance(other, str) and other != name]
    near = difflib.get_close_matches(name, others, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def among(value: object, known: Iterable[object]) -> bool:
    """Return whether a value is one of some; a list, array or frame is none, where ``in`` would fail or compare parts.

    Examples
    --------
    >>> among("lag1", ["lag1"]), among(["lag1"], ["lag1"])
    (True, False)
    """
    if not isinstance(value, Hashable) or isinstance(value, tuple):
        return False
    return any(
        value == one and isinstance(value, bool) == isinstance(one, bool) for one in known
    )  # True is not 1


def require(frame: "pd.DataFrame", columns: Iterable[str], *, who: str) -> None:
    """Check that a frame has the columns that a step needs.

    Parameters
    ----------
    frame : pandas.DataFrame
    columns : iterable of str
    who : str
        The public function that asks; it opens the message.

    Raises
    ------
    SchemaError
        Names the first column that is missing, the columns there are, and the nearest name.

    Examples
    --------
    >>> import pandas as pd
    >>> require(pd.DataFrame({"norms": [1.0]}), ["norm"], who="add_lags")
    Traceback (most recent call last):
    mechreg.schema.SchemaError: add_lags needs the column 'norm'; the frame has ['norms']. Did you mean 'norms'?
    """
    if not hasattr(frame, "columns"):
        raise SchemaError(f"{who} needs a pandas DataFrame; got {type(frame).__name__}.")
    for column in columns:
        if not isinstance(column, str) or column not in frame.columns:
            have = [str(name) for name in frame.columns]
            raise SchemaError(
                f"{who} needs the column {column!r}; the frame has {have}.{did_you_mean(column, have)}"
            )


def require_option(value: object, options: Sequence[str], *, name: str) -> None:
    """Check that a named option has one of its values.

    Raises
    ------
    InputError
        Lists the right values.

    Examples
    --------
    >>> require_option("crv2", ("crv1", "crv3"), name="cov")
    Traceback (most recent call last):
    mechreg.schema.InputError: cov must be one of 'crv1', 'crv3'; got 'crv2'. Did you mean 'crv3'?
    """
    if not among(value, options):
        listed = ", ".join(repr(option) for option in options)
        raise InputError(f"{name} must be one of {listed}; got {value!r}.{did_you_mean(value, options)}")


def document_id(entry: object) -> str:
    """Return a document's id as the text that it is everywhere, "" where it is missing.

    A whole number is its digits, whatever holds it: 7, ``np.int32(7)``, ``Decimal(7)``, and 7.0, which pandas makes of
    a column of whole numbers where one is missing.

    Raises
    ------
    InputError
        A number with a fraction, or one so large that a float no longer holds each; a truth value, a list.

    Examples
    --------
    >>> document_id("7"), document_id(7), document_id(7.0), document_id(None)
    ('7', '7', '7', '')
    """
    if isinstance(entry, str):
        return entry.encode(
            "utf-8", errors="backslashreplace"
        ).decode()  # half characters, which no frame takes
    if isinstance(entry, bytes):
        return entry.decode("utf-8", errors="backslashreplace")
    is_bool = type(entry).__name__ in ("bool", "bool_")
    if isinstance(entry, Integral) and not is_bool:
        return str(int(entry))
    if entry is None or type(entry).__name__ in ("NAType", "NaTType") or entry != entry:
        return ""
    if isinstance(entry, Real | Decimal) and not is_bool:
        number: Any = entry
        exact = {2: 2**11, 4: 2**24}.get(getattr(entry, "itemsize", 8), 2**53)  # a float of so many bytes
        if number % 1 == 0 and (isinstance(entry, Decimal) or abs(number) < exact):
            return str(int(number))
    elif not is_bool and not hasattr(entry, "__len__"):  # a date, a UUID
        return str(entry)
    raise InputError(
        f"A document's id must be text or a whole number, and as a float below 2**53; got {entry!r}. "
        "Write ids as text."
    )


def document_ids(column: "pd.Series | pd.Index") -> "pd.Series":
    """Return a column of document ids as text, by `document_id`: every id looked at once where the column allows.

    Raises
    ------
    InputError
        As `document_id`.

    Examples
    --------
    >>> import pandas as pd
    >>> document_ids(pd.Series([1, None, 2**53 - 1])).tolist()
    ['1', '', '9007199254740991']
    """
    import pandas as pd

    if column.dtype == object or not len(column):  # 1, 1.0 and True are one value to a table of values
        return pd.Series(
            [document_id(entry) for entry in column], getattr(column, "index", None), dtype="str"
        )
    codes, found = pd.factorize(column)
    names = pd.array([*map(document_id, found), ""], dtype="str")  # the last is for -1, what is missing
    return pd.Series(names.take(codes), getattr(column, "index", None))


def require_by(by: Sequence[str], *, who: str) -> tuple[str, ...]:
    """Return the columns by which a step is done group by group, checked.

    Raises
    ------
    InputError
        A name twice, or one that the step's own tables have.

    Examples
    --------
    >>> require_by("pos", who="fit_lagged")
    ('pos',)
    """
    names = tuple(one_or_many(by))
    own = {*COEFFICIENT_COLUMNS, *STATISTICS_COLUMNS, "head"}
    for name in names:
        if not isinstance(name, str) or name in own or names.count(name) > 1:
            raise InputError(
                f"{who} needs by= to name columns, each once, and none that its tables have; got {name!r}. Models, "
                "hooks, layers and heads are apart anyway."
            )
    return names


def require_one_processing(models: Iterable[str], *, who: str) -> None:
    """Check that raw and folded weights are not compared with each other.

    Raises
    ------
    InputError
        Folding centres W_O, which changes attn_out norms by several percent: such models are not comparable.

    Examples
    --------
    >>> require_one_processing(["gpt2", "gpt2-xl"], who="fit_lagged")
    """
    names = sorted({str(name) for name in models})
    folded = [name for name in names if name.endswith(FOLDED_SUFFIX)]
    if folded and len(folded) < len(names):
        raw = [name for name in names if name not in folded]
        raise InputError(
            f"{who} got models of processing='raw' ({', '.join(raw)}) and 'folded' ({', '.join(folded)}), "
            "whose norms are not comparable; reload them with the same processing=."
        )


def one_or_many(values: Any) -> list[Any]:
    """Return a list of what is given: a single text, number or other thing is a list of one.

    Examples
    --------
    >>> one_or_many(3), one_or_many("loss"), one_or_many(range(2))
    ([3], ['loss'], [0, 1])
    """
    is_one = isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable)
    return [values] if is_one else list(values)


def require_whole_number(value: object, *, name: str, least: int = 1, most: int | None = None) -> None:
    """Check that an option is a whole number between two.

    Raises
    ------
    InputError

    Examples
    --------
    >>> require_whole_number(True, name="skip", least=0)
    Traceback (most recent call last):
    mechreg.schema.InputError: skip must be a whole number, 0 or more; got True.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        wanted = f", {least} or more" if most is None else f" from {least} to {most}"
        raise InputError(f"{name} must be a whole number{wanted}; got {value!r}.")


def require_conf_level(value: object, *, above: float = 0) -> None:
    """Check that a confidence level is one.

    Raises
    ------
    InputError

    Examples
    --------
    >>> require_conf_level(95)
    Traceback (most recent call last):
    mechreg.schema.InputError: conf_level must be between 0 and 1, for example 0.95; got 95.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and above < float(value) < 1):  # type: ignore[arg-type]
        raise InputError(f"conf_level must be between {above} and 1, for example 0.95; got {value!r}.")
