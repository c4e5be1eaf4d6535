"""The gallery: all findings by name, and the table of them."""

import pandas as pd

from mechreg.findings.baseline_ce import BASELINE_CE
from mechreg.findings.finding import Finding
from mechreg.findings.first_token_outlier import FIRST_TOKEN_OUTLIER
from mechreg.findings.lagged_norms import LAGGED_NORMS
from mechreg.findings.layer_drop import LAYER_DROP
from mechreg.findings.massive_activations import MASSIVE_ACTIVATIONS
from mechreg.findings.norm_growth import NORM_GROWTH
from mechreg.findings.sink_rate import SINK_RATE

FINDINGS: dict[str, Finding] = {
    finding.name: finding
    for finding in (
        LAGGED_NORMS,
        NORM_GROWTH,
        FIRST_TOKEN_OUTLIER,
        MASSIVE_ACTIVATIONS,
        SINK_RATE,
        BASELINE_CE,
        LAYER_DROP,
    )
}


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
    return pd.DataFrame(
        [
            {
                "finding": finding.name,
                "question": finding.question,
                "quantity": claim.quantity,
                "model": model,
                "published": str(claim),
                "because": claim.because,
                "measured": finding.measured,
                "source": finding.source,
            }
            for finding in FINDINGS.values()
            for claim in finding.claims
            for model in claim.models
        ]
    )
