"""Findings: what others published of such models, measured again; published against obtained."""

from mechreg.findings.finding import Claim as Claim
from mechreg.findings.finding import Finding as Finding
from mechreg.findings.finding import Settings as Settings
from mechreg.findings.printing import described as described
from mechreg.findings.printing import shown as shown
from mechreg.findings.published import FINDINGS as FINDINGS
from mechreg.findings.published import list_findings as list_findings
from mechreg.findings.replication import replicate as replicate
