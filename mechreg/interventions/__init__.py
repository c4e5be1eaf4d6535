"""Interventions: an update scaled, turned, replaced; its effect on later norms and on the next token."""

from mechreg.interventions.causes import CauseMaps, regression_vs_cause
from mechreg.interventions.edits import Ablate, Rotate, Scale, SetNorm
from mechreg.interventions.effects import intervene
from mechreg.interventions.surprise import surprise_edits

__all__ = [
    "Ablate",
    "CauseMaps",
    "Rotate",
    "Scale",
    "SetNorm",
    "intervene",
    "regression_vs_cause",
    "surprise_edits",
]
