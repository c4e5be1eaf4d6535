"""How fast are norms extracted from a model, against what a user would write instead?

For any causal model whose blocks Hugging Face names in a usual way: folders, miniatures, or random weights of a few
architectures. Documents are of mixed lengths (10 to 1,000 tokens), or of one with --equal. Ways are timed in turn,
round after round in shuffled order, in one process; a figure is the median over rounds of another way's time over
mechreg's in the same round, so that a machine whose speed drifts hurts all alike.

"article": Hugging Face, document by document, logits and all, vectors copied out by hooks. "careful": what a careful
person writes by hand: documents sorted into batches of 2,048 tokens, sdpa, no unembedding, norms taken in the hook.
"floor" is no way to extract anything: the bare matrix products that the norms of these tokens need, up to the last
attention and without any padding.

    python analyses/benchmarks/extraction.py [MODEL ...] [--tokens 16000] [--rounds 5] [--threads 1] [--clock cpu]

On a machine that does other things too, one thread and the processor's clock are fair; on an idle one give
``--threads 2 --clock wall``. Where there is a GPU all ways run on it.
"""

import argparse
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

import mechreg as mr
from mechreg.models import hooked_transformer_class
from mechreg.norms import BATCH_TOKENS, window_norms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SMALL = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1408}
RANDOM = {
    "gpt2": {"n_layer": 6},
    "gpt_neox": SMALL | {"intermediate_size": 2048},
    "qwen3": SMALL | {"num_key_value_heads": 4, "head_dim": 64},
    "gemma3_text": SMALL | {"num_key_value_heads": 2, "head_dim": 64, "sliding_window": 256},
}
Run = Callable[[pd.DataFrame], np.ndarray]


def of_lengths(lengths: Any, vocabulary: int = 50257) -> pd.DataFrame:
    """Return a token frame of random ids, of documents of these lengths."""
    return pd.DataFrame(
        {
            "doc": np.repeat([f"d{i}" for i in range(len(lengths))], lengths),
            "window": 0,
            "position": np.concatenate([np.arange(length) for length in lengths]),
            "token_id": np.random.default_rng(0).integers(0, vocabulary, np.sum(lengths)),
        }
    )


def windows(documents: int, tokens: int) -> pd.DataFrame:
    """Return a token frame of random ids, of documents of one length."""
    return of_lengths(np.full(documents, tokens))


def mixed(total: int, longest: int) -> list[int]:
    """Return lengths of 10 to 1,000 tokens, evenly spread in their logarithm, that sum up to about so many."""
    rng, lengths = np.random.default_rng(1), []
    while sum(lengths) < total:
        lengths.append(min(longest, int(np.exp(rng.uniform(np.log(10), np.log(1000))))))
    return lengths


def attentions_of(model: Any) -> list[Any]:
    """Return the modules whose output is what attention adds to the residual stream."""
    found = []
    for block in (module for module in model.modules() if hasattr(module, "mlp")):
        name = next(name for name in ("self_attn", "attention", "attn") if hasattr(block, name))
        is_normed = hasattr(block, "post_feedforward_layernorm")  # Gemma 2 and 3
        found.append(block.post_attention_layernorm if is_normed else getattr(block, name))
    return found


def hook_all(model: Any, keep: Callable[[torch.Tensor], Any]) -> dict[int, Any]:
    """Return a dict that each pass fills, by layer, with what ``keep`` makes of the attention's vectors."""
    kept: dict[int, Any] = {}

    def hook(layer: int) -> Callable[..., None]:
        def store(module: Any, inputs: Any, output: Any) -> None:
            kept[layer] = keep(output[0] if isinstance(output, tuple) else output)

        return store

    for layer, module in enumerate(attentions_of(model)):
        module.register_forward_hook(hook(layer))
    return kept


