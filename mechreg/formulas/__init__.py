"""Formulas are data: what one may hold, and the columns that it uses."""

from mechreg.formulas.reading import formula_columns as formula_columns
from mechreg.formulas.reading import names_in as names_in
from mechreg.formulas.signatures import MAX_COLUMNS as MAX_COLUMNS
from mechreg.formulas.signatures import spline_width as spline_width
