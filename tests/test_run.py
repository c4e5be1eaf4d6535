"""A run: everything the design promises is in the folder, and it is what the public functions give by hand."""

import base64
import dataclasses
import gzip
import importlib
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from run_files import write_corpus

import mechreg as mr
from mechreg import miniatures, store
from mechreg.cli import main
from mechreg.regression import linear_combination
from mechreg.run import figures
from mechreg.run import shards as run_module
from mechreg.run.persistence import persistence_of
from mechreg.run.preflight import is_summable
from mechreg.run.tokens import cut
from mechreg.schema import InputError, ModelError
from mechreg.spec import Spec

carry_out = importlib.import_module("mechreg.run.carry_out")  # the room has a function of that name
TEXTS = [
    {"doc": f"doc-{i}", "source": source, "text": text * 3, "twin": source.upper()}
    for i, (source, text) in enumerate(
        [
            ("sea", "The old ship lay in the harbour and nobody knew when it would sail again. "),
            ("sea", "Waves came and went; the captain counted them, as he had done for years. "),
            ("land", "In the village they baked bread on Fridays, and the children waited outside. "),
            ("land", "A road led up the hill, past the mill, to a house with a red door. "),
            ("sky", "Clouds gathered over the plain, and by the evening there was rain at last. "),
        ]
    )
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*TEXTS, {"doc": "nothing", "text": " "}]))
    return str(path)


@pytest.fixture(scope="module")
def spec(corpus):
    return Spec(models=("mini-s", "mini-m"), corpus=corpus, name="small")


@pytest.fixture(scope="module")
def folder(spec, tmp_path_factory):
    return mr.run_spec(spec, out=tmp_path_factory.mktemp("out") / "run", progress=False)


def test_the_folder_holds_what_the_design_promises(folder):
    for name in ("spec.toml", "provenance.json", "coefficients.parquet", "coefficients.csv", "statistics.csv",
                 "problems.csv", "summaries.txt", "report.html", "persistence.csv", "figures/norms.svg",
                 "figures/betas.svg",
                 "figures/betas.html", "figures/betas.json", "figures/betas.png"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert not list(folder.rglob(".tmp-*"))


def test_its_numbers_are_those_of_the_functions_by_hand(folder, spec):
    documents = mr.read_corpus(spec.corpus)
    norms = mr.extract_norms(list(spec.models), documents, progress=False)
    fits = mr.fit_lagged(mr.add_lags(norms, lags=(1, 2), skip=1), "log_norm ~ lag1 + lag2")
    written = pd.read_parquet(folder / "coefficients.parquet")
    pd.testing.assert_frame_equal(written, fits.coefficients)
    stored = pd.concat(
        [store.read_norm_shard(path) for path in sorted((folder / "norms").rglob("*.parquet"))]
    )
    keys = ["model", "layer", "doc", "window", "position"]
    left, right = (
        f.astype({"model": "str", "doc": "str"}).set_index(keys)["norm"].sort_index() for f in (stored, norms)
    )
    pd.testing.assert_series_equal(left, right)


def test_the_persistence_of_a_run_is_that_of_the_functions_by_hand(folder, spec):
    norms = mr.extract_norms(list(spec.models), mr.read_corpus(spec.corpus), progress=False)
    lagged = mr.add_lags(norms, lags=(1, 2), skip=1)
    table = mr.open_run(folder).table("persistence.csv")
    counts = table["term"].value_counts().to_dict()
    assert counts == {"lag1": 20, "lag2": 20, "lag1 + lag2": 20, "half_life": 10}
    sums = table[table["term"] == "lag1 + lag2"].set_index("controls")
    for controls, effects in {"none": (), "doc + position": ("doc", "position")}.items():
        by_hand = linear_combination(mr.fit_lagged(lagged, effects=effects), "lag1 + lag2")
        columns = ["layer", "estimate", "conf_low", "conf_high", "df", "n_docs"]
        np.testing.assert_allclose(sums.loc[controls, columns], by_hand[columns], rtol=1e-9)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.index("lag1 + lag2 of attn_out") < page.index("<nav")  # its figure is on the first screen
    for text in ("within documents and positions", "log_norm ~ lag1 + lag2", "mechreg run spec.toml"):
        assert text in page


def test_a_number_that_cannot_be_computed_says_why(spec, tmp_path):
    formula = "log_norm ~ lag1 + lag2 + position"  # which effects of positions take up
    one = dataclasses.replace(spec, models=("mini-s",), formula=formula, name="position")
    table = mr.open_run(mr.run_spec(one, out=tmp_path / "run", progress=False)).table("persistence.csv")
    missing = table[table["controls"] == "doc + position"].set_index("term")["note"]
    for term in ("lag1", "lag2", "lag1 + lag2"):
        assert missing.loc[term].str.contains("take off all of 'position'").tolist() == [True] * 4
    assert table.query("controls == 'none'")["estimate"].notna().all()
    assert table["note"].dropna().str.fullmatch(r"[A-Z].*\.").all(), "a note is a sentence"


def test_a_half_life_that_is_not_told_from_white_noise_says_so_in_a_sentence(spec):
    place = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "window": 0, "token_id": 1}
    doc, position = np.divmod(np.arange(480), 80)
    norm = np.random.default_rng(1).lognormal(size=480)
    norms = pd.DataFrame({**place, "doc": doc.astype(str), "position": position, "norm": norm})
    lagged = mr.add_lags(norms)
    fits = mr.fit_lagged(lagged)
    made = persistence_of(fits, fits.coefficients, lambda: iter([lagged]), norms, spec, {"facts": {}})
    assert made.query("term == 'half_life'")["note"].unique().tolist() == [
        "A half-life needs a slow part of the autocorrelation that exceeds white noise."
    ]


