"""The regression table of a paper: layers as columns, terms as rows, a panel for every model and hook point."""

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from mechreg.outside import for_page
from mechreg.regression.fits import LaggedFits
from mechreg.schema import (
    GROUP_KEYS,
    InputError,
    NumericalError,
    among,
    did_you_mean,
    one_or_many,
    require,
    require_option,
    require_whole_number,
)

TableFormat = Literal["markdown", "latex", "html"]
Show = Literal["stars", "intervals"]
Judged = Literal["p_adjusted", "p_value"]
STARS = (0.05, 0.01, 0.001)
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}  # fmt: skip


class _Dialect(NamedTuple):
    """How a format writes what is not plain."""

    escape: Callable[[str], str]
    minus: str
    stars: Callable[[int], str]
    r_squared: str


class _Panel(NamedTuple):
    """One model and hook point: a row is its label and a cell for every layer."""

    title: str
    layers: list[str]
    terms: list[list[str]]
    about: list[list[str]]


def regression_table(
    fits: LaggedFits | pd.DataFrame,
    *,
    format: TableFormat = "markdown",
    show: Show = "stars",
    p: Judged = "p_adjusted",
    terms: str | Iterable[str] | None = None,
    layers: int | Iterable[int] | None = None,
    digits: int = 3,
) -> str:
    """Return the coefficients as a table to paste: layers as columns, terms as rows, a panel a model and hook.

    Parameters
    ----------
    fits : LaggedFits or pandas.DataFrame
        What `fit_lagged` gave, or a coefficient frame.
    format : {"markdown", "latex", "html"}
        LaTeX needs the package booktabs. Names are escaped in all three.
    show : {"stars", "intervals"}
        Below each estimate its standard error, with stars at .05, .01 and .001; or its confidence interval.
    p : {"p_adjusted", "p_value"}
        What the stars go by; the intercept has no ``p_adjusted``, and so no stars.
    terms, layers : iterable, optional
        Those to show, in that order; by default all.
    digits : int
        After the point; what would be 0 is written with an exponent.

    Returns
    -------
    str
        With rows for n, documents and R2, and a note that says what is shown. Columns of heads are "L.H".

    Raises
    ------
    SchemaError, InputError, NumericalError
        A missing column, a bad option, a term or layer that is not there, two rows for one coefficient, an estimate
        that is not finite.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "term": "lag1", "estimate": 0.31, "std_error": 0.02,
    ...        "p_adjusted": 0.0004, "n": 1234, "n_docs": 12, "r_squared": 0.5, "cov_type": "crv3"}
    >>> print(regression_table(pd.DataFrame([row])).rsplit("\\n\\n", 1)[0])
    **m, attn\\_out**
    <BLANKLINE>
    | layer | 0 |
    |:--|--:|
    | lag1 | 0.310\\*\\*\\* |
    |  | (0.020) |
    | n | 1,234 |
    | documents | 12 |
    | R² | 0.500 |
    """
    require_option(format, get_args(TableFormat), name="format")
    require_option(show, get_args(Show), name="show")
    require_option(p, get_args(Judged), name="p")
    require_whole_number(digits, name="digits", least=0, most=12)
    table = fits.coefficients if isinstance(fits, LaggedFits) else fits
    below = ["std_error", p] if show == "stars" else ["conf_low", "conf_high"]
    numbers = ["estimate", *(name for name in below if name != p)]
    require(
        table, (*GROUP_KEYS, "term", *below, "estimate", "n", "n_docs", "r_squared", "cov_type"), who=_WHO
    )
    order = table[["model", "hook"]].drop_duplicates()
    table = _chosen(_chosen(table, "term", terms), "layer", layers)
    keys = [*GROUP_KEYS, *(["head"] if "head" in table.columns else [])]
    twice = table.duplicated([*keys, "term"])
    if twice.any():
        where = ", ".join(f"{key} {table.loc[twice, key].iloc[0]}" for key in [*keys, "term"])
        raise InputError(f"{_WHO} needs one row for each coefficient; there are two for {where}.")
    if not np.isfinite(table[numbers].to_numpy("float64", na_value=np.nan)).all():
        raise NumericalError(f"{_WHO} needs finite numbers as {', '.join(numbers)}; some are not.")
    dialect = _DIALECTS[format]
    parts = dict(iter(table.groupby(["model", "hook"], sort=False, observed=True)))
    panels = [
        _panel(parts[model, hook], f"{model}, {hook}", show, p, int(digits), dialect)
        for model, hook in order.itertuples(index=False)
        if (model, hook) in parts
    ]
    return _WRITERS[format](panels, dialect.escape(_note(table, show, p)))


_WHO = "regression_table"


def _chosen(table: pd.DataFrame, column: str, wanted: Any) -> pd.DataFrame:
    """Return the rows of the terms or layers that were asked for, in that order."""
    have = table[column].unique().tolist()
    if wanted is None:
        if not have:
            raise InputError(f"{_WHO} needs at least one row; the table is empty.")
        return table
    names = one_or_many(wanted)
    if not names:
        raise InputError(f"{_WHO} needs at least one {column}; {column}s= names none.")
    for name in names:
        if not among(name, have):
            hint = did_you_mean(name, have)
            raise InputError(f"{_WHO} finds no {column} {name!r}; the table has {have}.{hint}")
    place = {name: at for at, name in enumerate(names)}
    kept = table[table[column].isin(names)]
    return kept.iloc[np.argsort(kept[column].map(place).to_numpy("int64"), kind="stable")]


