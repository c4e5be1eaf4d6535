"""Every plot function takes the object that holds its frame, and refuses an option of a wrong kind in a sentence."""

import contextlib
import copy
import functools
import inspect
import pickle
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import altair as alt
import chart_frames
import jaxtyping
import numpy as np
import pandas as pd
import pytest
from chart_frames import make_coefficients, make_norms, make_profiles

import mechreg
from mechreg.charts.save import chart_spec, save_chart, svg_of
from mechreg.charts.terms import sort_terms
from mechreg.schema import InputError, MechregError, SchemaError

WRONG = [0, 1, -1, 1.5, True, None, "nope", "", [], ["nope"], [1], (1, 2), {"a": 1}, np.array([1, 2]), np.nan]
WRONG += [object(), pd.Series(["a"]), b"x", "\u2028"]


@pytest.fixture(autouse=True)
def _what_a_user_sees():
    """Switch off the checks of types, which the tests have and a user has not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def arguments():
    return called_with("small", "medium")


@functools.cache
def called_with(*models):
    """Return what every plot function is called with in tests/chart_frames.py, for models of two layers and three."""
    noted = {}

    class Noting:
        def __getattr__(self, name):
            def note(*frames, **options):
                return frames, options

            return note if name.startswith("plot_") else getattr(mechreg, name)

    chart_frames.mr, real = Noting(), chart_frames.mr
    try:
        for name, chart in chart_frames.CHARTS.items():
            noted[name] = chart(dict(zip(models, (2, 3), strict=True)), 94)
    finally:
        chart_frames.mr = real
    return noted


# The other kinds of charts are slow tests.
FIRST = ("plot_norms", "plot_betas", "plot_nulls", "plot_layer_explorer", "plot_tokens")
some_charts = pytest.mark.parametrize(
    "name",
    [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in chart_frames.CHARTS],
)


@some_charts
def test_an_option_of_a_wrong_kind_is_drawn_or_refused_in_a_sentence(arguments, name):
    plot, (frames, options) = getattr(mechreg, name.removesuffix("_by")), arguments[name]
    parameters = inspect.signature(plot).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for value in WRONG:
        for keyword, default in keywords.items():
            if value is default:
                continue
            with contextlib.suppress(MechregError):
                plot(*frames, **{**options, keyword: value})
        for at in range(len(frames)):
            with pytest.raises(SchemaError, match="needs a pandas DataFrame"):
                plot(*frames[:at], 1 if isinstance(value, pd.Series) else value, *frames[at + 1 :], **options)


@pytest.mark.parametrize("name", chart_frames.CHARTS)
def test_a_plot_leaves_its_frames_alone(arguments, name):
    plot, (frames, options) = getattr(mechreg, name.removesuffix("_by")), arguments[name]
    before = [frame.copy(deep=True) for frame in frames]
    plot(*frames, **options)
    for frame, same_frame in zip(frames, before, strict=True):
        pd.testing.assert_frame_equal(frame, same_frame)


@some_charts
def test_a_chart_has_the_size_and_title_that_were_asked_for(arguments, name):
    plot, (frames, options) = getattr(mechreg, name.removesuffix("_by")), arguments[name]
    chart = plot(*frames, **options, width=400, height=111, title="Mine")
    assert chart["title"]["text"] == "Mine"
    marks, heights = sizes_of(chart.to_dict())
    assert marks <= 400
    # A token chart's height is that of a line.
    assert set(heights) & {111} or max(heights) % 111 == 0


NAMES = {
    "usual": ("HuggingFaceTB/SmolLM2-135M", "EleutherAI/pythia-160m-deduped"),
    "long": (
        "meta_llama_Llama_3_2_1B_Instruct_finetuned_on_my_texts_v2",
        "EleutherAI/pythia-160m-deduped-step143000-seed9",
    ),
}


@pytest.mark.parametrize("names", [pytest.param("usual", marks=pytest.mark.slow), "long"])
@pytest.mark.parametrize(("size", "inches"), [("column", 3.25), ("page", 6.75)])
@pytest.mark.parametrize("name", chart_frames.CHARTS)
def test_a_chart_on_paper_is_as_wide_as_its_column_or_page_whatever_is_beside_its_marks(
    name, size, inches, names
):
    plot = getattr(mechreg, name.removesuffix("_by"))
    frames, options = called_with(*NAMES[names])[name]
    svg = ElementTree.fromstring(svg_of(chart_spec(plot(*frames, **options, width=size))))
    assert 0.75 * 96 * inches < float(svg.get("width")) <= 96 * inches


@pytest.mark.parametrize("width", [None, "column", "page"])
def test_long_names_in_a_legend_keep_both_ends_and_stay_different(width):
    names = [f"organisation/model-of-many-words-{step}-{'x' * 20}-seed" for step in ("one", "two", "three")]
    chart = mechreg.plot_profiles(make_profiles(dict.fromkeys(names, 2)), width=width)
    drawn = ElementTree.fromstring(svg_of(chart_spec(chart))).itertext()
    labels = [text for text in drawn if text.startswith("organisation/")]
    assert len(set(labels)) == 3
    assert all("…" in label and label.endswith("-seed") for label in labels)


@pytest.mark.parametrize(("size", "inches"), [("column", 3.25), ("page", 6.75)])
def test_a_file_for_paper_has_the_width_of_its_column_or_page(size, inches, tmp_path):
    chart = mechreg.plot_betas(make_coefficients(), width=size)
    svg, png, pdf = mechreg.save_chart(chart, tmp_path / "betas", formats=("svg", "png", "pdf"), ppi=200)
    pixels = float(ElementTree.fromstring(svg.read_text()).get("width"))
    assert 0.9 * inches < pixels / 96 <= inches
    # A pixel of the svg is 1/96 inch, a point of the pdf 1/72; either may be rounded to a whole one.
    assert int.from_bytes(png.read_bytes()[16:20]) == pytest.approx(pixels / 96 * 200, abs=1)
    box = re.search(rb"/MediaBox ?\[0 0 ([\d.]+)", pdf.read_bytes())
    assert float(box[1]) == pytest.approx(pixels / 96 * 72, abs=1)


def sizes_of(part):
    """Return the width of all marks of a chart beside each other, and the heights of its units."""
    parts = part.get("vconcat") or part.get("hconcat") or part.get("concat")
    if parts is None:
        return part["width"], [part["height"]]
    sizes = [sizes_of(entry) for entry in parts]
    widths, heights = [one for one, _ in sizes], [height for _, some in sizes for height in some]
    beside = len(parts) if "hconcat" in part else part.get("columns", 1)
    return sum(widths[:beside]) if beside > 1 else max(widths), heights


def test_two_charts_stand_side_by_side():
    betas = make_coefficients()
    left, right = (
        mechreg.plot_betas(betas, width=300, title="a"),
        mechreg.plot_betas(betas, width=300, title="b"),
    )
    both = (left | right).resolve_scale(y="shared").to_dict()
    assert [part["title"]["text"] for part in both["hconcat"]] == ["a", "b"]
    tokens = mechreg.plot_norms(make_norms(), width=300) | right
    assert [part["title"]["text"] for part in tokens.to_dict()["hconcat"]] == [
        "Log norms of attn_out by layer",
        "b",
    ]


def test_a_layer_explorer_stands_in_any_figure_with_its_data(arguments, tmp_path):
    frames, options = arguments["plot_layer_explorer"]
    explorer, betas = mechreg.plot_layer_explorer(*frames, **options), mechreg.plot_betas(make_coefficients())
    copies = copy.deepcopy(explorer) | betas, pickle.loads(pickle.dumps(explorer)) | betas
    ours = betas | explorer, (explorer | betas) & betas
    by_altair = alt.hconcat(explorer, betas), explorer.properties(title="x")
    for chart in (*ours, *copies, *by_altair):
        assert {"layers", "tokens"} <= set(chart.to_dict()["datasets"])
    for chart in (ours[-1], copies[-1], by_altair[0]):
        (file,) = save_chart(chart, tmp_path / "both", formats=("svg",))
        assert "deviation (log norm)" in file.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="room for one plot_layer_explorer"):
        (explorer | explorer).to_dict()


@pytest.mark.parametrize("name", ["plot_token_agreement", "plot_betas"])
def test_a_figure_stays_whole_beside_or_above_another(arguments, name):
    frames, options = arguments[name]
    chart, betas = getattr(mechreg, name)(*frames, **options), mechreg.plot_betas(make_coefficients())
    for both, kind in ((chart | betas, "hconcat"), (chart & betas, "vconcat"), (chart & chart, "vconcat")):
        first, _ = both.to_dict()[kind]
        assert first["title"] == chart.to_dict()["title"]
    assert len((chart | betas | betas).to_dict()["hconcat"]) == 3
    # The second is not among the first one's panels.
    panels = [part for part in (chart | betas)["hconcat"][0].to_dict().values() if isinstance(part, list)]
    assert "Coefficients of lag1 and lag2" not in str(panels)


@some_charts
def test_a_chart_is_valid_vega_lite(arguments, name):
    plot, (frames, options) = getattr(mechreg, name.removesuffix("_by")), arguments[name]
    alt.Chart.from_dict(plot(*frames, **options, width="column").to_dict())  # validates


def domains(part):
    """Yield the title and the domain of every vertical scale of a chart's json."""
    for kind in ("vconcat", "hconcat", "concat", "layer"):
        for inner in part.get(kind, []):
            yield from domains(inner)
    axis = part.get("encoding", {}).get("y", {})
    if "domain" in axis.get("scale", {}):
        yield axis.get("title"), tuple(axis["scale"]["domain"])