def test_the_provenance_has_hashes_and_counts(folder):
    facts = json.loads((folder / "provenance.json").read_text())
    small, medium = facts["models"]
    assert small["weights_sha256"] != medium["weights_sha256"]
    assert small["tokenizer_sha256"] == medium["tokenizer_sha256"]
    assert small["tokens"] == medium["tokens"] > 100
    assert (small["processing"], small["prepend_bos"], small["dtype"]) == ("raw", False, "float32")
    assert small["verified"] < 2e-6
    assert facts["corpus"]["documents"] == 6
    assert facts["corpus"]["left_out"] == 1


def test_the_summaries_are_statsmodels_own(folder):
    text = (folder / "summaries.txt").read_text()
    assert text.count("OLS Regression Results") == 4 + 6
    assert "model mini-m  hook attn_out  layer 5" in text


def test_the_page_is_made_anew_from_the_folder_alone(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    out = tmp_path / "page.html"
    assert main(["report", str(folder), "--out", str(out)]) == 0
    assert out.read_bytes() == (folder / "report.html").read_bytes()
    page = out.read_text(encoding="utf-8")
    packed = re.findall(r'id="spec\d+">([\w+/=]+)<', page)
    specs = [json.loads(gzip.decompress(base64.b64decode(text))) for text in packed]
    linked = [spec for spec in specs if "layers" in spec["datasets"]]
    assert [spec["datasets"]["layers"][0]["model"] for spec in linked] == ["mini-s", "mini-m"]
    assert all(spec["datasets"]["tokens"][0]["shown"] for spec in linked)
    assert page.count('class="fit"') == 4 + 6
    assert str(out) in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 2
    assert "not the folder of a finished run" in capsys.readouterr().err


def test_the_document_that_could_not_be_used_is_named(folder):
    assert pd.read_csv(folder / "problems.csv").to_dict("records") == [
        {"doc": "nothing", "problem": "whitespace"}
    ]


def test_again_into_the_same_folder_makes_no_norms_anew(folder, spec, monkeypatch, pictureless):
    before = (folder / "coefficients.csv").read_bytes()
    monkeypatch.setattr(run_module, "window_norms", lambda *args, **options: pytest.fail("made again"))
    mr.run_spec(spec, out=folder, progress=False)
    assert (folder / "coefficients.csv").read_bytes() == before


@pytest.mark.slow  # test_resume kills real runs
def test_after_an_interruption_only_what_is_missing_is_made(spec, tmp_path, monkeypatch):
    small = {"shard_tokens": 100, "progress": False}  # several shards a model
    whole = mr.run_spec(spec, out=tmp_path / "whole", **small)
    shards = sorted(path.relative_to(whole) for path in (whole / "norms").rglob("*.parquet"))
    assert len(shards) >= 4
    passes, made = run_module.window_norms, []

    def dying(*args, **options):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return passes(*args, **options)

    monkeypatch.setattr(run_module, "window_norms", dying)
    with pytest.raises(KeyboardInterrupt):
        mr.run_spec(spec, out=tmp_path / "cut", **small)
    monkeypatch.setattr(run_module, "window_norms", lambda *a, **o: made.append(1) or passes(*a, **o))
    cut = mr.run_spec(spec, out=tmp_path / "cut", **small)
    assert len(made) == len(shards)
    for name in ("coefficients.csv", "statistics.csv", "figures/betas.svg"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    for path in shards:
        assert (cut / path).read_bytes() == (whole / path).read_bytes()


@pytest.mark.parametrize("minimum", [1, 7, 30, 10_000])
def test_shards_are_whole_documents_of_at_least_so_many_tokens(minimum):
    lengths = [5, 1, 12, 3, 3, 3, 20]
    tokens = pd.DataFrame(
        {"doc": np.repeat([f"d{i}" for i in range(7)], lengths), "row": range(sum(lengths))}
    )
    pieces = iter([tokens[:18], tokens[18:27], tokens[27:]])  # of whole documents, as the corpus is read
    shards = list(cut(pieces, minimum))
    assert np.concatenate([shard["row"] for shard in shards]).tolist() == list(range(sum(lengths)))
    assert all(len(shard) >= minimum for shard in shards[:-1])
    assert sum(shard["doc"].nunique() for shard in shards) == 7


def test_annotations_and_the_layer_below_can_stand_in_the_formula(corpus, tmp_path, pictureless):
    spec = Spec(
        models=("mini-s",),
        corpus=corpus,
        name="below",
        formula="log_norm ~ lag1 + layer_below_lag1 + C(source)",
        cov="hc3",
    )
    folder = mr.run_spec(spec, out=tmp_path / "run", progress=False)
    table = pd.read_csv(folder / "coefficients.csv")
    assert sorted(table["layer"].unique()) == [1, 2, 3]  # nothing is below the first
    documents = mr.read_corpus(corpus)
    lagged = mr.add_lags(mr.extract_norms("mini-s", documents, progress=False), layer_below=(1,))
    lagged = lagged.merge(documents[["doc", "source"]].astype({"doc": "category"}), on="doc")
    by_hand = mr.fit_lagged(lagged[lagged["layer"] > 0], spec.formula, cov="hc3").coefficients
    np.testing.assert_allclose(table["estimate"], by_hand["estimate"], rtol=1e-9)
    assert "C(source)[T.sea]" in table["term"].tolist()


def test_several_hooks_and_heads(corpus, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        figures, "chart_files", lambda chart, path, **_: drawn.update({path.name: chart}) or {}
    )
    spec = Spec(
        models=("mini-s",), corpus=corpus, hooks=("attn_out", "z", "mlp_out"), formula="log_norm ~ lag1"
    )
    folder = mr.run_spec(spec, out=tmp_path / "run", progress=False)
    table = pd.read_csv(folder / "coefficients.csv")
    heads = table[table["hook"] == "z"]
    assert sorted(heads["head"].unique()) == [0, 1, 2, 3]
    assert table.groupby("hook").size().to_dict() == {"attn_out": 8, "mlp_out": 8, "z": 32}
    again = mr.run.run_moments(folder).coefficients()
    for whole in (table, again):
        assert (whole["head"] == -1).tolist() == (whole["hook"] != "z").tolist()
    assert {name: chart.title.text for name, chart in drawn.items()} == {
        "norms-attn_out": "Log norms of attn_out by layer",
        "betas-attn_out": "Coefficients of lag1 for attn_out, by layer",
        "norms-mlp_out": "Log norms of mlp_out by layer",
        "betas-mlp_out": "Coefficients of lag1 for mlp_out, by layer",
    }


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"formula": "log_norm ~ lag1 + lag3"}, InputError, "needs the column 'lag3'"),
        ({"formula": "log_norm ~ lag1 +"}, InputError, "formula"),
        ({"models": ("mini-s", "./nowhere")}, InputError, "no model folder"),
        ({"models": ("mini-s", "mini-x")}, ModelError, "mini-x"),
        ({"hooks": ("attn_out", "z"), "measures": ("relative",)}, InputError, "exists for the hooks"),
        ({"corpus": "nowhere/*.txt"}, InputError, "There is no file 'nowhere"),
    ],
)
def test_what_can_be_known_before_any_work_is_refused_before(
    corpus, tmp_path, monkeypatch, changes, error, said
):
    monkeypatch.setattr(run_module, "window_norms", lambda *args, **options: pytest.fail("work was done"))
    values = {"models": ("mini-s",), "corpus": corpus} | changes
    with pytest.raises(error, match=said):
        mr.run_spec(Spec(**values), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("formula", ["log_norm ~ 1", "log_norm ~ position + np.log1p(position)"])
def test_a_formula_without_a_lag_is_a_regression_like_another(spec, formula, tmp_path):
    one = dataclasses.replace(spec, models=("mini-s",), formula=formula, name="no-lag")
    run = mr.run_spec(one, out=tmp_path / "run", progress=False)
    assert (run / "_manifest.json").exists()
    drawn = json.loads((run / "figures" / "betas.json").read_text(encoding="utf-8"))
    terms = set(store.files.read_table(run / "coefficients.parquet")["term"])
    shown = {row["term"] for rows in drawn["datasets"].values() for row in rows if "term" in row}
    assert shown == (terms - {"Intercept"} or terms)
    assert "Betas of attn_out" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"formula": "log_norm ~ lag1 + depth"}, "'depth' .* is constant in every regression"),
        ({"formula": "log_norm ~ lag1 + source + C(twin)"}, "'source' and 'twin' are collinear. Leave one"),
        ({"formula": "log_norm ~ C(doc)"}, "has a column for each; use effects = "),
        ({"formula": "log_norm ~ C(doc)", "cov": "crv2"}, "has a column for each; use effects = "),
        (
            {"formula": "log_norm ~ lag300", "lags": (300,)},
            "needs windows of 302 tokens or more; the longest has",
        ),
    ],
)
def test_what_would_fail_after_the_passes_is_refused_before(spec, change, message, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "window_norms", None)  # no pass is made
    with pytest.raises(InputError, match=message):
        mr.run_spec(dataclasses.replace(spec, **change), out=tmp_path / "run", progress=False)


