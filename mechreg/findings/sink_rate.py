"""The share of heads that send much of their attention to the first token."""

from typing import Any

import einops
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from mechreg.findings.finding import Claim, Finding, Settings
from mechreg.findings.forward import watch
from mechreg.schema import InputError

EPSILON, LENGTH, SEQUENCES = 0.3, 64, 100


def first_token_attention(
    model: Any, tokens: pd.DataFrame, settings: Settings
) -> Float[np.ndarray, "layer window head"]:
    """Return every head's mean attention to position 0 over all positions of a window, itself included.

    Windows come longest first; all of one length keep the frame's order.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> first_token_attention(model, tokenize(model, ["Once upon a time."]), Settings()).shape
    (4, 1, 4)
    """
    found: list[list[np.ndarray]] = [[] for _ in range(int(model.cfg.n_layers))]

    def look(layer: int, pattern: Tensor, real: Bool[Tensor, "batch query"]) -> None:
        to_first = pattern[..., 0].double() * einops.rearrange(real, "batch query -> batch 1 query")
        total = einops.reduce(to_first, "batch head query -> batch head", "sum")
        lengths = einops.reduce(real.double(), "batch query -> batch 1", "sum")
        found[layer].append((total / lengths).cpu().numpy())

    watch(model, tokens, "attn.hook_pattern", look, settings)
    return np.stack([np.concatenate(layer) for layer in found])


def random_tokens(model: Any, *, seed: int) -> pd.DataFrame:
    """Return a token frame of 100 windows of 64 ids drawn uniformly from the vocabulary.

    Examples
    --------
    >>> from mechreg import load_model
    >>> len(random_tokens(load_model("mini-s"), seed=0))
    6400
    """
    tokenizer = getattr(model, "tokenizer", None)
    # A vocabulary padded to a round number has ids that no text has.
    size = int(model.cfg.d_vocab) if tokenizer is None else min(len(tokenizer), int(model.cfg.d_vocab))
    ids = np.random.default_rng(seed).integers(0, size, SEQUENCES * LENGTH)
    return pd.DataFrame(
        {
            "doc": np.repeat([f"random-{i}" for i in range(SEQUENCES)], LENGTH),
            "window": 0,
            "position": np.tile(np.arange(LENGTH), SEQUENCES),
            "token_id": ids,
        }
    )


def measure(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the sink rate at position 0 on random tokens and on the first 64 tokens of each text.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> found = measure(model, tokenize(model, ["Once upon a time. " * 20], n_ctx=64), Settings())
    >>> sorted(found)
    ['sink_rate_random', 'sink_rate_text', 'texts']
    """
    size = tokens.groupby(["doc", "window"], observed=True)["position"].transform("size")
    whole = tokens[(tokens["window"] == 0) & (size == LENGTH)].reset_index(drop=True)
    if whole.empty:
        raise InputError(f"sink_rate takes the first {LENGTH} tokens of each text, and no text has so many.")
    text = first_token_attention(model, whole, settings)
    drawn = first_token_attention(model, random_tokens(model, seed=settings.seed), settings)
    return {
        "sink_rate_random": float((drawn > EPSILON).mean()),
        "sink_rate_text": float((text > EPSILON).mean()),
        "texts": float(text.shape[1]),
    }


SINK_RATE = Finding(
    name="sink_rate",
    question="How many heads send much of their attention to the first token?",
    source=(
        'Gu, Pang, Du, Liu, Zhang, Du, Wang and Lin (2025), "When Attention Sink Emerges in Language Models", ICLR, '
        "arxiv.org/abs/2410.10781, equation of Sink_1 and table 1 (random tokens); code: sail-sg/Attention-Sink"
    ),
    measured=(
        "raw weights, no BOS, windows of 64 tokens; a head is a sink of a text where its attention to the first "
        "token, mean over the text's positions, is above epsilon = 0.3; share over layers, heads and 100 texts"
    ),
    models=("gpt2-xl",),
    claims=(
        Claim(
            quantity="sink_rate_random",
            models=("gpt2-xl",),
            value=0.7029,
            tolerance=0.02,
            because="other random tokens; two percent of the heads is several times what 100 draws move",
        ),
    ),
    n_ctx=LENGTH,
    measure=measure,
)
