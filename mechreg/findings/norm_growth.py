"""By how much the norm of the residual stream grows from block to block."""

from typing import Any

import numpy as np
import pandas as pd

from mechreg.findings.finding import Claim, Finding, Settings
from mechreg.norms import window_norms
from mechreg.schema import InputError


def blocks_of(n_layers: int) -> tuple[int, int]:
    """Return the first and last block of the growth: 5 and 41 of gpt2-xl's 48, elsewhere the same relative depth.

    Raises
    ------
    InputError
        Fewer than three blocks.

    Examples
    --------
    >>> blocks_of(48), blocks_of(12), blocks_of(4)
    ((5, 41), (1, 10), (1, 3))
    """
    first = max(1, round(n_layers * 5 / 48))
    last = min(n_layers - 1, round(n_layers * 41 / 48))
    if last < first + 1:
        raise InputError(f"norm_growth needs a model of at least three blocks; this one has {n_layers}.")
    return first, last


def measure(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the growth factor of the mean norm a block, and by how much the later half's is above the earlier's.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s", processing="folded")
    >>> sorted(measure(model, tokenize(model, ["Once upon a time."], prepend_bos=True), Settings()))
    ['growth_late_minus_early', 'growth_per_block']
    """
    first, last = blocks_of(int(model.cfg.n_layers))
    later = tokens["position"].to_numpy() > 0
    if not later.any():
        raise InputError("norm_growth leaves out position 0, and no window has another; give more text.")
    norms = window_norms(
        model,
        tokens,
        hooks=("resid_pre",),
        batch_tokens=settings.batch_tokens,
        progress=settings.progress,
    )["resid_pre"]
    log_mean = np.log(norms[:, later].astype("float64").mean(axis=1))
    middle = (first + last) // 2

    def growth(start: int, end: int) -> float:
        return float(np.exp((log_mean[end] - log_mean[start]) / (end - start)))

    found = {"growth_per_block": growth(first, last)}
    if middle > first:  # a model of three blocks has no halves
        found["growth_late_minus_early"] = growth(middle, last) - growth(first, middle)
    return found


NORM_GROWTH = Finding(
    name="norm_growth",
    question="Does the norm of the residual stream grow by the same factor in every block?",
    source=(
        'Heimersheim and Turner (2023), "Residual stream norms grow exponentially over the forward pass", '
        "lesswrong.com/posts/8mizBCm3dyc432nK8"
    ),
    measured=(
        "processed weights (zero mean), BOS prepended, position 0 left out, mean norm over dozens of prompts, "
        "blocks 5 to 41 of gpt2-xl; elsewhere the same relative depth"
    ),
    models=("gpt2-xl", "gpt2"),
    claims=(
        Claim(
            quantity="growth_per_block",
            models=("gpt2-xl",),
            value=1.045,
            tolerance=0.01,
            because="published as 'about 1.045' over other prompts",
        ),
        Claim(
            quantity="growth_late_minus_early",
            models=("gpt2", "distilgpt2"),
            low=0.0,
            because="'superexponential' in the small models: later blocks grow faster",
        ),
    ),
    processing="folded",
    prepend_bos=True,
    measure=measure,
)
