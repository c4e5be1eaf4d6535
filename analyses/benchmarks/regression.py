"""How fast are fits from sums of products against a loop of statsmodels fits, and does their memory grow with the rows?

Ways are timed in turn, round after round in shuffled order; the figure is the median over rounds of the loop's time
over each way's in the same round, so that a machine whose speed drifts hurts all alike. Tables are compared before any
is timed. Peak memory is measured in a process of its own for each size, shards made and dropped one by one.

    python analyses/benchmarks/regression.py [--rows 1000000] [--documents 2000] [--layers 12] [--rounds 3] [--out FILE]
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

import mechreg as mr
from mechreg.regression import LagSums

FORMULA = "log_norm ~ lag1 + lag2"
LOOP = "statsmodels loop, crv3"


def lagged_frame(rows: int, documents: int, layers: int, *, seed: int = 0) -> pd.DataFrame:
    """Return a lagged frame of autoregressive log norms, ``rows`` tokens a layer."""
    rng = np.random.default_rng(seed)
    tokens = rows // documents
    values = rng.normal(size=(layers, documents, tokens))
    for token in range(1, tokens):
        values[..., token] += 0.4 * values[..., token - 1]
    missing = np.full((layers, documents, 2), np.nan)
    padded = np.concatenate([missing, values], axis=-1)  # the first positions have no lag
    doc = pd.Categorical.from_codes(
        np.tile(np.repeat(np.arange(documents), tokens), layers),
        [f"{seed}-{number:06d}" for number in range(documents)],
    )
    size = layers * documents * tokens
    layer = np.repeat(np.arange(layers, dtype=np.int16), documents * tokens)
    return pd.DataFrame(
        {
            "model": pd.Categorical.from_codes(np.zeros(size, np.int8), ["m"]),
            "hook": pd.Categorical.from_codes(np.zeros(size, np.int8), ["attn_out"]),
            "layer": layer,
            "depth": (layer + 0.5) / layers,
            "doc": doc,
            "window": np.zeros(size, np.int32),
            "position": np.tile(np.arange(tokens, dtype=np.int32), layers * documents),
            "log_norm": values.ravel(),
            "lag1": padded[..., 1:-1].ravel(),
            "lag2": padded[..., :-2].ravel(),
        }
    )


def statsmodels_loop(lagged: pd.DataFrame, cov_type: str) -> pd.DataFrame:
    """Return the coefficients as a user would loop for them."""
    parts = []
    for _, layer in lagged.groupby("layer", sort=False):
        complete = layer.dropna(subset=["log_norm", "lag1", "lag2"])
        groups = complete["doc"].cat.codes.to_numpy().astype(int)
        fit = smf.ols(FORMULA, complete).fit(cov_type=cov_type, cov_kwds={"groups": groups}, use_t=True)
        parts.append(pd.DataFrame({"estimate": fit.params, "std_error": fit.bse, "p_value": fit.pvalues}))
    return pd.concat(parts)


WAYS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    LOOP: lambda lagged: statsmodels_loop(lagged, "cluster-crv3"),
    "statsmodels loop, crv1": lambda lagged: statsmodels_loop(lagged, "cluster"),
    "fit_lagged, moments, all statistics": lambda lagged: (
        mr.fit_lagged(lagged, FORMULA, cov="crv3").coefficients
    ),
    "the same with max-t": lambda lagged: (
        mr.fit_lagged(lagged, FORMULA, cov="crv3", adjust="max-t").coefficients
    ),
    "LagSums, coefficients only": lambda lagged: LagSums.from_frame(
        lagged, FORMULA, max_lag=None
    ).coefficients(cov="crv3"),
}


def peak_of_streaming(shards: int, rows: int, documents: int, layers: int) -> float:
    """Return the megabytes by which streaming so many shards exceeds the process with one shard in it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import regression as r; from streaming import peak_megabytes;"
        "n, *size = map(int, sys.argv[2:]);"
        "moments = r.LagSums(r.FORMULA); moments.update(r.lagged_frame(*size));"
        "print(5, file=open('/proc/self/clear_refs', 'w'), flush=True); before = peak_megabytes();"  # Linux
        "[moments.update(r.lagged_frame(*size, seed=seed)) for seed in range(1, n)]; moments.coefficients();"
        "print(peak_megabytes() - before)"
    )
    arguments = [str(Path(__file__).parent), *(str(n) for n in (shards, rows, documents, layers))]
    out = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return float(out.stdout.splitlines()[-1])


def main() -> None:
    """Print the table: speed as a ratio to the loop, seconds, and the memory of streaming."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="tokens a layer")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--shards", type=int, nargs="+", default=(5, 20), help="shards of rows / 10 to stream"
    )
    parser.add_argument("--out", type=Path, help="also write the tables as json")
    args = parser.parse_args()
    lagged = lagged_frame(args.rows, args.documents, args.layers)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    truth: pd.DataFrame | None = None
    shuffle = random.Random(0)
    for number in range(args.rounds):
        order = list(WAYS) if number == 0 else shuffle.sample(list(WAYS), len(WAYS))
        for name in order:
            began = time.perf_counter()
            table = WAYS[name](lagged)
            times[name].append(time.perf_counter() - began)
            truth = table if truth is None else truth
            columns = (
                ["estimate"] if "crv1" in name else ["estimate", "std_error"]
            )  # p has effective df in ours
            np.testing.assert_allclose(table[columns], truth[columns], rtol=1e-8)
    speed = pd.DataFrame(
        {
            "way": list(WAYS),
            "speed_over_loop": [
                float(f"{np.median(np.array(times[LOOP]) / np.array(taken)):.3g}") for taken in times.values()
            ],
            "seconds": [round(float(np.median(taken)), 2) for taken in times.values()],
        }
    )
    size = (args.rows // 10, max(2, args.documents // 10), args.layers)
    memory = pd.DataFrame(
        [
            {"rows": shards * size[0] * args.layers, "peak_mb": round(peak_of_streaming(shards, *size))}
            for shards in args.shards
        ]
    )
    print(speed.to_string(index=False), memory.to_string(index=False), sep="\n\n")
    if args.out:
        tables = {"speed": speed.to_dict("records"), "memory": memory.to_dict("records")}
        args.out.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
