"""Covariates of tokens: surprisal against Hugging Face's own losses, counts against a few lines of plain Python.

Tolerances of surprisal, in nats and absolute, since a loss may be near 0: two exact ways of computing a float32 pass
gave losses that differ by 4.5e-6 at most (of losses up to 10, of which float32 holds 1e-6): 2e-5. In float64 they
differed by 9e-15: 1e-11. Hugging Face's own ``loss`` is a mean that it takes in float32 whatever the model is: 2e-5.
Within mechreg, what comes of the same passes is equal to the bit. Counts are compared exactly, their logarithm to
1e-12 (numpy's log of an array against Python's of a number).
"""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechreg import miniatures, read_corpus, token_covariates, tokenize
from mechreg.corpus import COVARIATES, token_counts
from mechreg.forward import next_token_losses
from mechreg.models import load_model
from mechreg.norms import extract_norms, window_norms
from mechreg.schema import InputError, NumericalError

pytestmark = pytest.mark.models

# Of very different lengths, so that a batch of them is mostly padding; the last is cut into windows of 256 tokens.
TEXTS = [
    "A.",
    "The cat sat on the mat and looked at the moon.",
    "x",
    "It was late, and the old man had said so twice; nobody answered him.",
    "The sea was calm. " * 90,
]
WITHIN = {"float32": 2e-5, "float64": 1e-11}


@pytest.fixture(scope="module", params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def folder():
    return miniatures.folder("mini-s")


@pytest.fixture(scope="module")
def hugging_face(folder, dtype):
    """The miniature as Hugging Face alone reads it."""
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


@pytest.fixture
def model(backend, dtype):
    return load_model("mini-s", backend=backend, dtype=dtype)


def windows_by_hand(folder, texts, *, bos):
    """Return every text's windows of ids, cut by hand from what Hugging Face's tokenizer gives."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = [tokenizer.bos_token_id] if bos else []
    size = 256 - len(first)
    lines = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [[first + line[at : at + size] for at in range(0, len(line), size)] for line in lines]


def losses_by_hand(hf_model, windows):
    """Return each token's loss, window by window: no batch, no padding, no mask."""
    losses = []
    for ids in windows:
        with torch.no_grad():
            logits = hf_model(torch.tensor([ids])).logits[0]
        found = torch.nn.functional.cross_entropy(
            logits[:-1].double(), torch.tensor(ids[1:], dtype=torch.int64), reduction="none"
        )
        losses.append(np.concatenate([[np.nan], found.numpy()]))
    return losses


@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize(
    "batch_tokens", [600, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 2048))]
)
def test_surprisal_is_hugging_faces_loss_of_every_token(
    model, folder, dtype, hugging_face, prepend_bos, batch_tokens
):
    norms = extract_norms(
        model,
        TEXTS,
        prepend_bos=prepend_bos,
        covariates=["surprisal"],
        batch_tokens=batch_tokens,
        progress=False,
    )
    windows = [ids for text in windows_by_hand(folder, TEXTS, bos=prepend_bos) for ids in text]
    assert len({len(ids) for ids in windows}) >= 5  # ragged
    assert len(windows) > len(TEXTS)  # and cut
    expected = np.concatenate(losses_by_hand(hugging_face, windows))
    for _, layer in norms.groupby("layer"):
        assert layer["token_id"].tolist() == [token for ids in windows for token in ids]
        np.testing.assert_allclose(layer["surprisal"], expected, rtol=0, atol=WITHIN[dtype])
    first = norms["position"] == 0
    assert norms.loc[first, "surprisal"].isna().all()  # nothing predicts it
    assert norms.loc[~first, "surprisal"].gt(0).all()
    assert expected[~np.isnan(expected)].std() > 1  # tokens differ: a shift by one would be seen


