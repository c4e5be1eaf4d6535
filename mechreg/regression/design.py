"""Designs: a formula's terms taken apart into numbers and categories.

Every column of a design matrix is a sum of atoms (products of the formula's numbers; the first is 1) with weights
that depend on the row's cell only (its combination of categories). So the sums over a cell's atoms give those over
any contrasts and interactions of its categories, and a category that turns up late needs no second look.
"""

import itertools
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import patsy
from jaxtyping import Float, Int
from patsy.categorical import categorical_to_int, guess_categorical

from mechreg.formulas import names_in
from mechreg.regression.blocks import Codes, Columns, Numbers
from mechreg.regression.evaluation import (
    environment,
    evaluate,
    factors_of,
    learns,
    plain_column,
    require_narrow,
    value_of,
)
from mechreg.schema import InputError

MAX_BYTES = 4e9  # of one array of sums
_A_COLUMN = re.compile(r"[A-Za-z_]\w*|(C|Q|I)\(\s*['\"]?[A-Za-z_]\w*['\"]?\s*(,.*)?\)")


class NeedsAllRows(InputError):
    """A formula has a function of all rows, and only some were given."""


class Terms(NamedTuple):
    """A design: its columns' names, and each column's weights on the atoms, in every cell."""

    names: tuple[str, ...]
    outcome: str
    weights: Float[np.ndarray, "cells atoms terms"]


class Parts(NamedTuple):
    """The numbers and the cells of a group's rows."""

    values: Columns  # the atoms but for 1, then the outcome
    names: tuple[str, ...]  # of those
    cell: Codes
    seen: pd.DataFrame  # a row of each cell: the design is made from these
    learned: Terms | None  # where it cannot be made from these

    def terms(self, formula: str) -> Terms:
        """The formula's design."""
        return terms_of(formula, self.seen) if self.learned is None else self.learned


def take_apart(formula: str, data: pd.DataFrame, *, whole: bool, where: str) -> Parts:
    """Return the atoms and cells of some rows, of complete columns as `plain_column` gives them.

    ``whole`` says that these are all rows that there will be, so that functions of all rows (splines, centring) may
    be taken; where they are not, such a function is refused.
    """
    return evaluate(partial(_take_apart, formula, data, whole), formula, where=where)


def _take_apart(formula: str, data: pd.DataFrame, whole: bool) -> Parts:
    factors = factors_of(patsy.ModelDesc.from_formula(formula))
    learned = next((f.code for f in factors if learns(f)), None)
    parts = None
    if learned is None:
        parts, learned = _row_by_row(formula, factors, data)
    if parts is None:
        if not whole:
            raise NeedsAllRows(
                f"{learned} needs all rows at once, and update sees a part; make it a column first, with numbers "
                "taken from the whole corpus, or use LagSums.from_frame or fit_lagged on one frame"
            )
        outcome, design = _learn(formula, data)
        codes = _codes(design, data)
        cell, first = _combined(list(codes.values()), len(data))
        names, values = _values(outcome, design, data)
        terms = _terms(outcome, design, {factor: code[first] for factor, code in codes.items()})
        seen = _rows(data, first[:0])
        parts = Parts(values, names, cell, seen, terms)
    if np.isnan(parts.values).any():
        name = parts.names[int(np.isnan(parts.values).any(axis=1).argmax())]
        raise ValueError(f"{name} gives missing values")
    return parts


def terms_of(formula: str, seen: pd.DataFrame) -> Terms:
    """Return the design whose categories are those of ``seen``, the rows of which are its cells."""
    outcome, design, codes = _learn_cells(formula, seen)
    return evaluate(partial(_terms, outcome, design, codes), formula, where="these rows")


def require_room(numbers: int, of: str) -> None:
    """Refuse sums that fill the memory, before there is an array for them."""
    if numbers * 8 > MAX_BYTES:
        raise InputError(
            f"The sums of {of} need {numbers * 8 / 1e9:,.0f} GB, at most {MAX_BYTES / 1e9:,.0f} GB are used; leave out "
            "a category, or make fewer levels of it."
        )


