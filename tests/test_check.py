"""check_model passes on sound models, and sees each of them broken on purpose."""

import numpy as np
import pandas as pd
import pytest
import torch

from mechreg.check import check_model, contract, hugging_face_norms
from mechreg.corpus import tokenize
from mechreg.models import HOOK_POINTS, hooked_transformer_class, load_model, load_reference
from mechreg.models.hook_points import HookPoint
from mechreg.schema import InputError, ModelError

pytestmark = pytest.mark.models

CHECKS = [
    "no dropout is on",
    "every hook fires once a layer",
    "Hugging Face parity",
    "ragged batch equals one by one",
    "same again on repeat",
    "a changed token leaves those before alone",
    "a changed token moves its own norms",
    "resid_pre + attn_out + mlp_out = resid_post",
    "logits equal Hugging Face's",
    "lengths that the config names",
    "BOS only when asked",
]


@pytest.fixture
def model(backend, tiny):
    return load_model(tiny, backend=backend)


def failed(table):
    return set(table.loc[~table["passed"], "check"])


def test_a_sound_model_passes_at_every_hook_point(model):
    table = check_model(model, hooks=tuple(HOOK_POINTS))
    assert table["check"].tolist() == CHECKS
    assert failed(table) == set()
    assert table.columns.tolist() == ["check", "passed", "value", "tolerance", "detail"]
    assert 0 < table["value"][2] < 2e-6  # two ways of computing, not one compared with itself


# Tolerances are six times what the same Hugging Face model differs from itself in float64: around the epsilon of what
# it computes in (Llama: norms and rotations in float32, whatever its weights are).
@pytest.mark.parametrize(
    ("family", "dtype", "least", "most"),
    [
        ("GPT2", "float64", 1e-15, 1e-13),
        ("GPT2", "float32", 3e-7, 1e-5),
        ("GPT2", "float16", 2e-3, 2e-2),
        ("GPT2", "bfloat16", 1e-2, 2e-1),
        ("GPT2", "bfloat16-autocast", 1e-2, 2e-1),
        ("Llama", "float64", 3e-7, 1e-4),
        ("Qwen3", "float64", 3e-7, 1e-4),
        ("Mistral", "float64", 3e-7, 1e-4),
        ("Llama", "bfloat16", 2e-2, 2e-1),
    ],
)
def test_tolerances_are_those_of_what_the_architecture_computes_in(make_model, family, dtype, least, most):
    original = make_model(family)
    table = check_model(load_model(original, dtype=dtype), hooks=("z", "result", "mlp_out"))
    assert failed(table) == set()
    assert least < table["tolerance"][2] < most


# In these, what the attention adds to the residual stream is not what its module gives: a norm or a multiplier follows,
# or (Bloom) the module adds the residual stream itself.
@pytest.mark.parametrize("family", ["Gemma2", "Gemma3Text", "Olmo2", "Olmo3", "Glm4", "Granite", "Bloom"])
def test_the_yardstick_is_what_a_part_adds_to_the_residual_stream(make_model, family):
    original = make_model(family)
    table = check_model(load_model(original), hooks=("attn_out", "mlp_out", "resid_mid"))
    assert failed(table) == set()
    assert 0 < table["value"][2] < 2e-6


@pytest.mark.parametrize(
    "family", ["GPTNeoX", "Phi", "GPTJ", "Falcon", "OPT", "Mpt", "OpenAIGPT", "Qwen3Moe"]
)
def test_more_families_pass(make_model, family):
    original = make_model(family)
    assert failed(check_model(load_model(original))) == set()


def test_a_block_that_ends_in_a_norm_is_no_sum(make_model):
    original = make_model("OPT", do_layer_norm_before=False, word_embed_proj_dim=16)
    table = check_model(load_model(original))
    assert failed(table) == set()
    assert "a norm ends each block" in table.set_index("check")["detail"][CHECKS[7]]


@pytest.mark.parametrize("family", ["Rwkv", "Mamba"])
def test_a_model_without_attention_is_one_sentence(make_model, family):
    original = make_model(family)
    with pytest.raises(
        ModelError, match=r"has no hook point 'attn_out', .*; it has resid_pre, .*resid_post\.$"
    ):
        check_model(load_model(original))


def test_other_architectures_and_models_without_tokenizer(save_llama, make_neox, save_gpt2):
    neox = make_neox()
    assert failed(check_model(save_llama(), hooks=tuple(HOOK_POINTS))) == set()
    assert failed(check_model(load_model(neox), hooks=("attn_out", "mlp_out", "z", "resid_post"))) == set()
    table = check_model(save_gpt2(with_tokenizer=False))
    assert failed(table) == set()
    assert table["detail"].iloc[-1] == "no tokenizer"


