"""Charts of nulls and specifications judged by their json: what is drawn, from which rows, and what is refused.

Numbers are drawn as they are in the frame, so they are compared exactly (1e-12).
"""

import json

import numpy as np
import pandas as pd
import pytest
import vl_convert
from chart_frames import make_nulls, make_specifications

from mechreg.charts import plot_nulls, plot_specifications, save_chart
from mechreg.schema import InputError, NumericalError, SchemaError


def marks_of(spec, *needed):
    """Return every data set in a chart's json that has these columns, one below the other."""
    found = [pd.DataFrame(rows) for rows in spec["datasets"].values() if rows and set(needed) <= set(rows[0])]
    return pd.concat(found, ignore_index=True)


def layers_of(spec):
    """Yield every unit of a chart, with the place it is at."""
    parts = next((spec[key] for key in ("vconcat", "hconcat", "concat", "layer") if key in spec), None)
    if parts is None:
        yield spec
    else:
        for part in parts:
            yield from layers_of(part)


def test_nulls_are_drawn_with_the_numbers_of_the_frame():
    table = make_nulls({"small": 3, "large": 6})
    spec = plot_nulls(table, term="lag2").to_dict()
    drawn = marks_of(spec, "null_low")
    keys = ["model", "layer", "null"]
    expected = table[table["term"] == "lag2"].sort_values(keys, ignore_index=True)
    drawn = drawn.sort_values(keys, ignore_index=True)
    numbers = ["depth", "estimate", "null_estimate", "null_low", "null_high", "p_value"]
    np.testing.assert_allclose(drawn[numbers], expected[numbers], rtol=1e-12)
    above, below = "above the null, p < 0.05", "below it, p < 0.05"
    assert (drawn["judged"] == np.where(expected["p_value"] < 0.05, above, "no difference seen")).all()
    turned = table.assign(excess=-table["excess"])
    assert below in set(marks_of(plot_nulls(turned, term="lag2").to_dict(), "null_low")["judged"])
    rows = spec["vconcat"]
    assert [row["title"]["text"] for row in rows] == [["small"], ["large"]]
    assert [panel["title"]["text"] for panel in rows[0]["concat"]] == [["token order"], ["norm order"]]
    domains = {json.dumps(unit["encoding"]["y"]["scale"]["domain"]) for unit in layers_of(spec)
               if unit["encoding"].get("y", {}).get("scale")}  # fmt: skip
    assert len(domains) == 1  # panels can be compared
    low, high = json.loads(domains.pop())
    assert low <= expected["null_low"].min()
    assert high >= expected[["estimate", "null_high"]].max(axis=None)
    assert "5 of token order" in " ".join(spec["title"]["subtitle"])
    assert "large, norm_order" in spec["description"]


@pytest.mark.parametrize(
    ("docs", "draws", "alpha", "least"),
    [(2, 999, 0.05, "of 2 documents is at least 0.5"), (5, 999, 0.05, "of 5 documents is at least 0.0016"),
     (12, 99, 0.01, "of 99 draws is at least 0.01"), (6, 999, 0.05, None), (12, 999, 0.01, None)],
)  # fmt: skip
def test_a_null_without_power_says_that_a_difference_cannot_be_told(docs, draws, alpha, least):
    """A draw that repeats one document is as extreme as any, a share docs^(1 - docs) of the draws: p is no less."""
    table = make_nulls({"a": 3, "b": 4}).assign(n_docs=docs, draws=draws)
    spec = plot_nulls(table, alpha=alpha).to_dict()
    drawn, caption = marks_of(spec, "null_low"), " ".join(spec["title"]["subtitle"])
    unseen = "no difference seen" if least is None else "cannot be told"
    assert set(drawn.loc[drawn["p_value"] >= alpha, "judged"]) == {unseen}
    assert set(drawn.loc[drawn["p_value"] < alpha, "judged"]) == {f"above the null, p < {alpha:g}"}
    legend = next(unit["encoding"]["shape"]["scale"]["domain"] for unit in layers_of(spec)
                  if "shape" in unit["encoding"])  # fmt: skip
    assert ("cannot be told" in legend) == (least is not None)
    assert (least or "Black: the coefficient") in caption
    assert ("cannot be told in" in spec["description"]) == (least is not None)


