"""Attention nulls: a layer's values in another order, or its pattern uniform, and what neighbours' patterns share."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechreg.forward import Batch, Forward, padded_batches, token_bar, visit
from mechreg.frames import norm_frame
from mechreg.models import HOOK_POINTS, load_model, record_of
from mechreg.norms import BATCH_TOKENS, known_layers, token_frame, vector_norms
from mechreg.nulls.surrogates import shuffled_rows
from mechreg.outside import any_frames
from mechreg.schema import require_option, require_shared

Replace = Literal["values", "uniform"]


@any_frames
def attention_norms(
    model: Any,
    documents: Any,
    *,
    replace: Replace,
    layers: int | Sequence[int] | None = None,
    skip: int = 1,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the norms of every layer's attn_out with that one layer's attention replaced, in the model as it is below.

    What remains of a coefficient with the values permuted comes from patterns that neighbours share, whatever is read;
    what it is under a uniform pattern is that of a running mean of this layer's values.

    Parameters
    ----------
    model, documents, batch_tokens, progress
        As for `extract_norms`, of one model.
    replace : {"values", "uniform"}
        "values": the layer's own patterns, the value vectors of each window in random order, that of `shuffle_norms`,
        the same for all heads and layers; "uniform": its own values, the same share of all tokens so far.
    layers : int or sequence of int, optional
        All by default; a pass through the model up to each of them.
    skip : int
        Number of first positions of each window that keep their values, so that a sink keeps its own.
    seed : int

    Returns
    -------
    pandas.DataFrame
        The norm frame, for `compare_to_nulls`.

    Examples
    --------
    >>> text = ["The cat sat on the mat and looked at the moon."]
    >>> attention_norms("mini-s", text, replace="uniform", layers=[0, 3])["layer"].unique().tolist()
    [0, 3]
    """
    require_option(replace, get_args(Replace), name="replace")
    require_shared(skip=skip, batch_tokens=batch_tokens, seed=seed)
    model = load_model(model)
    chosen, n_layers = known_layers(model, layers), int(model.cfg.n_layers)
    tokens = token_frame(model, documents)
    position = tokens["position"].to_numpy(np.int64)
    place = position[shuffled_rows(tokens, ["doc", "window"], position < skip, seed)]
    norms = np.full((n_layers, len(tokens)), np.nan)
    batch: Batch

    def reordered(values: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "batch pos ..."]:
        at = np.where(batch.real, place[batch.rows], np.arange(batch.real.shape[1]))
        row = einops.rearrange(torch.arange(len(values), device=values.device), "batch -> batch 1")
        return values[row, torch.from_numpy(at).to(values.device)]

    def keep(attn_out: Float[Tensor, "batch pos d_model"]) -> None:
        norms[layer, batch.rows[batch.real]] = vector_norms(attn_out).cpu().numpy()[batch.real]

    first = ("attn.hook_v", reordered) if replace == "values" else ("attn.hook_pattern", _running_mean)
    steps = (first, (HOOK_POINTS["attn_out"].place, keep))
    with token_bar(len(tokens) * len(chosen), progress) as bar:
        for layer in chosen:
            acts = [(f"blocks.{layer}.{point}", act) for point, act in steps]
            with Forward(model, acts, end="acts", quick=True) as run:
                for batch in padded_batches(model, tokens, batch_tokens):
                    run(batch.ids)
                    bar.update(int(batch.real.sum()))
    frame = norm_frame(tokens, {"norm": norms}, model=record_of(model).name, hook="attn_out")
    return frame[frame["layer"].isin(chosen)].reset_index(drop=True)


@any_frames
def pattern_overlap(
    model: Any, documents: Any, *, skip: int = 1, batch_tokens: int = BATCH_TOKENS, progress: bool = False
) -> pd.DataFrame:
    """Return how much of its pattern a token shares with the token before it, by layer.

    The overlap is the sum over keys of the smaller of both shares, its mean over heads and tokens: 1 where both read
    the same, 0 where nothing is read by both.

    Parameters
    ----------
    model, documents, batch_tokens, progress
        As for `attention_norms`.
    skip : int
        First positions of each window that are left out, also as the token before, as in `add_lags`.

    Returns
    -------
    pandas.DataFrame
        model, layer, depth, overlap, n (tokens).

    Examples
    --------
    >>> table = pattern_overlap("mini-s", ["The cat sat on the mat and looked at the moon."])
    >>> bool(table["overlap"].between(0, 1).all()), table["layer"].tolist()
    (True, [0, 1, 2, 3])
    """
    require_shared(skip=skip, batch_tokens=batch_tokens)
    model = load_model(model)
    tokens = token_frame(model, documents)
    n_layers = int(model.cfg.n_layers)
    total, n = np.zeros(n_layers), int((tokens["position"] > skip).sum())

    def look(layer: int, pattern: Float[Tensor, "batch head query key"], batch: Batch) -> None:
        both = torch.minimum(pattern[:, :, 1:], pattern[:, :, :-1]).float()
        overlap = einops.reduce(both, "batch head query key -> batch head query", "sum")
        shared = einops.reduce(overlap, "batch head query -> batch query", "mean")
        counted = batch.real[:, 1:] & (np.arange(1, batch.real.shape[1]) > skip)
        total[layer] += shared.double().cpu().numpy()[counted].sum()

    visit(model, tokens, "attn.hook_pattern", look, batch_tokens=batch_tokens, progress=progress)
    numbers = np.arange(n_layers)
    with np.errstate(invalid="ignore"):
        columns = {"layer": numbers, "depth": (numbers + 0.5) / n_layers, "overlap": total / n, "n": n}
    return pd.DataFrame({"model": record_of(model).name, **columns})


def _running_mean(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
    """Return the pattern that reads all tokens so far alike."""
    so_far = torch.ones_like(pattern).tril()
    return so_far / einops.reduce(so_far, "batch head query key -> batch head query 1", "sum")
