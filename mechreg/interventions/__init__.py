"""Interventions: an update is scaled, turned or replaced, and its effect on later norms and the next token measured."""

from mechreg.interventions.edits import Ablate, Rotate, Scale, SetNorm
from mechreg.interventions.effects import intervene
from mechreg.interventions.regression_vs_cause import CauseMaps, regression_vs_cause
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