def articles_way(folder: str, dtype: torch.dtype) -> Run:
    """Hugging Face, document by document, logits and all, activations copied out by forward hooks."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(DEVICE).eval()
    kept = hook_all(model, lambda vectors: vectors.detach())

    def norms(tokens: pd.DataFrame) -> np.ndarray:
        parts = []
        for _, document in tokens.groupby("doc", sort=False):
            with torch.no_grad():
                model(torch.tensor(document["token_id"].to_numpy(), device=DEVICE)[None])
            vectors = (kept[layer][0].float().cpu().numpy() for layer in sorted(kept))
            parts.append([np.linalg.norm(each, axis=-1) for each in vectors])
        return np.concatenate(parts, axis=1)

    return norms


def sorted_batches(tokens: pd.DataFrame) -> Iterator[list[np.ndarray]]:
    """Yield the rows of documents, longest first, as many as fit a batch with their padding."""
    documents = sorted(tokens.groupby("doc", sort=False).indices.values(), key=len, reverse=True)
    while documents:
        n = max(1, BATCH_TOKENS // len(documents[0]))
        yield documents[:n]
        documents = documents[n:]


def careful_loop(folder: str, dtype: torch.dtype) -> Run:
    """What a careful person writes by hand."""
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model = whole.base_model.to(DEVICE).eval()
    kept = hook_all(model, lambda vectors: torch.linalg.vector_norm(vectors.float(), dim=-1))

    def norms(tokens: pd.DataFrame) -> np.ndarray:
        ids, values = torch.tensor(tokens["token_id"].to_numpy(), device=DEVICE), None
        for rows in sorted_batches(tokens):
            padded = torch.nn.utils.rnn.pad_sequence([ids[part] for part in rows], batch_first=True)
            with torch.inference_mode():
                model(padded, use_cache=False)
            batch = torch.stack([kept[layer] for layer in sorted(kept)]).cpu().numpy()
            values = np.empty((len(batch), len(tokens)), np.float32) if values is None else values
            for i, part in enumerate(rows):
                values[:, part] = batch[:, i, : len(part)]
        return values

    return norms


def products(block: Any, *, attention_only: bool) -> list[torch.Tensor]:
    """Return the matrices that a block multiplies by, "in out"."""
    parts = [
        (name, part) for name, part in block.named_modules() if isinstance(part, torch.nn.Linear | Conv1D)
    ]
    return [
        part.weight.detach() if isinstance(part, Conv1D) else part.weight.detach().t()
        for name, part in parts
        if "att" in name or not attention_only
    ]


def floor(folder: str, dtype: torch.dtype) -> Run:
    """The bare matrix products up to the last layer's attention; what comes out are no norms."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).base_model.to(DEVICE)
    blocks, config = [module for module in model.modules() if hasattr(module, "mlp")], model.config
    matrices = [products(block, attention_only=block is blocks[-1]) for block in blocks]
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE, dtype=dtype)

    def multiply(tokens: pd.DataFrame) -> np.ndarray:
        lengths = tokens.groupby("doc", sort=False).size().to_numpy()
        with torch.inference_mode():
            for n in (lengths.sum() * np.diff(np.linspace(0, 1, 1 + -(-len(tokens) // BATCH_TOKENS)))).astype(
                int
            ):
                inputs = {
                    width: drawn(n, width) for width in {len(each) for part in matrices for each in part}
                }
                for part in matrices:
                    for each in part:
                        inputs[len(each)] @ each
            for length in lengths:
                q, k, v = (drawn(1, heads, length, d_head) for heads in (n_heads, n_kv_heads, n_kv_heads))
                for _ in blocks:
                    scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=n_heads != n_kv_heads)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return np.empty(0)

    return multiply


def ours(folder: str, dtype: torch.dtype, backend: str) -> Run:
    """mechreg's extraction."""
    model = mr.load_model(folder, backend=backend, device=DEVICE, dtype=str(dtype).removeprefix("torch."))
    return lambda tokens: window_norms(model, tokens)["attn_out"]


def ways_of(folder: str, dtype: torch.dtype) -> dict[str, Run]:
    """Return the ways of extracting norms by name, their models loaded."""
    ways = {
        "article": articles_way(folder, dtype),
        "careful": careful_loop(folder, dtype),
        "floor": floor(folder, dtype),
    }
    backends = ["bridge"]
    if hooked_transformer_class() is not None and AutoConfig.from_pretrained(folder).model_type == "gpt2":
        backends.append("hooked")
    return ways | {f"mechreg {backend}": ours(folder, dtype, backend) for backend in backends}


def compare(folder: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each of mechreg's backends: how many times as fast as each other way it is."""
    clock, dtype, config = CLOCKS[args.clock], getattr(torch, args.dtype), AutoConfig.from_pretrained(folder)
    longest = config.max_position_embeddings
    lengths = [args.equal] * (args.tokens // args.equal) if args.equal else mixed(args.tokens, longest)
    tokens = of_lengths(lengths, config.vocab_size)
    ways = ways_of(folder, dtype)
    few = tokens[tokens["doc"].isin([f"d{i}" for i in range(3)])]
    truth = ways["article"](few)
    for name, run in ways.items():
        if name != "floor":
            np.testing.assert_allclose(run(few), truth, rtol=1e-4 if args.dtype == "float32" else 0.1)
    times: dict[str, list[float]] = {name: [] for name in ways}
    shuffle = random.Random(0)
    for _ in range(args.rounds):
        for name in shuffle.sample(list(ways), len(ways)):
            began = clock()
            ways[name](tokens)
            times[name].append(clock() - began)
    others = [name for name in ways if "mechreg" not in name]
    return [
        {"model": Path(folder).name, "way": name}
        | {f"over {other}": float(np.median(np.divide(times[other], times[name]))) for other in others}
        | {"tokens/s": round(len(tokens) / float(np.median(times[name])))}
        for name in ways
        if name not in others
    ]


def random_models(folder: Path, names: list[str]) -> Iterator[str]:
    """Yield folders of models with random weights."""
    for name in names:
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, vocab_size=8192, **RANDOM[name])
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        yield str(folder / name)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", help=f"folders, or of {', '.join(RANDOM)}: random weights (all by default)"
    )
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--equal", type=int, help="documents of so many tokens each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        asked = args.models or list(RANDOM)
        drawn = random_models(Path(temporary), [name for name in asked if name in RANDOM])
        folders = itertools.chain(drawn, (name for name in asked if name not in RANDOM))
        rows = [row for folder in folders for row in compare(folder, args)]
    print(f"{args.tokens} tokens, {args.dtype} on {DEVICE}, {args.threads} threads, {args.clock} clock")
    print(pd.DataFrame(rows).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
