"""What each finding measures: functions from a model, a token frame and settings to quantities by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechreg.corpus import tokenize
from mechreg.findings.finding import Settings
from mechreg.forward import (
    Act,
    Batch,
    Forward,
    Head,
    NextTokens,
    next_token_losses,
    padded_batches,
    token_bar,
    visit,
)
from mechreg.lags import add_lags
from mechreg.norms import extract_norms, window_norms
from mechreg.regression import fit_lagged
from mechreg.schema import InputError

ALPHA = 0.05
HELLO = "Hello world!"
# "Massive" in the source: larger than 100, and than a thousand medians of the same hidden state.
LARGER_THAN, MEDIANS = 100.0, 1000.0
# The source's sinks: mean attention above epsilon, over windows of 64 tokens, 100 of them random.
EPSILON, SINK_LENGTH, SINK_WINDOWS = 0.3, 64, 100


def lagged_norms(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the share of layers in which each lag differs from zero (p < .05), and the median betas."""
    norms = extract_norms(model, tokens, hooks=("attn_out",), progress=settings.progress)
    table = fit_lagged(add_lags(norms, lags=(1, 2), skip=1), "log_norm ~ lag1 + lag2").coefficients
    quantities = {}
    for term in ("lag1", "lag2"):
        rows = table[table["term"] == term]
        quantities[f"{term}_layers"] = float((rows["p_value"] < ALPHA).mean())
        quantities[f"{term}_median_beta"] = float(rows["estimate"].median())
    return quantities


