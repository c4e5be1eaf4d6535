"""Texts for a run, and the files of a run that must be the same whatever happened on the way."""

import json
from pathlib import Path

import numpy as np

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "moon", "old", "man", "said", "no"]


def write_corpus(path: Path, documents: int) -> str:
    rng = np.random.default_rng(0)
    lines = [
        {
            "doc": f"d{i}",
            "source": "odd" if i % 2 else "even",
            "text": " ".join(rng.choice(WORDS, 5 + i % 40)),
        }
        for i in range(documents)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def shards_of(run: Path) -> list[Path]:
    return sorted(path for kind in ("tokens", "norms", "moments") for path in (run / kind).rglob(f"{kind}-*"))


def contents(run: Path) -> dict[str, bytes]:
    """Return all that must be the same whatever happened on the way."""
    tables = ["coefficients.parquet", "coefficients.csv", "statistics.csv", "problems.csv", "_manifest.json"]
    paths = [*shards_of(run), *(run / name for name in tables)]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}
