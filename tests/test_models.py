"""Loading against Hugging Face's own model, and refusals; hub names are in test_hub.py.

Tolerances: logits of two exact ways of computing one float32 model, of order 1 to 10 here, differ by a few units in
the last place of their largest terms: 2e-5 absolute. Folding reorders the arithmetic and shifts all logits of a token
by one number: compared as log-probabilities, 1e-4. Everything else is exact.
"""

import ast
import gc
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import mechreg
from mechreg import miniatures
from mechreg.models import (
    HOOK_POINTS,
    describe_model,
    hooked_transformer_class,
    load_model,
    load_reference,
    model_label,
    record_of,
    require_loadable,
    tokenizer_hash,
    weight_hash,
)
from mechreg.norms import extract_norms
from mechreg.schema import Hook, InputError, ModelError

pytestmark = pytest.mark.models

IDS = torch.tensor([[5, 17, 300, 2, 2, 99, 41, 0, 7, 250]])


def logits_of(hf_model, ids=IDS):
    with torch.no_grad():
        return hf_model(ids).logits


def edited_config(folder, **changes):
    """Change keys of a saved config; None takes a key out."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


CONFIGS = {
    "plain": {},
    "relu": {"activation_function": "relu"},
    "exact gelu": {"activation_function": "gelu"},
    "silu": {"activation_function": "silu"},
    "tanh gelu": {"activation_function": "gelu_pytorch_tanh"},
    "quick gelu": {"activation_function": "quick_gelu"},
    "narrow mlp": {"n_inner": 40},
    "one head": {"n_head": 1},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "another epsilon": {"layer_norm_epsilon": 1e-2},
    "untied": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_any_gpt2_has_hugging_faces_logits(backend, save_gpt2, config):
    folder = save_gpt2(**config)
    model = load_model(folder, backend=backend)
    torch.testing.assert_close(model(IDS), logits_of(load_reference(model)), atol=2e-5, rtol=0)
    assert record_of(model).backend == backend
    assert model.cfg.d_vocab == 320


@pytest.mark.parametrize("by_layer", [False, True])
def test_unscaled_attention_is_held_by_hooked_and_refused_by_the_bridge(save_gpt2, by_layer):
    folder = save_gpt2(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=by_layer)
    with pytest.raises(
        ModelError, match=r"scale_attn_weights=false, which TransformerBridge ignores.*hooked"
    ):
        load_model(folder, backend="bridge")
    if hooked_transformer_class() is None:
        with pytest.raises(ModelError, match="TransformerLens 3"):
            load_model(folder)
        return
    model = load_model(folder)
    torch.testing.assert_close(model(IDS), logits_of(load_reference(model)), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["my-bert-and-llama", "gpt2", "neox", "checkpoint-200"])
@pytest.mark.parametrize(
    "changes", [{"n_ctx": 64, "transformers_version": "4.30.0"}, {"architectures": None}]
)
def test_a_folder_under_any_path_saved_by_any_version(backend, save_gpt2, name, changes):
    folder = edited_config(save_gpt2(name), **changes)
    model = load_model(str(folder), backend=backend)
    torch.testing.assert_close(model(IDS), logits_of(load_reference(model)), atol=2e-5, rtol=0)
    assert record_of(model).name == model.cfg.model_name == name
    assert model.cfg.n_ctx == 64


def test_a_loaded_model_is_ready_to_be_measured(backend, tiny, capfd):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    model = load_model(tiny, backend=backend)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert capfd.readouterr().out == ""
    assert not model.cfg.default_prepend_bos
    assert model.to_tokens("The cat")[0].tolist() == model.tokenizer.encode("The cat")
    assert model.to_tokens("The cat", prepend_bos=True)[0].tolist() == [0, *model.tokenizer.encode("The cat")]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("bfloat16", 0.5), ("float16", 0.1)])
def test_other_precisions(backend, tiny, dtype, tolerance):
    model = load_model(tiny, backend=backend, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert record_of(model).dtype == dtype
    exact = logits_of(load_reference(load_model(tiny, backend=backend, dtype="float64")))
    torch.testing.assert_close(model(IDS).double(), exact, atol=tolerance, rtol=0)


def test_a_hugging_face_object_is_loaded_and_never_altered(backend, make_gpt2, tokenizer):
    original = make_gpt2(n_layer=2).train()
    original.config.name_or_path = ""
    heard = []
    original.transformer.h[0].attn.register_forward_hook(lambda *args: heard.append(1))
    state = {key: value.clone() for key, value in original.state_dict().items()}
    config, token_state = original.config.to_dict(), (tokenizer.pad_token, tokenizer.padding_side)
    attention = original.config._attn_implementation

    model = load_model(original, backend=backend, tokenizer=tokenizer)
    extract_norms(model, ["The cat sat on the mat."])
    assert heard == []
    assert original.config.to_dict() == config
    assert original.config._attn_implementation == attention
    assert all(module.training for module in original.modules())
    assert all(parameter.requires_grad for parameter in original.parameters())
    assert all(torch.equal(value, state[key]) for key, value in original.state_dict().items())
    assert (tokenizer.pad_token, tokenizer.padding_side) == token_state
    assert record_of(model).source == "a GPT2LMHeadModel in memory"
    assert record_of(model).name == "GPT2LMHeadModel"
    torch.testing.assert_close(model(IDS), logits_of(original.eval()), atol=2e-5, rtol=0)

    model.requires_grad_(True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, state[key]) for key, value in original.state_dict().items())


def test_a_hugging_face_object_is_compared_with_itself_while_it_lives(make_gpt2):
    original = make_gpt2().train()
    model = load_model(original, name="mine")
    reference = load_reference(model)
    assert reference is not original
    assert not reference.training
    assert original.training
    torch.testing.assert_close(logits_of(reference), logits_of(original.eval()))
    del original
    gc.collect()
    with pytest.raises(ModelError, match="that mine was made from is gone"):
        load_reference(model)


@pytest.mark.parametrize("name", miniatures.NAMES)
def test_the_miniatures_by_name(backend, name):
    model = load_model(name, backend=backend)
    assert record_of(model).name == model_label(name) == name
    torch.testing.assert_close(model(IDS), logits_of(load_reference(model)), atol=1e-4, rtol=0)


def test_transformer_lens_objects_are_taken_as_they_are(backend, tiny):
    model = load_model(tiny, backend=backend).train()
    assert load_model(model) is model
    assert model.training
    for options in ({"dtype": "float64"}, {"backend": "bridge"}, {"name": "b"}, {"tokenizer": IDS}):
        with pytest.raises(
            InputError, match=f"it returns as it is; got {next(iter(options))}=. Give the name"
        ):
            load_model(model, **options)


def test_a_model_made_elsewhere_is_known_by_what_it_shows(tiny):
    from transformer_lens.model_bridge import TransformerBridge

    theirs = TransformerBridge.boot_transformers(str(tiny), device="cpu")
    record = record_of(theirs)
    assert (record.backend, record.processing, record.dtype) == ("bridge", "raw", "float32")
    assert record.source == str(tiny)
    torch.testing.assert_close(logits_of(load_reference(theirs)), theirs(IDS), atol=2e-5, rtol=0)


def test_processed_weights_are_seen_in_a_hooked_transformer_made_elsewhere(hooked, make_gpt2):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 2, "d_model": 32, "n_ctx": 16, "d_head": 8, "d_vocab": 50, "act_fn": "gelu_new"}
    model = HookedTransformer(HookedTransformerConfig(**sizes, model_name="theirs", seed=3))
    assert record_of(model).name == "theirs"
    model.load_and_process_state_dict(model.state_dict())
    assert record_of(model).name == "theirs[folded]"
    assert record_of(model).processing == "folded"


def test_folding_is_in_the_name_and_in_the_norms(backend, tiny):
    raw, folded = load_model(tiny, backend=backend), load_model(tiny, backend=backend, processing="folded")
    assert record_of(folded).name == "tiny[folded]"
    assert record_of(folded).processing == "folded"
    torch.testing.assert_close(
        folded(IDS).log_softmax(-1), raw(IDS).log_softmax(-1), atol=1e-4, rtol=0
    )  # the same model ...
    ids = pd.DataFrame({"doc": ["a"], "token_ids": [IDS[0].tolist()]})
    norms = [extract_norms(model, ids)["norm"].to_numpy() for model in (raw, folded)]
    assert np.max(np.abs(norms[1] / norms[0] - 1)) > 1e-3  # ... and other norms
    del folded._mechreg_record  # the weights themselves say it
    assert record_of(folded).processing == "folded"


def test_a_folder_without_tokenizer_is_for_token_ids(backend, save_gpt2, tokenizer):
    folder = save_gpt2(with_tokenizer=False)
    model = load_model(folder, backend=backend)
    assert model.tokenizer is None
    assert tokenizer_hash(model) is None
    with pytest.raises(InputError, match=r"has no tokenizer.*tokenizer="):
        extract_norms(model, ["A text."])
    ids = pd.DataFrame({"doc": ["a"], "token_ids": [[5, 6, 7]]})
    assert len(extract_norms(model, ids)) == 9
    given = load_model(folder, backend=backend, tokenizer=tokenizer)
    assert given.tokenizer is not tokenizer
    assert len(extract_norms(given, ["A text."])) > 0


def test_another_architecture_takes_the_bridge_and_says_so(save_llama, make_neox):
    folder = save_llama()
    for given in (folder, make_neox()):
        model = load_model(given)
        record = record_of(model)
        assert record.backend == "bridge"
        torch.testing.assert_close(model(IDS), logits_of(load_reference(model)), atol=2e-5, rtol=0)
    if hooked_transformer_class() is None:
        with pytest.raises(
            ModelError, match=r"needs TransformerLens 3, and 4.* is installed.*backend='bridge'"
        ):
            load_model(folder, backend="hooked")
    else:
        with pytest.raises(
            ModelError, match=r"cannot hold .*small-llama, a llama model.*use backend='bridge'"
        ):
            load_model(folder, backend="hooked")


class Harmful:
    ran: ClassVar[list[int]] = []

    def __reduce__(self):
        return Harmful.ran.append, (1,)


def test_pickled_weights_are_read_only_where_there_is_nothing_safer_and_run_nothing(save_gpt2):
    folder = save_gpt2()
    safe = weight_hash(load_model(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": Harmful()}))
    assert weight_hash(load_model(folder)) == safe
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pickle \(pytorch_model.bin\).*allow_pickle=True"):
        load_model(folder)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(folder, allow_pickle=True)
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="allow_pickle"):
        load_model(folder)
    assert weight_hash(load_model(folder, allow_pickle=True)) == safe
    assert Harmful.ran == []


@pytest.mark.parametrize("known_type", [True, False])
def test_remote_code_is_refused_and_not_run(save_gpt2, known_type):
    folder = save_gpt2()
    ran = folder / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    changes = {"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    edited_config(folder, **(changes if known_type else changes | {"model_type": "own"}))
    with pytest.raises(ModelError, match="mechreg does not execute"):
        load_model(folder)
    assert not ran.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("kernel", ["evil/kernel", "paged|evil/kernel@main:run", "flash_attention_2"])
def test_a_kernel_from_the_hub_is_refused(save_gpt2, key, kernel):
    # transformers fetches it and runs it where the package kernels is installed.
    folder = save_gpt2()
    edited_config(folder, **{key: kernel})
    with pytest.raises(ModelError, match=r"may be code from the hub, which mechreg does not execute"):
        load_model(folder)
    edited_config(folder, **{key: "eager"})
    assert load_model(folder).cfg.n_layers


def spoil(folder, how):
    weights = folder / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "gone":
        weights.unlink()
    elif how == "a tensor is missing":
        state = load_file(weights)
        del state["transformer.h.1.attn.c_proj.weight"]
        save_file(state, weights, metadata={"format": "pt"})
    elif how == "another shape":
        edited_config(folder, n_positions=128)
    elif how == "not JSON":
        (folder / "config.json").write_text("{")
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "nonsense in the config":
        edited_config(folder, n_head="four")
    elif how == "cross-attention":
        edited_config(folder, add_cross_attention=True)
    elif how == "unknown type":
        edited_config(folder, model_type="gpt9")
    elif how == "reads both ways":
        edited_config(folder, model_type="bert", architectures=["BertForMaskedLM"])
    elif how == "translates":
        edited_config(folder, model_type="t5", architectures=["T5ForConditionalGeneration"])
    elif how == "tokenizer broken":
        (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "could not be loaded"),
        ("gone", "could not be loaded"),
        ("a tensor is missing", r"incomplete.*h\.1\.attn\.c_proj\.weight"),
        ("another shape", r"of another shape.*wpe"),
        ("not JSON", "could not be loaded"),
        ("no config", "has no config.json"),
        ("nonsense in the config", "could not be loaded"),
        ("cross-attention", "cross-attention"),
        ("unknown type", "could not be loaded.*gpt9"),
        ("reads both ways", "BertForMaskedLM; mechreg reads causal"),
        ("translates", "T5ForConditionalGeneration; mechreg reads causal"),
        ("tokenizer broken", "could not be loaded"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(save_gpt2, how, message):
    folder = save_gpt2("spoiled")
    spoil(folder, how)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert "spoiled" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("./nowhere", {}, "There is no model folder 'nowhere'"),
        ("/nowhere/at/all", {}, "There is no model folder"),
        (Path("nowhere"), {}, "There is no model folder"),
        (Path(__file__), {}, "There is no model folder"),
        (3.5, {}, "a hub name, a folder.*got float"),
        (torch.nn.Linear(2, 2), {}, "got Linear"),
        ("tiny", {"backend": "hoked"}, "backend must be one of 'auto', 'hooked', 'bridge'; got 'hoked'"),
        ("tiny", {"processing": "fold"}, "processing must be one of 'raw', 'folded'.*Did you mean 'folded'"),
        ("tiny", {"dtype": "float8"}, "dtype must be one of"),
        ("tiny", {"device": "quantum"}, "device='quantum' cannot be used here.*try 'cpu'"),
        ("tiny", {"revision": "v2"}, "only models on the hub have revisions; leave out 'v2'"),
    ],
)
def test_what_cannot_be_meant_is_refused(tiny, given, options, message):
    # TypeError: under jaxtyping's checks the signature refuses a wrong Literal first.
    with pytest.raises((InputError, TypeError), match=f"{message}|violates type hint|[Tt]ype-check"):
        load_model(tiny if given == "tiny" else given, **options)


def test_a_model_without_its_head_is_refused(make_gpt2):
    with pytest.raises(InputError, match=r"with its lm_head.*got GPT2Model"):
        load_model(make_gpt2().transformer)
    with pytest.raises(InputError, match="revision= is for hub names"):
        load_model(make_gpt2(), revision="main")


def test_what_can_be_known_without_the_weights_is_said_without_them(save_gpt2):
    folder = save_gpt2()
    (folder / "model.safetensors").unlink()
    require_loadable(folder)
    with pytest.raises(InputError, match="no model folder"):
        require_loadable("./nowhere")
    with pytest.raises(ModelError, match="cross-attention"):
        require_loadable(edited_config(folder, add_cross_attention=True))


def test_labels_are_the_names_that_loading_gives(tiny, make_gpt2):
    assert model_label(tiny) == record_of(load_model(tiny)).name == "tiny"
    original = make_gpt2()
    assert model_label(original) == record_of(load_model(original)).name
    assert record_of(load_model(tiny, name="b")).name == "b"
    with pytest.raises(InputError, match="no model folder"):
        model_label("./nowhere")


def test_hashes_tell_models_and_tokenizers_apart(backend, tiny, save_gpt2):
    model, again = (load_model(tiny, backend=backend) for _ in range(2))
    other = load_model(save_gpt2(seed=1), backend=backend)
    assert weight_hash(model) == weight_hash(again) != weight_hash(other)
    assert tokenizer_hash(model) == tokenizer_hash(other)
    assert tokenizer_hash(model) == tokenizer_hash(load_model(tiny, backend="bridge"))


def describe_cases(save_gpt2, save_llama, make_neox):
    both = [] if hooked_transformer_class() is None else ["hooked"]
    tied, untied = save_gpt2(), save_gpt2(tie_word_embeddings=False, n_inner=40)
    cases = [(folder, backend) for folder in (tied, untied) for backend in [*both, "bridge"]]
    return [
        *cases,
        (save_llama(), "bridge"),
        (save_llama(tie_word_embeddings=True), "bridge"),
        (make_neox(), "bridge"),
    ]


def test_described_parameters_sum_to_hugging_faces_count(save_gpt2, save_llama, make_neox):
    for given, backend in describe_cases(save_gpt2, save_llama, make_neox):
        model = load_model(given, backend=backend)
        table = describe_model(model).parameters.set_index("component")["parameters"]
        expected = sum(parameter.numel() for parameter in load_reference(model).parameters())
        assert table["total"] == table.drop("total").sum() == expected
        assert "other" not in table


def test_the_description_of_a_gpt2(backend, tiny):
    description = describe_model(load_model(tiny, backend=backend))
    shown = {
        key: description.architecture[key] for key in ("blocks", "d_model", "heads", "d_head", "context")
    }
    assert shown == {"blocks": 3, "d_model": 32, "heads": 4, "d_head": 8, "context": 64}
    assert description.architecture["vocabulary"] == 320
    parts = description.parameters.set_index("component")["parameters"]
    assert parts["token embedding"] == 320 * 32
    assert parts["position embedding"] == 64 * 32
    assert parts["attention"] == 3 * (4 * 32 * 32 + 4 * 32)
    assert parts["mlp"] == 3 * (2 * 4 * 32 * 32 + 5 * 32)
    assert parts["layer norms"] == 7 * 2 * 32
    assert set(description.hook_points["hook"]) == set(HOOK_POINTS) == set(get_args(Hook))
    text = str(description)
    assert "d_model" in text
    assert f"{parts['total']:,}" in text
    assert "blocks.{layer}.attn.hook_z" in text


def test_described_shapes_are_those_of_the_activations(backend, tiny):
    model = load_model(tiny, backend=backend)
    model.set_use_attn_result(True)
    points = describe_model(model).hook_points
    for place, described in zip(points["hook_point"], points["shape"], strict=True):
        found = []
        model.run_with_hooks(
            IDS,
            fwd_hooks=[(place.format(layer=1), lambda value, hook, found=found: found.append(value.shape))],
        )
        expected = described.replace("batch", "1").replace("pos", str(IDS.shape[1]))
        assert " x ".join(map(str, found[0])) == expected


def test_transformer_lens_is_imported_by_mechreg_models_alone_and_only_when_used():
    package = Path(mechreg.__file__).parent
    found = 0
    for file in package.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        lazy = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "transformer_lens" for name in names):
                found += 1
                assert file.parent == package / "models", file
                assert id(node) in lazy, file
    assert found


GLOBALS = """
import os, warnings
import torch
from transformers.utils import logging
from mechreg import load_model

