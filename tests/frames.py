"""Made-up norm and lagged frames that several test modules use."""

import numpy as np
import pandas as pd

from mechreg.lags import add_lags


def make_norms(
    lengths, *, seed=0, models=("m",), hooks=("attn_out",), layers=(0, 1), heads=None, n_layers=4
) -> pd.DataFrame:
    """Return a norm frame of documents; ``lengths`` gives the windows' lengths, document by document."""
    rng = np.random.default_rng(seed)
    rows = [
        {"model": model, "hook": hook, "layer": layer, "depth": (layer + 0.5) / n_layers}
        | ({} if heads is None else {"head": head})
        | {"doc": f"d{doc}", "window": window, "position": position, "token_id": 7}
        for model in models
        for hook in hooks
        for layer in layers
        for head in heads or [None]
        for doc, windows in enumerate(lengths)
        for window, length in enumerate(windows)
        for position in range(length)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(norm=np.exp(rng.normal(3.0, 1.0, len(frame))).astype("float32"))


def autoregressive(phi, *, lengths, layers=(0,), seed=0, models=("m",), heads=None) -> pd.DataFrame:
    """Return a lagged frame whose log norms follow y[t] = 1 + phi y[t-1] + noise in every window."""
    norms = make_norms(lengths, layers=layers, seed=seed, models=models, heads=heads).astype(
        {"norm": "float64"}
    )
    keys = [key for key in ("model", "hook", "layer", "head", "doc", "window") if key in norms]
    rng = np.random.default_rng(seed)

    def series(n):
        y, noise = np.zeros(n + 50), rng.normal(scale=0.3, size=n + 50)
        for t in range(1, n + 50):
            y[t] = 1 + phi * y[t - 1] + noise[t]
        return y[50:]

    parts = [series(len(rows)) for _, rows in norms.groupby(keys, observed=True, sort=False)]
    return add_lags(norms.assign(norm=np.exp(np.concatenate(parts))))
