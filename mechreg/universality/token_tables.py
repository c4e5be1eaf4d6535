"""The tables of a comparison token by token, and what they say in words."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mechreg.universality.bands import mean_of
from mechreg.universality.pairs import no_yardstick, same_group, table_of, within_and_between
from mechreg.universality.token_agreement import Pair, interval_columns, p_adjusted, summary
from mechreg.universality.verdict import models_in_words, same_numbers
from mechreg.words import count, spread

YARDSTICK_COLUMNS = ("comparison", "n_pairs", "estimate", "std_error", "conf_low", "conf_high")


def cells(found: list[Pair], common: dict[str, Any]) -> pd.DataFrame:
    """Return a row for every pair of layers of every pair of models."""
    return table_of(_cells(pair, common["conf_level"]) | common for pair in found)


def matched(found: list[Pair], common: dict[str, Any]) -> pd.DataFrame:
    """Return a row for every layer of the first model of a pair, with its match."""
    return table_of(_matched(pair, common["conf_level"]) | common for pair in found)


def pairs(found: list[Pair], common: dict[str, Any], groups: Mapping[str, str]) -> pd.DataFrame:
    """Return a row for every pair of models: the mean over matched layers."""
    return table_of(
        _mean(pair, common["conf_level"]) | {"same_group": same_group(groups, *pair.names)} | common
        for pair in found
    )


def yardstick(found: list[Pair], common: dict[str, Any], groups: Mapping[str, str]) -> pd.DataFrame:
    """Return the mean over pairs within groups, between groups, and their difference."""
    means = ((same_group(groups, *pair.names), pair.mean(pair.cells, pair.match)) for pair in found)
    within, between = within_and_between(means)
    if not within:
        return table_of([], YARDSTICK_COLUMNS)
    one, other = mean_of(within), mean_of(between)
    rows = {
        "within groups": (len(within), one),
        "between groups": (len(between), other),
        "difference": (len(found), one - other),
    }
    parts = (
        {"comparison": name, "n_pairs": n} | interval_columns(number, conf_level=common["conf_level"])
        for name, (n, number) in rows.items()
    )
    return table_of(parts, YARDSTICK_COLUMNS).assign(**common)


def verdict(
    found: list[Pair], pairs: pd.DataFrame, yardstick: pd.DataFrame, groups: Mapping[str, str]
) -> tuple[str, ...]:
    """Return what was compared and how; what is shared, against chance, random weights and seeds."""
    first: Any = pairs.iloc[0]
    models = {one.name: one for pair in found for one in pair.models}
    listed = models_in_words({name: len(one.layers) for name, one in models.items()})
    after = f"after effects of {first['effects']}" if first["effects"] else "with no effects taken out"
    sentences = [
        f"{first['column']} of {first['hook']} in {listed}; {first['n']:,} shared {first['unit']}s of "
        f"{first['n_docs']} documents, {after}."
    ]
    alpha = 1 - first["conf_level"]
    how = "nearest in depth" if first["match"] == "depth" else "with the best match, chosen in the null too"
    n_above, n_pairs = int((pairs["p_value"] <= alpha + 1e-12).sum()), count(len(pairs), "pair")
    sentences.append(
        f"Rank correlation of layers {how}, mean over layers: {spread(pairs['estimate'])}; by chance "
        f"{spread(pairs['null_mean'])}. More than unrelated series as smooth in {n_above} of {n_pairs} "
        f"(p ≤ {alpha:.2g}, not adjusted)."
    )
    if pairs["random_weights"].notna().any():
        above = int((pairs["over_random_low"] > 0).sum())
        sentences.append(
            f"With random weights {spread(pairs['random_weights'])}: training adds to what text and architecture "
            f"share in {above} of {n_pairs} ({first['conf_level']:.0%} intervals)."
        )
    else:
        sentences.append(
            "Without random_weights= it is not known how much of it any network of these shapes would share."
        )
    sentences.append(no_yardstick(groups.values()) if yardstick.empty else _seeds(yardstick))
    twins = same_numbers({name: one.values for name, one in models.items()})
    return (*sentences, *filter(None, [twins]))


def _models(pair: Pair) -> dict[str, Any]:
    """Return the columns that name both models."""
    return {f"model_{end}": name for end, name in zip("ab", pair.names, strict=True)}


def _layers(pair: Pair, *at: np.ndarray) -> dict[str, Any]:
    """Return the columns that name both models, and the layers of each at the given numbers."""
    columns = _models(pair)
    for name in ("layer", "depth"):
        for end, one, rows in zip("ab", pair.models, at, strict=True):
            columns[f"{name}_{end}"] = one.layers[name].to_numpy()[rows]
    return columns


def _cells(pair: Pair, conf_level: float) -> dict[str, Any]:
    rows, columns = (at.ravel() for at in np.indices([len(one.layers) for one in pair.models]))
    null = pair.null.reshape(len(pair.null), -1)
    return {
        **_layers(pair, rows, columns),
        **summary(pair.cells, null, conf_level=conf_level),
        "p_adjusted": p_adjusted(pair.cells.estimate, null),
        "random_weights": pair.random.estimate if pair.random else np.nan,
        "matched": np.isin(np.arange(len(rows)), pair.numbers(pair.match)),
    }


def _matched(pair: Pair, conf_level: float) -> dict[str, Any]:
    own, random = pair.cells.at(pair.numbers(pair.match)), pair.numbers(pair.random_match)
    return {
        **_layers(pair, np.arange(len(pair.match)), pair.match),
        **summary(own, pair.null_matched, conf_level=conf_level),
        "random_weights": pair.random.estimate[random] if pair.random else np.nan,
    }


def _mean(pair: Pair, conf_level: float) -> dict[str, Any]:
    mean, null = pair.mean(pair.cells, pair.match), pair.null_matched.mean(axis=1, keepdims=True)
    random: Any = np.nan
    over: Any = dict.fromkeys(("estimate", "conf_low", "conf_high"), np.nan)
    if pair.random:
        by_random = pair.mean(pair.random, pair.random_match)
        random, over = by_random.estimate, interval_columns(mean - by_random, conf_level=conf_level, most=2.0)
    return {
        **_models(pair),
        **summary(mean, null, conf_level=conf_level),
        "random_weights": random,
        "over_random": over["estimate"],
        "over_random_low": over["conf_low"],
        "over_random_high": over["conf_high"],
    }


def _seeds(yardstick: pd.DataFrame) -> str:
    within, between = yardstick["estimate"].iloc[:2].tolist()
    difference: Any = yardstick.iloc[2]
    return (
        f"Seeds of one group share {within:.2f}, models of different groups {between:.2f}: a difference of "
        f"{difference['estimate']:.2f} "
        f"({difference['conf_level']:.0%} interval {difference['conf_low']:.2f} to {difference['conf_high']:.2f})."
    )