def test_two_charts_side_by_side_have_one_scale_and_separate_ones_where_altair_composes_them():
    small, large = make_coefficients({"a": 3, "b": 3}), make_coefficients({"c": 5}, seed=1)
    left, right = (mechreg.plot_betas(table) for table in (small, large.assign(conf_high=2.0)))
    before = [set(dict(domains(chart.to_dict())).values()) for chart in (left, right)]
    both = (left | right).to_dict()["hconcat"]
    ends = [set(domains(part)) for part in both]
    (domain,) = {
        domain for of_chart in ends for _, domain in of_chart
    }  # also of panels whose axis has no title
    assert domain == (min(low for ((low, _),) in before), max(high for ((_, high),) in before))
    apart = alt.hconcat(left, right).to_dict()["hconcat"]
    assert [{domain for _, domain in domains(part)} for part in apart] == before  # and they are as they were
    tokens = mechreg.plot_norms(make_norms({"m": 3})) | mechreg.plot_norms(make_norms({"n": 5}, seed=1))
    layers, norms = (
        {d for t, d in domains(tokens.to_dict()) if (t == "layer") == of} for of in (True, False)
    )
    assert len(layers) == 2
    assert len(norms) == 1


@pytest.mark.parametrize(
    "again",
    [
        *(copy.deepcopy, lambda chart: pickle.loads(pickle.dumps(chart)), lambda chart: chart.copy()),
        lambda chart: chart.properties(title="mine"),
    ],
)
def test_a_chart_knows_what_its_axes_are_of_after_any_copy(again):
    left, right = (mechreg.plot_betas(make_coefficients(seed=seed)) for seed in (0, 1))
    assert len({domain for _, domain in domains((again(left) | again(right)).to_dict())}) == 1
    other = mechreg.plot_profiles(make_profiles({"a": 2, "b": 3}).profiles)  # of one term
    assert len({domain for _, domain in domains((again(left) | other).to_dict())}) == 2


