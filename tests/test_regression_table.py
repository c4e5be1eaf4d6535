"""The regression table read back: every number where it belongs, and no name that becomes markup.

Numbers are compared as printed, so exactly. Markdown is read by markdown-it where it is installed, HTML by Python's own
parser, LaTeX by splitting its cells, its escapes by pandas' own.
"""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechreg.lags import add_lags
from mechreg.regression import fit_lagged
from mechreg.regression.regression_table import regression_table
from mechreg.schema import InputError, NumericalError, SchemaError

FORMATS = ("markdown", "latex", "html")
HOSTILE = (
    "</table><script>x</script>",
    "a&b_c%d#e$f{g}h~i^j",
    r"back\slash",
    "**bold** `code` [a](b) |pipe|",
    '"q"',
)


def make_table(models=None, *, hook="attn_out", heads=None, seed=0) -> pd.DataFrame:
    """Return a coefficient frame; ``models`` gives the layers of each."""
    rng = np.random.default_rng(seed)
    rows = []
    for model, layers in (models or {"m": 3}).items():
        for layer in range(layers):
            for head in heads or [None]:
                for term in ("Intercept", "lag1", "lag2"):
                    estimate, p = rng.normal(0, 0.4), rng.choice([1e-6, 0.003, 0.02, 0.3])
                    row = {"model": model, "hook": hook, "layer": layer, "term": term, "estimate": estimate}
                    row |= {} if head is None else {"head": head}
                    row |= {
                        "std_error": 0.1,
                        "conf_low": estimate - 0.2,
                        "conf_high": estimate + 0.2,
                        "p_value": p,
                    }
                    row |= {
                        "p_adjusted": np.nan if term == "Intercept" else min(1, 4 * p),
                        "n": 1000 * (layer + 1),
                    }
                    rows.append(row | {"n_docs": 48, "r_squared": 0.1 * layer, "cov_type": "crv3"})
    return pd.DataFrame(rows)


