"""The findings: what was published, where, of which models, how it was measured, and what counts as agreement."""

import pandas as pd

from mechreg.findings import measures
from mechreg.findings.finding import Claim, Finding

GPT2S = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
OPENWEBTEXT = ("datasets:Skylion007/openwebtext", "datasets:openwebtext")
# Of Hugging Face's weights on 4.5 M tokens of the validation set.
LOSSES = {"gpt2": 3.1006, "gpt2-medium": 2.8145, "gpt2-large": 2.6623, "gpt2-xl": 2.5567}

# fmt: off
_ALL = (
    Finding(
        name="lagged_norms",
        question=(
            "Does the size of the attention update to a token follow from the updates to the two tokens before it?"
        ),
        source=(
            'Mike X Cohen, "The Anatomy of the Least Squares Method, Part Four: Modeling GPT activations", The '
            "Palindrome, thepalindrome.org/p/the-anatomy-of-the-least-squares-a3d (pictures, no table of betas)"
        ),
        measured=(
            "raw Hugging Face weights, no BOS, log norm of attn_out, position 0 left out; the source has one text and "
            "takes tokens for independent, here standard errors are clustered by document"
        ),
        models=("gpt2", "gpt2-xl"),
        claims=(
            Claim("lag1_layers", ("gpt2", "gpt2-xl"), low=0.5,
                  because="'t-1 predicts' is read as: p < .05 in most layers"),
            Claim("lag2_layers", ("gpt2", "gpt2-xl"), high=0.5,
                  because="'t-2 does not' is read as: p < .05 in fewer than half of the layers"),
        ),
        measure=measures.lagged_norms,
    ),
    Finding(
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
            Claim("growth_per_block", ("gpt2-xl",), value=1.045, tolerance=0.01,
                  because="published as 'about 1.045' over other prompts"),
            Claim("growth_late_minus_early", ("gpt2", "distilgpt2"), low=0.0,
                  because="'superexponential' in the small models: later blocks grow faster"),
        ),
        measure=measures.norm_growth,
        processing="folded",
        prepend_bos=True,
    ),
    Finding(
        name="first_token_outlier",
        question="Is one dimension of the residual stream far larger at position 0 than anything elsewhere?",
        source=(
            'Sun, Chen, Kolter and Liu (2024), "Massive Activations in Large Language Models", COLM, '
            "arxiv.org/abs/2402.17762; the dimension also in Ran-Milo, Ofek and Mendel (2026), arxiv.org/abs/2604.14722"
        ),
        measured="raw weights, no BOS (the text's own first token), resid_post of every block, mean over windows",
        models=("gpt2",),
        claims=(
            Claim("dimension", ("gpt2",), value=447.0, because="it is this one or another"),
            Claim("size", ("gpt2",), value=3000.0, tolerance=500.0,
                  because="'about 3,000' is one figure, so what rounds to it agrees"),
            Claim("first_block", ("gpt2",), value=2.0, tolerance=1.0, because="'from about block 2 on'"),
        ),
        measure=measures.first_token_outlier,
    ),
    Finding(
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
            Claim("loss_change_zero", GPT2S, low=0.01,
                  because="'setting to zero harms': more than setting to the mean may change"),
            Claim("loss_change_mean", GPT2S, value=0.0, tolerance=0.01,
                  because="'setting to the mean does not': a hundredth of a nat is 1% of the perplexity"),
        ),
        measure=measures.massive_activations,
    ),
    Finding(
        name="sink_rate",
        question="How many heads send much of their attention to the first token?",
        source=(
            'Gu, Pang, Du, Liu, Zhang, Du, Wang and Lin (2025), "When Attention Sink Emerges in Language Models", '
            "ICLR, arxiv.org/abs/2410.10781, equation of Sink_1, table 1 (random tokens); code: sail-sg/Attention-Sink"
        ),
        measured=(
            "raw weights, no BOS, windows of 64 tokens; a head is a sink of a text where its attention to the first "
            "token, mean over the text's positions, is above epsilon = 0.3; share over layers, heads and 100 texts"
        ),
        models=("gpt2-xl",),
        claims=(
            Claim("sink_rate_random", ("gpt2-xl",), value=0.7029, tolerance=0.02,
                  because="other random tokens; two percent of the heads is several times what 100 draws move"),
        ),
        measure=measures.sink_rate,
        n_ctx=measures.SINK_LENGTH,
    ),
    Finding(
        name="baseline_ce",
        question="Is the next-token loss what others get of the same weights?",
        source=(
            '"Hello world!": TransformerLens, tests/acceptance/test_hooked_transformer.py (loss_store); OpenWebText: '
            '"Transformers Don\'t Need LayerNorm at Inference Time" (2025), arxiv.org/abs/2507.02559, and '
            "nanoGPT's README (3.12, 2.84, 2.67, 2.54)"
        ),
        measured=(
            "raw weights, BOS prepended; OpenWebText's values hold for documents='datasets:Skylion007/openwebtext...'"
        ),
        models=("gpt2",),
        claims=(
            Claim("loss_hello_world", ("gpt2",), value=5.331856, tolerance=4e-5,
                  because="the tolerance of that test"),
            *(Claim("loss", (name,), value=loss, tolerance=0.1, corpus=OPENWEBTEXT,
                    because="published values differ by 0.03 themselves, and here each document begins anew")
              for name, loss in LOSSES.items()),
        ),
        measure=measures.baseline_ce,
        prepend_bos=True,
    ),
    Finding(
        name="layer_drop",
        question="How much of what a model predicts survives without one of its blocks?",
        source=(
            'Lad, Lee, Gurnee and Tegmark (2024), "The Remarkable Robustness of LLMs: Stages of Inference?", '
            "arxiv.org/abs/2406.19384; code: vdlad/Remarkable-Robustness-of-LLMs"
        ),
        measured=(
            "attn_out and mlp_out of one block set to zero, BOS prepended, its position left out, top-1 against the "
            "whole model's, texts of the Pile; processing does not matter (all that follows is layer norms)"
        ),
        models=("gpt2",),
        claims=(
            Claim("kept_middle", GPT2S, low=0.72, high=0.95,
                  because="'72-95%', the range over its models and interventions"),
            *(Claim(f"kept_{end}_minus_middle", GPT2S, high=0.0,
                    because="'early and final layers cause the most degradation'")
              for end in ("first", "last")),
        ),
        measure=measures.layer_drop,
        prepend_bos=True,
    ),
)
# fmt: on
FINDINGS: dict[str, Finding] = {finding.name: finding for finding in _ALL}


def list_findings() -> pd.DataFrame:
    """Return what was published, one row a finding, quantity and model.

    Returns
    -------
    pandas.DataFrame
        finding, question, quantity, model, published (in words: "1.045 +- 0.01", "> 0.5"), because (why this
        tolerance), measured, source.

    Examples
    --------
    >>> list_findings().query("finding == 'norm_growth' and model == 'gpt2-xl'")["published"].tolist()
    ['1.045 +- 0.01']
    """
    rows = [
        (finding.name, finding.question, claim.quantity, model, str(claim), claim.because, finding.measured,
         finding.source)
        for finding in FINDINGS.values() for claim in finding.claims for model in claim.models
    ]  # fmt: skip
    columns = ["finding", "question", "quantity", "model", "published", "because", "measured", "source"]
    return pd.DataFrame(rows, columns=columns)
