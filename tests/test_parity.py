"""The same numbers by independent ways: both classes of TransformerLens, raw Hugging Face hooks, the article's loop.

Tolerances, relative: a float32 norm over 768 to 1,600 numbers, computed in two exact ways, differs by a few 1e-7;
2e-6 is the promise. In trained miniatures heads cancel, and rounding shows more: Hugging Face's own two attention
paths differ by up to 2.3e-6 there, and its float32 from its float64 by as much, so 2e-6 is asked of 99% of the norms,
1e-5 of every one, and 1e-12 of every one in float64, where rounding has no say. Betas of the loop, which squares in
numpy's float32 and logs in float64, agree to 1e-5 and p-values to 1e-4, as the norms' last digits let them.
"""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechreg import miniatures
from mechreg.lags import add_lags
from mechreg.models import hooked_transformer_class, load_model
from mechreg.norms import extract_norms, window_norms
from mechreg.regression import fit_lagged

pytestmark = pytest.mark.models

# Heads x d_model of gpt2, -medium, -large and -xl; two blocks of each are enough to be wrong in.
SIZES = {"gpt2": (12, 768), "gpt2-medium": (16, 1024), "gpt2-large": (20, 1280), "gpt2-xl": (25, 1600)}
BACKENDS = ["bridge"] if hooked_transformer_class() is None else ["hooked", "bridge"]
SEED = (
    "Hungarian rock has been made since the 1960s. The rock bands of that time sang in Hungarian, and the rock of "
    "the years after grew louder; rock operas came in 1983."
)


def raw_norms(hf_model, tokens):
    """Return attn_out norms, "layer token", from register_forward_hook on transformer.h[i].attn and nothing else."""
    kept = {}
    for layer, block in enumerate(hf_model.transformer.h):
        block.attn.register_forward_hook(
            lambda module, inputs, output, layer=layer: kept.update({layer: output[0][0]})
        )
    parts = []
    for _, window in tokens.groupby("doc", observed=True, sort=False):
        with torch.no_grad():
            hf_model(torch.tensor([window["token_id"].tolist()]))
        parts.append([np.linalg.norm(kept[layer].double().numpy(), axis=-1) for layer in sorted(kept)])
    return np.concatenate(parts, axis=1)


def differences(folder, tokens, dtype="float32"):
    """Return by backend the relative difference of every norm."""
    expected = raw_norms(
        AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval(), tokens
    )
    return {
        backend: np.abs(
            window_norms(load_model(folder, backend=backend, dtype=dtype), tokens)["attn_out"] / expected - 1
        )
        for backend in BACKENDS
    }


@pytest.mark.parametrize("size", SIZES)
def test_attn_out_norms_agree_in_all_four_sizes(save_gpt2, make_windows, size):
    n_head, n_embd = SIZES[size]
    folder = save_gpt2(size, n_head=n_head, n_embd=n_embd, n_layer=2, n_positions=64)
    found = differences(folder, make_windows([64, 3, 17, 40]))
    (folder / "model.safetensors").unlink()
    worst = {backend: float(difference.max()) for backend, difference in found.items()}
    print(worst)
    assert max(worst.values()) < 2e-6


@pytest.mark.parametrize("name", miniatures.NAMES)
def test_attn_out_norms_agree_in_the_miniatures(make_windows, name):
    windows = make_windows([256, 3, 17, 100], vocabulary=2048)
    for backend, difference in differences(miniatures.folder(name), windows).items():
        print(name, backend, float(difference.max()), float(np.quantile(difference, 0.99)))
        assert difference.max() < 1e-5
        assert np.quantile(difference, 0.99) < 2e-6
    for difference in differences(miniatures.folder(name), windows, "float64").values():
        assert difference.max() < 1e-12


def by_the_articles_loop(folder, text):
    """Return each layer's betas and p-values by the article's code: one document, hooks, numpy, a loop, sm.OLS."""
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    updates = []
    for block in hf_model.transformer.h:
        block.attn.register_forward_hook(lambda module, inputs, output: updates.append(output[0][0].numpy()))
    with torch.no_grad():
        hf_model(torch.tensor([ids]))
    betas, p_values, counts = [], [], []
    for update in updates:
        norms = np.array([np.sqrt(np.sum(vector * vector)) for vector in update])
        log_norms = np.log(norms[1:].astype(np.float64))  # position 0 is a sink
        rows, outcomes = [], []
        for t in range(2, len(log_norms)):
            rows.append([1.0, log_norms[t - 1], log_norms[t - 2]])
            outcomes.append(log_norms[t])
        fit = sm.OLS(np.array(outcomes), np.array(rows)).fit()
        betas.append(fit.params)
        p_values.append(fit.pvalues)
        counts.append(len(outcomes))
        assert len(outcomes) == len(ids) - 3
    return np.array(betas), np.array(p_values), counts


