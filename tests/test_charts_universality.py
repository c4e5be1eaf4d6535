"""Charts of profiles, agreement and equivalence, judged by their json: what is drawn, and from which rows.

Numbers go into the json as they are: they are compared exactly, or, where they are written in a cell, as text.
"""

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, visit
from chart_frames import make_profiles

from mechreg.charts import plot_agreement, plot_equivalence, plot_profiles, save_chart
from mechreg.charts.theme import OKABE_ITO
from mechreg.schema import InputError, NumericalError, SchemaError

SIZES = {"small": 4, "medium": 6, "small-b": 4}
GROUPS = {name: name.removesuffix("-b") for name in SIZES}


@pytest.fixture(scope="module")
def comparison():
    return make_profiles(SIZES, groups=GROUPS)


def rows_of(spec, layer) -> pd.DataFrame:
    data = layer.get("data", spec.get("data"))
    return pd.DataFrame(spec["datasets"][data["name"]] if "name" in data else data["values"])


def layers_of(spec, kind) -> list[dict]:
    return [layer for layer in spec["layer"] if layer["mark"]["type"] == kind]


def scale_of(layer, channel) -> dict:
    scale = layer["encoding"][channel]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))


# Profiles


@pytest.mark.parametrize("band", ["sim", "conf"])
def test_profiles_are_drawn_as_they_are(comparison, band):
    spec = plot_profiles(comparison.profiles, band=band).to_dict()
    (points,) = layers_of(spec, "point")
    drawn = rows_of(spec, points)
    expected = comparison.profiles
    for name, source in (
        ("depth", "depth"),
        ("estimate", "estimate"),
        ("low", f"{band}_low"),
        ("high", f"{band}_high"),
    ):
        np.testing.assert_array_equal(drawn[name], expected[source])
    (area,) = layers_of(spec, "area")
    assert (area["encoding"]["y"]["field"], area["encoding"]["y2"]["field"]) == ("low", "high")
    low, high = points["encoding"]["y"]["scale"]["domain"]
    assert low < min(0, expected[f"{band}_low"].min())
    assert high > expected[f"{band}_high"].max()
    words = "all depths of a model at once" if band == "sim" else "95% at each depth"
    assert words in " ".join(spec["title"]["subtitle"])
    assert "12 documents" in " ".join(spec["title"]["subtitle"])


def test_seeds_of_a_size_have_its_colour_and_another_dash(comparison):
    (line,) = layers_of(plot_profiles(comparison.profiles).to_dict(), "line")
    color, dash = scale_of(line, "color"), scale_of(line, "strokeDash")
    assert color == {"small": OKABE_ITO[0], "medium": OKABE_ITO[1], "small-b": OKABE_ITO[0]}
    assert dash["small"] == dash["medium"] != dash["small-b"]
    assert (
        line["encoding"]["strokeDash"]["legend"]["symbolType"] == "stroke"
    )  # the dashes are seen in the legend


def test_models_without_groups_have_a_colour_each():
    found = make_profiles(SIZES)
    (points,) = layers_of(plot_profiles(found.profiles).to_dict(), "point")
    assert list(scale_of(points, "color").values()) == list(OKABE_ITO[:3])
    assert "Colour: group" not in plot_profiles(found.profiles).to_dict()["title"]["subtitle"][0]


def test_binned_profiles_are_drawn_too(comparison):
    spec = plot_profiles(comparison.binned).to_dict()
    (points,) = layers_of(spec, "point")
    assert len(rows_of(spec, points)) == 3 * 4
    assert "layer" not in str(points["encoding"]["tooltip"])


def test_profiles_are_told_in_words(comparison):
    words = plot_profiles(comparison.profiles).to_dict()["description"]
    own = comparison.profiles.query("model == 'medium'")["estimate"]
    assert f"medium: {own.min():.3f} at depth" in words
    assert f"{own.max():.3f} at depth" in words


# Agreement


