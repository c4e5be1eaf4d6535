"""Tables: the profiles, their differences and what follows from them, as tidy frames."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from mechreg.universality.agreement import agreement
from mechreg.universality.bands import Estimates, bands, interval
from mechreg.universality.pooling import pool
from mechreg.universality.profiles import Profiles, depth_bins
from mechreg.universality.surrogates import MIN_PLACES, shape_test

NO_SIGN_NULL = "signs follow from the level, which surrogates keep"
NO_POWER = "{} depths have too few patterns of signs for p < .05; {} or more are needed"


class Comparison(NamedTuple):
    """What all tables are made from."""

    profiles: Profiles
    keys: dict[str, str]  # hook, term
    groups: dict[str, str]  # a model's group; empty without groups
    binned: dict[str, Estimates]  # each model's profile over depth bins
    bins: int
    level: float

    @property
    def depths(self) -> dict[str, np.ndarray]:
        """The columns of the bins: number, edges, middle."""
        number = np.arange(self.bins)
        low, high, middle = (number + at for at in (0.0, 1.0, 0.5))
        return {"bin": number} | {
            name: place / self.bins
            for name, place in (("depth_low", low), ("depth_high", high), ("depth", middle))
        }

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of models, in order."""
        return list(itertools.combinations(self.binned, 2))

    def group(self, model: str) -> str:
        """The group of a model, or nothing."""
        return self.groups.get(model, "")

    def difference(self, first: str, second: str) -> Estimates:
        """The first profile less the second."""
        return difference(self.binned[first], self.binned[second])

    def pair_keys(self, first: str, second: str) -> dict[str, Any]:
        """What tells a pair's rows from others'."""
        same = self.group(first) == self.group(second) if self.groups else pd.NA
        return {"model_a": first, "model_b": second, "same_group": same, **self.keys}


def compared(profiles: Profiles, *, term: str, groups: dict[str, str], bins: int, level: float) -> Comparison:
    """Return the profiles on their common depth bins."""
    binned = {}
    for model in profiles.models:
        rows = profiles.rows(model)
        own = Estimates(profiles.estimate[rows], profiles.jackknife[:, rows], profiles.draws[:, rows])
        binned[model] = own.mapped(depth_bins(len(rows), bins))
    return Comparison(profiles, {"hook": profiles.hook, "term": term}, groups, binned, bins, level)


def difference(first: Estimates, second: Estimates) -> Estimates:
    """Return the first less the second, on the same documents."""
    return Estimates(*(a - b for a, b in zip(first, second, strict=True)))


def mean_square(estimates: list[Estimates]) -> tuple[float, Float[np.ndarray, " draws"]]:
    """Return the mean square of some numbers less that of their errors, and its draws."""
    numbers = [(one.estimate, one.std_error, one.scaled_draws) for one in estimates]
    found = np.mean([(value**2 - error**2).mean() for value, error, _ in numbers])
    # A draw has the estimate's errors and as large ones of its own.
    drawn = [((value + moved) ** 2 - 2 * error**2).mean(axis=1) for value, error, moved in numbers]
    return float(found), np.mean(drawn, axis=0)


def profile_table(comparison: Comparison) -> pd.DataFrame:
    """Return every layer's coefficient with its bands."""
    parts = []
    profiles = comparison.profiles
    for model in profiles.models:
        rows = profiles.rows(model)
        own = Estimates(profiles.estimate[rows], profiles.jackknife[:, rows], profiles.draws[:, rows])
        about = profiles.layers.iloc[rows]
        keys = {"model": model, "group": comparison.group(model), **comparison.keys}
        places = {"layer": about["layer"].to_numpy(), "depth": about["depth"].to_numpy()}
        parts.append(
            pd.DataFrame({**keys, **places, **_with_bands(own, comparison.level), "n": about["n"].to_numpy()})
        )
    return pd.concat(parts, ignore_index=True)


def binned_table(comparison: Comparison) -> pd.DataFrame:
    """Return every model's mean coefficient in each slice of depth with its bands."""
    parts = [
        pd.DataFrame(
            {
                "model": model,
                "group": comparison.group(model),
                **comparison.keys,
                **comparison.depths,
                **_with_bands(own, comparison.level),
            }
        )
        for model, own in comparison.binned.items()
    ]
    return pd.concat(parts, ignore_index=True)


