"""Charts: frames in, Altair values out, drawn from summaries in one theme; and how they are saved.

Every ``plot_`` function returns an Altair chart with a title, a caption and a description in words. It takes a pandas
frame or the object that holds it, and these options:

hook, model : str
    Which hook point, and which model, where the frame has several.
term : str
    Whose coefficients: "lag1".
alpha : float
    The p value below which a coefficient is significant.
width : int, "column" or "page"
    Pixels of the marks of the whole figure, by default 640. "column" and "page" make figures of 3.25 and 6.75 inches,
    axes included, with text of 8 points. Two of "column" are a page wide as ``a | b`` and a column as ``a & b``; panels
    beside each other in a column are those of one chart (several models, ``by=``).
height : int
    Pixels of the marks of one panel.
title : str
    In place of the usual title.

Models are rows or panels of one figure, at most six, on the same axes; one model has its layers on the horizontal
axis, several have relative depth. ``a | b`` puts two charts side by side and gives axes of the same values one scale,
and legends that are alike one place; ``alt.hconcat(a, b)`` keeps the scales apart. What cannot be drawn is refused: a
missing column (SchemaError), several hooks, models or terms and none chosen, two rows for one mark, a wrong option
(InputError), a number that is NaN or infinite (NumericalError).
"""

from mechreg.charts.agreement import plot_agreement as plot_agreement
from mechreg.charts.autocorrelation import plot_autocorrelation as plot_autocorrelation
from mechreg.charts.betas import plot_betas as plot_betas
from mechreg.charts.cause_maps import plot_cause_maps as plot_cause_maps
from mechreg.charts.head_map import plot_head_map as plot_head_map
from mechreg.charts.heatmap import plot_heatmap as plot_heatmap
from mechreg.charts.interventions import plot_dose_response as plot_dose_response
from mechreg.charts.layer_explorer import plot_layer_explorer as plot_layer_explorer
from mechreg.charts.norms import plot_norms as plot_norms
from mechreg.charts.nulls import plot_nulls as plot_nulls
from mechreg.charts.profiles import plot_equivalence as plot_equivalence
from mechreg.charts.profiles import plot_profiles as plot_profiles
from mechreg.charts.save import save_chart as save_chart
from mechreg.charts.specifications import plot_specifications as plot_specifications
from mechreg.charts.token_agreement import plot_token_agreement as plot_token_agreement
from mechreg.charts.tokens import plot_tokens as plot_tokens