@pytest.mark.parametrize("measure", ["concordance", "rank_correlation", "sign_agreement", "rms_difference"])
def test_every_pair_is_in_the_lower_left_once(comparison, measure):
    spec = plot_agreement(comparison.agreement, measure=measure).to_dict()
    cells = rows_of(spec, spec["layer"][0])
    assert sorted(zip(cells["row"], cells["column"], strict=True)) == [
        ("medium", "small"),
        ("small-b", "medium"),
        ("small-b", "small"),
    ]
    expected = comparison.agreement.query("measure == @measure").set_index(["model_b", "model_a"])
    digits = 3 if measure == "rms_difference" else 2
    for cell in cells.to_dict("records"):
        row = expected.loc[(cell["row"], cell["column"])]
        assert cell["estimate"] == row["estimate"]
        assert cell["value"] == f"{row['estimate']:.{digits}f}".replace("-", "−")
        assert cell["interval"].startswith(f"{row['conf_low']:.{digits}f}".replace("-", "−"))
    x, y = (spec["layer"][0]["encoding"][channel]["scale"]["domain"] for channel in "xy")
    assert (x, y) == (["small", "medium"], ["medium", "small-b"])


def test_a_pair_in_the_other_order_is_in_the_same_cell(comparison):
    turned = comparison.agreement.rename(columns={"model_a": "model_b", "model_b": "model_a"})
    first, second = (plot_agreement(frame).to_dict() for frame in (comparison.agreement, turned))
    keys = ["row", "column", "value"]
    cells = [rows_of(spec, spec["layer"][0]) for spec in (first, second)]
    pairs = [
        {frozenset((c["row"], c["column"])): c["value"] for c in table[keys].to_dict("records")}
        for table in cells
    ]
    assert pairs[0] == pairs[1]
    assert len(pairs[1]) == 3


def test_p_values_are_written_where_there_are_any(comparison):
    without = plot_agreement(comparison.agreement).to_dict()
    assert set(rows_of(without, without["layer"][0])["p"]) == {""}
    assert "no test of shape" in " ".join(without["title"]["subtitle"])
    found = make_profiles({"a": 8, "b": 8})
    spec = plot_agreement(found.agreement).to_dict()
    p = found.agreement.query("measure == 'concordance'")["p_value"].iloc[0]
    assert rows_of(spec, spec["layer"][0])["p"].tolist() == [f"p = {p:.3f}".replace("0.", ".", 1)]
    assert "as smooth" in " ".join(spec["title"]["subtitle"])


@pytest.mark.parametrize(
    ("p", "written"),
    [(0.0004, "p < .001"), (0.05, "p = .050"), (1.0, "p = 1.000"), (np.nan, ""), (0.0996, "p = .100")],
)
def test_p_values_read_as_in_print(comparison, p, written):
    spec = plot_agreement(comparison.agreement.assign(p_value=p)).to_dict()
    assert set(rows_of(spec, spec["layer"][0])["p"]) == {written}


def test_a_measure_that_is_not_defined_says_so(comparison):
    spec = plot_agreement(
        comparison.agreement.assign(estimate=np.nan, conf_low=-1.0, conf_high=1.0)
    ).to_dict()
    assert set(rows_of(spec, spec["layer"][0])["value"]) == {"not defined"}


# Equivalence


def pairs_of(chart) -> list[dict]:
    """Return the panels of a figure of differences, each with the data that it draws."""
    spec = chart.to_dict()
    return [panel | {"datasets": spec["datasets"]} for panel in spec["vconcat"][0]["concat"]]


def test_every_pair_has_a_panel_of_its_depths_against_the_margin(comparison):
    panels = pairs_of(plot_equivalence(comparison.equivalence))
    bins = comparison.equivalence.query("scope == 'bin'")
    assert len(panels) == 3
    for panel, (names, expected) in zip(
        panels, bins.groupby(["model_a", "model_b"], sort=False), strict=True
    ):
        assert " ".join(panel["title"]["text"]) == " − ".join(names)
        points = [layer for layer in layers_of(panel, "point") if "transform" in layer]
        for layer, judged, filled in zip(
            points, ("equivalent", "not shown equivalent"), (True, False), strict=True
        ):
            drawn = rows_of(panel, layer)
            for name in ("estimate", "conf_low", "conf_high", "sim_low", "sim_high", "depth"):
                assert drawn[name].tolist() == expected[name].tolist()
            assert (drawn["judged"] == "equivalent").tolist() == expected["equivalent"].tolist()
            assert layer["transform"][0]["filter"]["equal"] == judged
            assert layer["mark"]["filled"] is filled
        (allowed,) = layers_of(panel, "rect")
        assert rows_of(panel, allowed).iloc[0].tolist() == [-0.1, 0.1]
        low, high = allowed["encoding"]["y"]["scale"]["domain"]
        assert low == -high
        assert high > max(0.1, bins[["sim_low", "sim_high"]].abs().to_numpy().max())


