"""Findings as a person reads them at a terminal."""

import textwrap

import pandas as pd

from mechreg.findings.finding import Claim, Finding, claimed


def described(finding: Finding) -> str:
    """Return a finding's name, question, what was published, how it was measured, and where.

    Examples
    --------
    >>> from mechreg.findings import FINDINGS
    >>> described(FINDINGS["norm_growth"]).splitlines()[0]
    'norm_growth: Does the norm of the residual stream grow by the same factor in every block?'
    """
    lines = [f"{finding.name}: {finding.question}"]
    for claim in finding.claims:
        lines += _wrapped("published", _said(claim))
    lines += _wrapped("measured", finding.measured)
    lines += _wrapped("source", finding.source)
    return "\n".join(lines)


def shown(table: pd.DataFrame) -> str:
    """Return the table of `replicate` as text.

    Examples
    --------
    >>> row = {"finding": "f", "model": "m", "quantity": "q", "published": 2.0, "tolerance": 1.0, "low": 1.0,
    ...        "high": 3.0, "obtained": 2.5, "agrees": True}
    >>> print(shown(pd.DataFrame([row]).astype({"agrees": "boolean"})))
    model quantity published obtained agrees
        m        q   2 +- 1      2.5    yes
    """
    words = table["agrees"].map({True: "yes", False: "NO"}).astype("object")
    return pd.DataFrame(
        {
            "model": table["model"],
            "quantity": table["quantity"],
            "published": [
                claimed(*numbers)
                for numbers in table[["published", "tolerance", "low", "high"]].itertuples(index=False)
            ],
            "obtained": [f"{number:.6g}" for number in table["obtained"]],
            "agrees": words.where(table["agrees"].notna(), "-"),
        }
    ).to_string(index=False)


def _said(claim: Claim) -> str:
    where = f", on {claim.corpus[0]}" if claim.corpus else ""
    return f"{claim.quantity} {claim} in {', '.join(claim.models)}{where} ({claim.because})"


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"  {label + ':':<11}{text}", width=110, subsequent_indent=" " * 13, break_on_hyphens=False
    )
