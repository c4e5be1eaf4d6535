"""The tidy norm frame: made from arrays, and frames on top of each other."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import einops
import numpy as np
import pandas as pd
from jaxtyping import Float

from mechreg.schema import NORM_COLUMNS, TOKEN_KEYS

TOKEN_PLACE = (*TOKEN_KEYS, "token_id")
Norms = Float[np.ndarray, "layer token"] | Float[np.ndarray, "layer head token"]
Matrix = Float[np.ndarray, "series token"]


class Series(NamedTuple):
    """What a row of a matrix is of: a layer, and a head at the hooks that have heads."""

    layer: int
    head: int | None
    depth: float


def series_of(norms: Norms) -> list[Series]:
    """Return what the rows of `flat` are of."""
    heads = [None] if norms.ndim == 2 else range(norms.shape[1])
    return [Series(layer, head, (layer + 0.5) / len(norms)) for layer in range(len(norms)) for head in heads]


def flat(values: Norms) -> Matrix:
    """Return an array of layers, or of layers and heads, as a matrix with a row for each."""
    return einops.rearrange(values, "layer ... token -> (layer ...) token")


def by_hook(values: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of `window_norms`, "attn_out" and "attn_out.cos_resid", by hook, then by measure."""
    hooks: dict[str, dict[str, np.ndarray]] = {}
    for name, array in values.items():
        hook, _, measure = name.partition(".")
        hooks.setdefault(hook, {})[measure or "norm"] = array
    return hooks


def norm_frame(
    tokens: pd.DataFrame,
    values: Mapping[str, Norms],
    *,
    model: str,
    hook: str,
    covariates: Sequence[str] = (),
) -> pd.DataFrame:
    """Return the tidy norm frame of one model and hook: layers, then heads, then tokens in the corpus's order.

    ``values`` has an array a measure, "norm" among them; ``covariates`` are columns of the token frame to be kept.
    """
    matrices = {measure: flat(array) for measure, array in values.items()}
    series = series_of(values["norm"])
    return frame_of_series(tokens, matrices, series, model=model, hook=hook, covariates=covariates)


def frame_of_series(
    tokens: pd.DataFrame,
    matrices: Mapping[str, Matrix],
    series: Sequence[Series],
    *,
    model: str,
    hook: str,
    covariates: Sequence[str] = (),
) -> pd.DataFrame:
    """Return the same of matrices, whose rows are of ``series``."""
    n_rows, n_tokens = len(series) * len(tokens), len(tokens)
    doc = tokens["doc"].astype("category").array
    columns: dict[str, Any] = {
        key: pd.Categorical.from_codes(np.zeros(n_rows, np.int8), dtype=pd.CategoricalDtype([name]))
        for key, name in (("model", model), ("hook", hook))
    }
    columns["layer"] = np.repeat(np.array([one.layer for one in series], np.int16), n_tokens)
    if series[0].head is not None:
        columns["head"] = np.repeat(np.array([one.head for one in series], np.int16), n_tokens)
    columns["depth"] = np.repeat([one.depth for one in series], n_tokens)
    columns["doc"] = pd.Categorical.from_codes(np.tile(doc.codes, len(series)), dtype=doc.dtype)
    columns |= {key: np.tile(tokens[key].to_numpy(), len(series)) for key in TOKEN_PLACE[1:]}
    columns |= {measure: matrix.reshape(-1).astype(np.float32) for measure, matrix in matrices.items()}
    columns |= {name: np.tile(tokens[name].to_numpy(), len(series)) for name in covariates}
    return pd.DataFrame(columns, copy=False).astype(NORM_COLUMNS)


def stacked(frames: Sequence[pd.DataFrame], *, sort: bool = False) -> pd.DataFrame:
    """Return norm or token frames on top of each other; where only some have heads, the others have head -1.

    Models, hooks and documents stay categories, which concat alone would make texts of: in the order in which the
    frames bring them, or sorted, as a run has them (a bootstrap draws documents by their order).
    """
    if any("head" in frame for frame in frames):
        frames = [frame if "head" in frame else _without_heads(frame) for frame in frames]
    for key in ("model", "hook", "doc"):
        if all(key in frame for frame in frames):
            names = list(dict.fromkeys(name for frame in frames for name in frame[key].cat.categories))
            names = sorted(names) if sort else names
            frames = [frame.assign(**{key: frame[key].cat.set_categories(names)}) for frame in frames]
    return pd.concat(frames, ignore_index=True)


def _without_heads(frame: pd.DataFrame) -> pd.DataFrame:
    columns = list(frame.columns)
    columns.insert(columns.index("layer") + 1, "head")
    return frame.assign(head=np.int16(-1))[columns]
