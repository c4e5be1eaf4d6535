"""Does a run's memory grow with its corpus, and how long does a regression over stored norms take?

A GPT-2 of 12 blocks with random weights, so small that ten million tokens take minutes, is run over corpora of
growing size: by `run_spec`, which streams, and by the functions on one frame, as far as that goes. Every run is a
process of its own, whose peak memory is what the system says of it. The norms of the largest are then regressed
again from the disk.

    python analyses/benchmarks/streaming.py [--tokens 10000 100000 1000000 10000000] [--figure figures/memory]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd

import mechreg as mr

WAYS = {"stream": "run_spec, as a stream", "frame": "one frame of all norms"}
# Peaks that do not hang on how many threads had an arena of their own.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
LARGEST_FRAME = 1_000_000  # tokens; more would need tens of gigabytes


def make_model(folder: Path) -> None:
    """Save a GPT-2 with random weights, and a miniature's tokenizer."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from mechreg import miniatures

    tokenizer = AutoTokenizer.from_pretrained(miniatures.folder("mini-s"))
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=8, n_layer=12, n_head=1,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_corpus(path: Path, tokens: int) -> None:
    """Write documents of a thousand common words, each a token or two."""
    rng = np.random.default_rng(0)
    words = [
        "the",
        "of",
        "and",
        "to",
        "a",
        "in",
        "that",
        "it",
        "was",
        "he",
        "for",
        "on",
        "with",
        "his",
        "her",
    ]
    with open(path, "w") as file:
        for document in range(max(3, tokens // 1_000)):
            text = " ".join(rng.choice(words, min(1_000, tokens // 3)))
            file.write(json.dumps({"doc": f"d{document}", "text": text}) + "\n")


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(way: str, folder: Path, corpus: Path) -> dict:
    """Return what one way took in this process."""
    began = time.perf_counter()
    if way == "stream":
        spec = mr.Spec(models=(str(folder / "model"),), corpus=str(corpus), name="memory")
        run = mr.run_spec(spec, out=folder / f"run-{corpus.stem}", progress=False)
        (record,) = mr.open_run(run).records.values()
        tokens = record["plan"]["tokens"]
    elif way == "frame":
        norms = mr.extract_norms(str(folder / "model"), str(corpus), progress=False)
        tokens = len(norms) // 12
        mr.fit_lagged(mr.add_lags(norms))
    else:
        run = folder / f"run-{corpus.stem}"
        table = mr.run.run_moments(run).coefficients()
        stored = mr.open_run(run).coefficients
        tokens = int(table["n"].iloc[0] + table["n_dropped"].iloc[0])
        if not np.allclose(table["estimate"], stored["estimate"], rtol=1e-9):
            raise SystemExit("The regression from the disk is not that of the run.")
    return {
        "way": way,
        "tokens": tokens,
        "megabytes": peak_megabytes(),
        "seconds": time.perf_counter() - began,
    }


def draw(table: pd.DataFrame) -> alt.LayerChart:
    from mechreg.charts.theme import figure_title

    shown = table[table["way"].isin(list(WAYS))].assign(way=table["way"].map(WAYS))
    ends = shown.loc[shown.groupby("way")["tokens"].idxmax()]
    x = alt.X(
        "tokens:Q",
        scale=alt.Scale(type="log", nice=False, padding=14),
        axis=alt.Axis(format="~s", values=[10**power for power in range(3, 10)]),
        title="tokens of the corpus",
    )
    y = alt.Y(
        "megabytes:Q",
        scale=alt.Scale(type="log", domain=[250, 4_000]),
        axis=alt.Axis(values=[250, 500, 1_000, 2_000, 4_000]),
        title="peak memory of the process, MB",
    )
    colour = alt.Color("way:N", legend=None, scale=alt.Scale(range=["#D55E00", "#0072B2"]))
    lines = alt.Chart(shown).mark_line(point=True).encode(x=x, y=y, color=colour)
    names = alt.Chart(ends).mark_text(align="right", dy=-12).encode(x=x, y=y, text="way:N", color=colour)
    title = figure_title(
        "A run's memory stops growing at one shard, 100,000 tokens",
        [
            "12 blocks of a GPT-2 of width 8 with random weights and windows of 64 tokens, on the CPU; each point is a "
            "process of its own with one thread, libraries and model included; log axes. Of the frame more than a "
            "million tokens were not tried."
        ],
    )
    return alt.layer(lines, names).properties(width=560, height=320, title=title)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        way, folder, corpus = args.one
        print(json.dumps(one(way, Path(folder), Path(corpus))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(folder / "model")
        for tokens in args.tokens:
            corpus = folder / f"{tokens}.jsonl"
            make_corpus(corpus, tokens)
            ways = ["stream", *(["frame"] if tokens <= LARGEST_FRAME else [])]
            for way in [*ways, *(["refit"] if tokens == max(args.tokens) else [])]:
                command = [sys.executable, __file__, "--one", way, str(folder), str(corpus)]
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ONE_THREAD
                )
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                line = "{way:8} {tokens:>12,} tokens {megabytes:8.0f} MB {seconds:8.1f} s"
                print(line.format(**rows[-1]), flush=True)
    if args.figure:
        mr.save_chart(draw(pd.DataFrame(rows)), args.figure, formats=("json", "svg", "png"))


if __name__ == "__main__":
    main()
