"""Charts judged by their json: what is drawn, from which rows, and that nothing in the rows can become markup.

Tolerances: log norms are drawn with 4 decimals and histogram corners with 5, so they are compared within half a
unit of the last one (plus 1e-6 for the float32 norm); bin edges are the same arithmetic as numpy's, 1e-12; the
area of a histogram whose corners are rounded is 1 within 1e-3.
"""

import base64
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from html.parser import HTMLParser

import altair as alt
import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, visit
from chart_frames import make_coefficients, make_norms
from hypothesis import given, settings
from hypothesis import strategies as st

from mechreg import add_lags, fit_lagged
from mechreg.charts import plot_betas, plot_norms, save_chart
from mechreg.charts.norms import MAX_DOTS, histogram_edges
from mechreg.charts.save import MAX_ROWS, chart_spec, script_json
from mechreg.charts.theme import stacked_legends
from mechreg.outside import visible
from mechreg.schema import InputError, NumericalError, SchemaError

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "]]></svg><script>document.title='owned'</script>",
    "javascript:document.title='owned'",
    "a\u2028b\u2029c",
    "\u202eright-to-left",
    '"quoted" & \'quoted\' \\" &lt;b&gt; id="clip1" url(#clip1)',
)
SVG_ELEMENTS = {
    *("svg", "g", "path", "rect", "line", "text", "tspan", "defs", "clipPath", "linearGradient", "stop")
}


def rows_of(spec, part) -> pd.DataFrame:
    """Return the rows that one layer or panel of a chart draws."""
    data = part["data"]
    return pd.DataFrame(spec["datasets"][data["name"]] if "name" in data else data["values"])


def every_row(spec) -> int:
    return sum(len(rows) for rows in spec["datasets"].values())


def panels_of(chart):
    """Return the json of a norm figure and, a model, its left layers and its right panel of ridges."""
    spec = chart.to_dict()
    return spec, [(row["hconcat"][0]["layer"], row["hconcat"][1]) for row in spec["vconcat"]]


def beta_panels(spec):
    """Return the panels of a figure of betas."""
    return spec["vconcat"][0]["concat"]


def caption(spec) -> str:
    return " ".join(spec["title"]["subtitle"])


# Histograms


@pytest.mark.parametrize("n", [5, 94, 999, 1_000, 20_000])
@pytest.mark.parametrize("draw", ["normal", "gamma"])
def test_bins_are_numpys_on_clean_data(n, draw):
    rng = np.random.default_rng(n)
    values = rng.normal(3, 0.5, n) if draw == "normal" else rng.gamma(4, 0.2, n)
    cut = (n - 1) // 1_000  # so many at either end are beyond the 0.1% and 99.9% quantiles
    inside = np.sort(values)[cut : n - cut]
    expected = np.histogram_bin_edges(inside, bins="fd")
    np.testing.assert_allclose(histogram_edges(values, most=10**6), expected, rtol=0, atol=1e-12)
    assert cut > 0 or len(inside) == n


def test_sinks_do_not_make_thousands_of_bins():
    rng = np.random.default_rng(1)
    norms = np.exp(np.where(rng.random(100_000) < 0.003, 9.5, 2.0) + rng.normal(0, 0.4, 100_000))
    assert len(np.histogram_bin_edges(norms, bins="fd")) > 10_000  # the trap
    edges = histogram_edges(np.log(norms))
    assert len(edges) <= 101
    assert edges[-1] < np.log(norms).max()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=200)
    | st.lists(st.sampled_from([1.0, 1.0, 9.0]), min_size=1),
    st.integers(1, 100),
)
def test_bins_are_finite_ascending_and_few_whatever_the_values(values, most):
    values = np.array(values)
    edges = histogram_edges(values, most=most)
    assert np.isfinite(edges).all()
    assert 2 <= len(edges) <= most + 1
    assert (np.diff(edges) >= 0).all()
    assert edges[0] <= values.min()
    assert values.max() <= edges[-1]


