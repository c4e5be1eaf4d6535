"""How fast are norms extracted, and in how much memory, against what a user would write instead?

Ways are timed in turn, round after round in shuffled order, in one process each way loaded once; a figure is
the median over rounds of another way's time over this one's in the same round, so that a machine whose speed
drifts hurts all alike. "floor" is no way to extract anything: it is the matrix products that the norms need, of the
same shapes, and nothing else. "ragged" is the time per real token of as many tokens in documents of 10 to 1,000, over
that of equal documents: of their mean length, and of the length at which attention has as much to do for each token
(the mean length over tokens, not documents), which leaves what padding and small batches cost. Peak memory is measured
in a process of its own for each way.

    python analyses/benchmarks/extraction.py [--documents 24] [--tokens 256] [--rounds 7] [--threads 2]

On a machine that does other things too, ``--threads 1 --clock cpu`` counts the
processor's time in place of the wall's. Where there is a GPU all ways run on it, and memory is the GPU's.
"""

import argparse
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import einops
import numpy as np
import pandas as pd
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

import mechreg as mr
from mechreg.models import hooked_transformer_class
from mechreg.norms import BATCH_TOKENS, window_norms

WAYS = ("seed", "tl full cache", "careful loop", "nnsight", "floor", "mechreg hooked", "mechreg bridge")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def windows(documents: int, tokens: int) -> pd.DataFrame:
    """Return a token frame of random GPT-2 ids, of documents of one length."""
    return of_lengths(np.full(documents, tokens))


def of_lengths(lengths: np.ndarray) -> pd.DataFrame:
    """Return a token frame of random GPT-2 ids, of documents of these lengths."""
    return pd.DataFrame(
        {
            "doc": np.repeat([f"d{i}" for i in range(len(lengths))], lengths),
            "window": 0,
            "position": np.concatenate([np.arange(length) for length in lengths]),
            "token_id": np.random.default_rng(0).integers(0, 50257, lengths.sum()),
        }
    )


def ragged(total: int) -> pd.DataFrame:
    """Return about as many tokens in documents of 10 to 1,000, whose mean length is near that of equal ones."""
    rng, lengths = np.random.default_rng(1), [1000, 10]
    while sum(lengths) < total:
        lengths.append(int(np.exp(rng.uniform(np.log(10), np.log(1000)))))
    return of_lengths(np.array(lengths))


def seeds_way(folder: Path) -> Callable[[pd.DataFrame], np.ndarray]:
    """Hugging Face, document by document, logits and all, activations copied out by forward hooks."""
    model = GPT2LMHeadModel.from_pretrained(folder).to(DEVICE).eval()
    kept: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(model.transformer.h):
        block.attn.register_forward_hook(
            lambda module, inputs, output, layer=layer: kept.update({layer: output[0].detach()})
        )

    def norms(tokens: pd.DataFrame) -> np.ndarray:
        parts = []
        for _, document in tokens.groupby("doc", sort=False):
            with torch.no_grad():
                model(torch.tensor(document["token_id"].to_numpy(), device=DEVICE)[None])
            parts.append([np.linalg.norm(kept[layer][0].cpu().numpy(), axis=-1) for layer in sorted(kept)])
        return np.concatenate(parts, axis=1)

    return norms


def full_cache(folder: Path) -> Callable[[pd.DataFrame], np.ndarray]:
    """TransformerLens' run_with_cache with everything in it, document by document."""
    model = mr.load_model(folder, device=DEVICE)

    def norms(tokens: pd.DataFrame) -> np.ndarray:
        parts = []
        for _, document in tokens.groupby("doc", sort=False):
            with torch.no_grad():
                ids = torch.tensor(document["token_id"].to_numpy(), device=DEVICE)[None]
                _, cache = model.run_with_cache(ids)
            layers = range(model.cfg.n_layers)
            parts.append(
                [
                    np.linalg.norm(cache[f"blocks.{layer}.hook_attn_out"][0].cpu().numpy(), axis=-1)
                    for layer in layers
                ]
            )
        return np.concatenate(parts, axis=1)

    return norms


