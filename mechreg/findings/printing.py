"""Findings as a person reads them at a terminal."""

import textwrap

import pandas as pd

from mechreg.findings.finding import Finding, claimed


def described(finding: Finding) -> str:
    """Return a finding's name, question, what was published, how it was measured, and where."""
    parts = []
    for claim in finding.claims:
        where = f", on {claim.corpus[0]}" if claim.corpus else ""
        said = f"{claim.quantity} {claim} in {', '.join(claim.models)}{where} ({claim.because})"
        parts.append(("published", said))
    lines = [f"{finding.name}: {finding.question}"]
    for label, text in [*parts, ("measured", finding.measured), ("source", finding.source)]:
        lines += textwrap.wrap(
            f"  {label + ':':<11}{text}", width=110, subsequent_indent=" " * 13, break_on_hyphens=False
        )
    return "\n".join(lines)


def shown(table: pd.DataFrame) -> str:
    """Return the table of `replicate` as text."""
    numbers = table[["published", "tolerance", "low", "high"]].itertuples(index=False)
    words = table["agrees"].map({True: "yes", False: "NO"}).astype("object")
    return (
        table[["model", "quantity"]]
        .assign(
            published=[claimed(*row) for row in numbers],
            obtained=table["obtained"].map("{:.6g}".format),
            agrees=words.where(table["agrees"].notna(), "-"),
        )
        .to_string(index=False)
    )