class _Cells(HTMLParser):
    """Rows of cells, as text; and every tag there is."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def cells_of(text, format):
    """Return the rows of all panels as plain text."""
    if format == "html":
        return _Cells(text).rows
    if format == "latex":
        lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
        plain = [re.sub(r"\$\^\{(\*+)\}\$", r"\1", line).replace("$-$", "−") for line in lines]
        return [[cell.strip() for cell in line.split(" & ")] for line in plain]
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|:--")]
    return [[c.strip().replace("\\*", "*") for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def stars(p):
    return "*" * sum(p < level for level in (0.05, 0.01, 0.001))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("show", ["stars", "intervals"])
def test_every_number_stands_below_its_layer_and_beside_its_term(format, show):
    table = make_table()
    rows = cells_of(regression_table(table, format=format, show=show, digits=4), format)
    found = [row for row in rows if len(row) == 4]
    assert found[0] == ["layer", "0", "1", "2"]

    def number(value):
        return f"{value:.4f}".replace("-", "−")

    for at, term in enumerate(("Intercept", "lag1", "lag2")):
        part = table[table["term"] == term].sort_values("layer")
        upper, lower = found[1 + 2 * at : 3 + 2 * at]
        assert (upper[0], lower[0]) == (term, "")
        if show == "stars":
            pairs = zip(part["estimate"], part["p_adjusted"], strict=True)
            assert upper[1:] == [number(estimate) + stars(p) for estimate, p in pairs]
            assert lower[1:] == ["(0.1000)"] * 3
        else:
            assert upper[1:] == [number(estimate) for estimate in part["estimate"]]
            pairs = zip(part["conf_low"], part["conf_high"], strict=True)
            assert lower[1:] == [f"[{number(low)}, {number(high)}]" for low, high in pairs]
    assert found[7:9] == [["n", "1,000", "2,000", "3,000"], ["documents", "48", "48", "48"]]
    assert found[9][1:] == ["0.0000", "0.1000", "0.2000"]


def test_stars_go_by_the_p_that_is_asked_for():
    table = make_table(seed=1)
    raw = cells_of(regression_table(table, p="p_value"), "markdown")
    p = table[table["term"] == "Intercept"]["p_value"]
    assert [re.sub(r"[^*]", "", cell) for cell in raw[1][1:]] == [stars(value) for value in p]
    assert "p not adjusted" in regression_table(table, p="p_value")
    assert "p adjusted" in regression_table(table)
    assert "clustered by document (CRV3)" in regression_table(table, show="intervals")
    two_way = regression_table(table.assign(cov_type="crv1 (doc x token_id)"), format="html")
    assert "standard errors clustered by document x token_id (CRV1)." in two_way


@pytest.mark.parametrize("format", FORMATS)
def test_models_are_panels_terms_and_layers_can_be_chosen(format):
    table = make_table({"small": 2, "large": 5})
    text = regression_table(table, format=format, terms=["lag2", "lag1"], layers=[4, 1, 0])
    rows = [[cell for cell in row if cell] for row in cells_of(text, format)]
    assert ["layer", "1", "0"] in rows
    assert ["layer", "4", "1", "0"] in rows
    terms = [row[0] for row in rows if row and row[0] in ("lag1", "lag2", "Intercept")]
    assert terms == ["lag2", "lag1"] * 2
    assert text.index("small, attn") < text.index("large, attn")
    if format != "markdown":  # one table, so that panels are in line: short ones are filled up
        wide = [len(row) for row in cells_of(text, format) if row and row[0] == "lag1"]
        assert wide == ([4, 4] if format == "latex" else [3, 4])


@pytest.mark.parametrize("format", FORMATS)
def test_a_term_that_only_one_layer_has_leaves_the_others_empty(format):
    table = make_table({"m": 2})
    table = table[(table["term"] != "lag2") | (table["layer"] == 1)]
    rows = cells_of(regression_table(table, format=format), format)
    (row,) = [row for row in rows if row and row[0] == "lag2"]
    assert row[1] == ""
    assert row[2] != ""


def test_heads_have_columns_of_their_own():
    text = regression_table(make_table({"m": 2}, heads=[0, 1]))
    assert "| layer | 0.0 | 0.1 | 1.0 | 1.1 |" in text


def test_small_numbers_are_not_written_as_nothing():
    table = make_table({"m": 1}).assign(estimate=[-0.00004, 0.0, 12.3456], std_error=0.00012)
    rows = cells_of(regression_table(table, digits=2), "markdown")
    assert [rows[1][1], rows[3][1].rstrip("*"), rows[5][1].rstrip("*")] == ["−4.0e−05", "0.00", "12.35"]
    assert rows[2][1] == "(1.2e−04)"


def test_what_fit_lagged_gives_is_taken_as_it_is():
    rng = np.random.default_rng(0)
    norms = pd.DataFrame(
        {"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(["a", "b", "c"], 50)}
    )
    norms = norms.assign(window=0, position=np.tile(range(50), 3), norm=rng.lognormal(size=150))
    fits = fit_lagged(add_lags(norms))
    assert regression_table(fits) == regression_table(fits.coefficients)
    before = fits.coefficients.copy()
    regression_table(fits, layers=[0], terms="lag1")
    pd.testing.assert_frame_equal(fits.coefficients, before)


# Names


def test_html_shows_names_and_makes_nothing_of_them():
    models = dict.fromkeys(HOSTILE, 1)
    table = make_table(models)
    terms = dict(zip(("Intercept", "lag1", "lag2"), HOSTILE[:3], strict=True))
    text = regression_table(table.assign(term=table["term"].map(terms), cov_type="<b>"), format="html")
    found = _Cells(text)
    assert set(found.tags) <= {"table", "tbody", "tfoot", "tr", "th", "td", "sup"}
    titles = [row[0] for row in found.rows if len(row) == 1]
    assert titles[:-1] == [f"{model}, attn_out" for model in models]
    labels = {row[0] for row in found.rows if len(row) == 2}
    assert set(HOSTILE[:3]) <= labels
    assert "<b>" in titles[-1].lower()


@settings(max_examples=25, deadline=None)
@given(st.text(st.sampled_from(r"ab1 \&%$#_{}~^"), min_size=1, max_size=12).map(str.strip).filter(bool))
def test_latex_escapes_as_pandas_does(name):
    text = regression_table(make_table({name: 1}), format="latex")
    ours = re.search(r"\\textbf\{(.*), attn\\_out\}", text)[1]
    theirs = pd.DataFrame({"x": [name]}).to_latex(escape=True, index=False, header=False)
    theirs = next(line for line in theirs.splitlines() if line.endswith(r" \\")).removesuffix(r" \\")
    spelled = {r"\textbackslash{}": r"\textbackslash ", r"\textasciitilde{}": r"\textasciitilde ",
               r"\textasciicircum{}": r"\textasciicircum "}  # fmt: skip
    for from_ours, to_theirs in spelled.items():
        ours = ours.replace(from_ours, to_theirs)
    # pandas writes two spaces as one and a protected one.
    plain = [re.sub(r"(\\space| )+", " ", one) for one in (ours, theirs)]
    assert plain[0] == plain[1]


def test_latex_has_as_many_cells_in_every_row():
    text = regression_table(make_table({"m_1": 2, "m_2": 4}), format="latex")
    assert text.startswith("\\begin{tabular}{lrrrr}\n\\toprule")
    for line in text.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert line.count(" & ") == 4
    assert text.count(r"\begin{") == text.count(r"\end{") == 1
    assert text.count("{") == text.count("}")


def test_markdown_reads_as_tables_with_the_names_as_they_are():
    markdown_it = pytest.importorskip("markdown_it")
    models = dict.fromkeys(HOSTILE, 2)
    text = regression_table(make_table(models))
    rendered = markdown_it.MarkdownIt("commonmark").enable("table").render(text)
    found = _Cells(rendered)
    assert set(found.tags) <= {"p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert rendered.count("<table>") == len(models)
    assert {len(row) for row in found.rows} == {3}
    for model in models:
        assert html.escape(f"{model}, attn_out", quote=True) in rendered.replace("&#x27;", "'")
    assert any(cell.endswith("***") for row in found.rows for cell in row)


# Refusals


def test_what_cannot_be_shown_is_refused():
    table = make_table()
    with pytest.raises(SchemaError, match="regression_table needs the column 'std_error'"):
        regression_table(table.drop(columns="std_error"))
    with pytest.raises(SchemaError, match="regression_table needs the column 'conf_low'"):
        regression_table(table.drop(columns="conf_low"), show="intervals")
    with pytest.raises(InputError, match=r"terms must be one of .*; got 'lag3'. Did you mean 'lag2'"):
        regression_table(table, terms=["lag3"])
    with pytest.raises(InputError, match="layers must be one of 0, 1, 2; got 9"):
        regression_table(table, layers=[0, 9])
    with pytest.raises(InputError, match="terms must name at least 1 of"):
        regression_table(table, terms=[])
    with pytest.raises(InputError, match="the table is empty"):
        regression_table(table.iloc[:0])
    with pytest.raises(InputError, match="two for model m, hook attn_out, layer 0, term Intercept"):
        regression_table(pd.concat([table, table]))
    with pytest.raises(NumericalError, match="needs finite numbers as estimate, std_error"):
        regression_table(table.assign(std_error=np.nan))
    with pytest.raises(InputError, match="digits must be a whole number from 0 to 12; got 13"):
        regression_table(table, digits=13)
    for option in ("format", "show", "p"):
        with pytest.raises((InputError, TypeError), match=rf"{option}( must be one of|')"):
            regression_table(table, **{option: "excel"})
