"""Charts: frames in, Altair values out, drawn from summaries in one theme; and how they are saved."""

from mechreg.charts.betas import plot_betas
from mechreg.charts.norms import plot_norms
from mechreg.charts.save import save_chart

__all__ = ["plot_betas", "plot_norms", "save_chart"]