def careful_loop(folder: Path) -> Callable[[pd.DataFrame], np.ndarray]:
    """What a careful person writes by hand: batches, sdpa, no unembedding, norms taken in the hook."""
    model = GPT2Model.from_pretrained(folder, attn_implementation="sdpa").to(DEVICE).eval()
    kept: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(model.h):
        block.attn.register_forward_hook(
            lambda module, inputs, output, layer=layer: kept.update(
                {layer: torch.linalg.vector_norm(output[0], dim=-1)}
            )
        )

    def norms(tokens: pd.DataFrame) -> np.ndarray:
        parts = []
        for ids in equal_batches(tokens):
            with torch.inference_mode():
                model(ids, use_cache=False)
            parts.append(torch.stack([kept[layer].flatten() for layer in sorted(kept)]).cpu().numpy())
        return np.concatenate(parts, axis=1)

    return norms


def with_nnsight(folder: Path) -> Callable[[pd.DataFrame], np.ndarray]:
    """nnsight, batched, stopped after the last attention."""
    from nnsight import NNsight, save

    model = NNsight(GPT2Model.from_pretrained(folder, attn_implementation="sdpa").to(DEVICE).eval())

    def norms(tokens: pd.DataFrame) -> np.ndarray:
        parts = []
        for ids in equal_batches(tokens):
            with torch.inference_mode(), model.trace(ids, use_cache=False) as tracer:
                kept = save([])
                for block in model.h:
                    kept.append(block.attn.output[0].norm(dim=-1))
                tracer.stop()
            parts.append(torch.stack([layer.flatten() for layer in kept]).cpu().numpy())
        return np.concatenate(parts, axis=1)

    return norms


def floor(folder: Path) -> Callable[[pd.DataFrame], np.ndarray]:
    """The bare matrix products up to the last layer's attention; what comes out are no norms."""
    config = GPT2Config.from_pretrained(folder)
    d, heads = config.n_embd, config.n_head
    shapes = ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d))
    layers = [
        [torch.randn(shape, device=DEVICE) / shape[0] ** 0.5 for shape in shapes]
        for _ in range(config.n_layer)
    ]

    def products(tokens: pd.DataFrame) -> np.ndarray:
        for ids in equal_batches(tokens):
            rows, length = ids.shape
            stream = torch.randn(rows * length, d, device=DEVICE)
            with torch.inference_mode():
                for at, (qkv, out, up, down) in enumerate(layers):
                    q, k, v = (
                        einops.rearrange(part, "(b p) (h d) -> b h p d", b=rows, h=heads)
                        for part in (stream @ qkv).split(d, dim=1)
                    )
                    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                    einops.rearrange(mixed, "b h p d -> (b p) (h d)") @ out
                    if at + 1 < len(layers):
                        stream @ up @ down
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return np.empty(0)

    return products


