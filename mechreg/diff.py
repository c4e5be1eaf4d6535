"""What differs between two runs: which numbers moved, by how much, and what in their provenance is not the same."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechreg.outside import any_frames
from mechreg.schema import GROUP_KEYS, InputError, require, require_number
from mechreg.store import Run, open_run, read_provenance

_KEYS = (*GROUP_KEYS, "head", "term")
# Numbers in the units of a coefficient: their moves are also given in its standard errors.
_IN_STD_ERRORS = ("estimate", "conf_low", "conf_high")
# Wall times are never the same twice.
_TIMES = ("seconds",)


@dataclass(frozen=True)
class RunDifferences:
    """What differs between two runs. Made by `diff_runs`.

    ``numbers`` are as `diff_tables` returns them, with the column ``table``: "coefficients" or "statistics".
    ``provenance`` has key, a, b: a row an entry that differs, None where one run lacks it. Wall times are left out;
    models and packages are matched by name, so that an upgrade is the row ``packages.transformer-lens``.
    """

    numbers: pd.DataFrame
    provenance: pd.DataFrame

    def largest_moves(self) -> pd.DataFrame:
        """Return one row a table and number that moved in both runs: how often, by how much at most, and where."""
        columns = ["table", "number", "moved", "largest", "std_errors", "relative", "where"]
        rows = []
        both = self.numbers[self.numbers["present"] == "both"]
        for (table, number), part in both.groupby(["table", "number"], sort=False):
            # A number that is missing in one of the runs has no difference; it counts as the smallest move.
            largest = part.iloc[int(part["difference"].abs().fillna(-1).to_numpy().argmax())]
            sizes = largest[["difference", "std_errors", "relative"]].tolist()
            rows.append([table, number, len(part), *sizes, _place(largest)])
        return pd.DataFrame(rows, columns=columns)


def diff_runs(run_a: Run | str | Path, run_b: Run | str | Path, *, within: float = 0.0) -> RunDifferences:
    """Return which coefficients and statistics moved between two finished runs, and how their provenance differs.

    Parameters
    ----------
    run_a, run_b : Run, str or Path
        What `open_run` returns, or run folders.
    within : float
        As for `diff_tables`.

    Raises
    ------
    InputError
        A folder without a finished run, or with damaged tables.

    Examples
    --------
    >>> import tempfile
    >>> from mechreg import Spec, run_spec
    >>> folder = run_spec(Spec(models=("mini-s",), corpus="demo"), out=tempfile.mkdtemp(), progress=False)
    >>> same = diff_runs(folder, folder)
    >>> len(same.numbers), len(same.provenance)
    (0, 0)
    """
    runs = [run if isinstance(run, Run) else open_run(run) for run in (run_a, run_b)]
    a, b = (dict(_leaves(read_provenance(run.path) | {"spec": run.spec})) for run in runs)
    differ = [key for key in dict.fromkeys([*a, *b]) if key not in a or key not in b or a[key] != b[key]]
    rows = [(key, a.get(key), b.get(key)) for key in differ]
    moved = [
        diff_tables(*(getattr(run, name) for run in runs), within=within).assign(table=name)
        for name in ("coefficients", "statistics")
    ]
    return RunDifferences(
        numbers=pd.concat(moved, ignore_index=True),
        provenance=pd.DataFrame(rows, columns=["key", "a", "b"], dtype=object),
    )


@any_frames
def diff_tables(table_a: pd.DataFrame, table_b: pd.DataFrame, *, within: float = 0.0) -> pd.DataFrame:
    """Return the numbers that differ between two tables of one kind: one row a number, none where all are equal.

    Moves up to ``within`` count as equal: in standard errors for estimates and the ends of their intervals, absolute
    for p-values, and relative to the larger of the two numbers for all others.

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) (term,) number (the column that moved), a, b, difference (b - a), std_errors
        (the difference in standard errors of ``table_a``; NaN for other numbers), relative (the difference
        divided by the larger of the two), present ("both", "only a", "only b": rows that the other lacks).
    """
    require_number(within, name="within", least=0)
    keys, numbers = _shared_columns(table_a, table_b)
    tall_a, tall_b = (_tall(table, keys, numbers) for table in (table_a, table_b))
    both = tall_a.rename(columns={"value": "a"}).merge(
        tall_b.rename(columns={"value": "b"}).drop(columns="std_error"),
        how="outer",
        on=[*keys, "number"],
        indicator="present",
    )
    a, b = both["a"], both["b"]
    difference = b - a
    relative: pd.Series = difference / np.maximum(a.abs(), b.abs())
    in_errors = both["number"].isin(_IN_STD_ERRORS) & (both["std_error"] > 0)
    std_errors = (difference / both["std_error"]).where(in_errors)
    is_p = both["number"].str.startswith("p_") | both["number"].str.endswith("_p")
    size = difference.where(is_p, std_errors.fillna(relative)).abs()
    # Both missing is equal; one missing, or a move of no finite size, is not.
    equal = (a == b) | (a.isna() & b.isna()) | (size <= within)
    present = both["present"].astype("str").replace({"left_only": "only a", "right_only": "only b"})
    moved = both.assign(difference=difference, std_errors=std_errors, relative=relative, present=present)
    moved = moved[~equal].sort_values("number", key=lambda names: names.map(numbers.index), kind="stable")
    columns = [*keys, "number", "a", "b", "difference", "std_errors", "relative", "present"]
    return moved[columns].reset_index(drop=True)


def _shared_columns(table_a: pd.DataFrame, table_b: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the columns by which rows are matched, and the columns of numbers that both tables have."""
    tables = (table_a, table_b)
    for table in tables:
        require(table, GROUP_KEYS, who="diff_tables")
        for key in ("layer", "head"):
            if key in table and not pd.api.types.is_numeric_dtype(table[key]):
                raise InputError(f"diff_tables needs numbers as {key!r}; got {table[key].iloc[0]!r}.")
    if ("term" in table_a) != ("term" in table_b):
        raise InputError(
            "diff_tables compares two coefficient frames or two frames of fit statistics; got one of each."
        )
    keys = [key for key in _KEYS if key in table_a or key in table_b]
    numeric = [
        [str(name) for name in t if name not in keys and pd.api.types.is_numeric_dtype(t[name])]
        for t in tables
    ]
    shared = [name for name in numeric[0] if name in numeric[1]]
    if not shared:
        raise InputError(
            f"diff_tables finds no column of numbers that both tables have: one has {numeric[0]}, the other "
            f"{numeric[1]}. Give two tables of one kind."
        )
    return keys, shared