def norm_growth(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return by which factor the mean norm grows a block, and the later half's factor minus the earlier half's."""
    first, last = growth_blocks(int(model.cfg.n_layers))
    later = tokens["position"].to_numpy() > 0
    if not later.any():
        raise InputError("norm_growth leaves out position 0, and no window has another; give more text.")
    norms = window_norms(model, tokens, hooks=("resid_pre",), **settings.of_passes)["resid_pre"]
    log_mean = np.log(norms[:, later].astype("float64").mean(axis=1))
    middle = (first + last) // 2

    def growth(start: int, end: int) -> float:
        return float(np.exp((log_mean[end] - log_mean[start]) / (end - start)))

    quantities = {"growth_per_block": growth(first, last)}
    if middle > first:  # a model of three blocks has no halves
        quantities["growth_late_minus_early"] = growth(middle, last) - growth(first, middle)
    return quantities


def growth_blocks(n_layers: int) -> tuple[int, int]:
    """Return the first and last block of the growth: 5 and 41 of gpt2-xl's 48, elsewhere the same relative depth."""
    first = max(1, round(n_layers * 5 / 48))
    last = min(n_layers - 1, round(n_layers * 41 / 48))
    if last < first + 1:
        raise InputError(f"norm_growth needs a model of at least three blocks; this one has {n_layers}.")
    return first, last


def first_token_outlier(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the largest dimension at position 0, its size, where it emerges, and its size at other positions."""
    first = first_position(model, tokens, settings)
    sizes = np.abs(first.mean[:, first.dimension])
    return {
        "dimension": float(first.dimension),
        "size": float(sizes.max()),
        "first_block": float(emerges(sizes)),
        "size_elsewhere": float(first.elsewhere[:, first.dimension].max()),
    }


def massive_activations(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return by how much the loss rises, in nats, when massive activations are set to zero and to their mean.

    They are edited at position 0 of every window, after the block where the largest of them emerges. In a model that
    has none (``massive`` is 0), the largest dimension at position 0 is edited instead.
    """
    first = first_position(model, tokens, settings)
    massive = massive_dimensions(first)
    edited = massive or [first.dimension]
    block = emerges((first.magnitude if massive else np.abs(first.mean))[:, edited[0]])

    def loss_with(values: Float[np.ndarray, " dimensions"]) -> float:
        def act(stream: Tensor) -> Tensor:
            changed = stream.clone()
            changed[:, 0, edited] = torch.from_numpy(values).to(changed)
            return changed

        return mean_loss(model, tokens, {f"blocks.{block}.hook_resid_post": act}, settings)

    means = first.mean[block, edited]
    clean = mean_loss(model, tokens, {}, settings)
    return {
        "massive": float(len(massive)),
        "block": float(block),
        "loss": clean,
        "loss_change_zero": loss_with(np.zeros_like(means)) - clean,
        "loss_change_mean": loss_with(means) - clean,
    }


@dataclass(frozen=True)
class FirstPosition:
    """Statistics of resid_post after every block, over windows."""

    mean: Float[np.ndarray, "layer d_model"]  # of position 0
    magnitude: Float[np.ndarray, "layer d_model"]  # of position 0
    elsewhere: Float[np.ndarray, "layer d_model"]  # the largest magnitude at any other position
    median: Float[np.ndarray, " layer"]  # mean over windows of the median magnitude in a window

    @property
    def dimension(self) -> int:
        """The dimension with the largest mean after any block."""
        return int(np.abs(self.mean).max(axis=0).argmax())


def first_position(model: Any, tokens: pd.DataFrame, settings: Settings) -> FirstPosition:
    """Return the statistics of position 0 and of the others, from one pass over the token frame."""
    if int(tokens["position"].max()) < 1:
        raise InputError(
            "Position 0 is compared with the others, and no window has two tokens; give more text."
        )
    n_layers, d_model = int(model.cfg.n_layers), int(model.cfg.d_model)
    mean, magnitude, elsewhere = np.zeros((3, n_layers, d_model))
    median, n = np.zeros(n_layers), int((tokens["position"] == 0).sum())

    def look(layer: int, stream: Tensor, batch: Batch) -> None:
        first = stream[:, 0].double()
        mean[layer] += einops.reduce(first, "batch d_model -> d_model", "sum").cpu().numpy()
        magnitude[layer] += einops.reduce(first.abs(), "batch d_model -> d_model", "sum").cpu().numpy()
        for row, length in zip(stream.float().abs(), batch.real.sum(axis=1).tolist(), strict=True):
            median[layer] += float(row[:length].median())
            if length > 1:
                largest = einops.reduce(row[1:length], "pos d_model -> d_model", "max")
                elsewhere[layer] = np.maximum(elsewhere[layer], largest.cpu().numpy())

    visit(model, tokens, "hook_resid_post", look, **settings.of_passes)
    return FirstPosition(mean / n, magnitude / n, elsewhere, median / n)


def massive_dimensions(first: FirstPosition) -> list[int]:
    """Return the dimensions that are massive at position 0 after some block, the largest first."""
    bar = np.maximum(LARGER_THAN, MEDIANS * first.median)
    above = first.magnitude > einops.rearrange(bar, "layer -> layer 1")
    massive = np.flatnonzero(einops.reduce(above, "layer d_model -> d_model", "any"))
    return massive[np.argsort(-first.magnitude.max(axis=0)[massive])].tolist()


def emerges(sizes: Float[np.ndarray, " layer"]) -> int:
    """Return the first block after which a dimension has half of its largest size.

    Examples
    --------
    >>> emerges(np.array([0.1, 2.0, 3.0, 0.5]))
    1
    """
    return int((sizes >= sizes.max() / 2).argmax())


def sink_rate(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the share of heads that are sinks, on random tokens and on the first 64 tokens of each text."""
    size = tokens.groupby(["doc", "window"], observed=True)["position"].transform("size")
    whole = tokens[(tokens["window"] == 0) & (size == SINK_LENGTH)].reset_index(drop=True)
    if whole.empty:
        raise InputError(
            f"sink_rate takes the first {SINK_LENGTH} tokens of each text, and no text has so many."
        )
    text = first_token_attention(model, whole, settings)
    drawn = first_token_attention(model, random_tokens(model, seed=settings.seed), settings)
    return {
        "sink_rate_random": float((drawn > EPSILON).mean()),
        "sink_rate_text": float((text > EPSILON).mean()),
        "texts": float(text.shape[1]),
    }


def first_token_attention(
    model: Any, tokens: pd.DataFrame, settings: Settings
) -> Float[np.ndarray, "layer window head"]:
    """Return every head's mean attention to position 0 over all positions of a window, itself included.

    Windows come longest first; those of one length keep the frame's order.
    """
    means: list[list[np.ndarray]] = [[] for _ in range(int(model.cfg.n_layers))]

    def look(layer: int, pattern: Tensor, batch: Batch) -> None:
        real = batch.mask(batch.real).to(pattern.device)
        to_first = pattern[..., 0].double() * einops.rearrange(real, "batch query -> batch 1 query")
        total = einops.reduce(to_first, "batch head query -> batch head", "sum")
        lengths = einops.reduce(real.double(), "batch query -> batch 1", "sum")
        means[layer].append((total / lengths).cpu().numpy())

    visit(model, tokens, "attn.hook_pattern", look, **settings.of_passes)
    return np.stack([np.concatenate(layer) for layer in means])


def random_tokens(model: Any, *, seed: int) -> pd.DataFrame:
    """Return a token frame of 100 windows of 64 ids drawn uniformly from the vocabulary."""
    tokenizer = getattr(model, "tokenizer", None)
    # A vocabulary padded to a round number has ids that no text has.
    size = int(model.cfg.d_vocab) if tokenizer is None else min(len(tokenizer), int(model.cfg.d_vocab))
    ids = np.random.default_rng(seed).integers(0, size, SINK_WINDOWS * SINK_LENGTH)
    docs = np.repeat([f"random-{i}" for i in range(SINK_WINDOWS)], SINK_LENGTH)
    position = np.tile(np.arange(SINK_LENGTH), SINK_WINDOWS)
    return pd.DataFrame({"doc": docs, "window": 0, "position": position, "token_id": ids})


def baseline_ce(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the cross-entropy in nats a token of "Hello world!" and of the documents, BOS prepended."""
    hello = tokenize(model, [HELLO], prepend_bos=True)
    return {
        "loss_hello_world": mean_loss(model, hello, {}, settings),
        "loss": mean_loss(model, tokens, {}, settings),
    }


def layer_drop(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the share kept without a middle block (mean), and the first's and the last's share minus that."""
    if model.cfg.n_layers < 3:
        raise InputError(
            f"layer_drop needs a model of at least three blocks; this one has {model.cfg.n_layers}."
        )
    kept = top1_kept(model, tokens, settings)
    middle = float(kept[1:-1].mean())
    ends = {"first": float(kept[0]), "last": float(kept[-1])}
    return {"kept_middle": middle} | {
        f"kept_{end}_minus_middle": share - middle for end, share in ends.items()
    }


def top1_kept(model: Any, tokens: pd.DataFrame, settings: Settings) -> Float[np.ndarray, " layer"]:
    """Return, for every block left out, the share of tokens whose likeliest next token is the whole model's.

    A block is left out by setting both of its updates to zero. Position 0, the BOS, does not count.
    """
    same, n, head = np.zeros(int(model.cfg.n_layers)), 0, Head(model)

    def passed(ids: Int[Tensor, "batch pos"], acts: list[tuple[str, Act]]) -> Tensor:
        with Forward(model, acts, end=head.end) as run:
            return run(ids)

    with token_bar(len(tokens), settings.progress) as bar:
        for batch in padded_batches(model, tokens, settings.batch_tokens):
            counted = batch.real & (np.arange(batch.real.shape[1]) > 0)
            if counted.any():
                everywhere = np.ones(counted.sum(), bool)
                seen = NextTokens(head, batch.ids, batch.mask(counted), ["top1"])
                seen.clean(passed(batch.ids, []))
                for layer in range(len(same)):
                    hooks = (f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mlp_out")
                    without = passed(batch.ids, [(hook, torch.zeros_like) for hook in hooks])
                    same[layer] += (seen.changes(without, everywhere)[2] == 0).sum()
                n += len(everywhere)
            bar.update(int(batch.real.sum()))
    if not n:
        raise InputError("layer_drop leaves out position 0, and no window has another; give more text.")
    return same / n


def mean_loss(model: Any, tokens: pd.DataFrame, acts: Mapping[str, Act], settings: Settings) -> float:
    """Return the mean next-token cross-entropy in nats over all tokens that have a next one in their window."""
    total, count, head = 0.0, 0, Head(model)
    with Forward(model, acts.items(), end=head.end) as run, token_bar(len(tokens), settings.progress) as bar:
        for batch in padded_batches(model, tokens, settings.batch_tokens):
            if batch.has_next.any():
                at = batch.mask(batch.has_next)
                losses = next_token_losses(run(batch.ids), batch.ids, at, head=head)
                total, count = total + float(np.sum(losses)), count + len(losses)
            bar.update(int(batch.real.sum()))
    if not count:
        raise InputError("A next-token loss needs a window of at least two tokens; there is none.")
    return total / count
