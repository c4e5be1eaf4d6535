"""Regression against cause: a layer's norm as a predictor of the next token's norms, and the effect of moving it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import einops
import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mechreg.forward import Batch, Window, padded_batches, token_bar, token_windows
from mechreg.interventions.cause_agreement import agreement
from mechreg.interventions.document_means import DocumentMeans
from mechreg.interventions.pairs import jackknife_errors, pair_coefficients, pair_moments
from mechreg.interventions.passes import Edited, Passes, Site
from mechreg.interventions.seeding import generator
from mechreg.models import WHOLE_HOOKS, Model, load_model
from mechreg.norms import BATCH_TOKENS, token_frame, window_norms
from mechreg.outside import any_frames, for_page
from mechreg.regression.results import t_columns
from mechreg.schema import (
    InputError,
    NumericalError,
    require_names,
    require_number,
    require_option,
    require_shared,
    require_whole_number,
)
from mechreg.words import token_place

ENDS = {"": "estimate", "_std_error": "std_error", "_low": "conf_low", "_high": "conf_high"}
PAIR_COLUMNS = [
    "model",
    "hook",
    "layer",
    "later_layer",
    "n_layers",
    *(f"coefficient{end}" for end in ENDS),
    "n",
]
PAIR_COLUMNS += [*(f"effect{end}" for end in ENDS), "n_edits", "n_docs"]


@dataclass(frozen=True)
class CauseMaps:
    """Regression and cause for every pair of layers: ``pairs``, and how far they agree: ``agreement``.

    Attributes
    ----------
    pairs : pandas.DataFrame
        One row a pair: model, hook, layer (k, at t-1), later_layer (l, at t), n_layers; coefficient with
        coefficient_std_error, coefficient_low, coefficient_high, n (tokens); effect with effect_std_error,
        effect_low, effect_high, n_edits; n_docs.
    agreement : pandas.DataFrame
        One row: model, hook, own_lag, effects, step, n_pairs (with l > k), spearman between coefficient and effect,
        conf_low, conf_high (percentiles over documents drawn with replacement), draws (those in which all coefficients
        are determined), coefficient_reliability and effect_reliability (rank correlations of maps from two halves of
        the documents, brought to all of them), detectable (the smallest true correlation that so many pairs, if they
        were independent, would show at this level in 80% of cases), verdict, n_docs.
    """

    pairs: pd.DataFrame
    agreement: pd.DataFrame

    def __repr__(self) -> str:
        models = ", ".join(dict.fromkeys(self.pairs["model"]))
        return f"CauseMaps({models}: {len(self.pairs)} pairs of layers)"

    def _repr_html_(self) -> str:
        shown = self.agreement.to_html(index=False, border=0, float_format="{:.3g}".format)
        columns = ["layer", "later_layer", "coefficient", "coefficient_low", "coefficient_high"]
        columns += ["effect", "effect_low", "effect_high"]
        pairs = self.pairs[columns].to_html(max_rows=12, index=False, border=0, float_format="{:.3g}".format)
        return f"<p><code>{for_page(repr(self))}</code></p>{shown}{pairs}"


@any_frames
def regression_vs_cause(
    model: Any,
    documents: Any,
    *,
    hook: str = "attn_out",
    effects: str | Sequence[str] = ("doc", "position"),
    own_lag: bool = True,
    step: float = 0.01,
    per_window: int = 8,
    skip: int = 1,
    batch_tokens: int = BATCH_TOKENS,
    conf_level: float = 0.95,
    draws: int = 999,
    seed: int = 0,
    progress: bool = True,
) -> CauseMaps:
    """Return, for every pair of layers, the cross-layer lag coefficient beside the measured effect of scaling.

    The coefficient is the least-squares slope of log_norm of layer l at t on log_norm of layer k at t-1, less what
    levels of documents and positions explain of both; every document counts the same, as in the effect. The effect
    is the elasticity of that norm: the vector of layer k at t-1 alone is scaled by exp(step) and by exp(-step), and
    the difference of log_norm of layer l at t is divided by 2 step. Where l <= k the effect is 0 to the bit: attention
    at t reads the tokens before it through the layers below, so a layer's update at t-1 cannot move its own update at
    t, whatever their regression says.

    Parameters
    ----------
    model, documents, hook, batch_tokens, conf_level, progress
        As for `intervene`.
    effects : str or sequence of str
        Of "doc" and "position": columns with a level for every value, taken off before the regression.
    own_lag : bool
        Adds log_norm of layer l at t-1 to the regression (but where l = k, which has it already).
    step : float
        Half of the difference of log scale.
    per_window : int
        Tokens t-1 of each window at which the effect is measured, drawn by the seed; all of a shorter window.
    skip : int
        Number of first positions of each window that are neither t nor t-1.
    draws, seed : int
        Of documents with replacement, for the interval of the rank correlation.

    Returns
    -------
    CauseMaps
        Coefficients have standard errors clustered by document (CRV3, the jackknife's) and intervals from t(G - 1),
        position effects estimated once from all documents. Effects are means over documents of their means, with
        intervals from t(G - 1) of those. All NaN with one document; the correlation is NaN with fewer than three pairs.

    Raises
    ------
    InputError, ModelError, NumericalError
        As `intervene`; no window with two tokens after ``skip``; a norm without a logarithm, collinear regressors.

    Notes
    -----
    CRV3: MacKinnon, Nielsen and Webb (2023), "Cluster-robust inference", Journal of Econometrics 232.

    Examples
    --------
    >>> maps = regression_vs_cause("mini-s", ["The cat sat on the mat.", "It rained all day and all night."])
    >>> float(maps.pairs.query("later_layer <= layer")["effect"].abs().max())
    0.0
    """
    model = load_model(model)
    effects = tuple(require_names(effects, ("doc", "position"), name="effects", least=0))
    require_option(own_lag, (True, False), name="own_lag")
    require_number(step, name="step", least=0, most=1, strict=True, example=0.01)
    from_one = {"per_window": per_window, "batch_tokens": batch_tokens, "draws": draws}
    for name, count in (from_one | {"skip": skip, "seed": seed}).items():
        require_whole_number(count, name=name, least=int(name in from_one))
    require_shared(conf_level=conf_level)
    require_option(hook, WHOLE_HOOKS, name="hook")
    passes = Passes(model, hook=hook, norm_hook=hook, logits=False)
    tokens = token_frame(model, documents).reset_index(drop=True)
    windows = [window for window in token_windows(model, tokens) if window.length >= skip + 2]
    if not windows:
        raise InputError(
            f"regression_vs_cause needs a window of at least {skip + 2} tokens (two after skip={skip}); give longer "
            "texts or a smaller skip=."
        )
    codes = pd.factorize(tokens["doc"])[0]
    docs, doc_of = np.unique(codes[[window.start for window in windows]], return_inverse=True)
    if len(docs) < 2 and "position" in effects:
        raise InputError(f"effects={effects!r} leave nothing of one document; give more, or effects=().")
    log_norms = _log_norms(model, tokens, hook, int(batch_tokens))
    moments, n = pair_moments(log_norms, windows, doc_of.tolist(), int(skip), effects=effects)
    own = _regressions(moments, own_lag=own_lag, conf_level=conf_level)
    rows = _rows(tokens, windows, int(per_window), int(skip), int(seed))
    with token_bar(2 * passes.n_layers * sum(row.length for row in rows), progress) as bar:
        batches = padded_batches(model, tokens, int(batch_tokens), rows)
        sums, counted = _summed(passes, batches, codes, docs, step=float(step), bar=bar)
    means = DocumentMeans()
    means.add(sums, counted)
    effect = means.table(conf_level=conf_level)
    keys, (layer, later) = {"model": passes.name, "hook": hook}, np.indices(effect["estimate"].shape)
    columns = {"layer": layer, "later_layer": later, "n_layers": passes.n_layers, "n": n.sum()}
    for name, table in {"coefficient": own, "effect": effect}.items():
        columns |= {f"{name}{end}": table[column] for end, column in ENDS.items()}
    columns |= {"n_edits": counted[:, 0, 0].sum(), "n_docs": len(docs)}
    flat = {name: np.broadcast_to(column, layer.shape).ravel() for name, column in columns.items()}
    fit = partial(pair_coefficients, moments, own_lag=own_lag)
    found = agreement(fit, sums / counted, conf_level=conf_level, draws=int(draws), seed=int(seed))
    row = {"own_lag": own_lag, "effects": " + ".join(effects), "step": float(step)} | found
    return CauseMaps(
        pd.DataFrame(keys | flat)[PAIR_COLUMNS], pd.DataFrame([keys | row | {"n_docs": len(docs)}])
    )


def _summed(
    passes: Passes,
    batches: Iterable[Batch],
    doc: Int[np.ndarray, " tokens"],
    docs: Int[np.ndarray, " docs"],
    *,
    step: float,
    bar: Any,
) -> tuple[Float[np.ndarray, "docs layer later_layer"], Int[np.ndarray, "docs layer later_layer"]]:
    """Return the sums of elasticities by document, and the number of rows in them."""
    sums = np.zeros((len(docs), passes.n_layers, passes.n_layers))
    counted = np.zeros(sums.shape, np.int64)
    for batch in batches:
        at = np.searchsorted(docs, doc[batch.rows[:, 0]])
        np.add.at(sums, at, elasticities(passes, batch, step=step))
        np.add.at(counted, at, 1)
        bar.update(2 * passes.n_layers * int(batch.real.sum()))
    return sums, counted


def elasticities(
    passes: Passes, batch: Batch, *, step: float
) -> Float[np.ndarray, "batch layer later_layer"]:
    """Return d log norm of every layer at each row's last token, by d log scale of every layer at the one before.

    ``step`` is half of the difference of log scale, of a central difference.
    """
    row, last = np.arange(len(batch.real)), batch.real.sum(axis=1) - 1
    before_last = np.zeros(batch.real.shape, bool)
    before_last[row, last - 1] = True
    mask = batch.mask(before_last)
    clean = passes.run(batch.ids, restart_at=range(passes.n_layers))

    def log_norms(layer: int, factor: float) -> Float[np.ndarray, "later_layer batch"]:
        edited = Edited(mask, lambda vectors: vectors * factor)
        return np.log(passes.run(batch.ids, {Site(layer): edited}, clean).norms[:, row, last])

    up, down = float(np.exp(step)), float(np.exp(-step))
    layers = [
        (log_norms(layer, up) - log_norms(layer, down)) / (2 * step) for layer in range(passes.n_layers)
    ]
    return einops.rearrange(layers, "layer later batch -> batch layer later")


def _log_norms(
    model: Model, tokens: pd.DataFrame, hook: str, batch_tokens: int
) -> Float[np.ndarray, "layer token"]:
    norms = window_norms(model, tokens, hooks=(hook,), batch_tokens=batch_tokens)[hook].astype("float64")
    if not (norms > 0).all():
        layer, row = np.argwhere(norms <= 0)[0]
        raise NumericalError(
            f"The norm of layer {layer}, {token_place(tokens, row)} is 0 and has no logarithm."
        )
    return np.log(norms)


def _regressions(
    moments: Float[np.ndarray, "doc column column"], *, own_lag: bool, conf_level: float
) -> dict[str, Any]:
    """Return the coefficients with their intervals, NaN where there is only one document."""
    coefficient = pair_coefficients(moments, np.ones((1, len(moments))), own_lag=own_lag)[0]
    std_error = np.full(coefficient.shape, np.nan)
    if len(moments) > 1:
        std_error = jackknife_errors(moments, coefficient, own_lag=own_lag)
    for values, documents in ((coefficient, "all documents"), (std_error, "all documents but one")):
        if not np.isfinite(values).all() and (len(moments) > 1 or values is coefficient):
            raise NumericalError(
                f"In {documents} the log norms of some layer at t-1 do not vary, or those of two layers are collinear, "
                f"so a coefficient is not determined; give more text{', or own_lag=False' if own_lag else ''}."
            )
    with np.errstate(invalid="ignore", divide="ignore"):
        return t_columns(coefficient, std_error, len(moments) - 1.0, conf_level)


def _rows(
    tokens: pd.DataFrame, windows: Sequence[Window], per_window: int, skip: int, seed: int
) -> list[Window]:
    """Return the first tokens of each window up to one after a drawn position, a row for each such position."""
    rows = []
    for window in windows:
        draw = generator(seed, "causes", tokens["doc"].iat[window.start], tokens["window"].iat[window.start])
        places = draw.permutation(np.arange(skip, window.length - 1))[:per_window]
        rows += [Window(window.start, int(place) + 2) for place in np.sort(places)]
    return rows
