"""Long texts cut before tokenizing: to the bit what the whole text gives, ids and spans, wherever it is cut.

Exact, against the tokenizers library on the uncut text. Property tests draw what the pre-tokenizer tells apart:
letters and digits of several scripts, punctuation, contractions, white space of all kinds (line ends, no-break and
ideographic spaces, control characters that some call white space), marks, special tokens, emoji of several parts.
"""

import copy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mechreg as mr
from mechreg.corpus import pieces, windows
from mechreg.corpus.pieces import cuts_anyway, pieces_of
from mechreg.schema import InputError

HARD = [
    *"aZßéжЖ中あ한ο०٣²½Ⅳ_-.,;!?'\"()#@/\\|~^`$€+<>=",
    *(
        " ",
        "  ",
        "   ",
        "\n",
        "\r\n",
        "\n\n",
        "\t",
        "\x0b",
        "\x0c",
        "\r",
        "\u00a0",
        "\u3000",
        "\u2003",
        "\u2028",
    ),
    *(
        "\u0085",
        "\x1c",
        "\x1f",
        "\u180e",
        "\u200b",
        "\ufeff",
        "\u00ad",
        "\x00",
        "\u0301",
        "e\u0301",
        "\ue000",
    ),
    *("\U0001f468\u200d\U0001f469", "\U0001f1ed\U0001f1fa", "<|endoftext|>", "<|endoftext", "1984"),
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "don't", "I'll", "'S"),
]
texts = st.lists(st.sampled_from(HARD) | st.text(max_size=3), max_size=40).map("".join)


@pytest.fixture(scope="module")
def model():
    return mr.load_model("mini-s")


@pytest.fixture(scope="module")
def backend(model):
    plain = copy.deepcopy(model.tokenizer.backend_tokenizer)
    plain.post_processor = None
    return plain


def whole(backend, text):
    encoding = backend.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def in_pieces(backend, text, size):
    ids, offsets = [], []
    for start, piece in pieces_of(text, size=size):
        encoding = backend.encode(piece, add_special_tokens=False)
        ids += encoding.ids
        offsets += [(start + begin, start + end) for begin, end in encoding.offsets]
    return ids, offsets


@settings(max_examples=400, deadline=None)
@given(text=texts, size=st.integers(0, 20))
@example(text="a  b \n c\u0085 d\x1c e\u180e f", size=0)
@example(text="<|endoftext|> <|endoftext|>\n a's 't", size=0)
@example(text="word\u200b next\u0301 mark. \u3000 x", size=0)
def test_pieces_give_what_the_whole_gives(backend, text, size):
    assert "".join(piece for _, piece in pieces_of(text, size=size)) == text
    assert in_pieces(backend, text, size) == whole(backend, text)


def test_a_text_is_cut_at_every_place_that_there_is(backend):
    text = " ".join(["The ship's captain", "counted 1984 waves.", "Öl,", "中文。\n", "don't", "e\u0301"] * 50)
    cut = list(pieces_of(text, size=0))
    assert len(cut) > 400
    assert in_pieces(backend, text, 0) == whole(backend, text)


@settings(max_examples=25, deadline=None)
@given(text=texts)
def test_the_token_frame_is_the_same(model, text):
    documents = mr.read_corpus([text or "a", "A short text.", text + " end", "x"])
    with pytest.MonkeyPatch.context() as patch:
        uncut = mr.tokenize(model, documents, spans=True)
        for module in (windows, pieces):
            patch.setattr(module, "PIECE", 5)
        patch.setattr(windows, "pieces_of", lambda text: pieces_of(text, size=5))
        patch.setattr(windows, "BATCH_CHARACTERS", 7)
        pd.testing.assert_frame_equal(mr.tokenize(model, documents, spans=True), uncut)
        pd.testing.assert_frame_equal(
            mr.tokenize(model, documents), uncut.drop(columns=["char_start", "char_end"])
        )


def test_a_long_text_is_cut_and_its_spans_are_right(model):
    text = ("It's a long, long text — with 1,234 numbers;\n\n and  spaces.\t" * 4000)[:200_123]
    tokens = mr.tokenize(model, [text], spans=True)
    plain = copy.deepcopy(model.tokenizer.backend_tokenizer)
    plain.post_processor = None
    ids, offsets = whole(plain, text)
    assert tokens["token_id"].tolist() == ids
    np.testing.assert_array_equal(tokens[["char_start", "char_end"]], offsets)


def test_a_text_without_a_place_to_cut_is_refused_beyond_what_memory_holds(model, monkeypatch):
    monkeypatch.setattr(windows, "LONGEST_PIECE", 150_000)
    text = "word " * 30_000 + "a" * 150_001
    with pytest.raises(
        InputError, match=r"'text-0' has 199,997 characters from character 100,004 on without a space"
    ):
        mr.tokenize(model, [text])
    assert len(mr.tokenize(model, ["a" * 150_000]))


MEASURED = """
import resource
import mechreg as mr

demo = " ".join(" ".join(mr.read_corpus("demo")["text"]).split())
text = (demo * (50_000_000 // len(demo) + 1))[:50_000_000]
model = mr.load_model("mini-s")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens = mr.tokenize(model, [text])
print(len(tokens), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
def test_a_line_of_fifty_megabytes_takes_less_than_two_gibibytes():
    # 0.9 GiB measured; in one piece it was 6.4.
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    tokens, gibibytes = map(float, done.stdout.split())
    assert tokens > 1e7
    assert gibibytes < 2


def test_other_tokenizers_are_not_cut(backend):
    from tokenizers import AddedToken, normalizers, pre_tokenizers

    assert cuts_anyway(backend)
    changes = [
        lambda t: setattr(t, "normalizer", normalizers.NFC()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False)),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda t: setattr(
            t, "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(), pre_tokenizers.Digits()])
        ),
        lambda t: setattr(t.model, "dropout", 0.5),
        lambda t: t.add_special_tokens([AddedToken("<end>", rstrip=True)]),
        lambda t: t.add_tokens(["New York"]),
    ]
    for number, change in enumerate(changes):
        other = copy.deepcopy(backend)
        change(other)
        assert not cuts_anyway(other), number
