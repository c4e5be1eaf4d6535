"""Findings: what others published of such models, measured again; published against obtained."""

from mechreg.findings.finding import Claim, Finding, Settings
from mechreg.findings.printing import described, shown
from mechreg.findings.published import FINDINGS, list_findings
from mechreg.findings.replication import replicate

__all__ = ["FINDINGS", "Claim", "Finding", "Settings", "described", "list_findings", "replicate", "shown"]
