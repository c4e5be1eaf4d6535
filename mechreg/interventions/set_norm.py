"""Norms set to given values, or to the predictions of a fitted lag model and so many standard deviations away."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechreg.interventions.clean import CleanRun
from mechreg.interventions.edits import Bound
from mechreg.interventions.passes import Site
from mechreg.models import is_per_head, record_of
from mechreg.norms import as_numbers
from mechreg.outside import any_frames, to_pandas
from mechreg.schema import (
    GROUP_KEYS,
    TOKEN_KEYS,
    InputError,
    NumericalError,
    one_or_many,
    require,
    require_number,
)
from mechreg.words import token_place


@dataclass(frozen=True, eq=False)
class SetNorm:
    """The vector stretched or shrunk to a norm of its own for every token; its direction does not change.

    Parameters
    ----------
    values : pandas.DataFrame, array or function
        A frame of doc, window, position, layer, norm (and head, where heads are edited); model and hook, where it has
        them, choose its rows. An array of layer (x head) x token. Tokens without a row, or with NaN, are left as they
        are. Or a function of a frame with one layer's clean norms (the token frame's columns, layer, head, norm) that
        gives the new norms.
    dose : float
        The value of the column ``dose``.

    Examples
    --------
    >>> SetNorm(lambda clean: clean["norm"].clip(upper=10.0), dose=10.0).dose
    10.0
    """

    values: Any
    dose: float | int = float("nan")
    name: ClassVar[str] = "set_norm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", to_pandas(self.values))
        if isinstance(self.values, pd.DataFrame):
            require(self.values, (*TOKEN_KEYS, "layer", "norm"), who="SetNorm")
        elif not callable(self.values) and as_numbers(self.values).ndim not in (2, 3):
            raise InputError(
                "SetNorm needs a frame of doc, window, position, layer and norm, an array of layer x token, or a "
                f"function of a frame of clean norms; got {type(self.values).__name__}."
            )

    def bind(self, clean: CleanRun) -> Bound:
        """Return the edit bound to a model and corpus."""
        if callable(self.values):  # may give other norms each time
            wanted = _norms_by_site(self.values, clean)
        else:  # edits of several doses have one frame
            if id(self.values) not in clean.shared:
                clean.shared[id(self.values)] = _norms_by_site(self.values, clean)
            wanted = clean.shared[id(self.values)]

        def resize(vectors: Tensor, rows: np.ndarray, site: Site) -> Tensor:
            norms = einops.reduce(vectors.square(), "rows d -> rows", "sum").sqrt()
            if not bool((norms > 0).all()):
                place = token_place(clean.tokens, rows[int((norms <= 0).int().argmax())])
                raise NumericalError(
                    f"SetNorm needs a direction, and the vector of layer {site}, {place} is zero."
                )
            target = torch.from_numpy(wanted[site][rows] * self._factor(site.layer)).to(vectors)
            return vectors * einops.rearrange(target / norms, "rows -> rows 1")

        return Bound(resize, {site: ~np.isnan(values) for site, values in wanted.items()})

    def _factor(self, layer: int) -> float:
        return 1.0


@dataclass(frozen=True, eq=False)
class Surprise(SetNorm):
    """Norms set ``dose`` residual standard deviations from their predictions: what `surprise_edits` gives."""

    spread: Any = None  # the standard deviation of each layer
    name: ClassVar[str] = "surprise"

    def _factor(self, layer: int) -> float:
        return float(np.exp(self.dose * self.spread[layer]))


@any_frames
def surprise_edits(
    augmented: pd.DataFrame, *, k: float | int | Sequence[float | int] = (-2, -1, 0, 1, 2)
) -> list[Surprise]:
    """Return the edits that set every norm at exp(predicted + k residual standard deviations), one for each k.

    In `intervene` they measure the cost of a norm that is as predicted (k = 0) or surprising. Tokens without a
    prediction (the first of a window, which have no lags) are left as they are.

    Parameters
    ----------
    augmented : pandas.DataFrame
        What ``fits.augment(lagged)`` gives, of one model and hook: model, hook, layer, doc, window, position,
        log_norm, predicted, residual.
    k : float or sequence of float
        In standard deviations of each layer's own residuals.

    Returns
    -------
    list of SetNorm
        Their ``edit`` is "surprise" and their ``dose`` is k.

    Raises
    ------
    SchemaError, InputError
        A missing column, several models, hooks or heads, too few predictions, or another outcome than log_norm.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "layer": 0, "doc": "d", "window": 0}
    >>> frame = pd.DataFrame([row | {"position": 3, "log_norm": 1.5, "predicted": 1.0, "residual": 0.5},
    ...                       row | {"position": 4, "log_norm": 0.5, "predicted": 1.0, "residual": -0.5}])
    >>> [(edit.name, edit.dose) for edit in surprise_edits(frame, k=(0, 2))]
    [('surprise', 0.0), ('surprise', 2.0)]
    """
    require(augmented, (*GROUP_KEYS, *TOKEN_KEYS, "log_norm", "predicted", "residual"), who="surprise_edits")
    for key in ("model", "hook", "head"):
        if key in augmented and augmented[key].nunique() > 1:
            raise InputError(
                f"surprise_edits needs the rows of one {key}; the frame has {augmented[key].nunique()}. Choose some: "
                f"frame[frame[{key!r}] == ...]."
            )
    steps = one_or_many(k)
    for one in steps or [None]:
        require_number(one, name="k, in residual standard deviations,", example=1.5)
    gap = (augmented["predicted"] + augmented["residual"] - augmented["log_norm"]).abs()
    if gap.max() > 1e-6:
        raise InputError(
            "surprise_edits sets norms at exp(predicted), so it needs a fit of log_norm itself: 'log_norm ~ ...'."
        )
    known = augmented[augmented["predicted"].notna()]
    layers = known.groupby("layer")["residual"].agg(["std", "size"])
    if (layers["size"] < 2).any() or len(layers) < augmented["layer"].nunique():
        raise InputError("surprise_edits needs at least two predictions in every layer of the frame.")
    columns = [*GROUP_KEYS, *TOKEN_KEYS, *(["token_id"] if "token_id" in known else [])]
    predicted = np.exp(known["predicted"].to_numpy(dtype="float64"))
    frame, spread = known[columns].assign(norm=predicted), layers["std"].to_dict()
    return [Surprise(frame, dose=float(one), spread=spread) for one in steps]


def _norms_by_site(values: Any, clean: CleanRun) -> dict[Site, Float[np.ndarray, " tokens"]]:
    """Return the norm of every token at each site, NaN where it is left as it is."""
    n_tokens, cfg = len(clean.tokens), clean.model.cfg
    heads = [int(cfg.n_heads)] if is_per_head(clean.hook) else []
    shape = (int(cfg.n_layers), *heads, n_tokens)
    if callable(values):
        frames = {site: clean.tokens.assign(**site._asdict(), norm=clean.norms(site)) for site in clean.sites}
        wanted = {site: np.asarray(values(frame), dtype="float64") for site, frame in frames.items()}
        for own in wanted.values():
            if own.shape != (n_tokens,):
                raise InputError(
                    f"SetNorm's function must give one norm for each of {n_tokens} tokens; got shape {own.shape}."
                )
    else:
        array = _from_frame(values, clean, shape) if isinstance(values, pd.DataFrame) else as_numbers(values)
        if array.shape != shape:
            raise InputError(
                f"SetNorm needs an array of {'layer x head x token' if heads else 'layer x token'}, {shape}; got "
                f"{array.shape}."
            )
        wanted = {site: array[site if heads else site.layer] for site in clean.sites}
    for site, own in wanted.items():
        bad = ~np.isnan(own) & ~(np.isfinite(own) & (own >= 0))
        if bad.any():
            raise InputError(
                f"SetNorm needs norms of 0 or more, all finite; got {own[int(bad.argmax())]} in layer {site}."
            )
    return wanted


def _from_frame(frame: pd.DataFrame, clean: CleanRun, shape: tuple[int, ...]) -> np.ndarray:
    """Return a frame's norms as an array of layer (x head) x token."""
    for key, edited in (("model", record_of(clean.model).name), ("hook", clean.hook)):
        if key in frame.columns:
            have = sorted(frame[key].astype("str").unique())
            frame = frame[frame[key].astype("str") == edited]
            if frame.empty:
                raise InputError(f"SetNorm's frame has no rows of the {key} {edited!r}; it has {have}.")
    axes = ["layer", "head"][: len(shape) - 1]
    require(frame, axes, who=f"SetNorm at the hook {clean.hook!r}")
    frame = frame[frame["norm"].notna()].astype({"doc": "str"})
    for axis in axes:
        frame = frame[frame[axis].isin({getattr(site, axis) for site in clean.sites})]
    twice = frame.duplicated([*axes, *TOKEN_KEYS])
    if twice.any():
        layer = frame.loc[twice, "layer"].iat[0]
        raise InputError(
            f"SetNorm needs one norm for each token; the frame has two for one token in layer {layer}."
        )
    keys = pd.MultiIndex.from_frame(clean.tokens[[*TOKEN_KEYS]].astype({"doc": "str"}))
    at: Int[np.ndarray, " rows"] = keys.get_indexer(pd.MultiIndex.from_frame(frame[[*TOKEN_KEYS]]))
    frame, at = frame[at >= 0], at[at >= 0]
    if frame.empty:
        raise InputError("SetNorm's frame has no norm for any of these documents' tokens in these layers.")
    if "token_id" in frame and (clean.tokens["token_id"].to_numpy()[at] != frame["token_id"]).any():
        raise InputError(
            "SetNorm's frame has other token ids at these places; give the frame of these texts."
        )
    array = np.full(shape, np.nan)
    array[(*(frame[axis].to_numpy(np.int64) for axis in axes), at)] = frame["norm"].to_numpy(dtype="float64")
    return array