def test_clusters_need_two_documents(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(TEXTS[0]))
    one = Spec(models=("mini-s",), corpus=str(path), cov="crv3")
    with pytest.raises(InputError, match=r"needs two documents or more; the corpus has 1\. Use cov = 'auto'"):
        mr.run_spec(one, out=tmp_path / "run", progress=False)


def test_sums_of_a_run_are_of_one_model_or_of_several(folder):
    one, same = (mr.run.run_moments(folder, models=models, hooks="attn_out", formula="log_norm ~ lag1")
                 for models in ("mini-s", ["mini-s"]))  # fmt: skip
    pd.testing.assert_frame_equal(one.coefficients(), same.coefficients())
    with pytest.raises(InputError, match="models must be one of 'mini-s', 'mini-m'; got 'mini'"):
        mr.run.run_moments(folder, models="mini")


@pytest.mark.parametrize(
    "formula", ["log_norm ~ lag1 + np.log(position)", "log_norm ~ lag1 + I(1 / (lag1 - 2))"]
)
def test_whether_shards_can_be_summed_does_not_depend_on_values_made_up_for_it(formula):
    assert is_summable(mr.Spec(models="mini-s", corpus="demo", formula=formula))


@pytest.mark.parametrize(
    "call",
    [
        lambda: mr.open_run(3),
        lambda: mr.run_report(3),
        lambda: mr.read_spec(3),
        lambda: mr.run_spec("spec.toml"),
        lambda: mr.run_spec(Spec(models="mini-s", corpus="demo"), out=3),
    ],
)
def test_what_is_no_path_or_spec_is_refused(call):
    # TypeError: where types are checked, as in these tests, the checker answers first.
    with pytest.raises((InputError, TypeError), match=r"must be a path|needs a Spec|type"):
        call()


