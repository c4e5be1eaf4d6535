"""The miniatures are real: small, the larger the better, better than counting, made again by a resumable run.

The losses of the model card are over texts that do not ship; where those lie beside the checkout they are computed
again. Everywhere, the same comparison runs over the demo corpus, which no model was trained on.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import train_miniatures as train
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mechreg import miniatures

SHARED_TEXTS = Path(__file__).parents[2] / "shared" / "data" / "texts"
TINY = train.Recipe(n_layer=1, n_embd=8, n_head=2, seed=3, tokens=2_000, batch=2)


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(miniatures.folder("mini-s"))


def documents(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_they_are_what_the_card_says():
    shapes = {}
    for name in miniatures.NAMES:
        config = json.loads((miniatures.folder(name) / "config.json").read_text())
        shapes[name] = (config["n_layer"], config["n_positions"], config["vocab_size"])
        with safe_open(miniatures.folder(name) / "model.safetensors", "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert [shapes[name][0] for name in ("mini-s", "mini-m", "mini-l")] == [4, 6, 8]
    assert {shape[1:] for shape in shapes.values()} == {(256, 2048)}
    assert shapes["mini-s-b"] == shapes["mini-s"]
    assert shapes["mini-m-b"] == shapes["mini-m"]


def test_together_they_are_small_enough_to_ship():
    folder = Path(miniatures.__file__).parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.suffix != ".pyc") <= 16 * 2**20


def test_one_tokenizer_for_all_and_it_returns_every_text():
    files = {(miniatures.folder(name) / "tokenizer.json").read_bytes() for name in miniatures.NAMES}
    assert len(files) == 1
    tokenizer = PreTrainedTokenizerFast.from_pretrained(miniatures.folder("mini-s"))
    for text in (
        "Plain words.",
        "naïve — “quoted”",
        "日本語 \U0001f600",
        "tabs\tand\r\nlines",
        "  two  spaces ",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def demo_losses(tokenizer) -> tuple[dict[str, float], float]:
    texts = [line["text"] for line in documents(miniatures.DEMO_CORPUS)]
    windows, targets = train.predicted_tokens(train.encode(tokenizer, texts))
    losses = {
        name: train.cross_entropy(miniatures.folder(name), windows, targets) for name in miniatures.NAMES
    }
    counts = np.bincount(targets.flatten(), minlength=train.VOCABULARY)
    share = counts[counts > 0] / counts.sum()
    return losses, float(-(share * np.log(share)).sum())


@pytest.mark.slow
def test_on_text_they_never_saw_the_larger_is_the_better_and_all_beat_counting(tokenizer):
    # The entropy of the demo corpus' own token counts is a unigram model fitted on the very text it is judged by.
    losses, own_unigram = demo_losses(tokenizer)
    assert losses["mini-l"] < losses["mini-m"] < losses["mini-s"] < own_unigram - 1
    assert losses["mini-m-b"] < losses["mini-s-b"] < own_unigram - 1


@pytest.mark.slow
@pytest.mark.skipif(
    not SHARED_TEXTS.is_dir(), reason="the training and held-out texts do not ship with the package"
)
def test_the_cards_losses_are_what_the_shipped_weights_give(tokenizer):
    training = train.encode(
        tokenizer, [line["text"] for line in train.read_texts(SHARED_TEXTS / "train.jsonl.gz")]
    )
    heldout = train.encode(
        tokenizer, [line["text"] for line in train.read_texts(SHARED_TEXTS / "heldout.jsonl.gz")]
    )
    windows, targets = train.predicted_tokens(heldout)
    unigram, bigram = train.baselines(training, windows, targets)
    card = (Path(miniatures.__file__).parent / "README.md").read_text(encoding="utf-8")
    losses = {}
    for name in ("mini-s", "mini-l"):
        losses[name] = train.cross_entropy(miniatures.folder(name), windows[::8], targets[::8])
        row = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
        # An eighth of the held-out windows: within 0.05 nats of the whole.
        assert losses[name] == pytest.approx(float(row.split("|")[5]), abs=0.05)
    assert losses["mini-s"] < unigram - 1.8
    assert losses["mini-s"] < bigram
    assert losses["mini-l"] < bigram - 0.3


def test_the_demo_corpus_has_many_registers_of_readable_length(tokenizer):
    lines = documents(miniatures.DEMO_CORPUS)
    sources = {line["source"] for line in lines}
    lengths = [len(tokenizer(line["text"])["input_ids"]) for line in lines]
    assert len(lines) >= 48
    assert len(sources) >= 6
    assert min(lengths) >= 150
    assert max(lengths) <= 300
    assert len({line["doc"] for line in lines}) == len(lines)


def test_a_killed_training_run_goes_on_to_the_very_same_weights(tmp_path):
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 50, 500))
    options = {"vocabulary": 50, "context": 16, "checkpoint_every": 5}
    at_once, in_two = {}, {}
    whole = train.train(
        TINY, ids, tmp_path / "whole", save=lambda model, at: at_once.update({at: model}), **options
    )
    options["save"] = lambda model, at: in_two.update({at: model})
    train.train(TINY, ids, tmp_path / "killed", stop_at=12, **options)  # two steps after its last checkpoint
    resumed = train.train(TINY, ids, tmp_path / "killed", **options)
    assert list(at_once) == train.trajectory_steps(63) == [0, 1, 2, 4, 8, 16, 32, 63]
    for one, other in zip([whole, *at_once.values()], [resumed, *in_two.values()], strict=True):
        for weights, again in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(weights, again)
    assert not torch.equal(at_once[4].transformer.wte.weight, at_once[8].transformer.wte.weight)


def test_training_learns_what_there_is_to_learn(tmp_path):
    # A cycle of 10 tokens: the next token is certain, and the loss must fall from ln 50 towards 0.
    ids = torch.arange(2_000) % 10
    recipe = train.Recipe(n_layer=1, n_embd=16, n_head=2, seed=1, tokens=12_000, batch=4)
    model = train.train(recipe, ids, tmp_path, vocabulary=50, context=16)
    with torch.inference_mode():
        logits = model(ids[None, :16]).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, ids[1:17]).item()
    assert loss < 0.5 < math.log(50)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    ids = torch.arange(500) % 50
    options = {"vocabulary": 50, "context": 16}
    train.train(TINY, ids, tmp_path, stop_at=200, **options)
    other = train.Recipe(n_layer=2, n_embd=8, n_head=2, seed=3, tokens=2_000, batch=2)
    with pytest.raises(SystemExit, match="another recipe"):
        train.train(other, ids, tmp_path, **options)


def test_an_exported_model_loads_and_predicts_as_before(tmp_path, tokenizer):
    model = train.build(TINY, vocabulary=train.VOCABULARY, context=16).eval()
    ids = torch.arange(10)[None]
    before = model(ids).logits
    train.export(model, tokenizer, tmp_path / "out")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(ids).logits
    torch.testing.assert_close(after, before, rtol=0, atol=5e-3)  # float16 weights


def test_the_bigram_baseline_knows_a_certain_successor():
    # Tokens 0..9 in a cycle: a unigram must pay ln 10 (add-one smoothing over the vocabulary a little more).
    ids = torch.arange(20_000) % 10
    windows, targets = train.predicted_tokens(ids[:2_561])
    unigram, bigram = train.baselines(ids, windows, targets)
    assert math.log(10) < unigram < math.log(10) + 0.2
    assert 0 <= bigram < 0.01


def test_an_unknown_miniature_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="There is no miniature 'mini-x'; there are mini-s, mini-m"):
        miniatures.folder("mini-x")
