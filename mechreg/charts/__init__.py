"""Charts: frames in, Altair values out, drawn from summaries in one theme; and how they are saved."""

from mechreg.charts.betas import plot_betas
from mechreg.charts.norms import plot_norms
from mechreg.charts.nulls import plot_nulls
from mechreg.charts.save import save_chart
from mechreg.charts.specifications import plot_specifications

__all__ = ["plot_betas", "plot_norms", "plot_nulls", "plot_specifications", "save_chart"]