def test_a_pair_is_judged_at_all_depths_together(comparison):
    table = comparison.equivalence.copy()
    overall = table.index[table["scope"] == "overall"]
    table.loc[overall, "equivalent"] = [True, False, False]
    table.loc[overall, "sim_low"] = [0.0, 0.05, 0.11]
    chart = plot_equivalence(table)
    states = [panel["title"]["subtitle"] for panel in pairs_of(chart)]
    assert states == ["equivalent", "undecided", "beyond the margin"]
    assert "undecided" in chart.to_dict()["description"]


def test_long_names_are_broken_not_cut():
    names = ["gpt2-xl seed one with a long name", "gpt2-xl seed two with a long name"]
    found = make_profiles(dict.fromkeys(names, 2))
    matrix = plot_agreement(found.agreement).to_dict()
    (panel,) = pairs_of(plot_equivalence(found.equivalence, width=240))
    assert " ".join(panel["title"]["text"]) == " − ".join(names)
    (cell,) = rows_of(matrix, matrix["layer"][0]).to_dict("records")
    assert [cell[end].replace("\n", " ") for end in ("column", "row")] == names
    assert max(map(len, panel["title"]["text"])) <= 34


# All of them


def draw_all(found) -> dict:
    return {
        "profiles": plot_profiles(found.profiles),
        "agreement": plot_agreement(found.agreement),
        "equivalence": plot_equivalence(found.equivalence),
    }


@needs_browser
def test_charts_are_drawn_in_a_browser(comparison, tmp_path):
    for name, chart in draw_all(comparison).items():
        save_chart(chart, tmp_path / name, formats=("html",))
        seen = visit(tmp_path / f"{name}.html")
        assert "<canvas" in seen.dom or "<svg" in seen.dom
        assert not [line for line in seen.console if "ERROR" in line or "could not be drawn" in line]


# What is refused

PLOTS = {"profiles": plot_profiles, "agreement": plot_agreement, "equivalence": plot_equivalence}


@pytest.mark.parametrize("name", PLOTS)
def test_bad_frames_are_refused(comparison, name):
    frame, plot = getattr(comparison, name), PLOTS[name]
    with pytest.raises(SchemaError, match=f"plot_{name} needs the column 'estimate'"):
        plot(frame.drop(columns="estimate"))
    with pytest.raises(InputError, match="draws one comparison; the frame has several values of 'term'"):
        plot(pd.concat([frame, frame.assign(term="lag2")]))
    with pytest.raises(InputError, match=r"no rows|at least one row"):
        plot(frame.iloc[:0])


@pytest.mark.parametrize("name", ["profiles", "equivalence"])
def test_numbers_that_are_not_finite_are_refused(comparison, name):
    frame = getattr(comparison, name).copy()
    frame.loc[0, "sim_high"] = np.inf
    with pytest.raises(NumericalError, match=r"1 such rows"):
        PLOTS[name](frame)


def test_too_many_models_are_refused():
    found = make_profiles({f"m{at}": 2 for at in range(7)})
    for name, plot in PLOTS.items():
        with pytest.raises(
            InputError, match=f"plot_{name} shows at most 6 models in one figure; the frame has 7"
        ):
            plot(getattr(found, name))


def test_without_a_margin_there_is_no_forest():
    with pytest.raises(InputError, match=r"no margin was given. Use compare_profiles\(..., margin=0.1\)"):
        plot_equivalence(make_profiles({"a": 2, "b": 2}, margin=None).equivalence)


def test_two_margins_are_refused(comparison):
    table = comparison.equivalence.assign(margin=np.linspace(0.1, 0.2, len(comparison.equivalence)))
    with pytest.raises(InputError, match="draws one margin"):
        plot_equivalence(table)


def test_wrong_options_are_refused(comparison):
    with pytest.raises(InputError, match="band must be one of 'sim', 'conf'; got 'pointwise'"):
        plot_profiles(comparison.profiles, band="pointwise")
    with pytest.raises(InputError, match="Did you mean 'concordance'"):
        plot_agreement(comparison.agreement, measure="concordence")
