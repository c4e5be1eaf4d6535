"""The regression table of a paper: layers as columns, terms as rows, a panel for every model and hook point."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from mechreg.outside import Printed, any_frames, for_page
from mechreg.regression.fits import LaggedFits
from mechreg.schema import (
    GROUP_KEYS,
    InputError,
    NumericalError,
    group_columns,
    one_or_many,
    require,
    require_names,
    require_option,
    require_whole_number,
)
from mechreg.words import covariance_in_words, keys_in_words

TableFormat = Literal["markdown", "latex", "html"]
Show = Literal["stars", "intervals"]
Judged = Literal["p_adjusted", "p_value"]
STARS = (0.05, 0.01, 0.001)
_WHO = "regression_table"


@any_frames
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
        LaTeX needs the package booktabs.
    show : {"stars", "intervals"}
        Below each estimate its standard error, with stars at .05, .01 and .001; or its confidence interval.
    p : {"p_adjusted", "p_value"}
        What gives the stars; the intercept has no ``p_adjusted``, and so no stars.
    terms, layers : iterable, optional
        Those to show, in that order; by default all.
    digits : int
        After the point; what would be 0 is written with an exponent.

    Returns
    -------
    str
        With n, documents and R2, and a note that says what is shown. Columns of heads are "L.H".

    Raises
    ------
    SchemaError, InputError, NumericalError
        A missing column, an unknown term or layer, two rows for one coefficient, an estimate that is not finite.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "term": "lag1", "estimate": 0.31, "std_error": 0.02,
    ...        "p_adjusted": 0.0004, "n": 1234, "n_docs": 12, "r_squared": 0.5, "cov_type": "crv3"}
    >>> print(*regression_table(pd.DataFrame([row]), digits=2).split("\\n")[2:6], sep="\\n")
    | layer | 0 |
    |:--|--:|
    | lag1 | 0.31\\*\\*\\* |
    |  | (0.02) |
    """
    terms, layers = (None if names is None else one_or_many(names) for names in (terms, layers))
    options: dict[str, Any] = {"show": show, "p": p, "terms": terms, "layers": layers, "digits": digits}
    require_option(format, get_args(TableFormat), name="format")
    require_option(show, get_args(Show), name="show")
    require_option(p, get_args(Judged), name="p")
    require_whole_number(digits, name="digits", least=0, most=12)
    table = fits.coefficients if isinstance(fits, LaggedFits) else fits
    numbers = ["estimate", *(["std_error"] if show == "stars" else ["conf_low", "conf_high"])]
    judged = [p] if show == "stars" else []
    require(table, (*GROUP_KEYS, "term", *numbers, *judged, "n", "n_docs", "r_squared", "cov_type"), who=_WHO)
    order = table[["model", "hook"]].drop_duplicates()
    table = _chosen(_chosen(table, "term", terms), "layer", layers)
    keys = [*group_columns(table), "term"]
    if (twice := table.duplicated(keys)).any():
        where = keys_in_words({key: table.loc[twice, key].iloc[0] for key in keys})
        raise InputError(f"{_WHO} needs one row for each coefficient; there are two for {where}.")
    if not np.isfinite(table[numbers].to_numpy("float64", na_value=np.nan)).all():
        raise NumericalError(f"{_WHO} needs finite numbers as {', '.join(numbers)}; some are not.")
    form = _FORMATS[format]
    panels = dict(iter(table.groupby(["model", "hook"], sort=False, observed=True)))
    rows = partial(_rows, p=p if show == "stars" else None, digits=int(digits), form=form)
    places = [(model, hook) for model, hook in order.itertuples(index=False) if (model, hook) in panels]
    parts = [(form.escape(f"{model}, {hook}"), rows(panels[model, hook])) for model, hook in places]
    made = Printed(form.write(parts, form.escape(_note(table, show, p))))
    made.html = made if format == "html" else regression_table(fits, format="html", **options)
    return made


def _chosen(table: pd.DataFrame, column: str, wanted: Any) -> pd.DataFrame:
    """Return the rows of the terms or layers that were asked for, in that order."""
    have = table[column].unique().tolist()
    if not have:
        raise InputError(f"{_WHO} needs at least one row; the table is empty.")
    if wanted is None:
        return table
    names = require_names(wanted, have, name=f"{column}s")
    place = {name: at for at, name in enumerate(names)}
    return table[table[column].isin(names)].sort_values(
        column, key=lambda values: values.map(place).astype("int64"), kind="stable"
    )