def matrices(
    formula: str, learned: pd.DataFrame, data: pd.DataFrame
) -> tuple[Numbers, Float[np.ndarray, "rows terms"]]:
    """Return the outcome and the design of some rows, with the levels, knots and means of the rows ``learned``."""

    def of(rows: pd.DataFrame) -> list[np.ndarray]:
        return [np.asarray(part) for part in patsy.build_design_matrices([*infos], rows, NA_action="raise")]

    infos = _learn(formula, learned)
    outcome, design = of(data)
    if not data.equals(learned):
        together = of(pd.concat([data, learned], ignore_index=True))
        for part, info, both in zip((outcome, design), infos, together, strict=True):
            size = np.abs(part).max(axis=0)
            moved = (np.abs(both[: len(part)] - part) > 1e-9 * size).any(axis=0)
            if moved.any():
                raise InputError(
                    f"{info.column_names[int(moved.argmax())]} depends on which rows are there; write center(x), "
                    "standardize(x), or a column of the frame, which keep what the fitted rows gave"
                )
    return outcome[:, 0], design


def united_cells(
    formula: str, first: pd.DataFrame, second: pd.DataFrame
) -> tuple[pd.DataFrame, Int[np.ndarray, " second"]]:
    """Return the rows of all cells of both, and the number among them of each of the second's."""
    both = pd.concat([first, second], ignore_index=True)
    _, _, codes = _learn_cells(formula, both)
    cell, rows = _combined(list(codes.values()), len(both))
    return both.iloc[rows].reset_index(drop=True), cell[len(first) :]


def _learn(formula: str, data: pd.DataFrame) -> tuple[patsy.DesignInfo, patsy.DesignInfo]:
    """Return the outcome's and the design's columns, with the levels and knots of these rows."""
    require_narrow(formula, data)
    outcome, design = patsy.incr_dbuilders(formula, lambda: iter([data]), environment())
    if len(outcome.column_names) != 1:
        raise ValueError(f"the outcome must be one number; it has the columns {outcome.column_names}")
    return outcome, design


def _learn_cells(formula: str, seen: pd.DataFrame) -> tuple[patsy.DesignInfo, patsy.DesignInfo, dict]:
    data = pd.DataFrame({name: plain_column(seen[name]) for name in seen.columns})
    outcome, design = _learn(formula, data)
    return outcome, design, _codes(design, data)


def _row_by_row(formula: str, factors: list, data: pd.DataFrame) -> tuple[Parts | None, str | None]:
    """Return the parts, or the name of a factor that is not a function of its own row only."""
    rows = len(data)
    one = _rows(data, np.arange(1))
    categorical = [factor for factor in factors if guess_categorical(value_of(factor, one))]
    used = {name for factor in categorical for name in names_in(factor.code)}
    columns = [data[name] for name in data if name in used]
    numbers = [
        column.cat.codes if isinstance(column.dtype, pd.CategoricalDtype) else pd.factorize(column)[0]
        for column in columns
    ]
    combination, first = _combined([np.asarray(number, np.int64) for number in numbers], rows)
    seen = _rows(data, first)
    outcome, design, codes = _learn_cells(formula, seen)
    for factor in factors:
        info = {**outcome.factor_infos, **design.factor_infos}[factor]
        read = seen if info.type == "categorical" else data
        if not _A_COLUMN.fullmatch(factor.code) and _looks_at_other_rows(info, read):
            return None, factor.code
    cell, first = _combined(list(codes.values()), len(seen))
    names, values = _values(outcome, design, data)
    return Parts(values, names, cell[combination], seen.iloc[first].reset_index(drop=True), None), None


