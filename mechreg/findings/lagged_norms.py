"""The seed: is the attention update to a token predicted by the update before it, and by the one before that?"""

from typing import Any

import pandas as pd

from mechreg.findings.finding import Claim, Finding, Settings
from mechreg.lags import add_lags
from mechreg.norms import extract_norms
from mechreg.regression import fit_lagged

ALPHA = 0.05


def measure(model: Any, tokens: pd.DataFrame, settings: Settings) -> dict[str, float]:
    """Return the share of layers in which each lag differs from zero (p < .05), and the median betas.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> texts = ["The cat sat on the mat and looked at the moon.", "It rained all day and all night long."]
    >>> found = measure(model, tokenize(model, texts), Settings())
    >>> sorted(found)
    ['lag1_layers', 'lag1_median_beta', 'lag2_layers', 'lag2_median_beta']
    """
    norms = extract_norms(model, tokens, hooks=("attn_out",), progress=settings.progress)
    lagged = add_lags(norms, lags=(1, 2), skip=1)
    table = fit_lagged(lagged, "log_norm ~ lag1 + lag2").coefficients
    found = {}
    for term in ("lag1", "lag2"):
        rows = table[table["term"] == term]
        found[f"{term}_layers"] = float((rows["p_value"] < ALPHA).mean())
        found[f"{term}_median_beta"] = float(rows["estimate"].median())
    return found


MODELS = ("gpt2", "gpt2-xl")
LAGGED_NORMS = Finding(
    name="lagged_norms",
    question="Does the size of the attention update to a token follow from the updates to the two tokens before it?",
    source=(
        'Mike X Cohen, "The Anatomy of the Least Squares Method, Part Four: Modeling GPT activations", The '
        "Palindrome, thepalindrome.org/p/the-anatomy-of-the-least-squares-a3d (pictures, no table of betas)"
    ),
    measured=(
        "raw Hugging Face weights, no BOS, log norm of attn_out, position 0 left out; the source has one text and "
        "takes tokens for independent, here standard errors are clustered by document"
    ),
    models=MODELS,
    claims=(
        Claim(
            quantity="lag1_layers",
            models=MODELS,
            low=0.5,
            because="'t-1 predicts' is read as: p < .05 in most layers",
        ),
        Claim(
            quantity="lag2_layers",
            models=MODELS,
            high=0.5,
            because="'t-2 does not' is read as: p < .05 in fewer than half of the layers",
        ),
    ),
    measure=measure,
)
