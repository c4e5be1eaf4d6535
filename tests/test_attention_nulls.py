"""Attention nulls against attention by hand, from raw Hugging Face tensors, one window at a time.

Tolerance: norms of about 1 in float32, by another order of sums, agree to 1e-5.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from mechreg.lags import add_lags
from mechreg.models import load_model
from mechreg.norms import extract_norms
from mechreg.nulls import attention_norms, compare_to_nulls, pattern_overlap, shuffle_norms
from mechreg.regression import fit_lagged
from mechreg.schema import InputError

TOKENS = pd.concat(
    [
        pd.DataFrame(
            {"doc": doc, "window": window, "position": range(n), "token_id": np.arange(n) * 37 % 251 + n}
        )
        for doc, window, n in (("a", 0, 14), ("a", 1, 9), ("b", 0, 2), ("c", 0, 20))
    ],
    ignore_index=True,
)


@pytest.fixture(params=["hooked gpt2", "bridge gpt2", "bridge llama"])
def both(request, tiny, save_llama):
    """A model and its raw one; the Llama has grouped keys and values."""
    backend, family = request.param.split()
    if backend == "hooked":
        request.getfixturevalue("hooked")
    folder = tiny if family == "gpt2" else save_llama()
    raw = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return load_model(folder, backend=backend), raw


def parts_of(raw, ids):
    """Return every layer's values "head pos d_head", one for every query head, its pattern and its projection."""
    with torch.inference_mode():
        out = raw(ids[None], output_attentions=True, output_hidden_states=True)
        for i, (stream, pattern) in enumerate(zip(out.hidden_states, out.attentions, strict=False)):
            if hasattr(raw, "transformer"):
                block = raw.transformer.h[i]
                values = block.attn.c_attn(block.ln_1(stream))[0].chunk(3, dim=-1)[2]
                project = block.attn.c_proj
            else:
                block = raw.model.layers[i]
                values = block.self_attn.v_proj(block.input_layernorm(stream))[0]
                project = block.self_attn.o_proj
            n_heads, d_head = pattern.shape[1], raw.config.hidden_size // pattern.shape[1]
            values = values.reshape(len(ids), -1, d_head).transpose(0, 1)
            yield values.repeat_interleave(n_heads // len(values), dim=0), pattern[0], project


@pytest.mark.parametrize("replace", ["values", "uniform"])
def test_norms_are_those_of_attention_by_hand(both, replace):
    model, raw = both
    before = TOKENS.copy()
    found = attention_norms(model, TOKENS, replace=replace, seed=3)
    pd.testing.assert_frame_equal(TOKENS, before)
    clean = extract_norms(model, TOKENS, progress=False)
    pd.testing.assert_frame_equal(found.drop(columns="norm"), clean.drop(columns="norm"))
    assert (found["norm"] != clean["norm"]).groupby(found["layer"]).mean().min() > 0.7
    first = clean[clean["layer"] == 0]
    place = shuffle_norms(first.assign(norm=first["position"]), seed=3)["norm"]
    norms = found["norm"].to_numpy().reshape(-1, len(TOKENS))
    for _, part in TOKENS.groupby(["doc", "window"]):
        ids = torch.tensor(part["token_id"].tolist())
        for layer, (values, pattern, project) in enumerate(parts_of(raw, ids)):
            if replace == "values":
                values = values[:, place[part.index].tolist()]
            else:
                pattern = torch.ones_like(pattern).tril() / torch.arange(1, len(ids) + 1)[:, None]
            with torch.inference_mode():
                expected = project((pattern @ values).transpose(0, 1).flatten(1)).norm(dim=-1)
            np.testing.assert_allclose(norms[layer, part.index], expected.numpy(), rtol=1e-5, atol=1e-5)


def test_overlap_is_the_sum_of_minima_by_hand(both):
    model, raw = both
    table = pattern_overlap(model, TOKENS, skip=1)
    minima = {layer: [] for layer in table["layer"]}
    for _, part in TOKENS.groupby(["doc", "window"]):
        for layer, (_, pattern, _) in enumerate(parts_of(raw, torch.tensor(part["token_id"].tolist()))):
            for t in range(2, len(part)):
                minima[layer].append(
                    float(torch.minimum(pattern[:, t], pattern[:, t - 1]).sum(dim=-1).mean())
                )
    np.testing.assert_allclose(table["overlap"], np.mean(list(minima.values()), axis=1), atol=1e-5)
    assert (table["n"] == 14 + 9 + 2 + 20 - 4 * 2).all()


def test_batches_change_nothing_and_layers_are_chosen(tiny):
    model = load_model(tiny)
    whole = attention_norms(model, TOKENS, replace="values", seed=1)
    small = attention_norms(model, TOKENS, replace="values", layers=[2], batch_tokens=1, seed=1)
    expected = whole[whole["layer"] == 2]
    np.testing.assert_allclose(small["norm"], expected["norm"], rtol=1e-5)
    pd.testing.assert_frame_equal(
        small.drop(columns="norm"), expected.drop(columns="norm").reset_index(drop=True)
    )
    assert not np.allclose(attention_norms(model, TOKENS, replace="values", seed=2)["norm"], whole["norm"])
    with pytest.raises(InputError, match="layers"):
        attention_norms(model, TOKENS, replace="uniform", layers=[3])


def test_a_uniform_pattern_is_a_running_mean_that_persists():
    """Its lag1 + lag2 is near one beside document and position effects, far above what was trained."""
    model, words = (
        load_model("mini-s"),
        ["moon", "cat", "old", "mat", "sat", "looked", "wine", "man", "the", "and"],
    )
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 60)) for _ in range(6)]
    norms = extract_norms(model, texts, progress=False)
    fits = fit_lagged(add_lags(norms), effects=("doc", "position"))
    table = compare_to_nulls(fits, {"uniform": [attention_norms(model, texts, replace="uniform")]}, draws=99)
    total = table.groupby("layer")[["estimate", "null_estimate"]].sum()
    assert total["null_estimate"].between(0.8, 1.1).all()
    assert (total["null_estimate"] > total["estimate"]).all()
