"""The tables of a comparison token by token, and what they say in words."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mechreg.universality.bands import Estimates, mean_of
from mechreg.universality.token_agreement import Pair, interval_columns, p_adjusted, summary
from mechreg.universality.verdict import same_numbers
from mechreg.words import count, spread


def _names(pair: Pair) -> dict[str, str]:
    ends = zip("ab", pair.models, strict=True)
    return {f"model_{end}": str(one.layers["model"].iloc[0]) for end, one in ends}


def _layers(pair: Pair, *at: np.ndarray) -> dict[str, Any]:
    """Return the columns that name both models, and the layers of each at the given numbers."""
    ends, columns = [*zip("ab", pair.models, at, strict=True)], dict[str, Any](_names(pair))
    for name in ("layer", "depth"):
        columns |= {f"{name}_{end}": one.layers[name].to_numpy()[rows] for end, one, rows in ends}
    return columns


def cells(pairs: list[Pair], common: dict[str, Any]) -> pd.DataFrame:
    """Return a row for every pair of layers of every pair of models."""
    tables = []
    for pair in pairs:
        rows, columns = (at.ravel() for at in np.indices([len(one.layers) for one in pair.models]))
        null = pair.null.reshape(len(pair.null), -1)
        numbers: dict[str, Any] = summary(pair.cells, null, conf_level=common["conf_level"])
        numbers["p_adjusted"] = p_adjusted(pair.cells.estimate, null)
        numbers["random_weights"] = pair.random.estimate if pair.random else np.nan
        numbers["matched"] = np.isin(np.arange(len(rows)), pair.numbers(pair.match))
        tables.append(pd.DataFrame(_layers(pair, rows, columns) | numbers | common))
    return pd.concat(tables, ignore_index=True)


def matched(pairs: list[Pair], common: dict[str, Any]) -> pd.DataFrame:
    """Return a row for every layer of the first model of a pair, with its match."""
    tables = []
    for pair in pairs:
        own, random = pair.cells.at(pair.numbers(pair.match)), pair.numbers(pair.random_match)
        numbers: dict[str, Any] = summary(own, pair.null_matched, conf_level=common["conf_level"])
        numbers["random_weights"] = pair.random.estimate[random] if pair.random else np.nan
        tables.append(pd.DataFrame(_layers(pair, np.arange(len(pair.match)), pair.match) | numbers | common))
    return pd.concat(tables, ignore_index=True)


def pairs(found: list[Pair], common: dict[str, Any], groups: Mapping[str, str]) -> pd.DataFrame:
    """Return a row for every pair of models: the mean over matched layers."""
    tables = []
    for pair in found:
        mean, names, level = pair.mean(pair.cells, pair.match), _names(pair), common["conf_level"]
        null = pair.null_matched.mean(axis=1, keepdims=True)
        numbers: dict[str, Any] = {**summary(mean, null, conf_level=level), "random_weights": np.nan}
        numbers |= {"over_random": np.nan, "over_random_low": np.nan, "over_random_high": np.nan}
        if pair.random:
            random = pair.mean(pair.random, pair.random_match)
            over = interval_columns(mean - random, conf_level=level, most=2.0)
            numbers |= {"random_weights": random.estimate, "over_random": over["estimate"]}
            numbers |= {"over_random_low": over["conf_low"], "over_random_high": over["conf_high"]}
        same = groups[names["model_a"]] == groups[names["model_b"]] if groups else pd.NA
        tables.append(pd.DataFrame(names | numbers | {"same_group": same} | common))
    return pd.concat(tables, ignore_index=True).astype({"same_group": "boolean"})


def yardstick(pairs: list[Pair], common: dict[str, Any], groups: Mapping[str, str]) -> pd.DataFrame:
    """Return the mean over pairs within groups, between groups, and their difference."""
    columns = ["comparison", "n_pairs", "estimate", "std_error", "conf_low", "conf_high"]
    found: dict[bool, list[Estimates]] = {True: [], False: []}
    for pair in pairs if groups else ():
        one, other = _names(pair).values()
        found[groups[one] == groups[other]].append(pair.mean(pair.cells, pair.match))
    if not (found[True] and found[False]):
        return pd.DataFrame(columns=columns)
    within, between = mean_of(found[True]), mean_of(found[False])
    rows = {"within groups": within, "between groups": between, "difference": within - between}
    counts = [len(found[True]), len(found[False]), len(pairs)]
    tables = [
        pd.DataFrame(
            {"comparison": name, "n_pairs": n} | interval_columns(one, conf_level=common["conf_level"])
        )
        for (name, one), n in zip(rows.items(), counts, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)[columns].assign(**common)


def verdict(found: list[Pair], pairs: pd.DataFrame, yardstick: pd.DataFrame) -> tuple[str, ...]:
    """Return what was compared and how; what is shared, against chance, random weights and seeds."""
    first: Any = pairs.iloc[0]
    models = {str(one.layers["model"].iloc[0]): one for pair in found for one in pair.models}
    listed = ", ".join(f"{name} ({len(one.layers)} layers)" for name, one in models.items())
    after = f"after effects of {first['effects']}" if first["effects"] else "with no effects taken out"
    sentences = [
        f"{first['column']} of {first['hook']} in {len(models)} models: {listed}; {first['n']:,} shared "
        f"{first['unit']}s of {first['n_docs']} documents, {after}."
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
    twins = same_numbers({name: one.values for name, one in models.items()})
    return (*sentences, _seeds(yardstick), *filter(None, [twins]))


def _seeds(yardstick: pd.DataFrame) -> str:
    if yardstick.empty:
        return "Without groups= that have several models and others, seeds are no yardstick."
    within, between = yardstick["estimate"].iloc[:2].tolist()
    difference: Any = yardstick.iloc[2]
    return (
        f"Seeds of one group share {within:.2f}, models of different groups {between:.2f}: a difference of "
        f"{difference['estimate']:.2f} "
        f"({difference['conf_level']:.0%} interval {difference['conf_low']:.2f} to {difference['conf_high']:.2f})."
    )