def test_a_small_model_below_a_large_one_has_its_marks_at_its_own_depths():
    """The lags stand side by side, as far apart as in the large model: else up to 0.15 apart in the small one."""
    spec = mechreg.plot_betas(make_coefficients({"large": 30, "small": 4})).to_dict()
    rows = pd.DataFrame([row for rows in spec["datasets"].values() for row in rows if "judged" in row])
    rows = rows.dropna(subset="x")
    assert set(rows["model"]) == {"large", "small"}
    assert (rows["x"] - rows["depth"]).abs().max() < 0.5 / 30
    assert rows.groupby(["model", "layer"])["x"].nunique().eq(2).all()


def test_charts_side_by_side_have_one_legend_if_theirs_are_alike_and_else_their_own():
    betas = [mechreg.plot_betas(make_coefficients(seed=seed), width=300) for seed in (0, 1)]
    profiles = mechreg.plot_profiles(make_profiles({"a": 2, "b": 3}).profiles, width=300)
    for both, titles in (
        (betas[0] | betas[1], ["significance", "term"]),
        (betas[0] & betas[1], ["significance", "term"]),
        (betas[0] | profiles, ["model", "significance", "term"]),
        (profiles & betas[0] & betas[1], ["model", "significance", "significance", "term", "term"]),
    ):
        drawn = [*ElementTree.fromstring(svg_of(chart_spec(both))).itertext()]
        assert sorted(text for text in drawn if text in titles or text == "term, model") == titles


