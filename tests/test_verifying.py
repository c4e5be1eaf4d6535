"""What is loaded is what Hugging Face computes: a short pass of both is compared, and what differs is refused.

Tolerances: two ways of rounding differ by 5e-7 in float32 in these models of 3 layers, and the wrong ones by 3e-2.
"""

import copy
import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechreg.models import hooked_transformer_class, load_model, record_of, require_loadable
from mechreg.schema import ModelError

pytestmark = pytest.mark.models

RIGHT = [
    *(
        "GPT2",
        "Llama",
        "Qwen2",
        "Qwen3",
        "Mistral",
        "GPTNeoX",
        "OPT",
        "GPTNeo",
        "GPTJ",
        "Gemma2",
        "Gemma3Text",
    ),
    *(
        "Olmo2",
        "Olmo3",
        "Glm4",
        "Granite",
        "Bloom",
        "Falcon",
        "GPTBigCode",
        "Phi3",
        "Mpt",
        "OpenAIGPT",
        "Rwkv",
    ),
]
# Right on the bridge, though other ways of holding them are not.
RIGHT_SETTINGS = {
    "window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "part of the rotary": ("Phi3", {"partial_rotary_factor": 0.5}),
    "biases": ("Qwen3", {"attention_bias": True}),
    "norm after": ("OPT", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
}
WRONG = {
    "ALiBi": ("Falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "Cohere": ("Cohere", {}),
    "Cohere 2": ("Cohere2", {"sliding_window": 4}),
}


@pytest.fixture
def no_process(monkeypatch):
    """Let no process be started."""

    def refuse(*args, **options):
        raise AssertionError(f"a process was started: {args}")

    for place, name in [
        (subprocess, "Popen"),
        (os, "system"),
        (os, "posix_spawn"),
        (os, "fork"),
        (os, "execv"),
    ]:
        monkeypatch.setattr(place, name, refuse)


@pytest.mark.parametrize("family", RIGHT)
def test_what_is_right_is_loaded_and_the_difference_recorded(make_model, no_process, family):
    original = make_model(family)
    before = copy.deepcopy(original.state_dict())
    assert not original.config.architectures  # as a model made in memory has it
    model = load_model(original)
    assert record_of(model).verified < 2e-6
    assert not original.config.architectures
    assert all(torch.equal(tensor, before[key]) for key, tensor in original.state_dict().items())
    ids = torch.arange(3, 23).reshape(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), original(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "settings"), RIGHT_SETTINGS.values(), ids=RIGHT_SETTINGS)
def test_settings_that_the_bridge_holds(make_model, family, settings):
    assert record_of(load_model(make_model(family, **settings))).verified < 2e-6


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "bfloat16-autocast"])
@pytest.mark.parametrize(("family", "settings"), WRONG.values(), ids=WRONG)
def test_what_the_bridge_computes_as_another_model_is_refused(make_model, family, settings, dtype):
    original = make_model(family, **settings)
    if family != "Falcon" and hooked_transformer_class() is None:
        assert record_of(load_model(original)).verified < 2e-6  # right since TransformerLens 4
        return
    message = r"TransformerBridge computes .* differently from .* differs by 0\.\d+ of its size, where rounding makes"
    with pytest.raises(ModelError, match=message):
        load_model(original, dtype=dtype)
    assert record_of(load_model(original, dtype=dtype, verify=False)).verified is None


def test_a_model_that_cannot_run_is_one_sentence(make_model):
    opt = make_model("OPT", _remove_final_layer_norm=True)
    with pytest.raises(
        ModelError, match=r"^TransformerBridge cannot run a OPTForCausalLM in memory in float32: .*"
    ):
        load_model(opt)
    with pytest.raises(
        ModelError, match=r"Hugging Face's Qwen3MoeForCausalLM cannot run .* use dtype='float32'"
    ):
        load_model(make_model("Qwen3Moe"), dtype="float64")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_all_precisions_and_both_processings_are_verified(backend, tiny, dtype):
    rounding = 0.03 if dtype == "bfloat16" else 3e-3 if dtype == "float16" else 2e-6
    assert record_of(load_model(tiny, backend=backend, dtype=dtype)).verified < rounding
    if dtype == "float32":
        assert record_of(load_model(tiny, backend=backend, processing="folded")).verified < 1e-5


def test_a_broken_conversion_is_seen(backend, tiny, monkeypatch):
    from mechreg.models import loading

    made = {"bridge": "bridge_of", "hooked": "hooked_gpt2"}[backend]
    make = getattr(loading, made)

    def scaled(*args, **options):
        model = make(*args, **options)
        with torch.no_grad():
            model.blocks[1].attn.W_O.mul_(1.01)
        return model

    monkeypatch.setattr(loading, made, scaled)
    with pytest.raises(
        ModelError, match=r"computes .* differently from .* the residual stream after block 2 differs"
    ):
        load_model(tiny, backend=backend)


def test_a_model_that_reads_ahead_is_seen_whatever_its_config_says(make_model, monkeypatch):
    original = make_model("Llama")
    forward = type(original).forward

    def ahead(self, ids, **options):
        output = forward(self, ids, **options)
        output.logits = output.logits.flip(1)
        return output

    monkeypatch.setattr(type(original), "forward", ahead)
    with pytest.raises(ModelError, match="is not causal: a token changes the logits of those before it"):
        load_model(original)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Llama", {"is_causal": False}),
        ("Gemma3Text", {"use_bidirectional_attention": True}),
    ],
)
def test_a_config_that_says_both_directions_is_refused(make_model, tmp_path, family, settings):
    original = make_model(family)
    for key, value in settings.items():
        setattr(original.config, key, value)
    with pytest.raises(ModelError, match=r"says \w+=.*, so the model reads in both directions"):
        load_model(original, verify=False)
    original.config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"says \w+=.*, so the model reads in both directions"):
        require_loadable(tmp_path)


