"""How much memory does a model of GPT-2 XL's shape take, its weights of random numbers?

The weights are written to a folder first, in pieces; then, in a process of its own, `load_model` and the norms of some
documents. The peak is the process's high-water mark, file pages of mapped weights included, or the GPU's where there is
one. The bar is 1.25 times the weights and a gibibyte.

    python analyses/benchmarks/large_model.py [--backend bridge] [--tokens 2000] [--blocks 48] [--d-model 1600]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

GIB = 1024**3


def write_random_model(folder: Path, config: GPT2Config) -> int:
    """Write a GPT-2 of random weights, a tensor at a time in memory where it can be; return its bytes."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in GPT2LMHeadModel(config).transformer.named_parameters()}
    config.save_pretrained(folder)
    files, size = {}, 0
    names = sorted(shapes)
    for number, start in enumerate(range(0, len(names), 50)):
        part = {f"transformer.{name}": 0.02 * torch.randn(shapes[name]) for name in names[start : start + 50]}
        file = f"model-{number}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
        size += sum(tensor.nbytes for tensor in part.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return size


def measure(folder: Path, backend: str, tokens: int) -> dict[str, float]:
    """Return the peaks in GiB, and the seconds, of loading and of reading the norms."""
    from extraction import peak, windows

    import mechreg as mr
    from mechreg.norms import window_norms

    began, before = time.perf_counter(), peak()
    model = mr.load_model(folder, backend=backend)
    loaded, at_load = time.perf_counter(), peak()
    norms = window_norms(model, windows(tokens // 500, 500))["attn_out"]
    assert norms.shape == (model.cfg.n_layers, tokens // 500 * 500)
    return {
        "before": before / 1024,
        "loaded": at_load / 1024,
        "peak": peak() / 1024,
        "load_seconds": loaded - began,
        "seconds": time.perf_counter() - loaded,
    }


def main() -> None:
    """Print the peak against the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="bridge")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--d-model", type=int, default=1600)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.backend, args.tokens)))
        return
    config = GPT2Config(n_layer=args.blocks, n_embd=args.d_model, n_head=args.d_model // 64)
    with tempfile.TemporaryDirectory() as temporary:
        weights = write_random_model(Path(temporary), config)
        command = [sys.executable, __file__, "--measure", temporary, "--backend", args.backend]
        tidy = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
        out = subprocess.run(
            [*command, "--tokens", str(args.tokens)], capture_output=True, text=True, check=True, env=tidy
        )
    found = json.loads(out.stdout.splitlines()[-1])
    print(f"weights {weights / GIB:.2f} GiB, bar {1.25 * weights / GIB + 1:.2f} GiB")
    print("  ".join(f"{key} {value:.2f}" for key, value in found.items()))


if __name__ == "__main__":
    main()
