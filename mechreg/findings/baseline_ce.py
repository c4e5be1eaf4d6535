"""The plain next-token loss, which is wrong first when anything about a model is."""

from typing import Any

import pandas as pd

from mechreg.corpus import tokenize
from mechreg.findings.finding import Claim, Finding, Settings
from mechreg.findings.forward import mean_loss

TEXT = "Hello world!"


def measure(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the cross-entropy in nats a token of "Hello world!" and of the documents, BOS prepended.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> sorted(measure(model, tokenize(model, ["Once upon a time."], prepend_bos=True), Settings()))
    ['loss', 'loss_hello_world']
    """
    hello = tokenize(model, [TEXT], prepend_bos=True)
    return {
        "loss_hello_world": mean_loss(model, hello, {}, settings),
        "loss": mean_loss(model, tokens, {}, settings),
    }


OPENWEBTEXT = ("datasets:Skylion007/openwebtext", "datasets:openwebtext")
# Of Hugging Face's weights on 4.5 M tokens of the validation set.
LOSSES = {"gpt2": 3.1006, "gpt2-medium": 2.8145, "gpt2-large": 2.6623, "gpt2-xl": 2.5567}
BASELINE_CE = Finding(
    name="baseline_ce",
    question="Is the next-token loss what others get of the same weights?",
    source=(
        '"Hello world!": TransformerLens, tests/acceptance/test_hooked_transformer.py (loss_store); OpenWebText: '
        '"Transformers Don\'t Need LayerNorm at Inference Time" (2025), arxiv.org/abs/2507.02559, and '
        "nanoGPT's README (3.12, 2.84, 2.67, 2.54)"
    ),
    measured="raw weights, BOS prepended; OpenWebText's values hold for documents='datasets:Skylion007/openwebtext...'",
    models=("gpt2",),
    claims=(
        Claim(
            quantity="loss_hello_world",
            models=("gpt2",),
            value=5.331856,
            tolerance=4e-5,
            because="the tolerance of that test",
        ),
        *(
            Claim(
                quantity="loss",
                models=(name,),
                value=value,
                tolerance=0.1,
                because="published values differ by 0.03 themselves, and here each document begins anew",
                corpus=OPENWEBTEXT,
            )
            for name, value in LOSSES.items()
        ),
    ),
    prepend_bos=True,
    measure=measure,
)
