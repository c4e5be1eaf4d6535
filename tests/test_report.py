"""The report says what the tables say, and nothing that comes from outside becomes markup."""

import pandas as pd
import pytest

from mechreg.report import headline, legend, report_html, result_table, side_by_side
from mechreg.report.sentences import sinks_left_out

HOSTILE = "</script><img src=x onerror=alert(1)>'\"\u2028"


def coefficients(p=(0.001, 0.2, 0.04, 0.9), model="m") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": model,
            "hook": "attn_out",
            "layer": [0, 1, 0, 1, 0, 1],
            "term": ["lag1", "lag1", "lag2", "lag2", "Intercept", "Intercept"],
            "estimate": [0.5, 0.1, 0.2, 0.0, 1.0, 1.0],
            "p_adjusted": [*p, None, None],
        }
    )


def test_the_result_table_counts_layers_and_significance():
    table = result_table(coefficients())
    assert table["term"].tolist() == ["lag1", "lag2"]
    assert table["layers"].tolist() == [2, 2]
    assert table["significant"].tolist() == [1, 1]
    assert table["beta_median"].tolist() == pytest.approx([0.3, 0.1])
    assert table["beta_max"].tolist() == pytest.approx([0.5, 0.2])


def test_the_answer_has_the_tables_numbers():
    said, about, _ = headline(result_table(coefficients()))
    assert said == "In some layers: lag1 differs from zero in 1 of 2 layers of m (median 0.30)."
    assert about.startswith("Separately: lag2 in 1 of 2 (0.10).")


@pytest.mark.parametrize(
    ("median", "said"),
    [(0.3, "0.30"), (-0.0049, "-0.005"), (-0.0012, "-0.001"), (0.0, "0.00"), (-0.005, "-0.01")],
)
def test_a_small_coefficient_is_not_rounded_to_nothing(median, said):
    table = result_table(coefficients()).head(1).assign(beta_median=median)
    assert f"(median {said})" in headline(table)[0]
    assert side_by_side(table)["pooled over documents"].item().startswith(f"{said} (0.10 to")


def test_numbers_with_and_without_controls_stand_side_by_side():
    raw = (
        coefficients().query("term != 'Intercept'").assign(controls="none", n_docs=9, df=8.0, n=1234, note="")
    )
    sums = raw[raw["term"] == "lag1"].assign(term="lag1 + lag2", estimate=[0.7, 0.1], p_adjusted=0.01)
    within = sums.assign(controls="doc + position", estimate=[0.25, 0.05], p_adjusted=[0.01, 0.3], df=4.6)
    slow = within.assign(term="half_life", estimate=[12.4, float("nan")], df=float("nan"), p_adjusted=None)
    results = result_table(coefficients(), pd.concat([raw, sums, within, slow]))
    table = side_by_side(results).set_index("term")
    assert table.loc["lag1 + lag2"].tolist() == ["0.40 (0.10 to 0.70), 2 of 2", "0.15 (0.05 to 0.25), 1 of 2"]
    assert table.loc["half-life, tokens", "within documents and positions"] == "12"
    said, about, _ = headline(results)
    assert said == (
        "In some layers: lag1 + lag2 differs from zero in 2 of 2 layers of m pooled over documents (median 0.40) "
        "and in 1 of 2 within documents and positions (0.15)."
    )
    assert "9 documents, 1,234 tokens per layer; effective degrees of freedom 5 to 8." in about
    assert "halves in 12 tokens, by layer (distinguishable from white noise in 1)" in about