def test_a_context_too_long_to_be_tried_is_said(make_model):
    original = make_model("Llama", max_position_embeddings=8192)
    table = check_model(load_model(original)).set_index("check")
    assert table["passed"].all()
    assert table["detail"]["lengths that the config names"] == "context 8192 (not tried)"


def test_the_same_seed_gives_the_same_table(model):
    pd.testing.assert_frame_equal(check_model(model, seed=1), check_model(model, seed=1))


def test_folded_weights_are_seen(backend, tiny):
    table = check_model(load_model(tiny, backend=backend, processing="folded"))
    assert failed(table) == {"Hugging Face parity"}
    assert table["value"][2] > 1e-3


@pytest.mark.parametrize("scale", [1 + 1e-4, -1.0])
def test_a_changed_weight_is_seen_where_it_shows(model, scale):
    with torch.no_grad():
        model.blocks[1].attn.W_O.mul_(scale) if scale > 0 else model.blocks[1].attn.b_O.mul_(scale)
    table = check_model(model, hooks=("attn_out",))
    assert failed(table) == {"Hugging Face parity"} | (
        {"logits equal Hugging Face's"} if scale < 0 else set()
    )
    assert "attn_out, layer" in table["detail"][2]


def test_padding_on_the_left_is_seen(model, monkeypatch):
    forward = type(model).forward

    def pad_left(self, tokens, *args, **kwargs):
        rolled = [torch.roll(row, len(row) - int(row.nonzero().max()) - 1) for row in tokens]
        return forward(self, torch.stack(rolled), *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", pad_left)
    assert failed(check_model(model)) >= {"Hugging Face parity", "ragged batch equals one by one"}


def test_a_dead_hook_is_seen(model):
    point = model.hook_dict["blocks.1.hook_mlp_out"]
    point.__class__ = type("Dead", (type(point),), {"__call__": lambda self, value: value})
    table = check_model(model).set_index("check")  # it was not asked for, though the sum of a block needs it
    assert table["passed"].all()
    assert table["detail"][CHECKS[7]].startswith("not tried: ")
    table = check_model(model, hooks=("mlp_out",))
    assert failed(table) == {"every hook fires once a layer"}
    assert "'blocks.1.hook_mlp_out' fired not at all" in table["detail"].iloc[-1]


def test_dropout_is_seen(make_gpt2):
    original = make_gpt2()
    model = load_model(original, backend="bridge")
    assert failed(check_model(model)) == set()
    model.train()
    table = check_model(model)
    assert failed(table) == {"no dropout is on"}
    assert "dropout" in table["detail"][0]


def test_numbers_that_change_from_run_to_run_are_seen(model):
    def jitter(module, inputs, output):
        return output * (1 + 1e-3 * torch.rand(()))

    model.blocks[0].ln1.register_forward_hook(jitter)
    with torch.random.fork_rng():
        assert failed(check_model(model)) >= {"Hugging Face parity", "same again on repeat"}


def break_causality(model):
    for block in model.blocks:
        mask = (
            "apply_causal_mask"
            if hasattr(block.attn, "apply_causal_mask")
            else "_apply_reconstruct_attention_mask"
        )
        assert hasattr(block.attn, mask)
        setattr(block.attn, mask, lambda attn_scores, *args, **kwargs: attn_scores)


def test_a_model_that_looks_ahead_is_seen(model):
    break_causality(model)
    assert failed(check_model(model)) >= {
        "Hugging Face parity",
        "ragged batch equals one by one",
        "a changed token leaves those before alone",
    }


def test_a_model_that_looks_ahead_as_its_reference_does_is_seen_too(tiny, monkeypatch):
    # Parity is no help where both are wrong alike.
    model = load_model(tiny, backend="bridge")
    break_causality(model)
    monkeypatch.setattr(
        contract,
        "hugging_face_norms",
        lambda reference, tokens, hooks, parts: contract.window_norms(model, tokens, hooks=hooks),
    )
    assert "a changed token leaves those before alone" in failed(check_model(model))


def test_a_model_that_does_not_look_at_its_tokens_is_seen(model):
    with torch.no_grad():
        model.embed.W_E.zero_()
    assert failed(check_model(model)) >= {"Hugging Face parity", "a changed token moves its own norms"}


@pytest.mark.parametrize("when", ["unasked", "asked"])
def test_a_second_bos_is_seen(model, monkeypatch, when):
    def tokenize_with_another(model, texts, *, prepend_bos):
        tokens = tokenize(model, texts, prepend_bos=prepend_bos)
        return (
            pd.concat([tokens.iloc[:1].assign(token_id=0), tokens])
            if prepend_bos == (when == "asked")
            else tokens
        )

    monkeypatch.setattr(contract, "tokenize", tokenize_with_another)
    table = check_model(model)
    assert failed(table) == {"BOS only when asked"}
    assert table["value"].iloc[-1] == (1 if when == "unasked" else 2)


def test_weights_that_are_not_finite_are_seen(model):
    with torch.no_grad():
        model.blocks[2].attn.b_O[3] = float("nan")
    table = check_model(model)
    assert failed(table) == {"all norms are finite"}
    assert "layer 2" in table["detail"].iloc[-1]


def test_hugging_face_norms_come_from_plain_hooks_of_the_attention(tiny, make_windows):
    reference = load_reference(load_model(tiny))
    tokens = make_windows([4, 7])
    heard = []
    handle = reference.transformer.h[2].attn.register_forward_hook(lambda m, a, out: heard.append(out[0][0]))
    norms = hugging_face_norms(reference, tokens)["attn_out"]
    handle.remove()
    expected = torch.cat([value.norm(dim=-1) for value in heard])
    np.testing.assert_allclose(norms[2], expected, rtol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in reference.modules())


def test_a_reference_is_given_and_copied(model, make_gpt2):
    original = make_gpt2().double().train()
    assert failed(check_model(model, reference=original)) == set()
    assert original.training
    assert original.dtype == torch.float64
    other = failed(check_model(model, reference=make_gpt2(seed=5)))
    assert other == {"Hugging Face parity", "logits equal Hugging Face's"}


def test_a_model_of_unknown_origin_needs_a_reference(make_gpt2):
    original = make_gpt2()
    model = load_model(original, name="mine")
    del original
    with pytest.raises(ModelError, match=r"nothing to compare mine with; give reference="):
        check_model(model)
    assert failed(check_model(model, reference=make_gpt2())) == set()


def test_parts_that_have_no_known_name_are_named(model, make_gpt2):
    reference = make_gpt2()
    for block in reference.transformer.h:
        block.feed, block._modules["mlp"] = block.mlp, None
        del block._modules["mlp"]
    with pytest.raises(ModelError, match=r"GPT2Block has no mlp called mlp, ffn, fc2; name it with parts="):
        check_model(model, reference=reference, hooks=("mlp_out",))
    with pytest.raises(ModelError, match="no list of blocks with an attention"):
        check_model(model, reference=torch.nn.Sequential())


def test_logits_that_are_not_hugging_faces_are_seen(make_model):
    if hooked_transformer_class() is None:
        pytest.skip("right since TransformerLens 4")
    cohere = make_model("Cohere")
    assert "logits equal Hugging Face's" in failed(check_model(load_model(cohere, verify=False)))


def test_an_update_that_is_not_what_is_added_is_seen(make_model, monkeypatch):
    # What the module gives, before the multiplier that follows it.
    original = make_model("Granite")
    model = load_model(original)
    monkeypatch.setitem(HOOK_POINTS, "attn_out", HookPoint("attn.o.hook_out", "batch pos d_model"))
    wrong = {"Hugging Face parity", "resid_pre + attn_out + mlp_out = resid_post"}
    assert failed(check_model(model)) == wrong


def test_a_family_that_is_not_known_takes_a_mapping(make_model, monkeypatch):
    original = make_model("Gemma2")
    model = load_model(original)
    for part in contract.PARTS:
        monkeypatch.setitem(contract.PARTS, part, ())
    with pytest.raises(ModelError, match=r"no list of blocks with an attention.*parts=\{'blocks'"):
        check_model(model)
    parts = {"blocks": "model.layers", "attention": "self_attn", "mlp": "mlp"}
    with pytest.raises(
        ModelError, match=r"does not know where .* adds its attention .*name them with parts="
    ):
        check_model(model, parts=parts)
    parts |= {
        "norm_after_attention": "post_attention_layernorm",
        "norm_after_mlp": "post_feedforward_layernorm",
    }
    parts |= {"norm_before_mlp": "pre_feedforward_layernorm"}
    assert failed(check_model(model, parts=parts, hooks=("mlp_out", "resid_mid"))) == set()
    with pytest.raises(
        ModelError, match=r"names 'layers', and Gemma2ForCausalLM has no such part; it has model"
    ):
        check_model(model, parts=parts | {"blocks": "layers"})
    with pytest.raises(InputError, match=r"A key of parts= must be one of .*'norms'"):
        check_model(model, parts=parts | {"norms": "after"})


def test_unknown_hooks_are_refused(model):
    with pytest.raises(InputError, match="hooks must be one of"):
        check_model(model, hooks=("attn_aut",))
