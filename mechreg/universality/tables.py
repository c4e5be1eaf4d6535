"""Tables: the profiles, their differences and what follows from them, as tidy frames."""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from mechreg.universality.agreement import agreement
from mechreg.universality.bands import Estimates, bands, interval, mean_of, mean_square
from mechreg.universality.pairs import same_group, table_of, within_and_between
from mechreg.universality.pooling import pool
from mechreg.universality.profiles import Profiles, depth_bins, n_layers_of
from mechreg.universality.shapes import MIN_PLACES, shape_test

NO_SIGN_NULL = "signs follow from the level, which surrogates keep"
NO_POWER = "{} depths have too few patterns of signs for p < .05; {} or more are needed"
EQUIVALENCE_COLUMNS = (
    "model_a", "model_b", "same_group", "hook", "term", "scope", "bin", "depth_low", "depth_high", "depth", "estimate",
    "std_error", "conf_low", "conf_high", "sim_low", "sim_high", "margin", "p_value", "equivalent",
)  # fmt: skip
YARDSTICK_COLUMNS = ("hook", "term", "comparison", "n_pairs", "estimate", "conf_low", "conf_high")
LEAVE_ONE_OUT_COLUMNS = (
    "model", "group", "hook", "term", "n_others", "rms_to_others", "conf_low", "conf_high", "bins_inside", "bins",
    "tau_without",
)  # fmt: skip


class Comparison(NamedTuple):
    """What all tables are made from."""

    profiles: Profiles
    keys: dict[str, str]  # hook, term
    groups: dict[str, str]  # a model's group; empty without groups
    binned: dict[str, Estimates]  # each model's profile over depth bins
    depths: dict[str, np.ndarray]  # number, edges and middle of the bins
    conf_level: float

    @property
    def bins(self) -> int:
        """How many slices of depth there are."""
        return len(self.depths["bin"])

    def model_keys(self, model: str) -> dict[str, Any]:
        """What a model's rows begin with."""
        return {"model": model, "group": self.groups.get(model, ""), **self.keys}

    def pairs(self) -> Iterator[tuple[dict[str, Any], Estimates, Estimates]]:
        """Give all pairs of models, in order: what their rows begin with, and both profiles."""
        for first, second in itertools.combinations(self.binned, 2):
            same = same_group(self.groups, first, second)
            keys = {"model_a": first, "model_b": second, "same_group": same, **self.keys}
            yield keys, self.binned[first], self.binned[second]

    def with_bands(self, estimates: Estimates) -> dict[str, np.ndarray]:
        """The columns of estimates and their bands."""
        return {"estimate": estimates.estimate, **bands(estimates, conf_level=self.conf_level)._asdict()}


def compared(
    profiles: Profiles, *, term: str, groups: dict[str, str], bins: int, conf_level: float
) -> Comparison:
    """Return the profiles on the slices of the depth over which all models have coefficients."""
    counts = {
        model: n_layers_of(int(rows["layer"].iloc[0]), float(rows["depth"].iloc[0]))
        for model, rows, _ in profiles.each()
    }
    begin = max(Fraction(int(rows["layer"].min()), counts[model]) for model, rows, _ in profiles.each())
    binned = {}
    for model, rows, own in profiles.each():
        weights = depth_bins(counts[model], bins, begin=begin)
        binned[model] = own.mapped(weights[:, rows["layer"].to_numpy()])
    number, (a, b) = np.arange(bins), begin.as_integer_ratio()
    places = {"depth_low": 0.0, "depth_high": 1.0, "depth": 0.5}
    depths = {name: (a * bins + (b - a) * (number + at)) / (b * bins) for name, at in places.items()}
    keys = {"hook": profiles.hook, "term": term}
    return Comparison(profiles, keys, groups, binned, {"bin": number} | depths, conf_level)


def profile_table(comparison: Comparison) -> pd.DataFrame:
    """Return every layer's coefficient with its bands."""
    return table_of(
        comparison.model_keys(model)
        | {"layer": rows["layer"].to_numpy(), "depth": rows["depth"].to_numpy()}
        | comparison.with_bands(own)
        | {"n": rows["n"].to_numpy()}
        for model, rows, own in comparison.profiles.each()
    )


def binned_table(comparison: Comparison) -> pd.DataFrame:
    """Return every model's mean coefficient in each slice of depth with its bands."""
    return table_of(
        comparison.model_keys(model) | comparison.depths | comparison.with_bands(own)
        for model, own in comparison.binned.items()
    )


def difference_table(comparison: Comparison) -> pd.DataFrame:
    """Return the difference of every pair in each slice of depth with its bands, and its two-sided p value."""
    parts = []
    for keys, first, second in comparison.pairs():
        difference = first - second
        t = _t_ratio(np.abs(difference.estimate), difference.std_error)
        p = {"p_value": 2 * stats.t.sf(t, difference.df)}
        parts.append(keys | comparison.depths | comparison.with_bands(difference) | p)
    return table_of(parts)


def agreement_table(comparison: Comparison, *, seed: int) -> pd.DataFrame:
    """Return every measure of agreement of every pair, and its p value against surrogates as smooth."""
    parts = []
    for keys, a, b in comparison.pairs():
        shape = shape_test(a.estimate, b.estimate, a.scaled_draws, b.scaled_draws, seed=seed)
        for measure, value in agreement(a, b, conf_level=comparison.conf_level).items():
            p = shape.rank if measure == "rank_correlation" else shape.linear
            note = NO_POWER.format(comparison.bins, MIN_PLACES) if np.isnan(p) else ""
            if measure == "sign_agreement":
                p, note = np.nan, NO_SIGN_NULL
            about = {"p_value": p, "bins": comparison.bins, "note": note}
            parts.append(keys | {"measure": measure} | value._asdict() | about)
    return table_of(parts)