def _panel(part: pd.DataFrame, title: str, show: str, p: str, digits: int, dialect: _Dialect) -> _Panel:
    def number(value: float) -> str:
        fixed = f"{value:.{digits}f}"
        text = f"{value:.1e}" if value != 0 and float(fixed) == 0 else fixed
        return text.replace("-", dialect.minus)

    names = part["layer"].astype(str)
    if "head" in part.columns:
        names = names + "." + part["head"].astype(str)
    layers, rows = list(names.unique()), []
    for term in part["term"].unique():
        of_term = part[part["term"] == term].set_axis(names[part["term"] == term])
        upper, lower = [dialect.escape(str(term))], [""]
        for layer in layers:
            if layer not in of_term.index:
                upper.append("")
                lower.append("")
                continue
            row = of_term.loc[layer]
            if show == "stars":
                upper.append(number(row["estimate"]) + dialect.stars(sum(row[p] < at for at in STARS)))
                lower.append(f"({number(row['std_error'])})")
            else:
                upper.append(number(row["estimate"]))
                lower.append(f"[{number(row['conf_low'])}, {number(row['conf_high'])}]")
        rows += [upper, lower]
    first = part.set_axis(names)[~names.duplicated().to_numpy()].loc[layers]
    about = [
        ["n", *(f"{n:,}" for n in first["n"])],
        ["documents", *(f"{n:,}" for n in first["n_docs"])],
        [
            dialect.r_squared,
            *(f"{value:.{digits}f}".replace("-", dialect.minus) for value in first["r_squared"]),
        ],
    ]
    return _Panel(dialect.escape(title), layers, rows, about)


def _note(table: pd.DataFrame, show: str, p: str) -> str:
    kinds = ", ".join(dict.fromkeys(table["cov_type"]))
    if show == "intervals":
        return f"In brackets: confidence intervals (cov_type {kinds})."
    judged = "p adjusted for multiple tests" if p == "p_adjusted" else "p not adjusted for multiple tests"
    levels = ", ".join(f"{'*' * (at + 1)} p < {level:g}" for at, level in enumerate(STARS))
    return f"In parentheses: standard errors (cov_type {kinds}). {levels}; {judged}."


def _markdown(panels: list[_Panel], note: str) -> str:
    parts = []
    for panel in panels:
        rows = [["layer", *panel.layers], [":--", *["--:"] * len(panel.layers)], *panel.terms, *panel.about]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines[1] = lines[1].replace(" ", "")
        parts.append("\n".join([f"**{panel.title}**", "", *lines]))
    return "\n\n".join([*parts, note])


def _latex(panels: list[_Panel], note: str) -> str:
    columns = max(len(panel.layers) for panel in panels)
    lines = [f"\\begin{{tabular}}{{l{'r' * columns}}}"]
    for at, panel in enumerate(panels):
        lines += [
            r"\midrule" if at else r"\toprule",
            f"\\multicolumn{{{columns + 1}}}{{l}}{{\\textbf{{{panel.title}}}}} \\\\",
            _latex_row(["layer", *panel.layers], columns),
            r"\midrule",
            *(_latex_row(row, columns) for row in panel.terms),
            r"\midrule",
            *(_latex_row(row, columns) for row in panel.about),
        ]
    end = [r"\bottomrule", r"\end{tabular}", "", f"\\medskip\\noindent{{\\footnotesize {note}}}"]
    return "\n".join(lines + end)


def _latex_row(cells: list[str], columns: int) -> str:
    return " & ".join([*cells, *[""] * (columns + 1 - len(cells))]) + r" \\"


def _html(panels: list[_Panel], note: str) -> str:
    columns = max(len(panel.layers) for panel in panels)
    lines = ["<table>"]
    for panel in panels:
        head = "".join(f'<th scope="col">{layer}</th>' for layer in panel.layers)
        lines += [
            "<tbody>",
            f'<tr><th colspan="{columns + 1}" scope="colgroup">{panel.title}</th></tr>',
            f'<tr><th scope="col">layer</th>{head}</tr>',
            *(
                f'<tr><th scope="row">{row[0]}</th>'
                + "".join(f"<td>{cell}</td>" for cell in row[1:])
                + "</tr>"
                for row in [*panel.terms, *panel.about]
            ),
            "</tbody>",
        ]
    return "\n".join([*lines, f'<tfoot><tr><td colspan="{columns + 1}">{note}</td></tr></tfoot>', "</table>"])


def _markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is; `<` and `&` would start HTML in it."""
    return re.sub(r"([\\`*_{}\[\]#|~$^])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


_DIALECTS = {
    "markdown": _Dialect(_markdown_text, "−", lambda count: r"\*" * count, "R²"),
    "latex": _Dialect(_latex_text, "$-$", lambda count: f"$^{{{'*' * count}}}$" if count else "", "$R^2$"),
    "html": _Dialect(for_page, "−", lambda count: f"<sup>{'*' * count}</sup>" if count else "", "R²"),
}
_WRITERS = {"markdown": _markdown, "latex": _latex, "html": _html}