@pytest.mark.parametrize("n_layers", [3, 20])
def test_ridges_are_the_histograms_of_every_layer_each_as_high_without_position_0(n_layers):
    norms = make_norms({"m": n_layers}, n_tokens=200, docs=2)
    spec, [(_, right)] = panels_of(plot_norms(norms))
    assert right["encoding"]["fill"]["field"] == "depth"
    corners = rows_of(spec, right)
    # Last layer first, so that the ridges below stand in front of those above.
    assert corners["layer"].unique().tolist() == list(range(n_layers))[::-1]
    highest = corners["top"].max() - (n_layers - 1)
    for layer, outline in corners.groupby("layer"):
        values = np.log(
            norms[(norms["layer"] == layer) & (norms["position"] > 0)]["norm"].to_numpy("float64")
        )
        counts, edges = np.histogram(values, bins="fd")
        middles = [edges[0], *(edges[1:] + edges[:-1]) / 2, edges[-1]]
        np.testing.assert_allclose(outline["log_norm"], middles, rtol=0, atol=6e-6)
        np.testing.assert_allclose(outline["share"], [0, *counts / counts.max(), 0], rtol=0, atol=6e-6)
        np.testing.assert_allclose(outline["top"], layer + highest * outline["share"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("tokens", [100, 2_000])
def test_a_later_sink_is_drawn_apart_and_a_layer_of_nearly_one_norm_has_none(tokens):
    norms = make_norms({"m": 4}, n_tokens=tokens, docs=1)
    rng = np.random.default_rng(0)
    flat = np.exp(5 + 0.02 * rng.standard_t(3, len(norms)))  # heavy tails, but of next to nothing
    norms["norm"] = np.where(norms["layer"] == 2, flat, norms["norm"])
    is_sink = (norms["layer"] == 1) & norms["position"].isin([7, 30])
    norms["norm"] = np.where(is_sink, 4_000.0, norms["norm"])
    spec, [(left, right)] = panels_of(plot_norms(norms))
    apart = rows_of(spec, left[-1]).query("place == 'later sinks'")
    assert apart["layer"].tolist() == [1, 1]
    np.testing.assert_allclose(apart["log_norm"], np.log(4_000), atol=1e-4)
    assert rows_of(spec, right)["log_norm"].max() < np.log(4_000)
    assert "8 robust deviations" in caption(spec)
    assert "2 norms at later positions are sinks" in spec["description"]


# Norms


def test_few_tokens_are_dots_each_in_its_layers_column():
    norms = make_norms({"m": 3}).assign(token=" rock")
    spec, [(left, _)] = panels_of(plot_norms(norms))
    assert [layer["mark"]["type"] for layer in left] == ["point", "point"]
    later, first = (rows_of(spec, layer) for layer in left)
    for dots, of in ((later, norms[norms["position"] > 0]), (first, norms[norms["position"] == 0])):
        keys = ["layer", "doc", "position"]
        merged = dots.merge(of.astype({"doc": "str"}), on=keys, validate="one_to_one")
        assert len(merged) == len(of) == len(dots)
        np.testing.assert_allclose(merged["log_norm"], np.log(merged["norm"]), rtol=0, atol=5.1e-5)
        assert ((dots["x"] - dots["layer"]).abs() <= 0.3201).all()
    assert (first["x"] == first["layer"]).all()
    assert later["x"].nunique() > 100
    assert set(later["token"]) == {" rock"}
    assert "token" in [shown["field"] for shown in left[0]["encoding"]["tooltip"]]


def test_without_position_0_there_is_no_mark_and_no_word_of_it():
    norms = make_norms()
    spec, [(left, _)] = panels_of(plot_norms(norms[norms["position"] > 0]))
    assert len(left) == 1
    assert "position 0" not in json.dumps(spec)


def test_many_tokens_are_aggregated_and_the_caption_says_so():
    norms = make_norms({"a": 4, "b": 6, "c": 8}, n_tokens=100, docs=20)
    spec, panels = panels_of(plot_norms(norms))
    assert "36,000 norms aggregated" in caption(spec)
    assert every_row(spec) < MAX_DOTS
    assert len(panels) == 3
    for model, (left, _) in zip("abc", panels, strict=True):
        later, first = rows_of(spec, left[0]), rows_of(spec, left[-1])
        for shown, of in ((later, "position > 0"), (first, "position == 0")):
            for _, row in shown.iterrows():
                values = np.log(
                    norms.query(f"model == {model!r} and layer == {row['layer']} and {of}")["norm"].to_numpy(
                        "float64"
                    )
                )
                drawn = [row[name] for name in ("q01", "q25", "log_norm", "q75", "q99")]
                np.testing.assert_allclose(
                    drawn, np.quantile(values, [0.01, 0.25, 0.5, 0.75, 0.99]), atol=5.1e-5
                )
                assert row["n"] == len(values)


@pytest.mark.parametrize(("tokens", "aggregated"), [(MAX_DOTS // 2, False), (MAX_DOTS // 2 + 1, True)])
def test_dots_end_at_their_limit(tokens, aggregated):
    spec = plot_norms(make_norms({"m": 2}, n_tokens=tokens, docs=1)).to_dict()
    assert ("aggregated" in caption(spec)) == aggregated
    assert (every_row(spec) < 400) == aggregated


def test_a_deep_and_wide_frame_stays_small():
    spec = plot_norms(make_norms({f"m{at}": 48 for at in range(5)}, n_tokens=60, docs=2)).to_dict()
    assert every_row(spec) < 12_000
    assert "at most 37 bins" in caption(spec)
    assert len(json.dumps(spec)) < 3e6


def test_rows_are_models_in_the_frames_order_on_the_same_axes():
    norms = make_norms({"zeta": 2, "alpha": 3})
    spec, panels = panels_of(plot_norms(norms))
    assert [row["title"]["text"] for row in spec["vconcat"]] == [["zeta"], ["alpha"]]
    assert spec["vconcat"][0]["title"]["subtitle"] == "n = 120 tokens, 2 documents, 2 layers"
    assert len({json.dumps(left[0]["encoding"]["y"]["scale"]) for left, _ in panels}) == 1
    assert len({json.dumps(right["encoding"]["x"]["scale"]) for _, right in panels}) == 1
    assert "natural log" in panels[0][0][0]["encoding"]["y"]["title"]


def test_heads_are_pooled_and_the_caption_says_so():
    norms = pd.concat([make_norms(seed=head).assign(head=head) for head in range(3)], ignore_index=True)
    spec = plot_norms(norms).to_dict()
    assert spec["vconcat"][0]["title"]["subtitle"] == "n = 120 tokens, 2 documents, 3 layers, 3 heads pooled"
    assert "one dot a token and head" in caption(spec)


def test_a_hook_is_chosen_or_asked_for():
    norms = make_norms(hooks=("attn_out", "mlp_out"))
    with pytest.raises(InputError, match=r"one hook at a time; the frame has 'attn_out', 'mlp_out'.*hook="):
        plot_norms(norms)
    with pytest.raises(InputError, match=r"no rows of the hook 'atn_out'.*Did you mean 'attn_out'"):
        plot_norms(norms, hook="atn_out")
    chosen = plot_norms(norms, hook="mlp_out").to_dict()
    alone = plot_norms(norms[norms["hook"] == "mlp_out"]).to_dict()
    assert chosen == alone
    assert chosen["title"]["text"] == "Log norms of mlp_out by layer"


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: f.rename(columns={"norm": "norms"}), SchemaError, "Did you mean 'norms'"),
        (lambda f: f.iloc[:0], InputError, "the frame is empty"),
        (
            lambda f: f.assign(norm=f["norm"].where(f["layer"] > 0, 0.0)),
            NumericalError,
            "norm is 0.0 at model m, hook attn_out, layer 0",
        ),
        (lambda f: f.assign(norm=np.nan), NumericalError, r"norm is nan .*\(360 such rows\)"),
        (lambda f: f[f["position"] == 0], InputError, "needs tokens after position 0; 'm' has none"),
        (lambda f: f.assign(depth=np.nan), InputError, "a value of 'depth' in every row"),
        (lambda _: make_norms(dict.fromkeys("abcdefg", 1)), InputError, "at most 6 models"),
    ],
)
def test_norm_frames_that_cannot_be_drawn_are_refused(spoil, error, message):
    with pytest.raises(error, match=message):
        plot_norms(spoil(make_norms()))


@pytest.mark.parametrize("plot", [plot_norms, plot_betas])
def test_the_dtypes_of_a_frame_do_not_matter(plot):
    frame = make_norms() if plot is plot_norms else make_coefficients()
    spec = plot(frame).to_dict()
    keys = ("model", "hook", "doc" if plot is plot_norms else "term")
    for dtype in ("category", "str", "object"):
        assert plot(frame.astype(dict.fromkeys(keys, dtype))).to_dict() == spec


# Betas


def layers_of(panel):
    """Return the layers of a panel of betas by what they draw."""
    names = ("zero", "line", "bars", "filled", "hollow", "legend")
    return dict(zip(names, panel["layer"], strict=True))


def beta_rows(spec, panel) -> pd.DataFrame:
    return rows_of(spec, layers_of(panel)["bars"])


@pytest.mark.parametrize("adjusted", [True, False])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_marks_are_the_frames_numbers_and_filled_where_significant(adjusted, alpha):
    coefficients = make_coefficients({"a": 4, "b": 7})
    spec = plot_betas(coefficients, alpha=alpha, adjusted=adjusted).to_dict()
    p = "p_adjusted" if adjusted else "p_value"
    assert ((coefficients["p_adjusted"] < alpha) != (coefficients["p_value"] < alpha)).any()
    for model, panel in zip("ab", beta_panels(spec), strict=True):
        layers, rows = layers_of(panel), beta_rows(spec, panel)
        of = coefficients.query(f"model == {model!r} and term != 'Intercept'")
        merged = rows.merge(of, on=["model", "layer", "term"], suffixes=("", "_came"), validate="one_to_one")
        assert len(merged) == len(of) == len(rows)
        for column in ("estimate", "conf_low", "conf_high", "depth", "n"):
            np.testing.assert_array_equal(merged[column], merged[f"{column}_came"])
        significant = {name: layers[name]["transform"][0]["filter"] for name in ("filled", "hollow")}
        assert {entry["field"] for entry in significant.values()} == {"judged"}
        judged = rows["judged"] == significant["filled"]["equal"]
        assert judged.tolist() == (merged[p] < alpha).tolist()
        assert (rows["judged"][~judged] == significant["hollow"]["equal"]).all()
        assert 0 < judged.sum() < len(rows)
        filled, hollow = layers["filled"]["mark"], layers["hollow"]["mark"]
        assert (filled["filled"], filled["shape"]) == (True, "circle")
        assert (hollow["filled"], hollow["fill"], hollow["shape"]) == (False, "white", "cross")
        assert layers["zero"]["encoding"]["y"]["datum"] == 0
        bars = layers["bars"]["encoding"]
        assert (bars["y"]["field"], bars["y2"]["field"]) == ("conf_low", "conf_high")


@pytest.mark.parametrize(
    ("models", "lags"),
    [
        ({"a": 2}, (1,)),
        ({"a": 48}, (1, 2)),
        ({"a": 4, "b": 6, "c": 8}, (1, 2, 3, 4)),
        ({"a": 2, "b": 12, "c": 24}, (1, 2)),
        ({"a": 6, "b": 12, "c": 24, "d": 36, "e": 48}, (1, 2)),
    ],
)
def test_terms_stand_side_by_side_within_their_layers_share_of_relative_depth(models, lags):
    spec = plot_betas(make_coefficients(models, lags=lags)).to_dict()
    assert len(beta_panels(spec)) == len(models)
    scales = set()
    for (model, n_layers), panel in zip(models.items(), beta_panels(spec), strict=True):
        rows = beta_rows(spec, panel)
        assert set(rows["model"]) == {model}
        np.testing.assert_allclose(rows["depth"], (rows["layer"] + 0.5) / n_layers)
        place, share = (rows["layer"], 1) if len(models) == 1 else (rows["depth"], 1 / n_layers)
        assert ((rows["x"] - place).abs() < 0.35 * share).all()
        assert (rows.groupby("layer")["x"].nunique() == len(lags)).all()
        assert rows.sort_values(["layer", "term"])["x"].is_monotonic_increasing
        layers = layers_of(panel)
        domain = [-0.5, n_layers - 0.5] if len(models) == 1 else [0, 1]
        assert layers["line"]["encoding"]["x"]["scale"]["domain"] == domain
        assert (rows["conf_low"] >= layers["line"]["encoding"]["y"]["scale"]["domain"][0]).all()
        assert (rows["conf_high"] <= layers["line"]["encoding"]["y"]["scale"]["domain"][1]).all()
        scales.add(
            json.dumps(
                [layers[name]["encoding"]["y"]["scale"] for name in ("line", "bars", "filled", "hollow")]
            )
        )
        assert panel["title"]["subtitle"] == f"n = 1,234, 48 documents, {n_layers} layers"
    assert len(scales) == 1  # shared
    titles = [layers_of(panel)["line"]["encoding"]["x"]["title"] for panel in beta_panels(spec)]
    assert titles[-1] == ("layer" if len(models) == 1 else "relative depth")


def test_terms_are_all_lags_in_order_or_those_asked_for():
    coefficients = make_coefficients(lags=(2, 10, 1))
    default = plot_betas(coefficients).to_dict()
    assert layers_of(beta_panels(default)[0])["line"]["encoding"]["color"]["sort"] == [
        "lag1",
        "lag2",
        "lag10",
    ]
    assert "log norm per log norm" in layers_of(beta_panels(default)[0])["line"]["encoding"]["y"]["title"]
    chosen = plot_betas(coefficients, terms=["Intercept", "lag10"]).to_dict()
    assert set(beta_rows(chosen, beta_panels(chosen)[0])["term"]) == {"Intercept", "lag10"}


@pytest.mark.parametrize(
    ("cov_type", "words"),
    [
        ("crv2", "clustered by document"),
        ("crv3 (source)", "clustered by source"),
        ("hac(4)", "robust to serial correlation"),
        ("nonrobust (single document)", "of equal variances"),
        ("hc3", "robust to unequal variances"),
    ],
)
def test_the_caption_says_in_words_what_covariance_is(cov_type, words):
    told = caption(plot_betas(make_coefficients().assign(cov_type=cov_type)).to_dict())
    assert f"confidence intervals, {words}." in told


@pytest.mark.parametrize(
    ("adjust", "words"),
    [
        ("bh", "Benjamini–Hochberg."),
        ("bonferroni", "Bonferroni."),
        ("holm", "Holm."),
        ("max-t", "max-T."),
        ("none", "raw p-values, not corrected for their number."),
    ],
)
def test_the_caption_names_the_adjustment_of_the_fits(adjust, words):
    lagged = add_lags(make_norms())
    chart = plot_betas(fit_lagged(lagged, adjust=adjust)).to_dict()
    assert f"Significance: {words}" in caption(chart)
    assert ("adjusted p" in json.dumps(chart)) == (adjust != "none")


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_caption_tells_level_covariance_and_correction(level):
    coefficients = make_coefficients(level=level)
    told = caption(plot_betas(coefficients).to_dict())
    assert f"Bars: {100 * level:g}% confidence intervals, clustered by document." in told
    assert "Significance: p adjusted over layers and lags." in told  # a frame does not know the method
    told = caption(plot_betas(coefficients, adjusted=False).to_dict())
    assert "not corrected" in told
    widened = coefficients.assign(conf_high=coefficients["conf_high"] + 0.01 * coefficients["layer"])
    assert "Bars: confidence intervals" in caption(plot_betas(widened).to_dict())


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (lambda f: f.drop(columns="p_adjusted"), {}, SchemaError, "needs the column 'p_adjusted'"),
        (lambda f: f.iloc[:0], {}, InputError, "the frame is empty"),
        (lambda f: f, {"terms": ["lag3"]}, InputError, "terms must be one of .*; got 'lag3'"),
        (lambda f: f, {"terms": []}, InputError, "terms must name at least 1 of"),
        (lambda f: f, {"terms": ["lag1", "lag1"]}, InputError, "each once"),
        (lambda f: f, {"alpha": 5.0}, InputError, "alpha must be a number between 0 and 1"),
        (lambda f: f, {"hook": "mlp_out"}, InputError, "no rows of the hook 'mlp_out'"),
        (lambda f: pd.concat([f, f]), {}, InputError, "two for model m, layer 0, term lag1.*Were two tables"),
        (lambda f: pd.concat([f.assign(head=h) for h in (0, 1)]), {}, InputError, "Choose one head"),
        (lambda f: f.assign(p_adjusted=np.nan), {}, NumericalError, "finite numbers as .*p_adjusted"),
        (lambda f: f.assign(conf_high=np.inf), {}, NumericalError, "finite numbers"),
        (lambda f: f.assign(depth=0.0), {}, InputError, "'depth' between 0 and 1"),
        (lambda _: make_coefficients(dict.fromkeys("abcdefg", 1)), {}, InputError, "at most 6 models"),
        (lambda _: make_coefficients(lags=range(1, 10)), {}, InputError, "at most 8 terms"),
        (lambda _: make_coefficients(hooks=("z", "result")), {}, InputError, "one hook at a time"),
    ],
)
def test_coefficients_that_cannot_be_drawn_are_refused(spoil, options, error, message):
    with pytest.raises(error, match=message):
        plot_betas(spoil(make_coefficients()), **options)


