"""Charts: frames in, Altair values out, drawn from summaries in one theme; and how they are saved."""

from mechreg.charts.autocorrelation import plot_autocorrelation
from mechreg.charts.betas import plot_betas
from mechreg.charts.cause_maps import plot_cause_maps
from mechreg.charts.equivalence import plot_equivalence
from mechreg.charts.interventions import plot_dose_response
from mechreg.charts.layer_explorer import plot_layer_explorer
from mechreg.charts.norms import plot_norms
from mechreg.charts.nulls import plot_nulls
from mechreg.charts.save import save_chart
from mechreg.charts.specifications import plot_specifications
from mechreg.charts.tokens import plot_tokens
from mechreg.charts.universality import plot_agreement, plot_profiles

__all__ = [
    "plot_agreement",
    "plot_autocorrelation",
    "plot_betas",
    "plot_cause_maps",
    "plot_dose_response",
    "plot_equivalence",
    "plot_layer_explorer",
    "plot_norms",
    "plot_nulls",
    "plot_profiles",
    "plot_specifications",
    "plot_tokens",
    "save_chart",
]
