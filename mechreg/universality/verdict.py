"""Verdict: what the tables of a comparison say, in sentences."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

# With fewer models (or groups of seeds), how much models differ in general can't be told from them.
FEW = 5


def verdict(
    found: Mapping[str, pd.DataFrame], *, n_unshared: Mapping[str, int], level: float
) -> tuple[str, ...]:
    """Return the sentences; how far they may be generalised comes with them.

    Parameters
    ----------
    found : mapping of str to pandas.DataFrame
        The tables of `ProfileComparison` by their names.
    n_unshared : mapping of str to int
        Documents of each model that some other model lacks.
    level : float
    """
    alpha = round(1 - level, 12)
    sentences = [
        _what(found["profiles"], found["binned"], n_unshared),
        _equivalence(found["equivalence"], found["differences"], alpha),
        _measures(found["agreement"]),
        _shapes(found["agreement"], alpha),
        _pooled(found["meta"], level),
        _yardstick(found["yardstick"], found["profiles"], level),
        _how_general(found["profiles"], found["leave_one_out"]),
    ]
    return tuple(filter(None, sentences))


def _what(profiles: pd.DataFrame, binned: pd.DataFrame, n_unshared: Mapping[str, int]) -> str:
    models = profiles.groupby("model", sort=False)["layer"].size()
    groups = [name for name in profiles["group"].unique() if name]
    listed = ", ".join(f"{model} ({n} layers)" for model, n in models.items())
    said = f"{profiles['term'].iloc[0]} of {profiles['hook'].iloc[0]} in {len(models)} models"
    said += f" of {_count(len(groups), 'group')}" if groups else ""
    bins, docs = binned["bin"].nunique(), profiles["n_docs"].iloc[0]
    said += f": {listed}; {docs} shared documents, {bins} slices of relative depth."
    left_out = {model: n for model, n in n_unshared.items() if n}
    if left_out:
        said += " Left out, since not all models have them: " + ", ".join(
            f"{_count(n, 'document')} of {model}" for model, n in left_out.items()
        )
        said += "."
    return said


def _equivalence(equivalence: pd.DataFrame, differences: pd.DataFrame, alpha: float) -> str:
    different = differences[(differences["sim_low"] > 0) | (differences["sim_high"] < 0)]
    n_pairs = len(differences[["model_a", "model_b"]].drop_duplicates())
    n_different = len(different[["model_a", "model_b"]].drop_duplicates())
    said = f"Profiles differ somewhere in {n_different} of {_count(n_pairs, 'pair')} (bands over all depths at once)."
    if equivalence.empty:
        said += " No margin was given, so nothing is said about equivalence:"
        return said + " to find no difference is not to show that there is none."
    margin = equivalence["margin"].iloc[0]
    overall = equivalence[equivalence["scope"] == "overall"]
    n_equivalent, n_beyond = int(overall["equivalent"].sum()), int((overall["sim_low"] > margin).sum())
    within = f"within ±{margin:g} at every depth"
    if n_equivalent == n_pairs:
        said += f" All {_count(n_pairs, 'pair')} are equivalent {within} (p < {alpha:g})."
    else:
        undecided = n_pairs - n_equivalent - n_beyond
        said += f" Equivalent {within} (p < {alpha:g}): {n_equivalent}; beyond that margin somewhere: {n_beyond}; "
        said += f"undecided: {undecided}."
    return said


def _measures(agreement: pd.DataFrame) -> str:
    parts = []
    for measure, words in (
        ("sign_agreement", "same sign"),
        ("concordance", "concordance"),
        ("rank_correlation", "rank correlation"),
        ("rms_difference", "RMS difference"),
    ):
        values = agreement.loc[agreement["measure"] == measure, "estimate"].dropna()
        if values.empty:
            parts.append(f"{words} not defined")
            continue
        shown = f"{values.min():.2f}" if len(values) == 1 else f"{values.min():.2f} to {values.max():.2f}"
        parts.append(f"{words} {shown}")
    return f"Agreement of pairs, without sampling noise: {', '.join(parts)}."


def _shapes(agreement: pd.DataFrame, alpha: float) -> str:
    concordance = agreement[agreement["measure"] == "concordance"]
    bins = int(concordance["bins"].iloc[0])
    if concordance["p_value"].isna().all():
        return f"Whether shapes are more alike than smooth shapes are by chance cannot be tested with {bins} depths."
    n = int((concordance["p_value"] <= alpha).sum())
    said = f"Shapes are more alike than equally smooth ones by chance in {n} of {_count(len(concordance), 'pair')} "
    return said + f"(p ≤ {alpha:g}, not adjusted)."


def _pooled(meta: pd.DataFrame, level: float) -> str:
    tau, i2 = np.sqrt(meta["tau2"].mean()), meta["i2"]
    said = f"The mean over models goes from {meta['estimate'].min():.2f} to {meta['estimate'].max():.2f} over depth; "
    said += f"models differ about it by tau = {tau:.2f} (I2 {_range(100 * i2, '.0f')}%)"
    if meta["prediction_low"].isna().any():
        return said + "; two models give no prediction interval."
    same = (meta["prediction_low"] > 0) | (meta["prediction_high"] < 0)
    return said + (
        f"; a further model's {level:.0%} prediction interval is on one side of 0 in {int(same.sum())} of {len(meta)} "
        "slices."
    )


def _yardstick(yardstick: pd.DataFrame, profiles: pd.DataFrame, level: float) -> str:
    if not profiles["group"].any():
        return "Without groups=, seeds of one size are not told from sizes, and there is no yardstick for differences."
    if yardstick.empty:
        if profiles["group"].nunique() == 1:
            return "All models are of one group, so there are no differences between groups to measure."
        return "No group has two models (seeds), so there is no yardstick for differences between groups."
    rows = yardstick.set_index("comparison")
    between, within, ratio = (rows.loc[name] for name in ("between groups", "within groups", "ratio"))
    said = f"Models of different groups differ by {between['estimate']:.3f} RMS, seeds of one group by "
    said += f"{within['estimate']:.3f}: "
    if np.isnan(ratio["estimate"]):
        return said + "neither is more than sampling noise."
    return (
        said
        + f"{ratio['estimate']:.1f} times as much ({level:.0%} interval {ratio['conf_low']:.1f} to "
        + (
            f"{ratio['conf_high']:.1f})."
            if np.isfinite(ratio["conf_high"])
            else "any ratio, since seeds may be equal)."
        )
    )


def _how_general(profiles: pd.DataFrame, leave_one_out: pd.DataFrame) -> str:
    groups = [name for name in profiles["group"].unique() if name]
    n, noun = (len(groups), "group") if groups else (profiles["model"].nunique(), "model")
    said = ""
    if n < FEW:
        said = f"With {_count(n, noun)} this describes these models and cannot be generalised to others."
    if len(leave_one_out):
        far = leave_one_out.iloc[int(leave_one_out["rms_to_others"].to_numpy().argmax())]
        said += f"{' ' if said else ''}Farthest from the mean of the others is {far['model']} "
        said += f"(RMS {far['rms_to_others']:.3f}); without it tau is {far['tau_without']:.2f}."
    return said


def _range(values: pd.Series, form: str) -> str:
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} to {high}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
