"""Interventions: an update is scaled, turned or replaced, and its effects downstream are measured."""

from mechreg.interventions.edits import Ablate as Ablate
from mechreg.interventions.edits import Patch as Patch
from mechreg.interventions.edits import Project as Project
from mechreg.interventions.edits import Rotate as Rotate
from mechreg.interventions.edits import Scale as Scale
from mechreg.interventions.effects import intervene as intervene
from mechreg.interventions.patch_map import patch_map as patch_map
from mechreg.interventions.regression_vs_cause import CauseMaps as CauseMaps
from mechreg.interventions.regression_vs_cause import regression_vs_cause as regression_vs_cause
from mechreg.interventions.set_norm import SetNorm as SetNorm
from mechreg.interventions.set_norm import surprise_edits as surprise_edits