def _rows(panel: pd.DataFrame, p: str | None, digits: int, form: "_Format") -> list[list[str]]:
    """Return the rows of one model and hook: its layers, two a term (stars by ``p``, or intervals), and the fits."""

    def number(value: float) -> str:
        fixed = f"{value:.{digits}f}"
        text = f"{value:.1e}" if value != 0 and float(fixed) == 0 else fixed
        return text.replace("-", form.minus)

    def stars(value: float) -> str:
        earned = "*" * sum(value < level for level in STARS)
        return form.stars.format(form.escape(earned)) if earned else ""

    column = panel["layer"].astype(str)
    if "head" in panel:
        column = column + "." + panel["head"].astype(str)
    upper = panel["estimate"].map(number)
    if p is None:
        lower = "[" + panel["conf_low"].map(number) + ", " + panel["conf_high"].map(number) + "]"
    else:
        upper = upper + panel[p].map(stars)
        lower = "(" + panel["std_error"].map(number) + ")"
    cells = panel.assign(column=column, upper=upper, lower=lower)
    columns = list(column.unique())
    rows = [["layer", *columns]]
    for term, part in cells.groupby("term", sort=False, observed=True):
        part = part.set_index("column").reindex(columns)
        rows += [[form.escape(str(term)), *part["upper"].fillna("")], ["", *part["lower"].fillna("")]]
    fits = cells.drop_duplicates("column")
    r_squared = [f"{value:.{digits}f}".replace("-", form.minus) for value in fits["r_squared"]]
    rows += [["n", *fits["n"].map("{:,}".format)], ["documents", *fits["n_docs"].map("{:,}".format)]]
    return [*rows, [form.r_squared, *r_squared]]


def _note(table: pd.DataFrame, show: str, p: str) -> str:
    kinds = [f"{covariance_in_words(kind)} ({kind.partition(' (')[0].upper()})" for kind in table["cov_type"]]
    errors = ", ".join(dict.fromkeys(kinds))
    if show == "intervals":
        return f"In brackets: confidence intervals, from standard errors {errors}."
    judged = "p adjusted for multiple tests" if p == "p_adjusted" else "p not adjusted for multiple tests"
    levels = ", ".join(f"{'*' * (at + 1)} p < {level:g}" for at, level in enumerate(STARS))
    return f"In parentheses: standard errors {errors}. {levels}; {judged}."


# A panel: its title and its rows, the first of which has the layers and the last three what is said of the fits.
_Panel = tuple[str, list[list[str]]]


def _markdown(panels: list[_Panel], note: str) -> str:
    parts = []
    for title, (head, *body) in panels:
        lines = [f"| {' | '.join(row)} |" for row in (head, *body)]
        lines.insert(1, "|:--|" + "--:|" * (len(head) - 1))
        parts.append("\n".join([f"**{title}**", "", *lines]))
    return "\n\n".join([*parts, note])


def _latex(panels: list[_Panel], note: str) -> str:
    columns = max(len(head) for _, (head, *_) in panels)
    lines = [f"\\begin{{tabular}}{{l{'r' * (columns - 1)}}}"]
    rule = r"\toprule"
    for title, rows in panels:
        lines += [rule, f"\\multicolumn{{{columns}}}{{l}}{{\\textbf{{{title}}}}} \\\\"]
        head, *body = [" & ".join([*row, *[""] * (columns - len(row))]) + r" \\" for row in rows]
        lines += [head, r"\midrule", *body[:-3], r"\midrule", *body[-3:]]
        rule = r"\midrule"
    end = [r"\bottomrule", r"\end{tabular}", "", f"\\medskip\\noindent{{\\footnotesize {note}}}"]
    return "\n".join(lines + end)


def _html(panels: list[_Panel], note: str) -> str:
    columns = max(len(head) for _, (head, *_) in panels)
    lines = ["<table>"]
    for title, (head, *body) in panels:
        lines += ["<tbody>", f'<tr><th colspan="{columns}" scope="colgroup">{title}</th></tr>']
        lines += ["<tr>" + "".join(f'<th scope="col">{layer}</th>' for layer in head) + "</tr>"]
        for label, *cells in body:
            lines += [f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>']
        lines += ["</tbody>"]
    return "\n".join([*lines, f'<tfoot><tr><td colspan="{columns}">{note}</td></tr></tfoot>', "</table>"])


class _Format(NamedTuple):
    """How a format writes text from outside, a minus sign, stars, R2, and the whole."""

    escape: Callable[[str], str]
    minus: str
    stars: str
    r_squared: str
    write: Callable[[list[_Panel], str], str]


# In Markdown `<` and `&` would start HTML.
_MARKDOWN = str.maketrans({**{c: "\\" + c for c in r"\`*_{}[]#|~$^"}, "&": "&amp;", "<": "&lt;"})
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", **{c: "\\" + c for c in "&%$#_{}"},
})  # fmt: skip
_FORMATS = {
    "markdown": _Format(lambda text: text.translate(_MARKDOWN), "−", "{}", "R²", _markdown),
    "latex": _Format(lambda text: text.translate(_LATEX), "$-$", "$^{{{}}}$", "$R^2$", _latex),
    "html": _Format(for_page, "−", "<sup>{}</sup>", "R²", _html),
}
