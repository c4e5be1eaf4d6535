"""How fast are norms extracted, and in how much memory, against what a user would write instead?

Ways are timed in turn, round after round in shuffled order, in one process each way loaded once; the figure is
the median over rounds of each way's time over the seed's way's in the same round, so that a machine whose speed
drifts hurts all alike. Peak memory is measured in a process of its own for each way.

    python analyses/benchmarks/extraction.py [--documents 24] [--tokens 256] [--rounds 7] [--out FILE.json]
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import mechreg as mr
from mechreg.models import hooked_transformer_class
from mechreg.norms import window_norms

WAYS = ("seed", "tl full cache", "mechreg hooked", "mechreg bridge")


def windows(documents: int, tokens: int) -> pd.DataFrame:
    """Return a token frame of random GPT-2 ids."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "doc": np.repeat([f"d{i}" for i in range(documents)], tokens),
            "window": 0,
            "position": np.tile(np.arange(tokens), documents),
            "token_id": rng.integers(0, 50257, documents * tokens),
        }
    )


def seeds_way(folder: Path) -> Callable[[pd.DataFrame], np.ndarray]:
    """Hugging Face, document by document, logits and all, activations copied out by forward hooks."""
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    kept: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(model.transformer.h):
        block.attn.register_forward_hook(
            lambda module, inputs, output, layer=layer: kept.update({layer: output[0].detach()})
        )

    def norms(tokens: pd.DataFrame) -> np.ndarray:
        parts = []
        for _, document in tokens.groupby("doc", sort=False):
            with torch.no_grad():
                model(torch.tensor(document["token_id"].to_numpy())[None])
            parts.append([np.linalg.norm(kept[layer][0].numpy(), axis=-1) for layer in sorted(kept)])
        return np.concatenate(parts, axis=1)

    return norms


def full_cache(folder: Path) -> Callable[[pd.DataFrame], np.ndarray]:
    """TransformerLens' run_with_cache with everything in it, document by document."""
    model = mr.load_model(folder)

    def norms(tokens: pd.DataFrame) -> np.ndarray:
        parts = []
        for _, document in tokens.groupby("doc", sort=False):
            with torch.no_grad():
                _, cache = model.run_with_cache(torch.tensor(document["token_id"].to_numpy())[None])
            layers = range(model.cfg.n_layers)
            parts.append(
                [
                    np.linalg.norm(cache[f"blocks.{layer}.hook_attn_out"][0].numpy(), axis=-1)
                    for layer in layers
                ]
            )
        return np.concatenate(parts, axis=1)

    return norms


def ours(folder: Path, backend: str) -> Callable[[pd.DataFrame], np.ndarray]:
    """mechreg's extraction."""
    model = mr.load_model(folder, backend=backend)
    return lambda tokens: window_norms(model, tokens)["attn_out"]


def way(name: str, folder: Path) -> Callable[[pd.DataFrame], np.ndarray]:
    """Return a way of extracting norms, its model loaded."""
    if name == "seed":
        return seeds_way(folder)
    if name == "tl full cache":
        return full_cache(folder)
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
    out = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return float(out.stdout.splitlines()[-1])


def reset_peak() -> None:
    """Set the high-water mark of this process's memory to what it holds now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return this process's high-water mark in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table: speed as a ratio to the seed's way, tokens per second, memory above the weights."""
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
    parser.add_argument("--out", type=Path, help="also write the table as json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "gpt2-random"
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(n_layer=args.blocks)).save_pretrained(folder)
        names = [name for name in WAYS if "hooked" not in name or hooked_transformer_class() is not None]
        runs = {name: way(name, folder) for name in names}
        tokens = windows(args.documents, args.tokens)
        truth = runs["seed"](tokens)
        for name in names[1:]:
            np.testing.assert_allclose(runs[name](tokens), truth, rtol=1e-5)
        times: dict[str, list[float]] = {name: [] for name in names}
        shuffle = random.Random(0)
        for _ in range(args.rounds):
            for name in shuffle.sample(names, len(names)):
                began = time.perf_counter()
                runs[name](tokens)
                times[name].append(time.perf_counter() - began)
        del runs
        rows = []
        for name in names:
            ratio = np.median(np.array(times["seed"]) / np.array(times[name]))
            row = {
                "way": name,
                "speed_over_seed": round(float(ratio), 2),
                "tokens_per_second": round(len(tokens) / float(np.median(times[name]))),
            }
            for documents in () if args.speed_only else (args.documents, 4 * args.documents):
                peak_mb = peak_above_weights(name, folder, documents, args.tokens)
                row[f"peak_mb_{documents}_documents"] = round(peak_mb)
            rows.append(row)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
