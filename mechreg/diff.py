"""What differs between two runs: which numbers moved, by how much, and what in their provenance is not the same."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mechreg.schema import GROUP_KEYS, InputError, require

_KEYS = (*GROUP_KEYS, "head", "term")
# Numbers in the units of a coefficient: how far they moved is told in its standard errors.
_IN_STD_ERRORS = ("estimate", "conf_low", "conf_high")
# Wall times are never the same twice.
_TIMES = ("seconds",)


def number_differences(table_a: pd.DataFrame, table_b: pd.DataFrame, *, within: float = 0.0) -> pd.DataFrame:
    """Return the numbers of a table that are not the same in another: one row a number, none where all are equal.

    Parameters
    ----------
    table_a, table_b : pandas.DataFrame
        Two coefficient frames, or two frames of fit statistics.
    within : float
        What moved by no more than this counts as equal: in standard errors for estimates and the ends of their
        intervals, in itself for p-values, and relative to the larger of the two numbers for all others.

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) (term,) number (the column that moved), a, b, difference (b - a), std_errors
        (the difference in standard errors of ``table_a``; NaN where that means nothing), relative (the difference
        by the larger of the two), present ("both", "only a", "only b": rows that the other lacks).

    Raises
    ------
    SchemaError, InputError
        No model, hook or layer; a coefficient frame beside one of statistics; two rows of one place.

    Examples
    --------
    >>> a = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": [0, 1], "term": "lag1",
    ...                   "estimate": [0.5, 0.25], "std_error": [0.125, 0.125]})
    >>> moved = number_differences(a, a.assign(estimate=[0.5, 0.5]))
    >>> moved[["layer", "number", "difference", "std_errors"]].values.tolist()
    [[1, 'estimate', 0.25, 2.0]]
    """
    if isinstance(within, bool) or not isinstance(within, int | float) or not 0 <= within < np.inf:
        raise InputError(f"within must be 0 or more; got {within!r}.")
    both = _joined(table_a, table_b)
    keys = [key for key in _KEYS if key in both]
    moved = []
    for number in _numbers(table_a, keys):
        if number not in _numbers(table_b, keys):
            continue
        a, b = both[f"{number}_a"].to_numpy(float), both[f"{number}_b"].to_numpy(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            difference = b - a
            relative = difference / np.maximum(np.abs(a), np.abs(b))
            by_error = np.full(len(both), np.nan)
            if number in _IN_STD_ERRORS and "std_error_a" in both:
                error = both["std_error_a"].to_numpy(float)
                by_error = np.where(error > 0, difference / error, np.nan)
        if number.startswith("p_") or number.endswith("_p"):
            size = np.abs(difference)
        else:
            size = np.abs(np.where(np.isnan(by_error), relative, by_error))
        # Both missing is the same; one missing, or a move whose size cannot be told, is not.
        differs = ~((a == b) | (np.isnan(a) & np.isnan(b))) & ~(size <= within)
        rows = both.loc[differs, [*keys, "present"]]
        values = {"number": number, "a": a, "b": b, "difference": difference, "std_errors": by_error}
        values["relative"] = relative
        moved.append(rows.assign(**{k: v if k == "number" else v[differs] for k, v in values.items()}))
    if not moved:
        raise InputError(
            "number_differences finds no column of numbers that both tables have: one has "
            f"{_numbers(table_a, keys)}, the other {_numbers(table_b, keys)}. Give two tables of one kind."
        )
    columns = [*keys, "number", "a", "b", "difference", "std_errors", "relative", "present"]
    return pd.concat(moved, ignore_index=True)[columns]


def largest_moves(moved: pd.DataFrame) -> pd.DataFrame:
    """Return one row a number that moved in both tables: how often, by how much at most, and where.

    Parameters
    ----------
    moved : pandas.DataFrame
        What `number_differences` gives.

    Examples
    --------
    >>> a = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": [0, 1], "aic": [10.0, 20.0]})
    >>> largest_moves(number_differences(a, a.assign(aic=[11.0, 25.0]))).values.tolist()
    [['aic', 2, 5.0, nan, 0.2, 'm attn_out layer 1']]
    """
    require(moved, ("number", "difference", "present"), who="largest_moves")
    rows = []
    for number, part in moved[moved["present"] == "both"].groupby("number", sort=False):
        # A number that is missing in one of the tables has no difference; it stands for nothing larger.
        largest = part.iloc[int(part["difference"].abs().fillna(-1).to_numpy().argmax())]
        row = {"number": number, "moved": len(part), "largest": largest["difference"]}
        row |= {
            "std_errors": largest["std_errors"],
            "relative": largest["relative"],
            "where": _place(largest),
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=["number", "moved", "largest", "std_errors", "relative", "where"])


def provenance_differences(provenance_a: Mapping[str, Any], provenance_b: Mapping[str, Any]) -> pd.DataFrame:
    """Return what two runs were not made from alike: key, a, b; None where one lacks it. Wall times are left out.

    Models are matched by name, packages too: an upgrade is the row ``packages.transformer-lens``.

    Parameters
    ----------
    provenance_a, provenance_b : mapping
        What ``provenance.json`` of a run holds.

    Examples
    --------
    >>> old = {"seconds": 2.5, "packages": {"transformer-lens": "3.9.0"}}
    >>> new = {"seconds": 9.0, "packages": {"transformer-lens": "4.3.0"}}
    >>> provenance_differences(old, new).values.tolist()
    [['packages.transformer-lens', '3.9.0', '4.3.0']]
    """
    a, b = dict(_leaves(provenance_a)), dict(_leaves(provenance_b))
    differ = [key for key in dict.fromkeys([*a, *b]) if key not in a or key not in b or a[key] != b[key]]
    rows = [(key, a.get(key), b.get(key)) for key in differ]
    return pd.DataFrame(rows, columns=["key", "a", "b"], dtype=object)


def _joined(table_a: pd.DataFrame, table_b: pd.DataFrame) -> pd.DataFrame:
    """Return both tables side by side, rows matched by place; columns end in _a and _b."""
    for table in (table_a, table_b):
        require(table, GROUP_KEYS, who="number_differences")
        for key in ("layer", "head"):
            if key in table and not pd.api.types.is_numeric_dtype(table[key]):
                raise InputError(f"number_differences needs numbers as {key!r}; got {table[key].iloc[0]!r}.")
    if ("term" in table_a) != ("term" in table_b):
        raise InputError(
            "number_differences compares two coefficient frames or two frames of fit statistics; got one of each."
        )
    # A run without heads beside one with them: the hooks that both have are matched by head -1.
    with_heads = "head" in table_a or "head" in table_b
    keys = [key for key in _KEYS if key in table_a or key in table_b]
    sides: list[pd.DataFrame] = []
    for table in (table_a, table_b):
        side = table.assign(head=table.get("head", -1)) if with_heads else table
        side = side.astype({"model": str, "hook": str})
        if side.duplicated(keys).any():
            where = _place(side[side.duplicated(keys)].iloc[0])
            raise InputError(f"number_differences needs one row a place; there are two of {where}.")
        sides.append(side.set_index(keys).add_suffix("_b" if sides else "_a").reset_index())
    both = sides[0].merge(sides[1], on=keys, how="outer", sort=False, indicator="present")
    named = {"both": "both", "left_only": "only a", "right_only": "only b"}
    return both.assign(present=both["present"].astype(str).map(named))


def _numbers(table: pd.DataFrame, keys: list[str]) -> list[str]:
    return [name for name in table.columns if name not in keys and pd.api.types.is_numeric_dtype(table[name])]


def _place(row: pd.Series) -> str:
    words = [str(row["model"]), str(row["hook"]), f"layer {row['layer']}"]
    words += [f"head {row['head']}"] if "head" in row and row["head"] != -1 else []
    return " ".join([*words, *([str(row["term"])] if "term" in row else [])])


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values; a list of tables with names is a table by name."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(entry, Mapping) and "name" in entry for entry in value)
    ):
        value = {entry["name"]: {k: v for k, v in entry.items() if k != "name"} for entry in value}
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for key, entry in value.items():
        if key not in _TIMES:
            yield from _leaves(entry, f"{path}.{key}" if path else str(key))
