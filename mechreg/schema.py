"""Names and dtypes of every column, names of options, the checks of both, and the error types."""

import difflib
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
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
# Measures of an update that a run can store.
RunMeasure = Literal["norm", "relative", "cos_resid", "cos_previous", "cos_layer_below", "cos_mlp", "step"]
Null = Literal["token_order", "norm_order", "random_weights", "token_identity"]
Cov = Literal["auto", "nonrobust", "hc0", "hc1", "hc2", "hc3", "hac", "crv1", "crv2", "crv3", "jackknife"]
DEFAULT_COV: Literal["auto"] = "auto"  # of fits, sums and runs
AUTO_COV = "crv3"  # what "auto" is where there are two clusters or more; with one it is nonrobust

Effect = Literal["doc", "window", "position", "token_id"]  # columns whose levels a run can take off

# The keys of a token in a corpus, and of a regression.
TOKEN_KEYS = ("doc", "window", "position")
GROUP_KEYS = ("model", "hook", "layer")

MAX_LAGS = 256  # each is a column as long as the frame
_SHOWN = 20  # options that a message lists

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
_OF_A_LAYER = {"model": "str", "hook": "str", "layer": "int64", "depth": "float64"}
_ESTIMATES = (
    "estimate", "std_error", "statistic", "df", "p_value", "conf_low", "conf_high", "p_adjusted",
)  # fmt: skip
COEFFICIENT_COLUMNS = {
    **_OF_A_LAYER,
    "term": "str",
    **dict.fromkeys(_ESTIMATES, "float64"),
    **dict.fromkeys(("n", "n_docs", "n_dropped"), "int64"),
    **dict.fromkeys(("r_squared", "adj_r_squared"), "float64"),
    "cov_type": "str",
}
_STATISTICS = (
    "r_squared", "adj_r_squared", "f_statistic", "f_p_value", "aic", "bic", "residual_sd", "breusch_godfrey",
    "breusch_godfrey_p", "breusch_pagan", "breusch_pagan_p", "jarque_bera", "jarque_bera_p", "durbin_watson",
)  # fmt: skip
STATISTICS_COLUMNS = {
    **_OF_A_LAYER,
    **dict.fromkeys(("n", "n_docs", "n_sinks"), "int64"),
    **dict.fromkeys(_STATISTICS, "float64"),
}

# A model whose weights were processed carries it in its name, so that no join, file or chart can lose it.
FOLDED_SUFFIX = "[folded]"


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string."""
    if not isinstance(name, str):
        return ""
    others = {other.casefold(): other for other in known if isinstance(other, str) and other != name}
    near = difflib.get_close_matches(name.casefold(), others, n=1)
    return f" Did you mean {others[near[0]]!r}?" if near else ""


def among(value: object, known: Iterable[object]) -> bool:
    """Return whether a value is among known ones; ``in`` would fail for a list and compare an array elementwise."""
    if not isinstance(value, Hashable) or isinstance(value, tuple):
        return False
    is_bool = isinstance(value, bool)  # True is not 1
    return any(value == one and is_bool == isinstance(one, bool) for one in known)


def require(frame: "pd.DataFrame", columns: Iterable[str], *, who: str) -> None:
    """Check that a frame has the columns that a step needs; ``who``, the public function, opens the message.

    Examples
    --------
    >>> import pandas as pd
    >>> require(pd.DataFrame({"norms": [1.0]}), ["norm"], who="add_lags")
    Traceback (most recent call last):
    mechreg.schema.SchemaError: add_lags needs the column 'norm'; the frame has ['norms']. Did you mean 'norms'?
    """
    if not hasattr(frame, "columns"):
        raise SchemaError(f"{who} needs a pandas DataFrame; got {type(frame).__name__}.")
    if hasattr(frame, "to_pandas"):  # of polars, Arrow
        kind = f"{type(frame).__module__.partition('.')[0]} {type(frame).__name__}"
        raise SchemaError(f"{who} needs a pandas DataFrame; got a {kind}. Give frame.to_pandas().")
    for column in columns:
        if not isinstance(column, str) or column not in frame.columns:
            have = [str(name) for name in frame.columns]
            hint = did_you_mean(column, have)
            if "norm" in have and re.fullmatch(r"log_norm|lag\d+|layer_below(_lag\d+)?", str(column)):
                hint = " Make it with add_lags(norms, lags=(1, 2)) first."
            raise SchemaError(f"{who} needs the column {column!r}; the frame has {have}.{hint}")


def require_option(value: object, options: Sequence[Any], *, name: str) -> None:
    """Check that a named option has one of its values.

    Examples
    --------
    >>> require_option("crv2", ("crv1", "crv3"), name="cov")
    Traceback (most recent call last):
    mechreg.schema.InputError: cov must be one of 'crv1', 'crv3'; got 'crv2'. Did you mean 'crv3'?
    """
    if not among(value, options):
        raise InputError(
            f"{name} must be one of {_listed(options)}; got {value!r}.{did_you_mean(value, options)}"
        )


def _listed(options: Sequence[Any]) -> str:
    return ", ".join(map(repr, options[:_SHOWN])) + (", ..." if len(options) > _SHOWN else "")


def document_id(entry: object) -> str:
    """Return a document's id as text: a whole number (7, ``Decimal(7)``, pandas' 7.0) by its digits, missing as "".

    Examples
    --------
    >>> document_id("7"), document_id(7), document_id(7.0), document_id(None)
    ('7', '7', '7', '')
    """
    if isinstance(entry, str):
        return entry.encode("utf-8", errors="backslashreplace").decode()  # no frame takes half characters
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
    """Return a column of document ids as text, by `document_id`.

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
    codes, distinct = pd.factorize(column)
    names = pd.array([*map(document_id, distinct), ""], dtype="str")  # the last is for -1, a missing id
    return pd.Series(names.take(codes), getattr(column, "index", None))


