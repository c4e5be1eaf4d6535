"""Attention by one kernel is the model's own, put back when it is over, and stands aside where it would be blind.

In float64 the two ways may differ by the rounding of sums: 1e-11 of the largest logit. That the norms are
Hugging Face's is shown in test_parity, which runs through the fused pass.
"""

import numpy as np
import pytest
import torch

from mechreg.models import fused, load_model

IDS = torch.arange(60).remainder(37).reshape(3, 20)
CONFIGS = {
    "plain": {},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "plain GELU": {"activation_function": "gelu"},
}
# Rotary frequencies, grouped heads, one matrix of queries, keys and values, norms of both, windows of 4 tokens, layers
# without positions, parallel blocks, and attention that TransformerLens leaves to Hugging Face.
FAMILIES = ["Llama", "Mistral", "Qwen3", "Gemma3Text", "GPTNeoX", "Phi3", "Olmo2", "SmolLM3", "OPT"]
# Softcapping, attention sinks, biases by distance, and architectures of which Hugging Face has no kernel.
WITHOUT = ["Gemma2", "GptOss", "Bloom", "GPTNeo"]


def fused_parts(model):
    """Return how many attentions and GELUs a model has that are not its own."""
    attentions = [vars(block.attn).keys() & {"forward", "calculate_z_scores"} for block in model.blocks]
    gelus = [m for m in model.modules() if isinstance(m, torch.nn.GELU) and m.approximate == "tanh"]
    return sum(map(len, attentions)), len(gelus)


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(ids)


def assert_equal_by_rounding(found, plain, close=1e-11):
    torch.testing.assert_close(found, plain, rtol=0, atol=close * float(plain.abs().max()))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_fused_pass_gives_the_models_own_numbers(save_gpt2, backend, config):
    # Hugging Face's own upcast attention runs in float32 alone, so there is nothing to verify it by.
    verify = config != "upcast"
    model = load_model(save_gpt2(**CONFIGS[config]), backend=backend, dtype="float64", verify=verify)
    plain = logits(model)
    with fused(model):
        attentions, gelus = fused_parts(model)
        found = logits(model)
    assert attentions == model.cfg.n_layers
    assert gelus == (0 if config == "plain GELU" else model.cfg.n_layers)
    assert not torch.equal(found, plain)
    assert_equal_by_rounding(found, plain, 1e-6 if config == "upcast" and backend == "bridge" else 1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_has_the_kernel(make_model, family):
    options = {"sliding_window": 4} if family == "Mistral" else {}
    model = load_model(make_model(family, **options), backend="bridge", dtype="float64")
    plain, heads = logits(model), []
    with (
        model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda value, hook: heads.append(value))]),
        fused(model),
    ):
        assert fused_parts(model)[0] == model.cfg.n_layers
        assert model.original_model.config._attn_implementation == "sdpa"
        found = logits(model)
    assert [len(value) for value in heads] == [len(IDS)]
    assert model.original_model.config._attn_implementation == "eager"
    assert_equal_by_rounding(
        found, plain, 1e-6
    )  # Hugging Face's eager softmax is float32 in a float64 model too


@pytest.mark.parametrize("family", WITHOUT)
def test_where_there_is_no_kernel_attention_stays_as_it_is(make_model, family):
    model = load_model(make_model(family), backend="bridge")
    plain = logits(model)
    with fused(model):
        assert fused_parts(model)[0] == 0
        assert model.original_model.config._attn_implementation == "eager"
        assert_equal_by_rounding(
            logits(model), plain, 1e-5
        )  # its norms and GELU are Hugging Face's and torch's


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_model_is_put_back_also_after_an_error(tiny, backend, implementation):
    model = load_model(tiny, backend=backend)
    if backend == "bridge":
        model.original_model.set_attn_implementation(implementation)
    plain, before = logits(model), dict(model.named_modules(remove_duplicate=False))

    def fail():
        with fused(model):
            assert fused_parts(model) != (0, 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert fused_parts(model) == (0, 0)
    after = dict(model.named_modules(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert torch.equal(logits(model), plain)
    if backend == "bridge":
        assert model.original_model.config._attn_implementation == implementation


@pytest.mark.parametrize("point", ["hook_pattern", "hook_attn_scores"])
def test_a_hooked_score_or_pattern_is_still_computed_and_heard(tiny, backend, point):
    model = load_model(tiny, backend=backend, dtype="float64")

    def blind_to_the_past(value, hook):
        eye = torch.eye(value.shape[-1], dtype=torch.bool)
        return value.masked_fill(~eye, 0 if point == "hook_pattern" else -1e9)

    untouched = logits(model)
    with model.hooks(fwd_hooks=[(f"blocks.0.attn.{point}", blind_to_the_past)]):
        plain = logits(model)
        with fused(model):
            # A bridge's attentions share one mask, so that none is fused where one cannot be.
            assert fused_parts(model)[0] == (0 if backend == "bridge" else model.cfg.n_layers - 1)
            found = logits(model)
    assert not torch.allclose(plain, untouched)
    assert_equal_by_rounding(found, plain)


@pytest.mark.parametrize("family", ["GPT2", "GPTNeoX"])
def test_a_change_of_queries_alone_is_not_lost(make_model, family):
    model = load_model(make_model(family), backend="bridge", dtype="float64")
    query = model.blocks[1].attn.q.original_component
    query.weight = torch.nn.Parameter(2 * query.weight.detach(), requires_grad=False)
    plain = logits(model)
    with fused(model):
        assert fused_parts(model)[0] == 0
        assert_equal_by_rounding(logits(model), plain)


def test_folded_weights_are_not_hugging_faces(tiny):
    model = load_model(tiny, backend="bridge", processing="folded", dtype="float64")
    plain = logits(model)
    with fused(model):
        assert_equal_by_rounding(logits(model), plain)


def test_half_precision_has_the_kernel_and_its_own_gelu(tiny, backend):
    model = load_model(tiny, backend=backend, dtype="bfloat16")
    plain = logits(model)
    with fused(model):
        assert fused_parts(model) == (model.cfg.n_layers, 0)
        assert_equal_by_rounding(logits(model), plain, 0.03)


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("change", ["both directions", "clamped"])
def test_attention_of_other_settings_keeps_them(tiny, change):
    model = load_model(tiny, backend="hooked", dtype="float64")
    untouched = logits(model)
    if change == "clamped":
        model.cfg.clip_qkv = 0.01
    for block in model.blocks if change == "both directions" else ():
        block.attn._attention_dir_override = "bidirectional"
    plain = logits(model)
    with fused(model):
        assert fused_parts(model)[0] == (model.cfg.n_layers if change == "clamped" else 0)
        found = logits(model)
    assert not torch.allclose(plain, untouched)
    assert_equal_by_rounding(found, plain)


def test_later_tokens_change_nothing(tiny, backend):
    model = load_model(tiny, backend=backend, dtype="float64")
    other = IDS.clone()
    other[:, 12:] = 5
    with fused(model):
        first, second = logits(model), logits(model, other)
    np.testing.assert_allclose(first[:, :12], second[:, :12], rtol=0, atol=1e-11)
    assert not np.allclose(first[:, 12:], second[:, 12:])
