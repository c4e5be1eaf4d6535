"""One view of a model's layers, linked: choose a layer, and see its regression, its norms and a document."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from mechreg.charts.layer_panels import layer_choice, profile_panel, text_panel, token_panels
from mechreg.charts.layout import Width, sheet
from mechreg.charts.rows import frame_of, one_name, one_value, require_one_row, rows_of_hook
from mechreg.charts.scales import OwnData
from mechreg.charts.tokens import CELL, token_cells
from mechreg.schema import TOKEN_KEYS, InputError, NumericalError
from mechreg.words import count

_NUMBERS = ("estimate", "conf_low", "conf_high")
SCATTER_BINS, HISTOGRAM_BINS = 28, 40
MAX_TOKENS = 240  # of the document; all layers' values of each are in the chart


def plot_layer_explorer(
    lagged: Any,
    coefficients: Any,
    *,
    term: str = "lag1",
    hook: str | None = None,
    model: str | None = None,
    doc: str | None = None,
    layer: int | None = None,
    width: Width | None = None,
    height: int | None = None,
    title: str | None = None,
) -> ChartType:
    """Return a linked view of one model: choose a layer by slider or click, and all of its panels follow.

    Above, the profile of the coefficients with the chosen layer lit up; below it the layer's tokens as a histogram, and
    as a binned density of log norm against the lag with the fit's line; and one document as text, each token coloured
    by its log norm or its residual. Where the fit's other terms are columns, the density is of what those leave of both
    (an added-variable plot), which its line fits. Only counts go into the chart.

    Parameters
    ----------
    lagged : pandas.DataFrame
        model, hook, layer, doc, window, position, log_norm, and the lag; with ``token`` the document is shown too, and
        with ``residual`` (``fits.augment``) its residuals. Without that column residuals are computed from the
        coefficients where all terms but the intercept are columns.
    coefficients : pandas.DataFrame, or fits
        What `fit_lagged` gives, or its coefficients, of the same model and hook.
    term : str
        The lag on the horizontal axis.
    doc : str, optional
        By default the first document. Its first 240 tokens are shown.
    layer : int, optional
        Which layer is chosen at first; by default the one with the largest coefficient.
    model, hook, width, height, title
        As in every chart: see `mechreg.charts`. The height is that of the profile.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> lagged = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": np.repeat([0, 1], 50), "doc": "d",
    ...                        "window": 0, "position": np.tile(range(50), 2), "log_norm": rng.normal(size=100),
    ...                        "lag1": rng.normal(size=100)})
    >>> betas = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": [0, 1], "depth": [0.25, 0.75], "term": "lag1",
    ...     "estimate": [0.1, 0.2], "conf_low": 0.0, "conf_high": 0.3})
    >>> plot_layer_explorer(lagged, betas).to_dict()["title"]["text"]
    'Layers of m: log norm of attn_out against lag1'
    """
    who, page = "plot_layer_explorer", sheet(width, height, title)
    term = one_name(term, name="term")
    rows, betas, model, hook = _rows_and_betas(lagged, coefficients, term, model, hook, who=who)
    shown_doc = str(rows["doc"].iloc[0]) if doc is None else one_name(doc, name="doc")
    others = [name for name in betas["term"].unique() if name not in ("Intercept", term)]
    added = all(name in rows for name in others)
    views = [
        {"model": model, "hook": hook} | _layer_view(part, betas, term, others if added else [])
        for _, part in rows.groupby("layer", observed=True)
    ]
    layers = [view["layer"] for view in views]
    at = betas[betas["term"] == term].set_index("layer")["estimate"]
    largest = layers[int(at.reindex(layers).abs().to_numpy().argmax())]
    first = largest if layer is None else one_value(rows, "layer", layer, who=who)[1]
    pick = layer_choice(layers, first)
    given = (
        f" given {' and '.join(others) if len(others) <= 2 else 'other terms'}" if added and others else ""
    )
    panels = [profile_panel(betas, term, layers, pick, page), token_panels(term, given, pick, page)]
    panels[1].data = OwnData(name="layers", rows=(views,))
    captions, parameters = [_caption(rows, given or not others)], []
    if "token" in rows:
        places, whole = _add_document(views, rows, shown_doc, int(page.width / CELL))
        panel, shade = text_panel(views, places, "residual" in rows, pick, page)
        panels.append(panel)
        parameters.append(shade)
        captions.append(
            f"Text: {'' if whole else 'the first '}{count(len(places), 'token')} of {shown_doc}, by the deviation of "
            "the log norm from the layer's median or from the fit."
        )
    words = _words(at, f"{count(len(layers), 'layer')} of {model}, {hook}", term, first, largest)
    chart = alt.vconcat(*panels, spacing=26).add_params(*parameters).resolve_scale(color="independent")
    return page.finished(chart, f"Layers of {model}: log norm of {hook} against {term}", captions, [words])


def _caption(rows: pd.DataFrame, is_fit: Any) -> str:
    tokens = count(len(rows) // rows["layer"].nunique(), "token")
    docs = count(rows["doc"].nunique(), "document")
    line = "the fit's" if is_fit else "its beta, other terms at their means"
    how = "Click a layer, or use the slider."
    return f"{tokens} a layer, {docs}. Counts: tokens of the layer's middle 99.8%. Line: {line}. {how}"


def _words(at: pd.Series, what: str, term: str, first: int, largest: int) -> str:
    """Return the view in words, of the coefficients by layer."""
    return (
        f"A linked view of {what}. The coefficient of {term} goes from {at.min():.3f} (layer {at.idxmin()}) to "
        f"{at.max():.3f} (layer {at.idxmax()}); layer {first} is chosen at first, and the largest in size is that "
        f"of layer {largest}, {at[largest]:.3f}. The slider below chooses another, by the arrow keys too."
    )


def _rows_and_betas(
    lagged: Any, coefficients: Any, term: str, model: str | None, hook: str | None, *, who: str
) -> tuple[pd.DataFrame, pd.DataFrame, str, str]:
    """Return one model's and hook's rows, with residuals where they can be computed, and its coefficients."""
    needed = ("model", "hook", "layer", *TOKEN_KEYS, "log_norm", term)
    lagged = frame_of(lagged, "lagged", needed, who=who)
    needed = ("model", "hook", "layer", "depth", "term", *_NUMBERS)
    coefficients = frame_of(coefficients, "coefficients", needed, who=who)
    rows, model = one_value(lagged, "model", model, who=who)
    rows, hook = rows_of_hook(rows.assign(depth=0.5), hook, who=who)
    if "head" in rows and rows["head"].nunique() > 1:
        raise InputError(f"{who} shows one head; choose it first: frame[frame['head'] == 0].")
    betas = coefficients[(coefficients["model"] == model) & (coefficients["hook"] == hook)]
    of_term = betas[betas["term"] == term]
    require_one_row(of_term, ("layer", "term"), _NUMBERS, who=who)
    without = sorted(set(rows["layer"]) - set(of_term["layer"]))
    if without:
        raise InputError(
            f"{who} needs a coefficient of {term!r} for every layer; layer {without[0]} has none."
        )
    return rows if "residual" in rows else _with_residuals(rows, betas), betas, str(model), hook


def _with_residuals(rows: pd.DataFrame, betas: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with residuals of the fit, where its terms are columns; else as they are."""
    terms = [term for term in betas["term"].unique() if term != "Intercept"]
    if "Intercept" not in set(betas["term"]) or any(term not in rows for term in terms):
        return rows
    by_layer = betas.pivot(index="layer", columns="term", values="estimate").reindex(rows["layer"])
    predicted = by_layer["Intercept"].to_numpy() + sum(
        by_layer[term].to_numpy() * rows[term].to_numpy(dtype="float64") for term in terms
    )
    return rows.assign(residual=rows["log_norm"].to_numpy(dtype="float64") - predicted)


