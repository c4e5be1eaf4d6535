"""Rank correlations of two models' layers over shared units: observed, without each document, and by chance."""

from itertools import combinations, permutations
from typing import Literal, NamedTuple

import einops
import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.fft import dct, idct

from mechreg.regression import Effects, project
from mechreg.regression.drawn import Weights, document_weights
from mechreg.schema import NumericalError
from mechreg.universality.bands import Estimates, bands, mean_of
from mechreg.universality.token_units import WHO, ModelTokens, Units, unit_ranks

Match = Literal["depth", "best"]
CHUNK_NUMBERS = 2**22  # of surrogates made at a time
Residuals = Float[np.ndarray, "units layers"]
CellDraws = Float[np.ndarray, "draws a b"]


class Pair(NamedTuple):
    """Two models: the cells of all their layers, a x b, also in each draw of the null; which b is each a's match."""

    models: tuple[ModelTokens, ModelTokens]
    cells: Estimates
    null: CellDraws
    match: Int[np.ndarray, " a"]
    null_match: Int[np.ndarray, "draws a"]
    random: Estimates | None  # the cells with random weights
    random_match: Int[np.ndarray, " a"]  # with the best match, one of its own

    @property
    def names(self) -> tuple[str, str]:
        """The models'."""
        return self.models[0].name, self.models[1].name

    def numbers(self, match: Int[np.ndarray, " a"]) -> Int[np.ndarray, " a"]:
        """The numbers of matched cells among all cells."""
        return np.arange(len(match)) * self.null.shape[2] + match

    @property
    def null_matched(self) -> Float[np.ndarray, "draws a"]:
        """The null of the matched cells: with the best match, of the cells that are best in each draw."""
        at = einops.rearrange(self.null_match, "draws a -> draws a 1")
        return np.take_along_axis(self.null, at, axis=2)[..., 0]

    def mean(self, cells: Estimates, match: Int[np.ndarray, " a"]) -> Estimates:
        """Return the mean over the matched cells."""
        return mean_of([cells.at(number) for number in self.numbers(match)[:, None]])


def all_pairs(
    models: list[ModelTokens],
    units: Units,
    effects: list[Effects],
    random: list[list[Float[np.ndarray, "_ _"]]],
    *,
    match: Match,
    draws: int,
    seed: int,
) -> list[Pair]:
    """Return every pair of models; ``random`` has each model's values with random weights, a frame each."""
    rng, numbers = np.random.default_rng(seed), list(combinations(range(len(models)), 2))

    def residuals(at: int, values: Float[np.ndarray, "tokens layers"]) -> Residuals:
        ranks = unit_ranks(values, units.unit_of[at], len(units.doc))
        left = project(effects[at], ranks.T).T
        _require_variation(ranks, left, models[at].layers)
        return unit_length(left)

    series = [residuals(at, one.values) for at, one in enumerate(models)]
    of_random = [[residuals(at, values) for values in frames] for at, frames in enumerate(random)]
    null = null_draws(series, effects, units.lengths, numbers, draws=draws, rng=rng)
    weights = document_weights(rng, len(units.docs), draws)
    pairs = []
    for (a, b), drawn in null.items():
        cells = correlations(series[a], series[b], units.doc, weights)
        depths = (models[a].layers["depth"].to_numpy(), models[b].layers["depth"].to_numpy())
        crossed = across_frames(of_random[a], of_random[b], units.doc, weights) if of_random else None
        best, random_best = (
            matches(one.estimate.reshape(1, *drawn.shape[1:]), depths, match)[0]
            for one in (cells, crossed or cells)
        )
        drawn_best = matches(drawn, depths, match)
        pairs.append(Pair((models[a], models[b]), cells, drawn, best, drawn_best, crossed, random_best))
    return pairs


def correlations(
    first: Float[np.ndarray, "units a"],
    second: Float[np.ndarray, "units b"],
    doc: Int[np.ndarray, " units"],
    weights: Weights,
) -> Estimates:
    """Return the correlations of all pairs of columns, and by how much they move without or with other documents."""
    starts = np.flatnonzero(np.diff(doc, prepend=-1))
    documents = zip(np.split(first, starts[1:]), np.split(second, starts[1:]), strict=True)
    products = np.stack([one.T @ other for one, other in documents])
    squares = [np.add.reduceat(one**2, starts, axis=0) for one in (first, second)]

    def of(shares: Weights) -> Float[np.ndarray, "draws cells"]:
        one, other = (np.sqrt(shares @ square) for square in squares)
        below = einops.einsum(one, other, "draws a, draws b -> draws a b")
        above = np.tensordot(shares, products, axes=1)
        ratio = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        return einops.rearrange(ratio, "draws a b -> draws (a b)")

    n_docs = len(starts)
    estimate = of(np.ones((1, n_docs)))[0]
    return Estimates(estimate, of(1 - np.eye(n_docs)) - estimate, of(weights) - estimate)