def state():
    own = [entry for entry in warnings.filters if entry[0] != "always"]  # what packages say of their own classes
    numbers = logging.get_verbosity(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    return dict(os.environ), own, numbers, logging.is_progress_bar_enabled(), torch.get_rng_state().tolist()

before = state()
load_model("mini-s")
assert logging.get_verbosity() == logging.WARNING
assert state() == before
load_model("mini-s", backend="bridge")
assert state() == before
"""


def test_importing_transformer_lens_leaves_every_global_as_it_was():
    subprocess.run([sys.executable, "-c", GLOBALS], check=True)


def test_control_characters_of_a_folders_name_are_symbols_in_frames(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "a\x1b[31m\u202e")
    assert model_label(folder) == "a␛[31m⟨202E⟩"


MEMORY = """
import gc, sys
import torch
import mechreg as mr

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key + ":")).split()[1])

backend, small, full = sys.argv[1:]
mr.load_model(small, backend=backend)(torch.tensor([[1, 2]]))  # all that is imported late is imported
gc.collect()
base = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
model = mr.load_model(full, backend=backend)
loading = status("VmHWM") - base
with torch.inference_mode():
    model(torch.randint(0, 50257, (1, 64)))  # weights that were only mapped are now read
print(loading, status("VmHWM") - base)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_memory_while_a_full_size_gpt2_loads(backend, tiny, save_gpt2, capsys):
    sizes = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
    folder = save_gpt2("full-size", **sizes)
    weights = (folder / "model.safetensors").stat().st_size
    assert weights > 490e6
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, backend, str(tiny), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    loading, used = (int(number) / weights for number in done.stdout.split())
    (folder / "model.safetensors").unlink()
    with capsys.disabled():
        print(f"\n{backend}: peak while loading {loading:.2f} W, after a forward pass too {used:.2f} W")
    assert used <= {"bridge": 1.4, "hooked": 2.3}[backend]
