"""The fused forward pass is the model's own, put back when it is over, and stands aside where it would be blind.

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


def fused_parts(model):
    """Return how many attentions and GELUs a model has that are not its own."""
    attentions = [vars(block.attn).keys() & {"forward", "_reconstruct_attention"} for block in model.blocks]
    gelus = [m for m in model.modules() if isinstance(m, torch.nn.GELU) and m.approximate == "tanh"]
    return sum(map(len, attentions)), len(gelus)


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(ids)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_fused_pass_gives_the_models_own_numbers(save_gpt2, backend, config):
    # Hugging Face's own upcast attention runs in float32 alone, so there is nothing to verify it by.
    verify = config != "upcast"
    model = load_model(save_gpt2(**CONFIGS[config]), backend=backend, dtype="float64", verify=verify)
    plain = logits(model)
    with fused(model):
        attentions, gelus = fused_parts(model)
        found = logits(model)
    assert attentions == (0 if config == "upcast" and backend == "bridge" else model.cfg.n_layers)
    assert gelus == (0 if config == "plain GELU" else model.cfg.n_layers)
    assert not torch.equal(found, plain) or attentions == 0
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-11 * float(plain.abs().max()))


def test_the_model_is_put_back_also_after_an_error(tiny, backend):
    model = load_model(tiny, backend=backend)
    plain, before = logits(model), dict(model.named_modules())

    def fail():
        with fused(model):
            assert fused_parts(model) != (0, 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert fused_parts(model) == (0, 0)
    after = dict(model.named_modules())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert torch.equal(logits(model), plain)


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
            assert fused_parts(model)[0] == model.cfg.n_layers - 1
            found = logits(model)
    assert not torch.allclose(plain, untouched)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-11 * float(plain.abs().max()))


def test_a_model_cast_after_loading_keeps_its_own_way(tiny, backend):
    model = load_model(tiny, backend=backend)
    model.to(torch.bfloat16)
    plain = logits(model)
    with fused(model):
        assert fused_parts(model) == (0, 0)
        assert torch.equal(logits(model), plain)


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("change", ["both directions", "clamped"])
def test_attention_of_other_settings_keeps_its_own_way(tiny, change):
    model = load_model(tiny, backend="hooked", dtype="float64")
    untouched = logits(model)
    if change == "clamped":
        model.cfg.clip_qkv = 0.01
    for block in model.blocks if change == "both directions" else ():
        block.attn._attention_dir_override = "bidirectional"
    plain = logits(model)
    with fused(model):
        assert fused_parts(model)[0] == 0
        found = logits(model)
    assert not torch.allclose(plain, untouched)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-11 * float(plain.abs().max()))


def test_another_architecture_is_left_alone(save_llama):
    model = load_model(save_llama(), backend="bridge")
    before = dict(model.named_modules())
    with fused(model):
        after = dict(model.named_modules())
        assert all(before[name] is after[name] for name in before)
        assert not any("_reconstruct_attention" in vars(block.attn) for block in model.blocks)


def test_later_tokens_change_nothing(tiny, backend):
    model = load_model(tiny, backend=backend, dtype="float64")
    other = IDS.clone()
    other[:, 12:] = 5
    with fused(model):
        first, second = logits(model), logits(model, other)
    np.testing.assert_allclose(first[:, :12], second[:, :12], rtol=0, atol=1e-11)
    assert not np.allclose(first[:, 12:], second[:, 12:])