def small_gemma3():
    """Return the config of the multimodal class; its text part is small."""
    from transformers import Gemma3Config

    text = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Gemma3Config(
        text_config=text | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        vision_config=vision | {"image_size": 16, "patch_size": 8},
        architectures=["Gemma3ForConditionalGeneration"],
    )


def test_a_model_with_a_vision_part_is_refused_before_transformer_lens_sees_it(no_process, tmp_path):
    from transformers import Gemma3ForConditionalGeneration

    message = "is a Gemma3ForConditionalGeneration with parts beside its text \\(vision_config\\)"
    small_gemma3().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)
    with pytest.raises(ModelError, match=message):
        require_loadable(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(Gemma3ForConditionalGeneration(small_gemma3()), verify=False)


@pytest.mark.parametrize(
    "name", ["Qwen2Audio", "Llava", "Florence2", "Emu3", "Idefics3", "Qwen2_5_VL", "Gemma4"]
)
def test_other_parts_beside_the_text_are_refused(no_process, tmp_path, name):
    import transformers

    getattr(transformers, f"{name}Config")().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"with parts beside its text \(\w+_config"):
        require_loadable(tmp_path)


@pytest.mark.parametrize("key", ["vision_config", "audio_config"])
def test_a_part_that_a_text_models_config_names_is_refused(folder, key):
    with pytest.raises(ModelError, match=f"with parts beside its text \\({key}\\)"):
        require_loadable(folder(config={key: {"hidden_size": 3}}))


def test_a_nested_config_of_both_directions_is_seen(tmp_path):
    from transformers import AutoConfig

    from mechreg.models.sources import OWN_PARTS, require_readable

    config = AutoConfig.for_model("fuyu")
    config.text_config.is_causal = False
    assert "text_config" in OWN_PARTS
    with pytest.raises(ModelError, match="says is_causal=False"):
        require_readable(config, "a model")


@pytest.fixture
def folder(make_model, tmp_path):
    """A function that saves a model, with another config or more weights, and gives the folder."""

    def save(family="Llama", *, config=(), weights=None, drop="", **settings):
        made = tmp_path / family
        make_model(family, **settings).save_pretrained(made)
        message = json.loads((made / "config.json").read_text())
        (made / "config.json").write_text(json.dumps(message | dict(config)))
        kept = load_file(made / "model.safetensors")
        save_file({**kept, **(weights or {})}, made / "model.safetensors", metadata={"format": "pt"})
        return made

    return save


@pytest.mark.parametrize(
    ("family", "settings", "config", "message"),
    [
        ("Llama", {}, {"num_hidden_layers": 2}, "model.layers.2.input_layernorm.weight"),
        ("GPT2", {}, {"n_layer": 2}, "transformer.h.2.attn.c_attn.weight"),
        ("Qwen3", {"attention_bias": True}, {"attention_bias": False}, "self_attn.k_proj.bias"),
        ("OPT", {}, {"enable_bias": False}, "fc1.bias"),
    ],
)
def test_weights_that_the_config_has_no_place_for_are_refused(folder, family, settings, config, message):
    made = folder(family, config=config, **settings)
    with pytest.raises(ModelError, match=r"hold more than its config says: .*would be ignored") as error:
        load_model(made)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("GPT2", {"transformer.h.0.attn.bias": (1, 1, 8, 8), "transformer.h.0.attn.masked_bias": ()}),
        ("GPT2", {"score.weight": (2, 32), "v_head.summary.weight": (1, 32)}),
        (
            "GPTNeo",
            {
                "transformer.h.1.attn.attention.bias": (1, 1, 8, 8),
                "transformer.h.1.attn.attention.masked_bias": (),
            },
        ),
        ("GPTJ", {"transformer.h.1.attn.bias": (1, 1, 8, 8), "transformer.h.1.attn.masked_bias": ()}),
        (
            "GPTNeoX",
            {"gpt_neox.layers.0.attention.bias": (1, 1, 8, 8), "gpt_neox.layers.0.attention.masked_bias": ()},
        ),
        ("GPTNeoX", {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": (4,)}),
        (
            "Llama",
            {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,), "model.embed_tokens.position_ids": (1, 8)},
        ),
    ],
)
def test_buffers_that_old_versions_saved_and_other_tasks_heads_are_left_out(folder, family, extra):
    made = folder(family, weights={key: torch.ones(shape) for key, shape in extra.items()})
    assert record_of(load_model(made)).verified < 2e-6


def test_an_adapter_beside_the_weights_is_refused(folder):
    made = folder()
    load_model(made)
    (made / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"})
    )
    with pytest.raises(ModelError, match=r"has an adapter .*merge_and_unload"):
        load_model(made)
    with pytest.raises(ModelError, match=r"has an adapter"):
        require_loadable(made)


def test_half_precision_folders_are_read_in_the_precision_asked_for(folder, make_model):
    made = folder(config={"dtype": "float16"})
    model = load_model(made)
    assert record_of(model).dtype == "float32"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
