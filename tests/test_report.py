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