def equal_batches(tokens: pd.DataFrame) -> list[torch.Tensor]:
    """Return the ids of documents that are all of one length, in batches as large as mechreg's."""
    length = int(tokens["position"].max()) + 1
    ids = torch.from_numpy(
        einops.rearrange(tokens["token_id"].to_numpy(), "(doc pos) -> doc pos", pos=length)
    )
    return list(ids.to(DEVICE).split(max(1, BATCH_TOKENS // length)))


def ours(folder: Path, backend: str) -> Callable[[pd.DataFrame], np.ndarray]:
    """mechreg's extraction."""
    model = mr.load_model(folder, backend=backend, device=DEVICE)
    return lambda tokens: window_norms(model, tokens)["attn_out"]


def way(name: str, folder: Path) -> Callable[[pd.DataFrame], np.ndarray]:
    """Return a way of extracting norms, its model loaded."""
    if name == "seed":
        return seeds_way(folder)
    if name == "tl full cache":
        return full_cache(folder)
    if name == "careful loop":
        return careful_loop(folder)
    if name == "nnsight":
        return with_nnsight(folder)
    if name == "floor":
        return floor(folder)
    return ours(folder, name.removeprefix("mechreg "))


def peak_above_weights(name: str, folder: Path, documents: int, tokens: int) -> float:
    """Return the megabytes by which a way's peak exceeds its memory with the model loaded and warm."""
    code = (
        "import resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "import extraction as e; run = e.way(sys.argv[2], Path(sys.argv[3]));"
        "run(e.windows(2, int(sys.argv[5]))); e.reset_peak(); before = e.peak();"
        "run(e.windows(int(sys.argv[4]), int(sys.argv[5]))); print(e.peak() - before)"
    )
    arguments = [str(Path(__file__).parent), name, str(folder), str(documents), str(tokens)]
    # Else glibc keeps freed memory in an arena for each thread, and its high-water mark is no one's need.
    tidy = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=tidy
    )
    return float(out.stdout.splitlines()[-1])


def reset_peak() -> None:
    """Set the high-water mark of this process's memory, or its GPU's, to what it holds now (Linux)."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return this process's high-water mark in megabytes, the GPU's where there is one."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table: speed as ratios and tokens per second, memory above the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--blocks", type=int, default=12, help="fewer only to try the script")
    parser.add_argument(
        "--speed-only", action="store_true", help="leave the memory out, which takes most of the time"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, help="also write the table as json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = CLOCKS[args.clock]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "gpt2-random"
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(n_layer=args.blocks)).save_pretrained(folder)
        names = [name for name in WAYS if "hooked" not in name or hooked_transformer_class() is not None]
        if importlib.util.find_spec("nnsight") is None:
            names.remove("nnsight")
        runs = {name: way(name, folder) for name in names}
        tokens = windows(args.documents, args.tokens)
        uneven = ragged(len(tokens))
        lengths = uneven.groupby("doc").size()
        typical = round(float((lengths**2).sum() / lengths.sum()))
        longer = windows(max(1, round(len(tokens) / typical)), typical)
        truth = runs["seed"](tokens)
        for name in names[1:]:
            if name != "floor":
                np.testing.assert_allclose(runs[name](tokens), truth, rtol=1e-5)
        corpora = {"": tokens, "ragged": uneven, "longer": longer}
        timed = [(name, "") for name in names] + [("floor", "longer")]
        timed += [(name, kind) for name in names for kind in ("ragged", "longer") if "mechreg" in name]
        times: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
        shuffle = random.Random(0)
        for _ in range(args.rounds):
            for name, kind in shuffle.sample(timed, len(timed)):
                began = clock()
                runs[name](corpora[kind])
                times[name, kind].append(clock() - began)
        del runs

        def ratio(one: tuple[str, str], other: tuple[str, str]) -> float:
            """Return how many times as fast the first is."""
            return round(float(np.median(np.array(times[other]) / np.array(times[one]))), 2)

        def cost(name: str, kind: str, base: str) -> float:
            """Return a way's time per token on one corpus over that on another."""
            per_token = np.array(times[name, kind]) / np.array(times[name, base])
            return round(float(np.median(per_token)) * len(corpora[base]) / len(corpora[kind]), 2)

        rows = []
        for name in names:
            own = (name, "")
            row = {
                "way": name,
                "over_seed": ratio(own, ("seed", "")),
                "over_careful_loop": ratio(own, ("careful loop", "")),
                "over_floor": ratio(own, ("floor", "")),
                "tokens_per_second": round(len(tokens) / float(np.median(times[own]))),
            }
            if (name, "longer") in timed:
                row[f"cost_of_{typical}"] = cost(name, "longer", "")
            if (name, "ragged") in timed:
                row[f"ragged_over_{args.tokens}"] = cost(name, "ragged", "")
                row[f"ragged_over_{typical}"] = cost(name, "ragged", "longer")
            for documents in (
                () if args.speed_only or name == "floor" else (args.documents, 4 * args.documents)
            ):
                peak_mb = peak_above_weights(name, folder, documents, args.tokens)
                row[f"peak_mb_{documents}_documents"] = round(peak_mb)
            rows.append(row)
    table = pd.DataFrame(rows)
    print(f"on {DEVICE}, {args.threads} threads\n{table.to_string(index=False)}")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
