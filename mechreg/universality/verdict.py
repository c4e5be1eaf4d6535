"""Verdict: what the tables of a comparison say, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechreg.outside import for_page
from mechreg.universality.pairs import no_yardstick
from mechreg.words import count, spread

# With fewer models (or groups of seeds), nothing can be said about models in general.
FEW = 5
MEASURES = {
    "sign_agreement": "same sign",
    "concordance": "concordance",
    "rank_correlation": "rank correlation",
    "rms_difference": "RMS difference",
}


class Worded:
    """A comparison that is shown as its verdict, in a notebook with one of its tables."""

    verdict: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(self.verdict)

    def _html(self, table: pd.DataFrame, columns: Sequence[str]) -> str:
        """Return the verdict and some columns of a table as they stand in a notebook."""
        sentences = "".join(f"<li>{for_page(sentence)}</li>" for sentence in self.verdict)
        options: Any = {"max_rows": 24, "index": False, "na_rep": "", "float_format": "{:.3g}".format}
        return f"<ul>{sentences}</ul>{table[['model_a', 'model_b', *columns]].to_html(**options)}"


def verdict(
    tables: Mapping[str, pd.DataFrame], *, n_unshared: Mapping[str, int], conf_level: float
) -> tuple[str, ...]:
    """Return what the tables of `ProfileComparison` say, and how far it may be generalised.

    ``n_unshared`` counts the documents of each model that some other model lacks.
    """
    alpha = round(1 - conf_level, 12)
    sentences = [
        _compared(tables["profiles"], tables["binned"], n_unshared),
        same_numbers({str(model): rows["estimate"] for model, rows in tables["profiles"].groupby("model")}),
        _differences(tables["equivalence"], tables["differences"], alpha),
        _measures(tables["agreement"]),
        _shapes(tables["agreement"], alpha),
        _pooled(tables["meta"], conf_level),
        _yardstick(tables["yardstick"], tables["profiles"], conf_level),
        _how_general(tables["profiles"], tables["leave_one_out"]),
    ]
    return tuple(filter(None, sentences))


def same_numbers(numbers: Mapping[str, Any]) -> str:
    """Return which models have the same numbers, as one model under two names has; "" where none have.

    Examples
    --------
    >>> same_numbers({"step0": [0.1, 0.2], "step1": [0.1, 0.2], "step2": [0.1, 0.3]})
    'The same numbers everywhere: step0, step1. It is one model under several names, so its pairs say nothing.'
    """
    names: dict[bytes, list[str]] = {}
    for model, values in numbers.items():
        names.setdefault(np.asarray(values).tobytes(), []).append(model)
    alike = "; ".join(", ".join(models) for models in names.values() if len(models) > 1)
    if not alike:
        return ""
    return f"The same numbers everywhere: {alike}. It is one model under several names, so its pairs say nothing."


def models_in_words(layers: Mapping[Any, int], groups: Sequence[str] = ()) -> str:
    """Return how many models of how many groups there are, and each with the number of its layers."""
    listed = ", ".join(f"{model} ({count(n, 'layer')})" for model, n in layers.items())
    of_groups = f" of {count(len(groups), 'group')}" if groups else ""
    return f"{len(layers)} models{of_groups}: {listed}"


def _compared(profiles: pd.DataFrame, binned: pd.DataFrame, n_unshared: Mapping[str, int]) -> str:
    layers = profiles.groupby("model", sort=False)["layer"].size().to_dict()
    first = profiles.iloc[0]
    text = (
        f"{first['term']} of {first['hook']} in {models_in_words(layers, _groups(profiles))}; {first['n_docs']} shared "
        f"documents, {binned['bin'].nunique()} slices of relative depth."
    )
    left_out = [f"{count(n, 'document')} of {model}" for model, n in n_unshared.items() if n]
    return text + (f" Left out, since not all models have them: {', '.join(left_out)}." if left_out else "")


def _differences(equivalence: pd.DataFrame, differences: pd.DataFrame, alpha: float) -> str:
    is_different = (differences["sim_low"] > 0) | (differences["sim_high"] < 0)
    different = is_different.groupby([differences["model_a"], differences["model_b"]]).any()
    n_pairs = count(len(different), "pair")
    text = f"Profiles differ somewhere in {different.sum()} of {n_pairs} (bands over all depths at once). "
    if equivalence.empty:
        return text + (
            "No margin was given, so nothing is said about equivalence: to find no difference is not to show that "
            "there is none."
        )
    margin = equivalence["margin"].iloc[0]
    overall = equivalence[equivalence["scope"] == "overall"]
    n_equivalent, n_beyond = int(overall["equivalent"].sum()), int((overall["sim_low"] > margin).sum())
    within = f"within ±{margin:g} at every depth (p < {alpha:g})"
    if n_equivalent == len(different):
        return text + f"All {n_pairs} are equivalent {within}."
    return text + (
        f"Equivalent {within}: {n_equivalent}; beyond that margin somewhere: {n_beyond}; undecided: "
        f"{len(different) - n_equivalent - n_beyond}."
    )


def _measures(agreement: pd.DataFrame) -> str:
    parts = []
    for measure, words in MEASURES.items():
        values = agreement.loc[agreement["measure"] == measure, "estimate"].dropna()
        parts.append(f"{words} {'not defined' if values.empty else spread(values)}")
    return f"Agreement of pairs, without sampling noise: {', '.join(parts)}."


def _shapes(agreement: pd.DataFrame, alpha: float) -> str:
    concordance = agreement[agreement["measure"] == "concordance"]
    if concordance["p_value"].isna().all():
        return (
            "Whether shapes are more alike than smooth shapes are by chance cannot be tested with "
            f"{concordance['bins'].iloc[0]} depths."
        )
    n, of = (concordance["p_value"] <= alpha).sum(), count(len(concordance), "pair")
    return f"Shapes are more alike than equally smooth ones by chance in {n} of {of} (p ≤ {alpha:g}, not adjusted)."


def _pooled(meta: pd.DataFrame, conf_level: float) -> str:
    text = (
        f"The mean over models goes from {meta['estimate'].min():.2f} to {meta['estimate'].max():.2f} over depth; "
        f"models differ about it by tau = {np.sqrt(meta['tau2'].mean()):.2f} "
        f"(I2 {spread(100 * meta['i2'], '{:.0f}')}%); "
    )
    if meta["prediction_low"].isna().any():
        return text + "two models give no prediction interval."
    n = int(((meta["prediction_low"] > 0) | (meta["prediction_high"] < 0)).sum())
    return text + (
        f"a further model's {conf_level:.0%} prediction interval is on one side of 0 in {n} of {len(meta)} slices."
    )


def _yardstick(yardstick: pd.DataFrame, profiles: pd.DataFrame, conf_level: float) -> str:
    if yardstick.empty:
        return no_yardstick(_groups(profiles))
    between, within, ratio = (
        yardstick.set_index("comparison").loc[name] for name in ("between groups", "within groups", "ratio")
    )
    text = f"Models of different groups differ by {between['estimate']:.3f} RMS, seeds of one group by "
    text += f"{within['estimate']:.3f}: "
    if np.isnan(ratio["estimate"]):
        text += "neither is more than sampling noise."
    else:
        is_known = np.isfinite(ratio["conf_high"])
        high = f"{ratio['conf_high']:.1f}" if is_known else "any ratio, since seeds may be equal"
        text += f"{ratio['estimate']:.1f} times as much ({conf_level:.0%} interval {ratio['conf_low']:.1f} to {high})."
    n_pairs = int(within.to_dict()["n_pairs"])
    if n_pairs >= FEW:
        return text
    return text + (
        f" The seeds' number rests on {count(n_pairs, 'pair')}, and the interval is over documents, not over seeds: "
        "it does not say how much another seed would differ."
    )


def _how_general(profiles: pd.DataFrame, leave_one_out: pd.DataFrame) -> str:
    groups, sentences = _groups(profiles), []
    n, noun = (len(groups), "group") if groups else (profiles["model"].nunique(), "model")
    if n < FEW:
        sentences.append(
            f"With {count(n, noun)} this describes these models and cannot be generalised to others."
        )
    if len(leave_one_out):
        far = leave_one_out.iloc[int(leave_one_out["rms_to_others"].to_numpy().argmax())]
        sentences.append(
            f"Farthest from the mean of the others is {far['model']} (RMS {far['rms_to_others']:.3f}); without it tau "
            f"is {far['tau_without']:.2f}."
        )
    return " ".join(sentences)


def _groups(profiles: pd.DataFrame) -> list[str]:
    return [name for name in profiles["group"].unique() if name]