def test_two_charts_of_a_column_fit_a_page_beside_each_other_and_a_column_one_below_the_other():
    betas = mechreg.plot_betas(make_coefficients({"m": 12}), title="a", width="column")
    profiles = mechreg.plot_profiles(make_profiles({"s": 2, "t": 3}).profiles, title="b", width="column")
    for both, inches in ((betas | profiles, 6.75), (betas & profiles, 3.25)):
        svg = ElementTree.fromstring(svg_of(chart_spec(both)))
        assert 0.75 * 96 * inches < float(svg.get("width")) <= 96 * inches


def test_effects_of_one_measure_side_by_side_have_one_scale(arguments):
    (effects,), _ = arguments["plot_dose_response"]
    doubled = effects.assign(**{name: 2 * effects[name] for name in ("estimate", "conf_low", "conf_high")})
    both = mechreg.plot_dose_response(effects) | mechreg.plot_dose_response(doubled, measures="loss")
    left, right = (part["vconcat"][0]["concat"] for part in both.to_dict()["hconcat"])
    (loss,), (kl,), (doubled_loss,) = (
        {domain for _, domain in domains(panel)} for panel in (*left[:2], *right)
    )
    assert loss == doubled_loss
    assert loss[1] > 1.5 * kl[1]


def test_doses_are_of_one_head_which_is_chosen_by_name(arguments):
    (effects,), _ = arguments["plot_dose_response"]
    heads = pd.concat([effects.assign(head=head, estimate=effects["estimate"] + head) for head in (0, 3)])
    with pytest.raises(InputError, match=r"takes one head at a time; the frame has 0, 3\. Choose with head="):
        mechreg.plot_dose_response(heads)
    with pytest.raises(InputError, match="has no rows of the head 1; the frame has 0, 3"):
        mechreg.plot_dose_response(heads, head=1)
    with pytest.raises(InputError, match="asked for head 1; the frame has no column 'head'"):
        mechreg.plot_dose_response(effects, head=1)
    spec = mechreg.plot_dose_response(heads, head=3).to_dict()
    assert spec["title"]["text"] == "attn_out of head 3 scaled: effects by dose and layer"
    drawn = [row["estimate"] for rows in spec["datasets"].values() for row in rows if "kind" in row]
    assert min(drawn) >= 3
    without = mechreg.plot_dose_response(effects.assign(head=-1)).to_dict()
    assert without["title"] == mechreg.plot_dose_response(effects).to_dict()["title"]


@pytest.mark.parametrize("options", [{}, {"width": "column"}, {"height": 80}])
def test_labels_of_layers_with_one_effect_do_not_touch(arguments, options):
    (effects,), _ = arguments["plot_dose_response"]
    six = [effects.query("model == 'small' and layer == 0").assign(layer=layer) for layer in range(6)]
    chart = mechreg.plot_dose_response(pd.concat(six), measures="kl", **options)
    svg = ElementTree.fromstring(svg_of(chart_spec(chart)))
    labels = [part for part in svg.iter() if "mark-text" in part.get("class", "") and len(part) == 6]
    (places,) = ([re.findall(r"[-\d.]+", text.get("transform")) for text in group] for group in labels)
    heights = sorted(float(y) for _, y in places)
    assert np.diff(heights).min() >= 9.9
    assert heights[-1] - heights[0] <= 80  # and stay at their points


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": "colum"}, "width must be one of 'column', 'page'; got 'colum'. Did you mean 'column'?"),
        ({"height": 3}, "height must be a whole number from 40 to 10000; got 3"),
        ({"title": 3}, "title must be a string; got 3"),
        ({"terms": 1}, "terms must be one of .*; got 1"),
        ({"terms": []}, "terms must name at least 1 of"),
        ({"by": "cov_type", "terms": ["lag1", "lag2"]}, "at most 1 term with by=; got 2"),
        ({"hook": 1}, "plot_betas has no rows of the hook 1; the frame has 'attn_out'"),
        ({"by": 1}, "by must be one name, a string; got 1"),
        ({"adjusted": "no"}, "adjusted must be True or False; got 'no'"),
    ],
)
def test_the_sentence_names_the_option_and_what_came(options, said):
    with pytest.raises(InputError, match=said):
        mechreg.plot_betas(make_coefficients(), **options)


