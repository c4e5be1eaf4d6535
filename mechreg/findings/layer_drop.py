"""Leave out one block: how many of the likeliest next tokens stay the same."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechreg.findings.finding import Claim, Finding, Settings
from mechreg.findings.forward import batches_of
from mechreg.forward import Act, Forward, Head, chunks
from mechreg.schema import InputError

PARTS = ("attn_out", "mlp_out")


def top1_kept(model: Any, tokens: pd.DataFrame, settings: Settings) -> Float[np.ndarray, " layer"]:
    """Return, for every block left out, the share of tokens whose likeliest next token is the whole model's.

    A block is left out by setting both of its updates to zero. Position 0, the BOS, does not count.

    Raises
    ------
    InputError
        No window has two tokens.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> top1_kept(model, tokenize(model, ["Once upon a time."], prepend_bos=True), Settings()).shape
    (4,)
    """
    same, n, head = np.zeros(int(model.cfg.n_layers)), 0, Head(model)
    for ids, real in batches_of(model, tokens, settings):
        counted = real.clone()
        counted[:, 0] = False
        clean = _likeliest(head, ids, counted, [])
        n += len(clean)
        for layer in range(len(same)):
            acts: list[tuple[str, Act]] = [
                (f"blocks.{layer}.hook_{part}", torch.zeros_like) for part in ("attn_out", "mlp_out")
            ]
            same[layer] += int((_likeliest(head, ids, counted, acts) == clean).sum())
    if not n:
        raise InputError("layer_drop leaves out position 0, and no window has another; give more text.")
    return same / n


def measure(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the share kept without a middle block (mean), and how far below it the first and the last are.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> list(measure(model, tokenize(model, ["Once upon a time."], prepend_bos=True), Settings()))
    ['kept_middle', 'kept_first_minus_middle', 'kept_last_minus_middle']
    """
    if model.cfg.n_layers < 3:
        raise InputError(
            f"layer_drop needs a model of at least three blocks; this one has {model.cfg.n_layers}."
        )
    kept = top1_kept(model, tokens, settings)
    middle = float(kept[1:-1].mean())
    return {
        "kept_middle": middle,
        "kept_first_minus_middle": float(kept[0]) - middle,
        "kept_last_minus_middle": float(kept[-1]) - middle,
    }


def _likeliest(
    head: Head, ids: Int[Tensor, "batch pos"], at: Bool[Tensor, "batch pos"], acts: list[tuple[str, Act]]
) -> Int[Tensor, " tokens"]:
    with Forward(head.model, acts, end=head.end) as run:
        found = [logits.argmax(dim=1) for logits, _ in chunks(head, run(ids), at)]
    return torch.cat([torch.zeros(0, dtype=torch.int64, device=ids.device), *found])


MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
LAYER_DROP = Finding(
    name="layer_drop",
    question="How much of what a model predicts survives without one of its blocks?",
    source=(
        'Lad, Lee, Gurnee and Tegmark (2024), "The Remarkable Robustness of LLMs: Stages of Inference?", '
        "arxiv.org/abs/2406.19384; code: vdlad/Remarkable-Robustness-of-LLMs"
    ),
    measured=(
        "attn_out and mlp_out of one block set to zero, BOS prepended, its position left out, top-1 against the whole "
        "model's, texts of the Pile; processing does not matter (all that follows is layer norms)"
    ),
    models=("gpt2",),
    claims=(
        Claim(
            quantity="kept_middle",
            models=MODELS,
            low=0.72,
            high=0.95,
            because="'72-95%', the range over its models and interventions",
        ),
        *(
            Claim(
                quantity=f"kept_{end}_minus_middle",
                models=MODELS,
                high=0.0,
                because="'early and final layers cause the most degradation'",
            )
            for end in ("first", "last")
        ),
    ),
    prepend_bos=True,
    measure=measure,
)