@pytest.fixture(scope="module")
def roomy(save_gpt2):
    """A small GPT-2 whose context holds the article's text in one window."""
    return save_gpt2("roomy", n_positions=256)


@pytest.mark.parametrize("given", ["random weights", "mini-s"])
def test_the_whole_chain_is_the_seeds(backend, roomy, given):
    folder = roomy if given == "random weights" else miniatures.folder("mini-s")
    betas, p_values, counts = by_the_articles_loop(folder, SEED)
    norms = extract_norms(load_model(folder, backend=backend), [SEED])
    assert norms["window"].max() == 0
    table = fit_lagged(
        add_lags(norms, lags=(1, 2), skip=1), "log_norm ~ lag1 + lag2", cov="nonrobust"
    ).coefficients
    terms = ["Intercept", "lag1", "lag2"]
    for layer, (beta, p_value, n) in enumerate(zip(betas, p_values, counts, strict=True)):
        rows = table[table["layer"] == layer].set_index("term").loc[terms]
        np.testing.assert_allclose(rows["estimate"], beta, rtol=0, atol=1e-5)
        np.testing.assert_allclose(rows["p_value"], p_value, rtol=0, atol=1e-4)
        assert rows["n"].tolist() == [n] * 3


def test_the_loop_sees_a_mistake_of_one_token(roomy):
    # The chain's test would pass idly if betas hardly depended on the rows; another text's are far away.
    ours, _, _ = by_the_articles_loop(roomy, SEED)
    others, _, _ = by_the_articles_loop(roomy, SEED[1:])
    assert np.min(np.max(np.abs(ours - others), axis=1)) > 1e-3


def test_every_document_of_a_corpus_is_the_single_document(backend, tiny):
    texts = [SEED[i : i + 60 + 7 * i] for i in range(6)]
    model = load_model(tiny, backend=backend)
    together = extract_norms(model, texts)
    for i, text in enumerate(texts):
        alone = extract_norms(model, pd.DataFrame({"doc": [f"text-{i}"], "text": [text]}))
        part = together[together["doc"] == f"text-{i}"]
        np.testing.assert_allclose(part["norm"], alone["norm"], rtol=2e-6)
        assert part["token_id"].tolist() == alone["token_id"].tolist()


def at_the_attention(hf_model):
    """Return the modules whose output is what attention adds to the residual stream."""
    for block in hf_model.base_model.layers:
        normed = hasattr(block, "post_feedforward_layernorm")
        yield (
            block.post_attention_layernorm if normed else getattr(block, "self_attn", None) or block.attention
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "family", ["Llama", "Mistral", "Qwen3", "Gemma2", "Gemma3Text", "GPTNeoX", "GptOss", "SmolLM3"]
)
def test_other_architectures_give_what_hooks_on_hugging_face_give(make_model, make_windows, family, dtype):
    # Windows of 4 tokens in Mistral and Gemma, softcapping in Gemma 2, sinks in gpt-oss: some without a fast kernel.
    made, kept = make_model(family, **({"sliding_window": 4} if family == "Mistral" else {})), {}
    model, hf_model = load_model(made, dtype=dtype), made.to(getattr(torch, dtype))
    for layer, module in enumerate(at_the_attention(hf_model)):
        module.register_forward_hook(
            lambda module, inputs, output, layer=layer: kept.update(
                {layer: output[0][0] if isinstance(output, tuple) else output[0]}
            )
        )
    tokens, expected = make_windows([40, 3, 17]), []
    for _, window in tokens.groupby("doc", observed=True, sort=False):
        with torch.no_grad():
            hf_model(torch.tensor([window["token_id"].tolist()]))
        expected.append([np.linalg.norm(kept[layer].double().numpy(), axis=-1) for layer in sorted(kept)])
    difference = np.abs(window_norms(model, tokens)["attn_out"] / np.concatenate(expected, axis=1) - 1)
    print(family, dtype, float(difference.max()))
    assert difference.max() < (2e-6 if dtype == "float32" else 5e-3)
