"""GGUF files: the numbers are those that the file's own quantization leaves, and what cannot be read is refused.

Weights are compared bit for bit with those that gguf itself dequantizes.
"""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch

import mechreg as mr
from mechreg.cli import main
from mechreg.models import gguf as conversion
from mechreg.models import load_reference, model_label, record_of, require_loadable
from mechreg.schema import InputError, ModelError

pytestmark = pytest.mark.models
HAS_GGUF = importlib.util.find_spec("gguf") is not None
needs_gguf = pytest.mark.skipif(not HAS_GGUF, reason="the extra gguf is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mechreg" / "gguf"


def tensors_of(model):
    """Return a Llama's tensors as llama.cpp has them: q and k with the halves of their rotations side by side."""
    config, tensors = model.config, {}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        n_heads = next((count for part, count in heads.items() if part in name), None)
        if n_heads is not None:
            split = values.reshape(n_heads, 2, len(values) // n_heads // 2, -1)
            values = np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)
        tensors[name] = values
    return tensors


def write_gguf(model, tokenizer, path, *, architecture="llama", quantization="Q8_0"):
    """Write a Llama as llama.cpp's converter does."""
    import gguf

    config, kind = model.config, gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quantization}"])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(rules["vocab"], key=rules["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words + [f"<{i}>" for i in range(config.vocab_size - len(words))])
    writer.add_token_merges([" ".join(pair) for pair in rules["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, values in tensors_of(model).items():
        is_norm = values.ndim == 1
        data = values if is_norm else gguf.quants.quantize(values, kind)
        place = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(place, data, raw_dtype=None if is_norm else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama(save_llama):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(save_llama(intermediate_size=64), dtype=torch.float32)


@pytest.fixture(scope="module")
def file(llama, tokenizer, tmp_path_factory):
    if not HAS_GGUF:
        pytest.skip("the extra gguf is not installed")
    return write_gguf(llama, tokenizer, tmp_path_factory.mktemp("gguf") / "small.Q8_0.gguf")


def test_the_weights_are_those_of_the_file_and_the_record_says_which(file, llama, cache):
    import gguf

    model = mr.load_model(file)
    record = record_of(model)
    assert (record.name, record.source, record.quantization) == ("small.Q8_0", str(file), "Q8_0")
    assert len(record.file_hash) == 64
    assert record.verified < 2e-6
    read = load_reference(model).state_dict()
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, values in llama.state_dict().items():
        if values.ndim == 2:  # a row's quantization does not depend on the other rows
            values = torch.tensor(gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), kind), kind))
        assert torch.equal(read[name], values), name
    assert model.tokenizer.decode(model.tokenizer.encode("The cat sat")) == "The cat sat"
    assert mr.check_model(model)["passed"].all()


def test_the_second_time_nothing_is_converted(file, cache, monkeypatch):
    first = mr.load_model(file)
    (folder,) = cache.iterdir()  # and nothing half made beside it
    assert not hasattr(mr.models.config_of(str(folder)), "quantization_config")
    monkeypatch.setattr(conversion, "_read", None)
    again = mr.load_model(str(file), name="again")
    assert record_of(again).name == "again"
    ids = torch.arange(20)[None]
    assert torch.equal(first(ids), again(ids))
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="could not be read"):
        mr.load_model(file)
    assert list(cache.iterdir()) == []


def test_commands_and_specs_take_the_file(file, tmp_path, capsys):
    assert main(["inspect", str(file)]) == 0
    assert "small.Q8_0" in capsys.readouterr().out
    shutil.copy(file, tmp_path / "beside.gguf")
    spec = tmp_path / "spec.toml"
    spec.write_text('models = ["beside.gguf"]\ncorpus = "demo"\n')
    (model,) = mr.read_spec(spec).models
    assert model == str(tmp_path / "beside.gguf")
    require_loadable(model)
    assert model_label(model) == "beside"


@needs_gguf
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"could not be read \(.*\); it may be cut short or damaged"),
        ("another file", r"could not be read \(.*\); it may be cut short or damaged"),
        ("architecture", r"transformers does not read .*architecture nonesuch is not supported yet; use"),
        ("quantization", r"transformers does not read .*Q8_0.*; use a GGUF file of another"),
        ("without a tensor", r"lacks weights of its architecture \(model.norm.weight\)"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(
    file, llama, tokenizer, tmp_path, how, message, monkeypatch
):
    import gguf

    spoiled = tmp_path / "spoiled.gguf"
    if how == "truncated":
        spoiled.write_bytes(file.read_bytes()[:-5000])
    elif how == "another file":
        spoiled.write_bytes(b"GGUF, it says")
    elif how == "architecture":
        write_gguf(llama, tokenizer, spoiled, architecture="nonesuch")
    elif how == "quantization":
        write_gguf(llama, tokenizer, spoiled)
        monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.Q8_0)
    else:
        monkeypatch.delitem(llama.model._modules, "norm")
        write_gguf(llama, tokenizer, spoiled)
    with pytest.raises(ModelError, match=message) as caught:
        mr.load_model(spoiled)
    assert "\n" not in str(caught.value)
    assert "spoiled.gguf" in str(caught.value)


def test_without_the_extra_the_remedy_is_given(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(conversion.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'mechreg\[gguf\]'"):
        mr.load_model(tmp_path / "model.gguf")


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"There is no model file 'nowhere\.gguf'"):
        mr.load_model("nowhere.gguf")


def test_a_revision_of_a_file_is_refused(file):
    with pytest.raises(InputError, match="only models on the hub have revisions"):
        mr.load_model(file, revision="main")
