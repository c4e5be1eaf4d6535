"""Formulas are data: what one may hold, and the columns that it uses."""

from mechreg.formulas.reading import first_line, formula_columns, names_in
from mechreg.formulas.signatures import MAX_COLUMNS, spline_width

__all__ = ["MAX_COLUMNS", "first_line", "formula_columns", "names_in", "spline_width"]