def test_specifications_stand_side_by_side_with_the_baseline_behind_each():
    table = make_specifications({"small": 3, "large": 6})
    names = ["more_lags", "baseline"]
    spec = plot_specifications(table, specifications=names).to_dict()
    drawn = marks_of(spec, "baseline", "x")
    shown = table[(table["term"] == "lag1") & table["specification"].isin(names)]
    keys = ["specification", "model", "layer"]
    drawn, shown = (frame.sort_values(keys, ignore_index=True) for frame in (drawn, shown))
    numbers = ["estimate", "conf_low", "conf_high", "r_squared", "held_out_r_squared"]
    np.testing.assert_allclose(drawn[numbers], shown[numbers], rtol=1e-12)
    np.testing.assert_allclose(drawn["x"], drawn["depth"])
    first = shown[shown["specification"] == "more_lags"].set_index(["model", "layer"])["estimate"]
    behind = drawn.set_index(["model", "layer"])["baseline"]
    np.testing.assert_allclose(behind, first.loc[behind.index], rtol=1e-12)
    panels = [panel for row in spec["vconcat"] for panel in row["concat"]]
    assert [panel["title"]["text"] for panel in panels] == [["more lags"], ["baseline"]] * 2
    fitted = marks_of(spec, "kind", "value")
    assert set(fitted["kind"]) == {"of the rows fitted", "of documents left out"}
    assert spec["vconcat"][0]["title"]["subtitle"] == "n = 980 to 1,000, 12 documents"


def test_the_caption_says_which_r_squared_is_not_comparable():
    within = plot_specifications(make_specifications()).to_dict()["title"]["subtitle"]
    assert "R² of document effects is of what these leave" in " ".join(within)
    plain = plot_specifications(make_specifications(names=("baseline", "more_lags"))).to_dict()
    assert "these leave" not in " ".join(plain["title"]["subtitle"])


HOSTILE = "it's</script><script>\"]] + alert(1) + [["


@pytest.mark.parametrize("kind", ["nulls", "specifications"])
def test_hostile_names_stay_names_and_both_charts_compile(kind, tmp_path):
    if kind == "nulls":
        chart = plot_nulls(make_nulls({HOSTILE: 1, "b": 2}, nulls=(HOSTILE,)))
    else:
        chart = plot_specifications(make_specifications({HOSTILE: 2}, names=("baseline", HOSTILE)))
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    assert "<script" not in svg
    (path,) = save_chart(chart, tmp_path / "chart", formats=("html",))
    assert '<script>"]]' not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "plot", "part"),
    [(make_nulls, plot_nulls, "null"), (make_specifications, plot_specifications, "specification")],
)
def test_what_cannot_be_drawn_is_refused(make, plot, part):
    table = make()
    with pytest.raises(SchemaError, match=f"needs the column '{part}'"):
        plot(table.drop(columns=part))
    with pytest.raises(InputError, match=r"has no rows of the term 'lag3'.*Did you mean 'lag2'"):
        plot(table, term="lag3")
    with pytest.raises(InputError, match="two for model m, layer 0"):
        plot(pd.concat([table, table]))
    with pytest.raises(InputError, match="Choose one head"):
        plot(pd.concat([table.assign(head=0), table.assign(head=1)]))
    with pytest.raises(InputError, match="a 'depth' between 0 and 1"):
        plot(table.assign(depth=1.5))
    with pytest.raises(NumericalError, match="finite numbers"):
        plot(table.assign(estimate=np.nan))
    with pytest.raises(InputError, match="at most 6 models"):
        plot(make({f"m{i}": 1 for i in range(7)}))
    with pytest.raises(InputError, match="one hook at a time"):
        plot(pd.concat([table, table.assign(hook="z")]))


def test_what_is_only_one_chart_refuses():
    with pytest.raises(InputError, match="at most 5 nulls"):
        plot_nulls(make_nulls(nulls=tuple("abcdef")))
    table = make_nulls({"a": 2, "b": 2})
    with pytest.raises(InputError, match="no rows of the null 'norm_order' for the model 'b'"):
        plot_nulls(table[(table["model"] == "a") | (table["null"] == "token_order")])
    with pytest.raises(InputError, match="alpha must be a number between 0 and 1"):
        plot_nulls(table, alpha=5.0)
    with pytest.raises(
        InputError, match=r"specifications must be one of .*; got 'more_lag'. Did you mean 'more_lags'"
    ):
        plot_specifications(make_specifications(), specifications=["more_lag"])
    with pytest.raises(InputError, match="specifications must name at least 1 of"):
        plot_specifications(make_specifications(), specifications=[])


def test_each_model_has_its_own_sample_size_where_the_index_repeats():
    table = pd.concat([make_nulls({"a": 3}).assign(n=111), make_nulls({"b": 3}).assign(n=222)])
    text = json.dumps(plot_nulls(table, term="lag1").to_dict())
    assert "n = 111," in text
    assert "n = 222," in text
    assert "111 to 222" not in text
