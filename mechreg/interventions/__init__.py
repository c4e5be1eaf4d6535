"""Interventions: an update is scaled, turned or replaced, and its effects downstream are measured."""

from mechreg.interventions.edits import Ablate, Patch, Project, Rotate, Scale
from mechreg.interventions.effects import intervene
from mechreg.interventions.patch_map import patch_map
from mechreg.interventions.regression_vs_cause import CauseMaps, regression_vs_cause
from mechreg.interventions.set_norm import SetNorm, surprise_edits

__all__ = [
    "Ablate",
    "CauseMaps",
    "Patch",
    "Project",
    "Rotate",
    "Scale",
    "SetNorm",
    "intervene",
    "patch_map",
    "regression_vs_cause",
    "surprise_edits",
]
