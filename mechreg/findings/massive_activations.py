"""Massive activations: a handful of numbers at position 0 which must be there, and need not be more than constants."""

from typing import Any

import einops
import numpy as np
import pandas as pd

from mechreg.findings.finding import Claim, Finding, Settings
from mechreg.findings.first_position import FirstPosition, emerges, first_position, setting
from mechreg.findings.forward import mean_loss

# The source's definition: larger than 100, and than a thousand medians of the same hidden state.
LARGER_THAN, MEDIANS = 100.0, 1000.0


def massive_dimensions(found: FirstPosition) -> list[int]:
    """Return the dimensions that are massive at position 0 after some block, the largest first.

    Examples
    --------
    >>> one = np.array([[1.0, 2000.0, 500.0]])
    >>> massive_dimensions(FirstPosition(one, one, one * 0, np.array([0.4])))
    [1, 2]
    """
    bar = np.maximum(LARGER_THAN, MEDIANS * found.median)
    above = found.magnitude > einops.rearrange(bar, "layer -> layer 1")
    massive = np.flatnonzero(einops.reduce(above, "layer d_model -> d_model", "any"))
    return massive[np.argsort(-found.magnitude.max(axis=0)[massive])].tolist()


def measure(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return what the loss gains, in nats, when massive activations are set to zero and to their mean.

    They are edited at position 0 of every window, after the block where the largest of them emerges. In a model that
    has none (``massive`` is 0), the largest dimension at position 0 is edited in their place.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> list(measure(model, tokenize(model, ["Once upon a time.", "A cat."]), Settings()))
    ['massive', 'block', 'loss', 'loss_change_zero', 'loss_change_mean']
    """
    found = first_position(model, tokens, settings)
    massive = massive_dimensions(found)
    edited = massive or [found.dimension]
    sizes = found.magnitude if massive else np.abs(found.mean)
    block = emerges(sizes[:, edited[0]])
    place = f"blocks.{block}.hook_resid_post"
    means = found.mean[block, edited]
    clean = mean_loss(model, tokens, {}, settings)
    zero = mean_loss(model, tokens, {place: setting(edited, np.zeros_like(means))}, settings)
    constant = mean_loss(model, tokens, {place: setting(edited, means)}, settings)
    return {
        "massive": float(len(massive)),
        "block": float(block),
        "loss": clean,
        "loss_change_zero": zero - clean,
        "loss_change_mean": constant - clean,
    }


MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MASSIVE_ACTIVATIONS = Finding(
    name="massive_activations",
    question="Does the model need its massive activations, and only as constants?",
    source=(
        'Sun, Chen, Kolter and Liu (2024), "Massive Activations in Large Language Models", COLM, '
        "arxiv.org/abs/2402.17762 (claimed of language models in general; its table of edits is of LLaMA2)"
    ),
    measured=(
        "raw weights, no BOS (with one, position 0 would be the same everywhere, and its mean itself); "
        "massive: above 100 and 1,000 medians; edited where they first appear; the source gives perplexities"
    ),
    models=("gpt2",),
    claims=(
        Claim(
            quantity="loss_change_zero",
            models=MODELS,
            low=0.01,
            because="'setting to zero harms': more than setting to the mean may change",
        ),
        Claim(
            quantity="loss_change_mean",
            models=MODELS,
            value=0.0,
            tolerance=0.01,
            because="'setting to the mean does not': a hundredth of a nat is 1% of the perplexity",
        ),
    ),
    measure=measure,
)
