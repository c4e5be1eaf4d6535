"""What tests of the model layer share: a tiny tokenizer and small models with random weights, in temporary folders.

Nothing here reaches a network: the hub is offline in the test process, and tests of hub names run in processes
of their own against a server on this machine.
"""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest

END = "<|endoftext|>"
SENTENCES = [
    "The cat sat on the mat and looked at the moon.",
    "Hello there, world. The moon looked at the cat, and the cat sat still.",
    "Öl und Wein — the old man said: 'no, thank you', twice.",
]


def hooked_exists() -> bool:
    from mechreg.models import hooked_transformer_class

    return hooked_transformer_class() is not None


@pytest.fixture(params=["hooked", "bridge"])
def backend(request) -> str:
    """Each of the two classes of TransformerLens."""
    if request.param == "hooked":
        request.getfixturevalue("hooked")
    return request.param


@pytest.fixture(scope="session")
def hooked():
    """Skip where TransformerLens 4 is installed, which has no HookedTransformer."""
    if not hooked_exists():
        pytest.skip("TransformerLens 4 has no HookedTransformer")


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE of 300 entries at most, in GPT-2's manner."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, unk_token=END)


@pytest.fixture(scope="session")
def make_gpt2():
    """A function that gives a GPT-2 with random weights; its biases and layer norms are random too."""

    def make(seed=0, **config):
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel

        small = {"vocab_size": 320, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
        small |= {"bos_token_id": 0, "eos_token_id": 0}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(GPT2Config(**(small | config))).eval()
            spread = 0.5 / model.config.n_embd**0.5
            with torch.no_grad():  # a fresh GPT-2 has zero biases, which hide mistakes, and tiny weights
                for parameter in model.parameters():
                    parameter += spread * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture(scope="session")
def save_gpt2(make_gpt2, tokenizer, tmp_path_factory):
    """A function that saves such a model, with its tokenizer or without, and gives the folder."""

    def save(name="tiny", *, with_tokenizer=True, **config) -> Path:
        folder = tmp_path_factory.mktemp("models") / name
        make_gpt2(**config).save_pretrained(folder)
        if with_tokenizer:
            tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny(save_gpt2) -> Path:
    """The folder of one small GPT-2 with its tokenizer; not to be written to."""
    return save_gpt2()


@pytest.fixture(scope="session")
def save_llama(tokenizer, tmp_path_factory):
    """A function that saves a small Llama with grouped key-value heads and gives the folder."""

    def save(name="small-llama", **config) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        small = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
        small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
        folder = tmp_path_factory.mktemp("models") / name
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(LlamaConfig(**(small | config))).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def make_neox():
    """A function that gives a small GPT-NeoX, whose attention and MLP run in parallel."""

    def make(**config):
        import torch
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        small = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
        small |= {"num_attention_heads": 4, "max_position_embeddings": 64}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return GPTNeoXForCausalLM(GPTNeoXConfig(**(small | config))).eval()

    return make


@pytest.fixture(scope="session")
def make_model():
    """A function that gives a small model of any of transformers' families, all of its weights random."""

    def make(family="Llama", **config):
        import torch
        import transformers

        sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
        sizes |= {
            "max_position_embeddings": 64,
            "intermediate_size": 48,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_seq_len": 64,
        }
        sizes |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        own = {
            "Gemma2": {"sliding_window": 4},
            "Gemma3Text": {"sliding_window": 4},
            "GPTJ": {"rotary_dim": 4},
            "GPTNeo": {"attention_types": [[["global", "local", "local"], 1]], "window_size": 4},
            "Granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.3},
            "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
            "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
            "Rwkv": {"context_length": 64, "attention_hidden_size": 32},
        }
        known = getattr(transformers, f"{family}Config")
        default = known()  # TransformerLens believes a GPT-2 that is given num_key_value_heads
        sizes = {key: size for key, size in sizes.items() if hasattr(default, key)}
        if family == "Falcon":
            del sizes["head_dim"]  # a property
        known = known(**(sizes | own.get(family, {}) | config))
        head = "LMHeadModel" if family in ("GPT2", "OpenAIGPT") else "ForCausalLM"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, family.removesuffix("Text") + head)(known).eval()
            with (
                torch.no_grad()
            ):  # fresh biases are zero, and fresh scores so small that attention is an average
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture(scope="session")
def make_windows():
    """A function that gives a token frame of random ids, windows of the given lengths."""

    def make(lengths, *, vocabulary=320, seed=0):
        import numpy as np
        import pandas as pd

        rng = np.random.default_rng(seed)
        frames = [
            pd.DataFrame(
                {
                    "doc": f"d{i}",
                    "window": 0,
                    "position": np.arange(length),
                    "token_id": rng.integers(0, vocabulary, length),
                }
            )
            for i, length in enumerate(lengths)
        ]
        return pd.concat(frames, ignore_index=True).astype({"doc": "category"})

    return make


@pytest.fixture(scope="session")
def pretrained() -> Path:
    """The folder of SmolLM2-135M-Instruct, which make pretrained converts; its GGUF file is beside it."""
    folder = Path(os.environ.get("PRETRAINED", Path(__file__).parents[1] / "build" / "pretrained"))
    if not (folder / "SmolLM2-135M" / "config.json").exists():
        pytest.skip("no pretrained model is here; run make pretrained")
    return folder.resolve() / "SmolLM2-135M"