def null_draws(
    series: list[Float[np.ndarray, "units _"]],
    effects: list[Effects],
    lengths: Int[np.ndarray, " docs"],
    pairs: list[tuple[int, int]],
    *,
    draws: int,
    rng: np.random.Generator,
) -> dict[tuple[int, int], CellDraws]:
    """Return each pair's correlations where the waves of every model's series in a document have random signs."""
    null = {(a, b): np.empty((draws, series[a].shape[1], series[b].shape[1])) for a, b in pairs}
    step = max(1, CHUNK_NUMBERS // sum(own.size for own in series))
    for begin in range(0, draws, step):
        count = min(step, draws - begin)
        moved = []
        for own, absorbed in zip(series, effects, strict=True):
            surrogates = project(absorbed, _surrogates(own, lengths, count, rng).T).T
            pattern = "units (draws layers) -> draws units layers"
            moved.append(einops.rearrange(unit_length(surrogates), pattern, draws=count))
        for (a, b), held in null.items():
            held[begin : begin + count] = moved[a].mT @ moved[b]
    return null


def _surrogates(
    series: Residuals, lengths: Int[np.ndarray, " docs"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "units columns"]:
    """Return surrogate copies: random signs on each document's waves, the same for all layers; levels are kept."""
    parts = []
    for part in np.split(series, np.cumsum(lengths)[:-1]):
        signs = rng.integers(0, 2, (len(part), count, 1)) * 2.0 - 1.0
        signs[0] = 1.0
        waves = einops.rearrange(dct(part, axis=0, norm="ortho"), "waves layers -> waves 1 layers")
        parts.append(idct(signs * waves, axis=0, norm="ortho"))
    return einops.rearrange(np.concatenate(parts), "units draws layers -> units (draws layers)")


def unit_length(columns: Residuals) -> Residuals:
    """Return columns of length 1; those that the effects explain stay 0."""
    size = np.sqrt((columns**2).sum(axis=0))
    return np.divide(columns, size, out=np.zeros_like(columns), where=size > 0)


def matches(
    cells: CellDraws, depths: tuple[Float[np.ndarray, " a"], Float[np.ndarray, " b"]], match: Match
) -> Int[np.ndarray, "draws a"]:
    """Return which b stands for each a: the nearest in depth (of two, the one nearer the input), or the best."""
    if match == "best":
        return cells.argmax(axis=2)
    apart = np.abs(einops.rearrange(depths[0], "a -> a 1") - einops.rearrange(depths[1], "b -> 1 b"))
    return np.broadcast_to(np.round(apart, 9).argmin(axis=1), cells.shape[:2])


def across_frames(
    first: list[Float[np.ndarray, "units a"]],
    second: list[Float[np.ndarray, "units b"]],
    doc: Int[np.ndarray, " units"],
    weights: Weights,
) -> Estimates:
    """Return the mean correlations of one model's frames with the other's further frames."""
    pairs = permutations(range(len(first)), 2)
    return mean_of([correlations(first[i], second[j], doc, weights) for i, j in pairs])


def _require_variation(ranks: Residuals, left: Residuals, layers: pd.DataFrame) -> None:
    size = np.sqrt((ranks**2).sum(axis=0))
    flat = np.sqrt((left**2).sum(axis=0)) < 1e-8 * size
    if flat.any():
        row = layers.iloc[int(flat.argmax())]
        raise NumericalError(
            f"{WHO} finds nothing left of the measure in layer {row['layer']} of {row['model']} after the effects. "
            "Leave that layer out, or project out fewer effects."
        )


def summary(
    estimates: Estimates, null: Float[np.ndarray, "draws places"], *, conf_level: float
) -> dict[str, Float[np.ndarray, " places"]]:
    """Return the columns of some correlations: intervals, and where they stand in their null."""
    rounding = 1e-12
    larger = (null >= estimates.estimate - rounding).sum(axis=0)
    return {
        **interval_columns(estimates, conf_level=conf_level),
        "null_mean": null.mean(axis=0),
        "null_high": np.quantile(null, conf_level, axis=0),
        "p_value": (1 + larger) / (1 + len(null)),
    }


def interval_columns(
    estimates: Estimates, *, conf_level: float, most: float = 1.0
) -> dict[str, Float[np.ndarray, " places"]]:
    """Return estimates of correlations with their bands, which end where correlations do."""
    both = bands(estimates, conf_level=conf_level)._asdict()
    limits = {name: np.clip(both[name], -most, most) for name in both if name != "std_error"}
    return {"estimate": estimates.estimate, "std_error": both["std_error"], **limits}


def p_adjusted(
    estimate: Float[np.ndarray, " cells"], null: Float[np.ndarray, "draws cells"]
) -> Float[np.ndarray, " cells"]:
    """Return p values that hold for all cells at once: against the largest of each draw, in units of the null."""
    middle, spread = null.mean(axis=0), null.std(axis=0)
    largest = ((null - middle) / spread).max(axis=1, keepdims=True)
    standing = (estimate - middle) / spread
    return (1 + (largest >= standing - 1e-9).sum(axis=0)) / (1 + len(null))