def require_by(by: str | Sequence[str], *, who: str) -> tuple[str, ...]:
    """Return the columns of ``by``, after checking that each comes once and is not one of the tables' own."""
    names = tuple(one_or_many(by))
    own = {*COEFFICIENT_COLUMNS, *STATISTICS_COLUMNS, "head"}
    for name in names:
        if not isinstance(name, str) or name in own or names.count(name) > 1:
            raise InputError(
                f"{who} needs by= to name columns, each once, and none that its tables have; got {name!r}. Models, "
                "hooks, layers and heads are separate anyway."
            )
    return names


def group_columns(frame: "pd.DataFrame") -> list[str]:
    """Return the columns that tell one layer's rows from another's."""
    return [key for key in (*GROUP_KEYS, "head") if key in frame.columns]


def log_norms(norms: "pd.DataFrame", *, who: str) -> Any:
    """Return the natural logarithm of every norm as an array, or say where there is none."""
    import numpy as np

    norm = norms["norm"].to_numpy(dtype="float64", na_value=np.nan)
    bad = ~(np.isfinite(norm) & (norm > 0))
    if bad.any():
        row, keys = int(bad.argmax()), [*group_columns(norms), *TOKEN_KEYS]
        where = ", ".join(f"{key} {norms[key].iloc[row]}" for key in keys if key in norms.columns)
        raise NumericalError(
            f"{who} needs the logarithm of every norm; the norm is {norm[row]} at {where} ({int(bad.sum())} such "
            "rows). Look at that text with this model before you leave it out."
        )
    return np.log(norm)


def require_one_processing(models: Iterable[str], *, who: str) -> None:
    """Check that raw and folded weights are not compared: folding changes attn_out norms by several percent."""
    names = sorted({str(name) for name in models})
    folded = [name for name in names if name.endswith(FOLDED_SUFFIX)]
    if folded and len(folded) < len(names):
        raw = [name for name in names if name not in folded]
        raise InputError(
            f"{who} got models of processing='raw' ({', '.join(raw)}) and 'folded' ({', '.join(folded)}), "
            "whose norms are not comparable; reload them with the same processing=."
        )


def one_value(values: Iterable[Any], wanted: Any, *, name: str, who: str) -> Any:
    """Return the value of a frame's column that was asked for, else the only one there is."""
    have = list(dict.fromkeys(values))
    if wanted is None and len(have) == 1:
        return have[0]
    listed = ", ".join(repr(value) if isinstance(value, str) else str(value) for value in have[:8])
    listed += ", ..." if len(have) > 8 else ""
    if wanted is None:
        raise InputError(f"{who} takes one {name} at a time; the frame has {listed}. Choose with {name}=.")
    if not among(wanted, have):
        raise InputError(
            f"{who} has no rows of the {name} {wanted!r}; the frame has {listed}.{did_you_mean(wanted, have)}"
        )
    return wanted