def difference_table(comparison: Comparison) -> pd.DataFrame:
    """Return the difference of every pair in each slice of depth with its bands, and its two-sided p value."""
    parts = []
    for first, second in comparison.pairs:
        found = comparison.difference(first, second)
        keys = {**comparison.pair_keys(first, second), **comparison.depths}
        columns = _with_bands(found, comparison.level)
        t = _ratio(np.abs(found.estimate), found.std_error)
        parts.append(pd.DataFrame({**keys, **columns, "p_value": 2 * stats.t.sf(t, found.df)}))
    return _typed(pd.concat(parts, ignore_index=True))


def agreement_table(comparison: Comparison, *, seed: int) -> pd.DataFrame:
    """Return every measure of agreement of every pair, and its p value against surrogates as smooth."""
    rows = []
    for first, second in comparison.pairs:
        a, b = comparison.binned[first], comparison.binned[second]
        shape = shape_test(a.estimate, b.estimate, a.scaled_draws, b.scaled_draws, seed=seed)
        for measure, found in agreement(a, b, level=comparison.level).items():
            p, note = (shape.rank if measure == "rank_correlation" else shape.linear), ""
            if measure == "sign_agreement":
                p, note = np.nan, NO_SIGN_NULL
            elif np.isnan(p):
                note = NO_POWER.format(comparison.bins, MIN_PLACES)
            keys = {**comparison.pair_keys(first, second), "measure": measure}
            rows.append({**keys, **found._asdict(), "p_value": p, "bins": comparison.bins, "note": note})
    return _typed(pd.DataFrame(rows))


EQUIVALENCE_COLUMNS = (
    *("model_a", "model_b", "same_group", "hook", "term", "scope", "bin", "depth_low", "depth_high", "depth"),
    *(
        "estimate",
        "std_error",
        "conf_low",
        "conf_high",
        "sim_low",
        "sim_high",
        "margin",
        "p_value",
        "equivalent",
    ),
)


def equivalence_table(comparison: Comparison, *, margin: float | None) -> pd.DataFrame:
    """Return two one-sided tests of every difference against the margin, in each slice of depth and in all.

    The overall row is of the largest |difference|: all slices are equivalent when each is (an intersection-union test,
    Berger 1982), so its p value is the largest and its upper bound the farthest limit of the others, with no
    correction. A claim about slices that were picked needs the simultaneous limits.
    """
    if margin is None:
        return pd.DataFrame(columns=list(EQUIVALENCE_COLUMNS))
    alpha, parts = 1 - comparison.level, []
    for first, second in comparison.pairs:
        found = comparison.difference(first, second)
        keys = {**comparison.pair_keys(first, second)}
        limits = bands(found, level=1 - 2 * alpha)
        nearest = margin - np.abs(found.estimate)
        p = stats.t.sf(_ratio(nearest, found.std_error), found.df)
        numbers = {"estimate": found.estimate, **limits._asdict(), "p_value": p}
        parts.append(pd.DataFrame({**keys, "scope": "bin", **comparison.depths, **numbers}))
        low, high = limits.sim_low, limits.sim_high
        overall = {
            "depth_low": 0.0,
            "depth_high": 1.0,
            "estimate": np.abs(found.estimate).max(),
            "conf_low": np.maximum(np.maximum(low, -high), 0.0).max(),
            "conf_high": np.maximum(np.abs(limits.conf_low), np.abs(limits.conf_high)).max(),
            "sim_low": np.maximum(np.maximum(low, -high), 0.0).max(),
            "sim_high": np.maximum(np.abs(low), np.abs(high)).max(),
            "p_value": p.max(),
        }
        parts.append(pd.DataFrame([{**keys, "scope": "overall", **overall}]))
    table = pd.concat(parts, ignore_index=True)
    table = table.assign(margin=margin, equivalent=table["p_value"] < alpha)
    return _typed(table[list(EQUIVALENCE_COLUMNS)])


def pooled_table(comparison: Comparison) -> pd.DataFrame:
    """Return the random-effects mean over models in each slice of depth, and how much models differ."""
    return _pooled(comparison, list(comparison.binned))


def _pooled(comparison: Comparison, models: list[str]) -> pd.DataFrame:
    rows = []
    effects = np.stack([comparison.binned[model].estimate for model in models])
    draws = np.stack([comparison.binned[model].scaled_draws for model in models])
    for place in range(comparison.bins):
        covariance = draws[:, :, place] @ draws[:, :, place].T / draws.shape[1]
        found = pool(effects[:, place], covariance, level=comparison.level)
        rows.append({"n_models": len(models), **found._asdict()})
    return pd.DataFrame(comparison.keys | comparison.depths | dict(pd.DataFrame(rows).items()))