def equivalence_table(comparison: Comparison, *, margin: float | None) -> pd.DataFrame:
    """Return two one-sided tests of every difference against the margin, in each slice of depth and in all.

    The overall row is of the largest |difference|: all slices are equivalent when each is (an intersection-union test,
    Berger 1982), so its p value is the largest and its upper bound the farthest limit of the others, with no
    correction. A claim about slices that were picked needs the simultaneous limits.
    """
    alpha, parts = 1 - comparison.conf_level, []
    for keys, first, second in comparison.pairs() if margin is not None else ():
        difference = first - second
        limits = bands(difference, conf_level=1 - 2 * alpha)
        size, low, high = np.abs(difference.estimate), limits.sim_low, limits.sim_high
        p = stats.t.sf(_t_ratio(margin - size, difference.std_error), difference.df)
        numbers = {"estimate": difference.estimate, **limits._asdict(), "p_value": p}
        parts.append(keys | {"scope": "bin"} | comparison.depths | numbers)
        nearest = np.maximum(np.maximum(low, -high), 0.0).max()
        overall = {
            "scope": "overall",
            "depth_low": comparison.depths["depth_low"][0],
            "depth_high": 1.0,
            "estimate": size.max(),
            "conf_low": nearest,
            "conf_high": np.maximum(np.abs(limits.conf_low), np.abs(limits.conf_high)).max(),
            "sim_low": nearest,
            "sim_high": np.maximum(np.abs(low), np.abs(high)).max(),
            "p_value": p.max(),
        }
        parts.append(keys | overall)
    table = table_of(parts, EQUIVALENCE_COLUMNS)
    return table.assign(margin=margin, equivalent=table["p_value"] < alpha) if len(table) else table


def pooled_table(comparison: Comparison, without: str | None = None) -> pd.DataFrame:
    """Return the random-effects mean over models in each slice of depth, and how much models differ."""
    models = [own for model, own in comparison.binned.items() if model != without]
    effects = np.stack([own.estimate for own in models])
    draws = np.stack([own.scaled_draws for own in models])
    covariances = np.einsum("mdp,ndp->pmn", draws, draws) / draws.shape[1]
    options: Any = {"df": float(len(comparison.profiles.docs) - 1), "conf_level": comparison.conf_level}
    means = [pool(*place, **options) for place in zip(effects.T, covariances, strict=True)]
    columns = {str(name): column for name, column in pd.DataFrame(means).items()}
    return table_of([comparison.keys | comparison.depths | {"n_models": len(models)} | columns])


def yardstick_table(comparison: Comparison) -> pd.DataFrame:
    """Return the RMS difference between groups, within groups (seeds of one size), and their ratio.

    Sampling noise is subtracted. The table is empty unless there are pairs of both kinds.
    """
    differences = ((keys["same_group"], first - second) for keys, first, second in comparison.pairs())
    own, others = within_and_between(differences)
    if not own:
        return table_of([], YARDSTICK_COLUMNS)
    between, within = mean_square(others), mean_square(own)
    both: Any = zip(between, within, strict=True)
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # infinite over nothing but noise, NaN where both are
        ratio = [np.sqrt(np.maximum(one, 0.0) / np.maximum(other, 0.0)) for one, other in both]
    rows = {
        "between groups": (len(others), *map(_root, between)),
        "within groups": (len(own), *map(_root, within)),
        "ratio": (len(others) + len(own), *ratio),
    }
    return table_of(
        comparison.keys
        | {"comparison": name, "n_pairs": count}
        | _with_interval("estimate", value, draws, comparison)
        for name, (count, value, draws) in rows.items()
    )


def leave_one_out_table(comparison: Comparison) -> pd.DataFrame:
    """Return, for each model, how far it is from the mean of the others, and what is left without it.

    ``rms_to_others`` is over depth, without sampling noise; ``bins_inside`` counts the slices in which the model lies
    in the others' prediction interval (NaN with fewer than three others), ``tau_without`` is the others' tau over
    depth. Empty with two models.
    """
    parts = []
    for model, own in comparison.binned.items() if len(comparison.binned) > 2 else ():
        others = [other for name, other in comparison.binned.items() if name != model]
        square, draws = mean_square([own - mean_of(others)])
        pooled = pooled_table(comparison, without=model)
        inside = own.estimate >= pooled["prediction_low"]
        inside &= own.estimate <= pooled["prediction_high"]
        parts.append(
            comparison.model_keys(model)
            | {"n_others": len(others)}
            | _with_interval("rms_to_others", _root(square), _root(draws), comparison)
            | {"bins_inside": float(inside.sum()) if len(others) > 2 else np.nan, "bins": comparison.bins}
            | {"tau_without": float(np.sqrt(pooled["tau2"].mean()))}
        )
    return table_of(parts, LEAVE_ONE_OUT_COLUMNS)


def _with_interval(
    name: str, value: float, draws: Float[np.ndarray, " draws"], comparison: Comparison
) -> dict[str, float]:
    low, high = interval(float(value), draws, conf_level=comparison.conf_level)
    return {name: float(value), "conf_low": low, "conf_high": high}


def _root(square: Any) -> Any:
    return np.sqrt(np.maximum(square, 0.0))


def _t_ratio(
    above: Float[np.ndarray, " places"], error: Float[np.ndarray, " places"]
) -> Float[np.ndarray, " places"]:
    """Return the t ratios; with no sampling error (a model against itself) they are 0 or infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(above == 0, 0.0, above / error)