def one_or_many(values: Any) -> list[Any]:
    """Return a list of the values given, also of an array or tensor; a single text or other object is a list of one.

    Examples
    --------
    >>> one_or_many(3), one_or_many("loss"), one_or_many(range(2))
    ([3], ['loss'], [0, 1])
    """
    values = values.tolist() if hasattr(values, "tolist") else values  # an array may be of one number
    is_one = isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable)
    return [values] if is_one else list(values)


def require_names(values: Any, options: Iterable[Any], *, name: str, least: int = 1) -> list[Any]:
    """Return names, one or many, after checking that each is known and comes once.

    Examples
    --------
    >>> require_names("z", ("z", "attn_out"), name="hooks")
    ['z']
    >>> require_names(["z", "z"], ("z", "attn_out"), name="hooks")
    Traceback (most recent call last):
    mechreg.schema.InputError: hooks must name at least 1 of 'z', 'attn_out', each once; got ['z', 'z'].
    """
    names, known = one_or_many(values), list(options)
    for value in names:
        require_option(value, known, name=name)
    if len(names) < least or len(set(names)) < len(names):
        raise InputError(f"{name} must name at least {least} of {_listed(known)}, each once; got {names!r}.")
    return names


def require_number(
    value: object,
    *,
    name: str,
    least: int | float | None = None,
    most: int | float | None = None,
    strict: bool = False,
    whole: bool = False,
    example: object = None,
) -> None:
    """Check that an option is a finite number in a range: whole or not, bounds included unless ``strict``.

    Examples
    --------
    >>> require_number(-1, name="margin", least=0, strict=True, example=0.1)
    Traceback (most recent call last):
    mechreg.schema.InputError: margin must be a number above 0, for example 0.1; got -1.
    """
    number: Any = value
    if isinstance(value, Integral if whole else Real) and not isinstance(value, bool):
        in_range = (least is None or number >= least) and (most is None or number <= most)
        if in_range and (whole or math.isfinite(number)) and not (strict and number in (least, most)):
            return
    is_bounded = least is not None and not (isinstance(value, float) and math.isinf(value))
    wanted = "a whole number" if whole else "a number" if is_bounded else "a finite number"
    if least is not None:
        bounds = f" between {least} and {most}" if strict else f" from {least} to {most}"
        bound = f" above {least}" if strict else f", {least} or more"
        wanted += bound if most is None else bounds
    hint = "" if example is None else f", for example {example}"
    raise InputError(f"{name} must be {wanted}{hint}; got {value!r}.")


def require_whole_number(value: object, *, name: str, least: int = 1, most: int | None = None) -> None:
    """Check that an option is a whole number in a range, by `require_number`."""
    require_number(value, name=name, least=least, most=most, whole=True)


def require_path(value: object, *, name: str) -> Path:
    """Return an option that names a file or folder as a path."""
    if not isinstance(value, str | PathLike):
        raise InputError(f"{name} must be a path, such as 'runs/demo'; got {value!r}.")
    return Path(value)


def require_conf_level(value: object, *, above: int | float = 0) -> None:
    """Check that a confidence level is a number between 0 (or ``above``) and 1, by `require_number`."""
    require_number(value, name="conf_level", least=above, most=1, strict=True, example=0.95)


def require_whole_numbers(
    values: Any, *, name: str, least: int = 0, most: int | None = None, fewest: int = 1
) -> list[int]:
    """Return whole numbers, one or many, after checking that each is in range and comes once.

    Examples
    --------
    >>> require_whole_numbers(range(2), name="lags")
    [0, 1]
    """
    numbers = one_or_many(values)
    for value in numbers:
        require_whole_number(value, name=name, least=least, most=most)
    if len(numbers) < fewest or len(set(numbers)) < len(numbers):
        many = f", at least {fewest} of them" if fewest else ""
        raise InputError(f"{name} must be distinct whole numbers{many}; got {numbers!r}.")
    return [int(value) for value in numbers]


def require_shared(**options: object) -> None:
    """Check options that mean one thing everywhere: seed, skip, batch_tokens, conf_level.

    Raises
    ------
    InputError
        Unless seed and skip are whole numbers from 0, batch_tokens one from 1, and conf_level is between 0 and 1.
    """
    for name, value in options.items():
        if name == "conf_level":
            require_conf_level(value)
        else:
            require_whole_number(value, name=name, least={"seed": 0, "skip": 0, "batch_tokens": 1}[name])