@pytest.mark.parametrize("folded", ["a-very-long-name/with-many-parts-and-a-checkpoint-step-143000", "short"])
def test_a_models_name_is_shown_whole(folded):
    names = {f"{folded}[folded]": 2, "b": 12, "c": 12}
    for chart in (plot_betas(make_coefficients(names)), plot_norms(make_norms(names))):
        spec = chart.to_dict()
        panel = spec["vconcat"][0]
        panel = panel["concat"][0] if "concat" in panel else panel
        assert "".join(panel["title"]["text"]) == f"{folded}[folded]"


@pytest.mark.parametrize("chart", [plot_norms(make_norms()), plot_betas(make_coefficients())])
def test_every_chart_has_a_theme_a_title_and_a_description_in_words(chart):
    spec = chart.to_dict()
    assert spec["config"]["font"].startswith("Liberation Sans")
    assert spec["config"]["range"]["category"][0] == "#0072B2"
    assert "attn_out" in spec["title"]["text"]
    assert "attn_out" in spec["description"]
    assert "layer" in spec["description"]


def test_the_description_counts():
    coefficients = make_coefficients({"m": 5}, lags=(1,))
    lag1 = coefficients.query("term == 'lag1'").set_index("layer")
    largest = lag1["estimate"].abs().idxmax()
    expected = (
        f"m, lag1: {(lag1['p_adjusted'] < 0.05).sum()} of 5 layers with adjusted p < 0.05, "
        f"largest {lag1['estimate'][largest]:.3f} in layer {largest}, mean over layers {lag1['estimate'].mean():.2f}."
    )
    assert expected in plot_betas(coefficients).to_dict()["description"]


