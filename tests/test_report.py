"""The report says what the tables say, and nothing that comes from outside becomes markup."""

import pandas as pd
import pytest

from mechreg.report import answer, headline, report_html, result_table

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
    assert result_table(coefficients(), alpha=0.01)["significant"].tolist() == [1, 0]


def test_the_answer_has_the_tables_numbers():
    (sentence,) = answer(result_table(coefficients()))
    assert sentence == (
        "m, attn_out: lag1 differs from zero in 1 of 2 layers (median beta 0.30), "
        "lag2 in 1 of 2 layers (median beta 0.10)."
    )


@pytest.mark.parametrize(
    ("median", "said"),
    [(0.3, "0.30"), (-0.0049, "-0.005"), (-0.0012, "-0.001"), (0.0, "0.00"), (-0.005, "-0.01")],
)
def test_a_small_coefficient_is_not_rounded_to_nothing(median, said):
    table = result_table(coefficients()).head(1).assign(beta_median=median)
    assert f"(median beta {said})" in answer(table)[0]
    assert f"(median beta {said}" in headline(table)[0]


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
        (CROSSED, CROSSED[1:2], "No: lag1 differs from zero in 0 of 4 layers of m", "That is not yet"),
        (
            CROSSED,
            ("lag1",),
            "Yes, as a prediction: lag1 differs from zero in 4 of 4 layers of m",
            "That is not yet",
        ),
        (
            CROSSED,
            ("lag2",),
            "Yes, as a prediction: lag1 differs from zero in 0 of 4 layers of m",
            "That is not yet",
        ),
        (
            CROSSED,
            (),
            "both at the reference level of C(pos); 3 further terms are in the table, 2 of them a lag",
            "",
        ),
        (
            ("center(lag1)", "center(lag1):position"),
            (),
            "where position is 0; 1 further term is",
            "That is not yet",
        ),
        (("lag1:C(pos)[A]", "lag1:C(pos)[B]"), (), "No: lag1:C(pos)[A] differs", "That is not yet"),
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
    sentence, context = headline(results)
    assert said in sentence
    assert context.startswith(caveat)
    assert all(len(line) < 300 for line in (sentence, *answer(results)))


def test_many_terms_are_counted_and_not_listed():
    levels = [f"C(pos)[T.{at}]" for at in range(50)]
    (sentence,) = answer(result_table(rows_of(*levels, "lag1", *(f"lag1:{level}" for level in levels))))
    assert sentence == (
        "m, attn_out: lag1 differs from zero in 0 of 4 layers (median beta 0.20), at the reference level of C(pos); "
        "100 further terms are in the table, 50 of them a lag times another term."
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