def _looks_at_other_rows(info: Any, data: pd.DataFrame) -> bool:
    """Return whether a factor's value in a row changes when other rows are left out."""
    rows = len(data)

    def value(of: pd.DataFrame) -> np.ndarray:
        result = info.factor.eval(info.state, of)
        return np.asarray(getattr(result, "data", result) if info.type == "categorical" else result)

    everywhere = value(data)
    some = [np.array([row]) for row in sorted({0, 1 % rows, rows // 3, rows // 2, rows - 1})]
    for part in (*some, np.arange(0, rows, 2)):
        alone = value(_rows(data, part))
        if alone.shape != everywhere[part].shape:
            return True
        if info.type == "categorical":
            same = bool((alone == everywhere[part]).all())
        else:
            same = np.allclose(alone, everywhere[part], rtol=1e-12, atol=0, equal_nan=True)
        if not same:
            return True
    return False


def _values(
    outcome: patsy.DesignInfo, design: patsy.DesignInfo, data: pd.DataFrame
) -> tuple[tuple[str, ...], Columns]:
    """Return the atoms but for 1, and the outcome."""
    infos = {**design.factor_infos, **outcome.factor_infos}
    rows = len(data)
    numbers: dict[Any, np.ndarray] = {}
    atoms = [*_atoms(design)[1:], ((next(iter(outcome.factor_infos)), 0),)]
    values = np.empty((len(atoms), rows))
    for row, atom in zip(values, atoms, strict=True):
        row[:] = 1.0
        for factor, column in atom:
            if factor not in numbers:
                is_column = factor.code in data
                found = data[factor.code] if is_column else factor.eval(infos[factor].state, data)
                numbers[factor] = np.asarray(found, np.float64).reshape(rows, -1)
            row *= numbers[factor][:, column]

    def name(factor: Any, column: int) -> str:
        return f"{factor.name()}[{column}]" if infos[factor].num_columns > 1 else factor.name()

    return tuple(":".join(name(*pair) for pair in atom) for atom in atoms), values


def _atoms(design: patsy.DesignInfo) -> list[tuple]:
    """Return the products of numbers of which the design's columns are made; the first is 1."""
    atoms: dict[tuple, None] = {(): None}
    for term in design.terms:
        numbers = [factor for factor in term.factors if design.factor_infos[factor].type == "numerical"]
        columns = [range(design.factor_infos[factor].num_columns) for factor in numbers]
        for combination in itertools.product(*columns):
            atoms[_atom(zip(numbers, combination, strict=True))] = None
    return list(atoms)


def _atom(factors: Any) -> tuple:
    return tuple(sorted(factors, key=lambda pair: (pair[0].code, pair[1])))


def _terms(outcome: patsy.DesignInfo, design: patsy.DesignInfo, codes: Mapping[Any, np.ndarray]) -> Terms:
    """Return the design, given the levels of every categorical factor in every cell."""
    for term, columns in design.term_slices.items():
        if (
            columns.start == columns.stop
        ):  # patsy leaves out a category of which there is one level, and says nothing
            raise InputError(f"{term.name()} has one level here, which explains nothing; leave it out")
    atoms = {atom: number for number, atom in enumerate(_atoms(design))}
    cells = len(next(iter(codes.values()))) if codes else 1
    require_room(
        cells * len(atoms) * len(design.column_names),
        f"{len(design.column_names):,} terms in {cells:,} combinations of categories",
    )
    weights = np.zeros((cells, len(atoms), len(design.column_names)))
    term = 0
    for subterm in itertools.chain.from_iterable(design.term_codings.values()):
        contrasts = subterm.contrast_matrices
        widths = [
            contrasts[factor].matrix.shape[1]
            if factor in contrasts
            else design.factor_infos[factor].num_columns
            for factor in subterm.factors
        ]
        # patsy's order: the first factor's columns change fastest
        for columns in itertools.product(*map(range, reversed(widths))):
            pairs = list(zip(subterm.factors, reversed(columns), strict=True))
            weight = np.ones(cells)
            for factor, column in pairs:
                if factor in contrasts:
                    weight = weight * contrasts[factor].matrix[codes[factor], column]
            weights[:, atoms[_atom(pair for pair in pairs if pair[0] not in contrasts)], term] = weight
            term += 1
    return Terms(tuple(design.column_names), outcome.column_names[0], weights)


def _codes(design: patsy.DesignInfo, data: pd.DataFrame) -> dict[Any, Codes]:
    """Return the number of every row's level, for each categorical factor."""
    codes = {}
    for factor, info in design.factor_infos.items():
        if info.type == "categorical":
            levels = factor.eval(info.state, data)
            made = categorical_to_int(levels, info.categories, patsy.NAAction(), factor.origin)
            codes[factor] = np.asarray(made)
    return codes


def _combined(codes: list[np.ndarray], rows: int) -> tuple[Codes, Int[np.ndarray, " combinations"]]:
    """Return a number for each row's combination of codes, and the first row of each."""
    if not codes:
        return np.zeros(rows, np.int64), np.arange(1)
    number = np.zeros(rows, np.int64)
    for code in codes:
        number = pd.factorize(number * (int(code.max()) + 1) + code)[0]
    return number, np.flatnonzero(~pd.Series(number).duplicated().to_numpy())


def _rows(data: pd.DataFrame, rows: Codes) -> pd.DataFrame:
    return data.iloc[rows].reset_index(drop=True)
