"""What does half precision do to the norms and betas, and to the speed?

Norms of the demo corpus in half precision against float32, per model: the relative difference of single norms,
and the difference of lag1 in every layer, also in standard errors. The speed is of a random-weight GPT-2, in turn.

    python analyses/benchmarks/precision.py [--models mini-s mini-m mini-l] [--rounds 3] [--blocks 12]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from extraction import windows
from transformers import GPT2Config, GPT2LMHeadModel

import mechreg as mr
from mechreg.norms import window_norms

HALVES = ("bfloat16", "bfloat16-autocast", "float16")


def effect(model: str) -> pd.DataFrame:
    """Return a row for each half precision: differences of norms and of lag1 from float32's."""
    rows, truth = [], None
    for dtype in ("float32", *HALVES):
        norms = mr.extract_norms(mr.load_model(model, dtype=dtype), "demo", progress=False)
        fits = mr.fit_lagged(mr.add_lags(norms, lags=(1, 2)), "log_norm ~ lag1 + lag2").coefficients
        lag1 = fits[fits["term"] == "lag1"].set_index("layer")
        if truth is None:
            truth = norms, lag1
            continue
        apart = (norms["norm"] / truth[0]["norm"] - 1).abs()
        moved = (lag1["estimate"] - truth[1]["estimate"]).abs()
        rows.append(
            {
                "model": model,
                "dtype": dtype,
                "norm_median": apart.median(),
                "norm_99%": apart.quantile(0.99),
                "norm_max": apart.max(),
                "lag1_max": moved.max(),
                "lag1_max_in_se": (moved / truth[1]["std_error"]).max(),
            }
        )
    return pd.DataFrame(rows)


def speed(blocks: int, rounds: int) -> pd.Series:
    """Return how many times as fast as float32 each precision is, on GPT-2's shapes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "gpt2-random"
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(n_layer=blocks)).save_pretrained(folder)
        models = {dtype: mr.load_model(folder, dtype=dtype) for dtype in ("float32", *HALVES)}
    tokens = windows(8, 256)
    times: dict[str, list[float]] = {dtype: [] for dtype in models}
    for _ in range(rounds + 1):
        for dtype, model in models.items():
            began = time.process_time()
            window_norms(model, tokens)
            times[dtype].append(time.process_time() - began)
    base = np.array(times["float32"][1:])
    return pd.Series({dtype: float(np.median(base / np.array(taken[1:]))) for dtype, taken in times.items()})


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["mini-s", "mini-m", "mini-l"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=12)
    args = parser.parse_args()
    table = pd.concat([effect(model) for model in args.models], ignore_index=True)
    print(table.to_string(index=False, float_format="{:.2g}".format))
    print("\nSpeed over float32, processor time:")
    print(speed(args.blocks, args.rounds).round(2).to_string())


if __name__ == "__main__":
    main()
