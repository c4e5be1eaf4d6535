"""One dimension of the residual stream is enormous at position 0, and only there."""

from typing import Any

import numpy as np
import pandas as pd

from mechreg.findings.finding import Claim, Finding, Settings
from mechreg.findings.first_position import emerges, first_position


def measure(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the largest dimension at position 0, its size, where it emerges, and its size at other positions.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> list(measure(model, tokenize(model, ["Once upon a time."]), Settings()))
    ['dimension', 'size', 'first_block', 'size_elsewhere']
    """
    found = first_position(model, tokens, settings)
    sizes = np.abs(found.mean[:, found.dimension])
    return {
        "dimension": float(found.dimension),
        "size": float(sizes.max()),
        "first_block": float(emerges(sizes)),
        "size_elsewhere": float(found.elsewhere[:, found.dimension].max()),
    }


FIRST_TOKEN_OUTLIER = Finding(
    name="first_token_outlier",
    question="Is one dimension of the residual stream far larger at position 0 than anything elsewhere?",
    source=(
        'Sun, Chen, Kolter and Liu (2024), "Massive Activations in Large Language Models", COLM, '
        "arxiv.org/abs/2402.17762; the dimension also in Ran-Milo, Ofek and Mendel (2026), arxiv.org/abs/2604.14722"
    ),
    measured="raw weights, no BOS (the text's own first token), resid_post of every block, mean over windows",
    models=("gpt2",),
    claims=(
        Claim(
            quantity="dimension",
            models=("gpt2",),
            value=447.0,
            tolerance=0.0,
            because="it is this one or another",
        ),
        Claim(
            quantity="size",
            models=("gpt2",),
            value=3000.0,
            tolerance=500.0,
            because="'about 3,000' is one figure, so what rounds to it agrees",
        ),
        Claim(
            quantity="first_block",
            models=("gpt2",),
            value=2.0,
            tolerance=1.0,
            because="'from about block 2 on'",
        ),
    ),
    measure=measure,
)