def _tall(table: pd.DataFrame, keys: list[str], numbers: list[str]) -> pd.DataFrame:
    """Return one row a place and number: the keys, std_error (of the place's estimate), number, value."""
    table = table.astype({"model": str, "hook": str})
    if "head" in keys and "head" not in table:
        table = table.assign(head=-1)  # matches the hooks without heads of a run that has others with heads
    if table.duplicated(keys).any():
        where = _place(table[table.duplicated(keys)].iloc[0])
        raise InputError(f"diff_tables needs one row for each place; there are two for {where}.")
    values = table[numbers].astype("float64").add_prefix("value:")
    tall = pd.concat([table[keys].assign(std_error=table.get("std_error", np.nan)), values], axis=1).melt(
        id_vars=[*keys, "std_error"], var_name="number"
    )
    return tall.assign(number=tall["number"].str.removeprefix("value:"))


def _place(row: pd.Series) -> str:
    words = [str(row["model"]), str(row["hook"]), f"layer {row['layer']}"]
    words += [f"head {row['head']}"] if "head" in row and row["head"] >= 0 else []
    return " ".join([*words, *([str(row["term"])] if "term" in row and pd.notna(row["term"]) else [])])


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values; a list of tables with names is a table by name."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "name" in one for one in value):
        value = {entry["name"]: {k: v for k, v in entry.items() if k != "name"} for entry in value}
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for key, entry in value.items():
        if key not in _TIMES:
            yield from _leaves(entry, f"{path}.{key}" if path else str(key))