def test_the_mean_over_a_window_is_the_loss_that_hugging_face_reports(model, folder, hugging_face):
    tokens = token_covariates(model, TEXTS, covariates=["surprisal"])
    means = tokens.groupby(["doc", "window"], observed=True, sort=False)["surprisal"].mean().dropna()
    windows = [ids for text in windows_by_hand(folder, TEXTS, bos=False) for ids in text if len(ids) > 1]
    with torch.no_grad():
        told = [
            float(hugging_face(torch.tensor([ids]), labels=torch.tensor([ids])).loss.double())
            for ids in windows
        ]
    np.testing.assert_allclose(means, told, rtol=0, atol=2e-5)


def test_the_loss_of_a_padded_batch_with_a_mask_is_the_same(model, folder, dtype, hugging_face):
    """Hugging Face's way with ragged texts: right padding, an attention mask, labels of -100."""
    windows = [ids for text in windows_by_hand(folder, TEXTS, bos=True) for ids in text]
    longest = max(map(len, windows))
    ids = torch.tensor([line + [0] * (longest - len(line)) for line in windows])
    real = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in windows])
    with torch.no_grad():
        logits = hugging_face(ids, attention_mask=real).logits.double()
    labels = ids.masked_fill(real == 0, -100)
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
    ).numpy()
    expected = [line[: len(ids) - 1] for line, ids in zip(losses, windows, strict=True)]
    tokens = token_covariates(model, tokenize(model, TEXTS, prepend_bos=True), covariates=["surprisal"])
    found = tokens.loc[tokens["position"] > 0, "surprisal"]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=WITHIN[dtype])


def test_every_way_to_ask_gives_the_same_bits_and_norms_do_not_notice(backend):
    model = load_model("mini-s", backend=backend)
    tokens = tokenize(model, TEXTS)
    plain = extract_norms(model, tokens, progress=False)
    norms = extract_norms(model, tokens, covariates=COVARIATES, progress=False)
    pd.testing.assert_frame_equal(norms[plain.columns], plain, check_exact=True)
    alone = token_covariates(model, tokens)
    assert alone["model"].unique().tolist() == ["mini-s"]
    assert tuple(norms.columns[len(plain.columns) :]) == COVARIATES
    for _, layer in norms.groupby("layer"):
        for name in COVARIATES:
            np.testing.assert_array_equal(layer[name], alone[name])


def test_each_model_has_its_own_surprisal_and_all_have_the_same_counts():
    names = ["mini-s", "mini-m"]
    norms = extract_norms(names, TEXTS[:4], covariates=COVARIATES, progress=False)
    first = norms[norms["layer"] == 0]
    one, other = (first[first["model"] == name].reset_index(drop=True) for name in names)
    pd.testing.assert_frame_equal(one[[*COVARIATES[1:]]], other[[*COVARIATES[1:]]])
    assert (one["surprisal"] - other["surprisal"]).abs().max() > 0.1
    for name, frame in zip(names, (one, other), strict=True):
        expected = token_covariates(name, TEXTS[:4], covariates=["surprisal"])["surprisal"]
        np.testing.assert_array_equal(frame["surprisal"], expected)


def test_texts_that_follow_in_a_batch_change_no_surprisal(backend):
    model = load_model("mini-s", backend=backend)
    alone = [token_covariates(model, [text], covariates=["surprisal"])["surprisal"] for text in TEXTS]
    together = token_covariates(model, TEXTS, covariates=["surprisal"])["surprisal"]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=WITHIN["float32"])


def test_a_token_that_is_all_but_certain_keeps_its_digits():
    """Its loss is log(1 + (d - 1) exp(-20)), 4.2e-6: less than three steps of float32 at 20."""
    logits = torch.zeros(1, 2, 2048)
    logits[0, 0, 7] = 20
    at = torch.tensor([[True, False]])
    (loss,) = next_token_losses(logits, torch.tensor([[1, 7]]), at)
    assert loss == pytest.approx(math.log1p(2047 * math.exp(-20)), rel=1e-8)
    (loss,) = next_token_losses(logits, torch.tensor([[1, 8]]), at)
    assert loss == pytest.approx(20, rel=1e-6)