def test_a_hook_per_head_is_counted_in_heads():
    heads = coefficients().assign(hook="z", head=[0, 1] * 3, n=900, n_docs=9, df=8.0)
    slow = heads.head(2).assign(term="half_life", estimate=12.0, controls="doc + position", df=None)
    raw = heads[heads["term"] != "Intercept"].assign(controls="none")
    results = result_table(heads, pd.concat([raw, slow]))
    said, about, _ = headline(results)
    assert said.startswith("In some heads: lag1 differs from zero in 1 of 2 heads of m")
    assert "900 tokens per head" in about
    assert "halves in 12 tokens, by head" in about
    assert legend(results).startswith("Median over heads (least to largest)")
    both = pd.concat([results, result_table(coefficients())])
    assert legend(both).startswith("Median over layers and heads (least to largest)")
    assert "5 to 9 a head, in 2 of 2 heads." in sinks_left_out(heads.head(2).assign(n_sinks=[5, 9]))
    page = report_html(
        title="z", coefficients=heads, statistics=heads, results=results, figures={}, problems=pd.DataFrame(),
        provenance={"models": [{"name": "m"}]}, summaries="",
    )  # fmt: skip
    assert "Coefficients over the heads" in page
    assert " layers" not in page.split("<body>")[1]


def rows_of(*terms, significant=()) -> pd.DataFrame:
    """Return the coefficients of four layers, those of some terms significant."""
    rows = [
        {"model": "m", "hook": "attn_out", "layer": layer, "term": term, "estimate": 0.2}
        | {"p_adjusted": 0.001 if term in significant else 0.9}
        for term in terms
        for layer in range(4)
    ]
    return pd.DataFrame(rows)


CROSSED = ("Intercept", "C(pos)[T.ADP]", "lag1", "lag2", "lag1:C(pos)[T.ADP]", "lag2:C(pos)[T.ADP]")


@pytest.mark.parametrize(
    ("terms", "significant", "said", "caveat"),
    [
        # The lags answer, whatever stands first and whatever else differs from zero.
        (
            CROSSED,
            CROSSED[1:2],
            "No: lag1 differs from zero in 0 of 4 layers of m",
            "This does not show an effect of context",
        ),
        (
            CROSSED,
            ("lag1",),
            "Yes, as a prediction: lag1 differs from zero in 4 of 4 layers of m",
            "This does not show an effect of context",
        ),
        (
            CROSSED,
            ("lag2",),
            "Yes, as a prediction: lag1 differs from zero in 0 of 4 layers of m",
            "This does not show an effect of context",
        ),
        (
            CROSSED,
            (),
            "lags hold at the reference level of C(pos); 3 further terms are in the table, 2 of them a lag",
            "",
        ),
        (
            ("center(lag1)", "center(lag1):position"),
            (),
            "where position is 0; 1 further term is",
            "This does not show an effect of context",
        ),
        (
            ("lag1:C(pos)[A]", "lag1:C(pos)[B]"),
            (),
            "No: lag1:C(pos)[A] differs",
            "This does not show an effect of context",
        ),
        (
            ("Intercept", "position"),
            ("position",),
            "Without a lag in the formula, position differs",
            "Whether the tok",
        ),
        (
            ("Intercept",),
            ("Intercept",),
            "The table has no coefficient but the intercept's",
            "Whether the tokens",
        ),
    ],
)
def test_the_answer_is_about_the_lags_whatever_else_the_formula_has(terms, significant, said, caveat):
    results = result_table(rows_of(*terms, significant=significant))
    sentence, about, context = headline(results)
    assert said in sentence + about
    assert context.startswith(caveat)
    assert len(sentence) < 300


def test_many_terms_are_counted_and_not_listed():
    levels = [f"C(pos)[T.{at}]" for at in range(50)]
    rows = rows_of(*levels, "lag1", *(f"lag1:{level}" for level in levels))
    assert headline(result_table(rows))[1] == (
        "Separately: lags hold at the reference level of C(pos); 100 further terms are in the table, 50 of them a lag "
        "times another term. "
    )


def test_nothing_from_outside_becomes_markup():
    table = coefficients(model=HOSTILE)
    page = report_html(
        title=HOSTILE,
        coefficients=table,
        statistics=table,
        results=result_table(table),
        figures={HOSTILE: "<svg><script>alert(2)</script></svg>"},
        problems=pd.DataFrame({"doc": [HOSTILE], "problem": ["empty"]}),
        provenance={"models": [{"name": HOSTILE}], "corpus": HOSTILE},
        summaries=HOSTILE,
    )
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("<img ") == 1  # the figure, in an image, where nothing can run
    assert "http" not in page.replace("http-equiv", "")