YARDSTICK_COLUMNS = ("hook", "term", "comparison", "n_pairs", "estimate", "conf_low", "conf_high")


def yardstick_table(comparison: Comparison) -> pd.DataFrame:
    """Return the RMS difference between groups, within groups (seeds of one size), and their ratio.

    Sampling noise is taken off. The table is empty unless there are pairs of both kinds.
    """
    pairs: dict[bool, list[Estimates]] = {False: [], True: []}
    for first, second in comparison.pairs if comparison.groups else []:
        pairs[comparison.group(first) == comparison.group(second)].append(
            comparison.difference(first, second)
        )
    if not pairs[True] or not pairs[False]:
        return pd.DataFrame(columns=list(YARDSTICK_COLUMNS))
    between, between_draws = mean_square(pairs[False])
    within, within_draws = mean_square(pairs[True])
    counts = {"n_pairs": [len(pairs[False]), len(pairs[True]), len(pairs[False]) + len(pairs[True])]}
    names = ["between groups", "within groups", "ratio"]
    values = [_root(between), _root(within), _root_ratio(between, within)]
    drawn = [_root(between_draws), _root(within_draws), _root_ratio(between_draws, within_draws)]
    limits = [
        interval(float(value), draws, level=comparison.level)
        for value, draws in zip(values, drawn, strict=True)
    ]
    return pd.DataFrame(
        {
            **comparison.keys,
            "comparison": names,
            **counts,
            "estimate": [float(value) for value in values],
            "conf_low": [low for low, _ in limits],
            "conf_high": [high for _, high in limits],
        }
    )


LEAVE_ONE_OUT_COLUMNS = (
    *("model", "group", "hook", "term", "n_others", "rms_to_others", "conf_low", "conf_high"),
    *("bins_inside", "bins", "tau_without"),
)


def leave_one_out_table(comparison: Comparison) -> pd.DataFrame:
    """Return, for each model, how far it is from the mean of the others, and what is left without it.

    ``rms_to_others`` is over depth, without sampling noise; ``bins_inside`` counts the slices in which the model lies
    in the others' prediction interval (NaN with fewer than three others), ``tau_without`` is the others' tau over
    depth. Empty with two models.
    """
    models, rows = list(comparison.binned), []
    for model in models if len(models) > 2 else []:
        others = [name for name in models if name != model]
        own = comparison.binned[model]
        mean = Estimates(
            *(np.mean(parts, axis=0) for parts in zip(*(comparison.binned[o] for o in others), strict=True))
        )
        square, draws = mean_square([difference(own, mean)])
        pooled = _pooled(comparison, others)
        inside = (own.estimate >= pooled["prediction_low"]) & (own.estimate <= pooled["prediction_high"])
        low, high = interval(float(_root(square)), _root(draws), level=comparison.level)
        rows.append(
            {"model": model, "group": comparison.group(model), **comparison.keys, "n_others": len(others)}
            | {"rms_to_others": float(_root(square)), "conf_low": low, "conf_high": high}
            | {"bins_inside": float(inside.sum()) if len(others) > 2 else np.nan, "bins": comparison.bins}
            | {"tau_without": float(np.sqrt(pooled["tau2"].mean()))}
        )
    return pd.DataFrame(rows, columns=list(LEAVE_ONE_OUT_COLUMNS))


def _root(square: Any) -> Any:
    return np.sqrt(np.maximum(square, 0.0))


def _root_ratio(above: Any, below: Any) -> Any:
    """Return the root of a ratio of mean squares: infinite over nothing but noise, NaN where both are noise."""
    above, below = np.maximum(above, 0.0), np.maximum(below, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(above / below)


def _with_bands(estimates: Estimates, level: float) -> dict[str, np.ndarray]:
    return {"estimate": estimates.estimate, **bands(estimates, level=level)._asdict()}


def _ratio(
    above: Float[np.ndarray, " places"], error: Float[np.ndarray, " places"]
) -> Float[np.ndarray, " places"]:
    """Return the t ratios; where nothing can err (a model and itself) they are 0 or infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(above == 0, 0.0, above / error)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    dtypes = {"same_group": "boolean", "bin": "Int64"}
    return table.astype({name: dtype for name, dtype in dtypes.items() if name in table.columns})