def _layer_view(part: pd.DataFrame, betas: pd.DataFrame, term: str, others: list[str]) -> dict[str, Any]:
    """Return what is shown of one layer as counts: cells of the density, bars of the histogram, the line."""
    layer = int(part["layer"].iloc[0])
    numbers = part[["log_norm", term, *others]].to_numpy(dtype="float64", na_value=np.nan)
    numbers = numbers[np.isfinite(numbers).all(axis=1)]
    if not len(numbers):
        raise NumericalError(
            f"plot_layer_explorer needs tokens with a log norm and {term} in layer {layer}; none has both."
        )
    y = numbers[:, 0]
    low, high, edges = _ends(y, HISTOGRAM_BINS)
    beta = float(betas[(betas["term"] == term) & (betas["layer"] == layer)]["estimate"].iloc[0])
    # What the other terms leave of the outcome and of the lag (Frisch and Waugh, 1933), around their means.
    rest = np.column_stack([np.ones(len(y)), numbers[:, 2:]])
    explained = rest @ np.linalg.lstsq(rest, numbers[:, :2], rcond=None)[0]
    left = numbers[:, :2] - explained + numbers[:, :2].mean(axis=0)
    x_low, x_high, x_edges = _ends(left[:, 1], SCATTER_BINS)
    y_low, y_high, y_edges = _ends(left[:, 0], SCATTER_BINS)
    cells = np.histogram2d(left[:, 1], left[:, 0], [x_edges, y_edges])[0].astype(int)
    at_x, at_y = np.nonzero(cells)
    middle_y, middle_x = left.mean(axis=0)
    ends = {"low": low, "high": high, "x_low": x_low, "x_high": x_high, "y_low": y_low, "y_high": y_high}
    line = {f"line_{end}": middle_y + beta * (ends[f"x_{end}"] - middle_x) for end in ("low", "high")}
    rounded = ends | line | {"beta": beta, "median": np.median(y)}
    return {
        "layer": layer,
        **{name: round(float(value), 4) for name, value in rounded.items()},
        "cell_x": round((x_high - x_low) / SCATTER_BINS, 6),
        "cell_y": round((y_high - y_low) / SCATTER_BINS, 6),
        "bar": round((high - low) / HISTOGRAM_BINS, 6),
        "at_x": at_x.tolist(),
        "at_y": at_y.tolist(),
        "tokens": cells[at_x, at_y].tolist(),
        "bars": np.histogram(y, edges)[0].tolist(),
        "at_bar": list(range(HISTOGRAM_BINS)),
        "n": len(y),
    }