def test_a_surprisal_that_is_no_number_is_refused(tiny, make_windows):
    model = load_model(tiny)
    with torch.no_grad():
        model.unembed.W_U[:, 7] = float("nan")  # norms do not see it, logits do
    tokens = make_windows([3, 6])
    assert np.isfinite(window_norms(model, tokens)["attn_out"]).all()
    with pytest.raises(
        NumericalError, match=r"surprisal of model 'tiny', document 'd0', window 0, position 1"
    ):
        extract_norms(model, tokens, covariates=["surprisal"], progress=False)


def test_what_cannot_be_asked_is_refused(tiny, make_windows):
    model, tokens = load_model(tiny), make_windows([4])
    with pytest.raises(InputError, match=r"covariates must be one of 'surprisal'.*Did you mean 'surprisal'"):
        extract_norms(model, tokens, covariates=["suprisal"])
    with pytest.raises(InputError, match=r"would replace the columns \['is_repeat'\]"):
        token_covariates(model, tokens.assign(is_repeat=0.0))
    with pytest.raises(InputError, match=r"would replace the columns \['model'\]"):  # another model's, maybe
        token_covariates(model, tokens.assign(model="m"), covariates=["surprisal"])
    with pytest.raises(InputError, match="needs every token once"):
        token_counts(pd.concat([tokens, tokens]))
    with pytest.raises(InputError, match="covariates must be one of 'log_frequency'"):
        token_counts(tokens, covariates=["surprisal"])


# Counts


def counts_by_hand(documents):
    """Return log share, repetition and distance of every token, document after document."""
    counts = Counter(token for windows in documents for ids in windows for token in ids)
    total = sum(counts.values())
    rows = []
    for windows in documents:
        seen = set()
        for distance, token in enumerate(token for ids in windows for token in ids):
            rows.append((math.log(counts[token] / total), float(token in seen), distance))
            seen.add(token)
    return np.array(rows)


def assert_counts(frame, expected):
    np.testing.assert_allclose(frame["log_frequency"], expected[:, 0], rtol=1e-12, atol=1e-12)
    assert frame["is_repeat"].tolist() == expected[:, 1].tolist()
    assert frame["distance"].tolist() == expected[:, 2].tolist()


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_counts_of_the_demo_are_those_of_a_counter(folder, prepend_bos):
    texts = [*read_corpus("demo")["text"].tolist(), TEXTS[-1]]
    found = extract_norms(
        "mini-s", texts, prepend_bos=prepend_bos, covariates=COVARIATES[1:], progress=False
    ).query("layer == 3")
    documents = windows_by_hand(folder, texts, bos=prepend_bos)
    assert max(map(len, documents)) > 1  # distance goes on over windows, and so does repetition
    assert_counts(found, counts_by_hand(documents))
    again = found[(found["window"] > 0) & (found["position"] == 0)]
    assert again["is_repeat"].eq(1).all()
    assert again["distance"].gt(200).all()


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=7), min_size=1, max_size=3),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 99),
)
def test_counts_of_any_tokens_in_any_order_are_those_of_a_counter(documents, seed):
    tokens = pd.DataFrame(
        [
            {"doc": f"d{doc}", "window": window, "position": position, "token_id": token}
            for doc, windows in enumerate(documents)
            for window, ids in enumerate(windows)
            for position, token in enumerate(ids)
        ]
    )
    expected = counts_by_hand(documents)
    assert_counts(token_counts(tokens), expected)
    order = np.random.default_rng(seed).permutation(len(tokens))
    shuffled = tokens.iloc[order]
    found = token_counts(shuffled, covariates=["distance", "is_repeat", "log_frequency"])
    assert found.index.equals(shuffled.index)
    assert list(found.columns) == ["distance", "is_repeat", "log_frequency"]
    assert_counts(found, expected[order])