@pytest.mark.parametrize(
    ("keep", "rules"), [("norms", ("size>2", "special")), ("moments", ("special", "position=3"))]
)
def test_a_run_drops_sinks_as_add_lags_does(keep, rules, tmp_path, pictureless):
    texts = [f"The cat number {i} <|endoftext|> sat on the mat, and the dog on the log." for i in range(8)]
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"doc": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    )
    spec = Spec(models=("mini-s",), corpus=str(path), keep=keep, drop_sinks=rules)
    folder = mr.run_spec(spec, out=tmp_path / "run", progress=False)
    norms = mr.extract_norms("mini-s", mr.read_corpus(path), progress=False)
    ids = mr.models.special_ids(mr.load_model("mini-s"))
    lagged = mr.add_lags(norms.assign(special=norms["token_id"].isin(ids)), drop_sinks=rules)
    fits = mr.fit_lagged(lagged)
    assert norms["token_id"].isin(ids).sum() == 8 * 4
    run = mr.open_run(folder)
    for sums in (run.statistics, mr.run.run_moments(folder).statistics()):
        assert sums["n_sinks"].tolist() == fits.statistics["n_sinks"].tolist()
    np.testing.assert_allclose(run.coefficients["estimate"], fits.coefficients["estimate"], rtol=1e-9)
    assert "Tokens left out as sinks" in mr.run_report(folder)


@pytest.mark.slow
def test_one_model_under_two_names_is_noticed_by_the_run_its_page_and_the_comparisons(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(carry_out, "draw_figures", lambda *args, **options: None)
    for step, name in enumerate(("mini-s", "mini-s", "mini-s-b")):
        shutil.copytree(miniatures.folder(name), tmp_path / f"step{step}")
    models = tuple(str(tmp_path / f"step{step}") for step in range(3))
    spec = Spec(models=models, corpus=write_corpus(tmp_path / "texts.jsonl", 8), top_tokens=2)
    run = mr.run_spec(spec, out=tmp_path / "run", progress=False)
    said = "step0 and step1 have the same weights: they are one model under several names"
    assert [record.message for record in caplog.records if said in record.message]
    page = mr.run_report(run)
    assert said in page
    assert "of 8 layers of 2 models" in page  # not 12 of 3
    assert f"{3 * 4 * 2} tokens with the largest values" in page
    for comparison in (
        mr.compare_tokens(mr.open_run(run).norms(), effects=(), draws=99),
        mr.compare_profiles(mr.run.run_moments(run), draws=199),
    ):
        assert sum("The same numbers everywhere: step0, step1." in text for text in comparison.verdict) == 1