def _ends(values: np.ndarray, bins: int) -> tuple[float, float, np.ndarray]:
    """Return the ends of the middle 99.8% of values with some room, and the edges of bins between."""
    low, high = np.quantile(values, [0.001, 0.999])
    room = 0.02 * (high - low) or 0.5
    return float(low - room), float(high + room), np.linspace(low - room, high + room, bins + 1)


def _add_document(
    views: list[dict[str, Any]], rows: pd.DataFrame, doc: str, columns: int
) -> tuple[list[dict[str, Any]], bool]:
    """Add every layer's log norms and residuals of a document; return its tokens' places, and whether those are all."""
    own = rows[rows["doc"].astype(str) == doc]
    if own.empty:
        raise InputError(
            f"plot_layer_explorer has no document {doc!r}; it has {rows['doc'].nunique()} others."
        )
    parts = dict(list(own.sort_values(["window", "position"]).groupby("layer", observed=True)))
    one = parts[views[0]["layer"]]
    whole, one = len(one) <= MAX_TOKENS, one.head(MAX_TOKENS)
    if one["token"].isna().any():
        raise InputError(
            "plot_layer_explorer needs the string of every token of the document; some are missing."
        )
    tokens = one[["window", "position"]].to_numpy()
    for view in views:
        part = parts.get(view["layer"], one.head(0)).head(MAX_TOKENS)
        if not np.array_equal(part[["window", "position"]].to_numpy(), tokens):
            raise InputError(
                f"plot_layer_explorer needs the same tokens in all layers; layer {view['layer']} of {doc!r} has others."
            )
        residual = part["residual"] if "residual" in part else np.full(len(part), np.nan)
        view |= {"norm": _rounded(part["log_norm"] - view["median"]), "residual": _rounded(residual)}
    places = token_cells(one["token"].tolist(), starts=one["position"].eq(0).tolist(), columns=columns)
    places = places.assign(at=range(1, len(one) + 1), position=one["position"].to_numpy())
    return [{str(key): value for key, value in row.items()} for row in places.to_dict("records")], whole


def _rounded(values: pd.Series | np.ndarray) -> list[float | None]:
    return [round(float(value), 3) if np.isfinite(value) else None for value in values]