# Files

SAVE_BOTH = """
import sys, test_charts
test_charts.save_both(sys.argv[1], formats=("json", "svg"))
"""


def both():
    return {
        "norms": plot_norms(make_norms(n_tokens=20)),
        "betas": plot_betas(make_coefficients({"a": 4, "b": 6})),
    }


def save_both(folder, formats):
    for name, chart in both().items():
        save_chart(chart, f"{folder}/{name}", formats=formats if name == "betas" else ("json", "svg"))


def run_python(code, *arguments):
    folder = os.path.dirname(__file__)
    path = os.pathsep.join([folder, os.path.dirname(folder), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_same_frame_gives_the_same_bytes_again_and_in_another_process(tmp_path):
    for folder in ("one", "two"):  # the second time, Vega's counters stand elsewhere
        save_both(tmp_path / folder, formats=("json", "svg", "html", "png"))
    other = run_python(SAVE_BOTH, tmp_path / "three")
    assert other.returncode == 0, other.stderr
    for again, n_files in (("two", 6), ("three", 4)):
        files = list((tmp_path / again).iterdir())
        assert len(files) == n_files
        for file in files:
            assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes(), file


def ids_of(file):
    return [element.get("id") for element in ElementTree.parse(file).iter() if element.get("id")]


def test_svg_ids_are_found_where_they_are_used_and_differ_between_charts(tmp_path):
    charts = [plot_norms(make_norms(seed=seed)) for seed in (0, 1)]
    files = [save_chart(chart, tmp_path / f"{at}", formats=("svg",))[0] for at, chart in enumerate(charts)]
    one, two = map(ids_of, files)
    assert one  # the gradient of depth
    assert len(one) == len(two)
    assert not set(one) & set(two)  # else the second picture of a page takes the first one's gradient
    for file, ids in zip(files, (one, two), strict=True):
        used = {part.split(")")[0] for part in file.read_text("utf-8").split("url(#")[1:]}
        assert used == set(ids)
        assert len(ids) == len(set(ids))


def test_files_land_where_they_should_in_their_formats(tmp_path):
    chart = plot_betas(make_coefficients())
    formats = ("pdf", "html", "json", "svg", "png")
    files = save_chart(chart, tmp_path / "new" / "folder" / "gpt2-1.5b", formats=formats)
    assert [file.name for file in files] == [f"gpt2-1.5b.{name}" for name in formats]
    assert sorted(file.name for file in files[0].parent.iterdir()) == sorted(file.name for file in files)
    pdf, page, text, svg, png = files
    assert json.loads(text.read_text("utf-8")) == chart.to_dict()
    assert "$schema" in json.loads(text.read_text("utf-8"))
    root = ElementTree.parse(svg).getroot()
    assert root.get("aria-label") == chart.to_dict()["description"]
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    assert width == pytest.approx(float(root.get("width")) * 300 / 96, abs=2)
    assert height == pytest.approx(float(root.get("height")) * 300 / 96, abs=2)
    fonts = pdf.read_bytes()
    streams = [part.split(b"endstream")[0].strip(b"\r\n") for part in fonts.split(b"stream\n")[1:]]
    drawn = b"".join(zlib.decompress(part) for part in streams if part[:1] == b"x")
    assert b"LiberationSans" in fonts
    assert b" Tf" in drawn  # text is drawn as text
    assert "default-src 'none'" in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("chart", "path", "options", "message"),
    [
        (None, "a", {}, "needs an Altair chart; got NoneType"),
        (
            alt.Chart(alt.Data(values=[{"a": 1}])).mark_point().encode(x="a"),
            "a",
            {},
            "cannot draw this chart",
        ),
        (
            alt.Chart(alt.Data(values=[{"a": 1}]))
            .mark_point()
            .transform_calculate(b="nofunc(datum.a)")
            .encode(x="b:Q"),
            "a",
            {},
            "Unrecognized function: nofunc",
        ),
        (
            alt.Chart(alt.Data(values=[{"a": 1}])).mark_point().encode(x=alt.X("a:Q", scale="no")),
            "a",
            {},
            "scale",
        ),
        (alt.Chart("https://example.org/a.csv").mark_point().encode(x="a:Q"), "a", {}, "data as rows inside"),
        (plot_betas(make_coefficients()), "a.png", {"formats": "svg"}, "path without suffix"),
        (plot_betas(make_coefficients()), "", {}, "path without suffix"),
        (plot_betas(make_coefficients()), "a", {"formats": ()}, "formats must name at least 1 of"),
        (plot_betas(make_coefficients()), "a", {"formats": ("svg", "svg")}, "each once"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_is_written(tmp_path, chart, path, options, message):
    with pytest.raises(InputError, match=message):
        save_chart(chart, tmp_path / path if path else "", **options)
    assert not list(tmp_path.iterdir())


def test_a_suffix_says_the_format(tmp_path):
    assert save_chart(plot_betas(make_coefficients()), tmp_path / "b.svg") == [tmp_path / "b.svg"]


def test_a_notebook_shows_a_chart_as_a_picture_and_altair_is_as_before():
    chart = plot_betas(make_coefficients())
    both = (chart | plot_norms(make_norms())).resolve_scale(y="shared").properties(title="both")
    for one in (chart, both):
        bundle, about = one._repr_mimebundle_()
        png = base64.b64decode(bundle["image/png"])
        assert struct.unpack(">I", png[16:20])[0] // 2 == about["image/png"]["width"]
        assert bundle["application/vnd.vegalite.v6+json"]["config"]["font"].startswith("Liberation")
        assert set(bundle) == {"application/vnd.vegalite.v6+json", "image/png"}
        assert type(pickle.loads(pickle.dumps(one))) is type(one)
    assert (alt.theme.active, alt.renderers.active) == ("default", "default")
    with alt.theme.enable("dark"), alt.renderers.enable("mimetype"):
        assert "image/png" not in chart._repr_mimebundle_()[0]
        assert chart.to_dict()["config"] == alt.theme.get()()["config"]


def test_an_unknown_format_is_refused_with_the_list(tmp_path):
    message = "formats must be one of 'html', 'json', 'svg', 'png', 'pdf'; got 'svgg'. Did you mean 'svg'?"
    with pytest.raises(InputError, match=re.escape(message)):
        save_chart(plot_betas(make_coefficients()), tmp_path / "a", formats=("json", "svgg"))
    assert not list(tmp_path.iterdir())


def point_chart(n_rows, parts=1):
    """Return a chart of so many rows, in so many data sets."""
    frames = [pd.DataFrame({"a": np.arange(n_rows // parts) + at}) for at in range(parts)]
    return alt.hconcat(*[alt.Chart(frame).mark_point().encode(x="a:Q") for frame in frames])


@pytest.mark.parametrize("parts", [1, 3])
def test_a_chart_of_too_many_rows_is_refused_where_altair_lets_it_pass(tmp_path, parts):
    too_many = point_chart(MAX_ROWS + 3 * parts, parts)
    if parts == 1:
        with pytest.raises(alt.MaxRowsError):
            too_many.to_dict()
    too_many.save(tmp_path / "altair.json")  # the trap: saved without a word
    assert every_row(json.loads((tmp_path / "altair.json").read_text("utf-8"))) > MAX_ROWS
    embedded = "more rows" if parts == 1 else "20,007 rows"
    with pytest.raises(InputError, match=rf"at most 20,000 rows; this one embeds {embedded}\. Aggregate"):
        save_chart(too_many, tmp_path / "ours")
    assert [file.name for file in tmp_path.iterdir()] == ["altair.json"]


def test_rows_up_to_the_limit_are_saved(tmp_path):
    [file] = save_chart(point_chart(6_000), tmp_path / "six", formats=("json",))
    assert every_row(json.loads(file.read_text("utf-8"))) == 6_000


def test_a_file_that_is_there_is_replaced_whole_or_left(tmp_path, monkeypatch):
    chart = plot_betas(make_coefficients())
    (tmp_path / "betas.json").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(InputError, match=r"cannot write to .*No space left"):
            save_chart(chart, tmp_path / "betas", formats=("json",))
    assert [file.name for file in tmp_path.iterdir()] == ["betas.json"]
    assert (tmp_path / "betas.json").read_text() == "old"
    save_chart(chart, tmp_path / "betas", formats=("json",))
    assert json.loads((tmp_path / "betas.json").read_text("utf-8")) == chart.to_dict()


# Strings from outside


def hostile_chart(name):
    """Return a chart with hostile strings as model, document, token, term, covariance or text on the page."""
    if name == "norms":
        norms = make_norms(dict.fromkeys(HOSTILE[:6], 1), n_tokens=8)
        norms["token"] = [HOSTILE[at % len(HOSTILE)] for at in range(len(norms))]
        return plot_norms(norms.assign(doc=norms["doc"].astype("str") + HOSTILE[0]))
    if name == "betas":
        coefficients = make_coefficients(dict.fromkeys(HOSTILE[2:], 1), lags=(1,))
        coefficients["term"] = coefficients["term"].replace("lag1", HOSTILE[0])
        return plot_betas(coefficients.assign(cov_type=HOSTILE[1]), terms=[HOSTILE[0]])
    tokens = pd.DataFrame({"token": list(HOSTILE), "row": range(len(HOSTILE))})
    text = alt.Chart(tokens).mark_text(limit=2_000).encode(y="row:O", text="token:N", tooltip="token:N")
    return text.properties(title=HOSTILE[0], description=HOSTILE[0])


class Outline(HTMLParser):
    """The elements of a page and what its scripts hold."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.comments = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data

    def handle_comment(self, data):
        self.comments.append(data)


@pytest.mark.parametrize("name", ["norms", "betas", "text"])
def test_hostile_strings_stay_data_in_the_files(tmp_path, name):
    chart = hostile_chart(name)
    page, svg = save_chart(chart, tmp_path / name, formats=("html", "svg"))
    outline = Outline(page.read_text("utf-8"))
    head = "html head meta meta meta title style script body div noscript p script script"
    assert outline.tags == head.split()
    assert not outline.comments
    spec = outline.scripts[1]
    assert json.loads(spec) == stacked_legends(chart_spec(chart))
    assert not set("<>&\u2028\u2029") & set(spec)
    drawn = ElementTree.parse(svg).getroot()
    assert {element.tag.split("}")[1] for element in drawn.iter()} <= SVG_ELEMENTS
    if name == "text":
        text = "".join(drawn.itertext())
        assert all(visible(token) in text for token in HOSTILE)


@settings(max_examples=50, deadline=None)
@given(st.text() | st.text("<>&/!-scriptSCRIPT\u2028\u2029"))
def test_script_json_is_the_same_value_and_never_markup(text):
    embedded = script_json({text: [text]})
    assert json.loads(embedded) == {text: [text]}
    assert embedded.isascii()
    assert not set("<>&") & set(embedded)


CONTROL_CHARACTERS = """
import sys, altair as alt
from mechreg.charts import save_chart
tokens = [chr(code) for code in [*range(32), 127, 0xD800, 0xDFFF, 0xFFFE, 0xFFFF]]
rows = [{"token": f"[{token}]", "at": at} for at, token in enumerate(tokens)]
chart = alt.Chart(alt.Data(values=rows)).mark_text().encode(y="at:O", text="token:N")
chart = chart.properties(title=tokens[11], description=tokens[0])
save_chart(chart, sys.argv[1], formats=("svg", "png"))
"""


def test_control_characters_and_half_characters_do_not_end_the_process(tmp_path):
    # In a process of its own: without the replacement vl-convert aborts Python at the first of them.
    done = run_python(CONTROL_CHARACTERS, tmp_path / "control")
    assert done.returncode == 0, done.stderr[-2_000:]
    drawn = "".join(ElementTree.parse(tmp_path / "control.svg").getroot().itertext())
    assert "[␀]" in drawn
    assert "[␋]" in drawn
    assert "[\ufffd]" in drawn


# In a browser


def owned(page) -> bool:
    return "<title>owned</title>" in visit(page).dom


@needs_browser
def test_the_attack_succeeds_on_altairs_own_page(tmp_path):
    # So that the tests below can fail.
    hostile_chart("text").save(tmp_path / "altair.html", inline=True)
    assert owned(tmp_path / "altair.html")


@needs_browser
def test_escaping_alone_keeps_hostile_strings_from_doing_anything(tmp_path):
    [page] = save_chart(hostile_chart("text"), tmp_path / "page", formats=("html",))
    before, policy, after = page.read_text("utf-8").partition('<meta http-equiv="Content-Security-Policy"')
    assert policy
    page.write_text(before + after.partition(">\n")[2], "utf-8")  # without it
    seen = visit(page)
    assert "<title>owned</title>" not in seen.dom
    assert not seen.console
    drawn = seen.dom.partition('<div id="chart"')[2]
    assert "<svg" in drawn
    assert drawn.count("document.title='owned'&lt;/script&gt;") >= 2  # as text: the title, a token


@needs_browser
@pytest.mark.parametrize("name", ["norms", "betas"])
def test_our_charts_are_drawn_offline_without_a_word_on_the_console(tmp_path, name):
    [page] = save_chart(hostile_chart(name), tmp_path / name, formats=("html",))
    seen = visit(page)
    assert "<title>owned</title>" not in seen.dom
    assert not seen.console
    drawn = seen.dom.partition('<div id="chart"')[2]
    assert 'aria-roledescription="visualization"' in drawn
    assert drawn.count('aria-roledescription="point"') >= 6


@needs_browser
def test_a_hostile_svg_opened_by_itself_does_nothing(tmp_path):
    [svg] = save_chart(hostile_chart("text"), tmp_path / "image", formats=("svg",))
    seen = visit(svg)
    assert "<title>owned</title>" not in seen.dom
    assert "owned" in seen.dom
    assert not seen.console
