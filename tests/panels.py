"""A panel of documents, on which pyfixest and wildboottest were run too."""

import numpy as np
import pandas as pd


def panel() -> pd.DataFrame:
    """Return documents of unequal length with levels, a trend, and errors that grow along the documents."""
    rng = np.random.default_rng(7)
    sizes = [12, 20, 9, 30, 25, 14, 17, 22]
    doc, position = np.repeat(range(8), sizes), np.concatenate([np.arange(size) for size in sizes])
    n = len(doc)
    x = rng.normal(size=n) + rng.normal(size=8)[doc]
    w = rng.normal(size=n) * (1 + 0.1 * position)
    y = 0.3 * x - 0.1 * w + 0.05 * position + rng.normal(size=8)[doc] + rng.normal(size=n) * (1 + 0.2 * doc)
    place = {"model": "m", "hook": "attn_out", "layer": 0, "doc": doc, "window": 0, "position": position}
    return pd.DataFrame(place | {"word": rng.integers(0, 9, n), "y": y, "x": x, "w": w})
