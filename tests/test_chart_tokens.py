"""plot_tokens and plot_layer_explorer: the charts say what the frames say, to 1e-4, since they round."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, opened

import mechreg as mr
from mechreg.charts.save import chart_spec, save_chart
from mechreg.charts.tokens import shown_token, token_cells
from mechreg.schema import InputError, NumericalError, SchemaError


@pytest.fixture(scope="module")
def lagged() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        pd.DataFrame(
            {
                "model": "m",
                "hook": "attn_out",
                "layer": layer,
                "depth": (layer + 0.5) / 3,
                "doc": np.repeat([f"d{at}" for at in range(5)], 80),
                "window": 0,
                "position": np.tile(range(80), 5),
                "token_id": 0,
                "token": [f" t{at}" for at in range(400)],
                "norm": np.exp(rng.normal(layer, 0.3, 400)),
            }
        )
        for layer in range(3)
    ]
    return mr.add_lags(pd.concat(rows, ignore_index=True))


@pytest.fixture(scope="module")
def fits(lagged):
    return mr.fit_lagged(lagged)


def rows_of(chart) -> pd.DataFrame:
    return pd.DataFrame(next(iter(chart_spec(chart)["datasets"].values())))


def test_a_token_has_its_log_norm_its_residual_and_its_lags_contribution(lagged, fits):
    here = lagged[(lagged["layer"] == 1) & (lagged["doc"] == "d2")]
    shown = rows_of(mr.plot_tokens(lagged, doc="d2", layer=1))
    np.testing.assert_allclose(shown["value"], np.log(here["norm"]), atol=1e-4)
    augmented = fits.augment(lagged)
    shown = rows_of(mr.plot_tokens(augmented, doc="d2", layer=1, value="residual"))
    np.testing.assert_allclose(shown["value"].astype(float), augmented.loc[here.index, "residual"], atol=1e-4)
    chart = mr.plot_tokens(lagged, doc="d2", layer=1, value="lag1", coefficients=fits.coefficients)
    beta = fits.coefficients.query("layer == 1 and term == 'lag1'")["estimate"].iloc[0]
    mean = lagged.loc[lagged["layer"] == 1, "lag1"].mean()
    np.testing.assert_allclose(rows_of(chart)["value"].astype(float), beta * (here["lag1"] - mean), atol=1e-4)


def test_cells_lie_side_by_side_and_lines_break():
    cells = token_cells(
        ["ab", " cd", "e\n", "fg", "日", "next"], starts=[True, *[False] * 4, True], columns=8
    )
    assert cells["line"].tolist() == [0, 0, 0, 1, 1, 2]
    assert cells["x"].tolist() == [0, 2, 5, 0, 2, 0]
    assert cells["x2"].tolist() == [2, 5, 7, 2, 4, 4]
    assert cells["text"].tolist() == ["ab", "cd", "e⏎", "fg", "日", "next"]
    assert cells["text_x"].tolist()[1] == 3


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("\u202ex", "⟨202E⟩x"),
        ("\u2028", "⟨2028⟩"),
        ("\x00", "␀"),
        ("\x85", "⟨0085⟩"),
        ("\ud800", "⟨D800⟩"),
        ("é", "é"),
    ],
)
def test_what_is_unseen_or_turns_the_text_is_a_symbol(token, shown):
    assert shown_token(token) == shown


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"doc": "d1"}, InputError, "Choose with layer="),
        ({"doc": "nowhere", "layer": 0}, InputError, "no rows of the doc 'nowhere'"),
        ({"doc": "d1", "layer": 9}, InputError, "layer 9"),
        ({"doc": "d1", "layer": 0, "value": "residual"}, SchemaError, "residual"),
        ({"doc": "d1", "layer": 0, "value": "token"}, InputError, "shades by numbers"),
        ({"doc": "d1", "layer": 0, "window": 3}, InputError, "no rows of the window 3"),
    ],
)
def test_what_cannot_be_shown_is_refused(lagged, options, error, said):
    with pytest.raises(error, match=said):
        mr.plot_tokens(lagged, **options)
    with pytest.raises(NumericalError, match="the logarithm of every norm"):
        mr.plot_tokens(lagged.assign(norm=0.0), doc="d1", layer=0)


def test_the_linked_view_counts_every_token_of_its_range(lagged, fits):
    spec = chart_spec(mr.plot_layer_explorer(lagged, fits.coefficients, doc="d3"))
    views = pd.DataFrame(spec["datasets"]["layers"]).set_index("layer")
    augmented = fits.augment(lagged)
    for layer, view in views.iterrows():
        part = augmented[(augmented["layer"] == layer) & augmented["lag2"].notna()]  # the fit's rows
        inside = part[part["log_norm"].between(view["low"], view["high"])]
        assert sum(view["bars"]) == pytest.approx(len(inside), abs=2)  # ends are rounded to 1e-4
        assert len(part) - 8 <= sum(view["tokens"]) <= len(part)  # of the middle 99.8% in both directions
        assert view["n"] == len(part)
        own = augmented[(augmented["layer"] == layer) & (augmented["doc"] == "d3")]
        # Computed from the coefficients, equal to statsmodels' residuals but for the rounding of what is shown.
        np.testing.assert_allclose(np.array(view["residual"], float), own["residual"], atol=6e-4)
    assert len(spec["datasets"]["tokens"]) == 80


def test_the_line_of_the_linked_view_fits_its_cloud_where_lags_are_alike():
    rng = np.random.default_rng(3)
    lag1 = rng.normal(size=4_000)
    lag2 = 0.8 * lag1 + 0.6 * rng.normal(size=4_000)
    log_norm = 0.2 * lag1 + 0.6 * lag2 + 0.3 * rng.normal(size=4_000)  # by itself the slope of lag1 is .68
    keys = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "doc": "d", "window": 0}
    frame = pd.DataFrame(
        keys | {"position": range(4_000), "log_norm": log_norm, "lag1": lag1, "lag2": lag2, "norm": 1.0}
    )
    (view,) = chart_spec(mr.plot_layer_explorer(frame, mr.fit_lagged(frame)))["datasets"]["layers"]
    x = view["x_low"] + (np.array(view["at_x"]) + 0.5) * view["cell_x"]
    y = view["y_low"] + (np.array(view["at_y"]) + 0.5) * view["cell_y"]
    slope = np.polyfit(x, y, 1, w=np.sqrt(view["tokens"]))[0]
    drawn = (view["line_high"] - view["line_low"]) / (view["x_high"] - view["x_low"])
    assert drawn == pytest.approx(view["beta"], abs=1e-3)
    assert slope == pytest.approx(view["beta"], abs=0.02)  # bins of a twentieth of the range
    assert view["beta"] == pytest.approx(0.2, abs=0.03)


def test_the_linked_view_shades_norms_and_residuals_each_by_what_they_differ_by(lagged, fits):
    # Documents whose levels differ by units, tokens within them by a twentieth.
    level = lagged["doc"].str[1:].astype(float)
    norm = np.exp(level + np.log(lagged["norm"]) / 20)
    steep = mr.add_lags(lagged.drop(columns=["log_norm", "lag1", "lag2"]).assign(norm=norm))
    fitted = mr.fit_lagged(steep, "log_norm ~ lag1 + lag2")
    chart = mr.plot_layer_explorer(steep, fitted.coefficients, doc="d4")
    residuals = fitted.augment(steep).query("doc == 'd4'")["residual"].abs()
    of_norms = (steep["log_norm"] - steep.groupby("layer")["log_norm"].transform("median"))[
        steep["doc"] == "d4"
    ]
    said = re.findall(r"shade == 'log norm' \? ([\d.]+) : ([\d.]+)", json.dumps(chart_spec(chart)))
    assert len(set(said)) == 1
    shades = [float(number) for number in said[0]]
    np.testing.assert_allclose(shades, [of_norms.abs().quantile(0.97), residuals.quantile(0.97)], rtol=0.05)
    assert shades[0] > 5 * shades[1]


@needs_browser
def test_the_linked_view_keeps_its_layer_when_nothing_is_clicked(lagged, fits, tmp_path):
    some = lagged[lagged["layer"] != 1]
    chart = mr.plot_layer_explorer(some.drop(columns="token"), fits, layer=2)
    (page,) = save_chart(chart, tmp_path / "view", formats=("html",))
    texts = "[...document.querySelectorAll('svg.marks text')].map(t => t.textContent)"
    chosen = f"{texts}.filter(t => t.includes('beta ')).map(t => t.split(':')[0]).join()"
    at = (
        "(part => {{ const b = document.querySelector('svg.marks path[fill=\"#E69F00\"]').getBoundingClientRect();"
        "return [b.left + b.width * part, b.top + 3]; }})({})"
    )
    with opened(page) as tab:
        tab.wait_for(f"({chosen}) === 'layer 2'")
        tab.click(*tab.evaluate(at.format(1.5)))  # where layer 1 would be
        tab.evaluate("new Promise(r => setTimeout(r, 300))")
        assert tab.evaluate(chosen) == "layer 2"
        tab.click(*tab.evaluate(at.format(0.5)))
        tab.wait_for(f"({chosen}) === 'layer 0'")


def test_the_linked_view_stays_small_and_refuses_what_it_cannot_link(lagged, fits):
    with pytest.raises(InputError, match="coefficient of 'lag1' for every layer; layer 2"):
        mr.plot_layer_explorer(lagged, fits.coefficients.query("layer < 2"))
    with pytest.raises(InputError, match="no rows of the layer 7"):
        mr.plot_layer_explorer(lagged, fits.coefficients, layer=7)
    with pytest.raises(InputError, match="no document 'x'"):
        mr.plot_layer_explorer(lagged, fits.coefficients, doc="x")