def test_a_model_without_the_terms_is_left_out_and_named():
    frame = make_coefficients({"a": 2, "b": 2})
    frame = frame[(frame["model"] == "a") | (frame["term"] != "lag2")]
    chart = mechreg.plot_betas(frame, terms=["lag2"]).to_dict()
    assert len(chart["vconcat"][0]["concat"]) == 1
    assert "Without b, which has no such term." in chart["title"]["subtitle"]
    assert len(mechreg.plot_betas(frame).to_dict()["vconcat"][0]["concat"]) == 2


@pytest.mark.parametrize(
    ("terms", "title", "said"),
    [
        (["Intercept", "position"], "position", None),
        (["Intercept"], "Intercept", None),
        (["C(pos)[T.B]", "lag1", "lag1:C(pos)[T.B]"], "lag1", "at the reference level of C(pos)"),
    ],
)
def test_betas_are_of_the_lags_and_else_of_what_there_is(terms, title, said):
    frame = make_coefficients(lags=(1,)).query("term == 'lag1'")
    chart = mechreg.plot_betas(pd.concat([frame.assign(term=term) for term in terms])).to_dict()
    assert chart["title"]["text"] == f"Coefficients of {title} for attn_out, by layer"
    assert (said or "") in " ".join(chart["title"]["subtitle"])
    assert ("interactions" in " ".join(chart["title"]["subtitle"])) == (said is not None)


def test_terms_are_sorted_by_what_they_have_to_do_with_the_lags():
    terms = sort_terms(
        ["lag10", "lag2", "center(lag1)", "I(lag1 * lag2)", "lag2:C(x)[T.a:b]", "C(x)[T.lag1]", "flag1"]
    )
    assert terms.lags == ["center(lag1)", "lag2", "lag10"]
    assert terms.interactions == ["I(lag1 * lag2)", "lag2:C(x)[T.a:b]"]
    assert terms.others == ["C(x)[T.lag1]", "flag1"]


def same(one, other):
    strip = {"datasets", "config"}
    left, right = ({k: v for k, v in chart.to_dict().items() if k not in strip} for chart in (one, other))
    assert left.get("title") == right.get("title")
    assert left.get("description") == right.get("description")


def test_a_plot_takes_the_frame_or_the_object_that_holds_it():
    betas, norms = make_coefficients(), make_norms()
    same(mechreg.plot_betas(SimpleNamespace(coefficients=betas)), mechreg.plot_betas(betas))
    same(mechreg.plot_norms(SimpleNamespace(norms=lambda: norms)), mechreg.plot_norms(norms))
    compared = make_profiles({"a": 2, "b": 3})
    for plot, part in (
        (mechreg.plot_profiles, "profiles"),
        (mechreg.plot_agreement, "agreement"),
        (mechreg.plot_equivalence, "equivalence"),
    ):
        same(plot(compared), plot(getattr(compared, part)))
    with pytest.raises(SchemaError, match=r"or an object that holds one as \.coefficients; got list"):
        mechreg.plot_betas([1])


@pytest.mark.parametrize(
    ("path", "options"), [(1, {}), (None, {}), ("a", {"formats": 1}), ("a", {"formats": []})]
)
def test_save_chart_refuses_paths_and_formats_of_wrong_kinds(tmp_path, monkeypatch, path, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"needs a path|formats must (be|name)"):
        save_chart(mechreg.plot_betas(make_coefficients()), path, **options)
