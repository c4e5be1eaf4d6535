"""What the tables say: one row a term, one sentence a model, and the answer in two."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from mechreg.charts.terms import Terms, sort_terms


def result_table(coefficients: pd.DataFrame, *, alpha: float = 0.05) -> pd.DataFrame:
    """Return one row a model, hook and term: layers, how many are significant, and the betas' range.

    Examples
    --------
    >>> frame = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": [0, 1], "term": "lag1",
    ...                       "estimate": [0.25, 0.5], "p_adjusted": [0.01, 0.2]})
    >>> result_table(frame)[["layers", "significant", "beta_median"]].values.tolist()
    [[2.0, 1.0, 0.375]]
    """
    terms = coefficients[coefficients["term"] != "Intercept"]
    terms = terms.assign(significant=terms["p_adjusted"] < alpha)
    grouped = terms.groupby(["model", "hook", "term"], sort=False, observed=True)
    return grouped.agg(
        layers=("layer", "size"),
        significant=("significant", "sum"),
        beta_min=("estimate", "min"),
        beta_median=("estimate", "median"),
        beta_max=("estimate", "max"),
    ).reset_index()


def answer(results: pd.DataFrame, *, alpha: float = 0.05) -> list[str]:
    """Return what the tables say of the lags, one sentence a model and hook; other terms are counted.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "term": "lag1", "layers": 4, "significant": 3}
    >>> answer(pd.DataFrame([row | {"beta_median": 0.25}]))
    ['m, attn_out: lag1 differs from zero in 3 of 4 layers (median beta 0.25).']
    """
    sentences = []
    for (model, hook), rows in results.groupby(["model", "hook"], sort=False, observed=True):
        terms = sort_terms(rows["term"])
        counted = _counted(rows, _asked(terms))
        parts = [
            f"{count} (median beta {_decimals(part['beta_median'].median())})" for count, part in counted
        ]
        sentences.append(
            f"{model}, {hook}: {_without_lags(terms)}{', '.join(parts)}{_rest(terms, len(parts))}."
        )
    return sentences


def headline(
    results: pd.DataFrame, *, nulls: pd.DataFrame | None = None, alpha: float = 0.05
) -> tuple[str, str]:
    """Return the answer in two sentences: what the lags' coefficients say of prediction, and what of context.

    Parameters
    ----------
    results : pandas.DataFrame
        What `result_table` gives. The sentences are of the first hook in it.
    nulls : pandas.DataFrame, optional
        What `compare_to_nulls` gives. Without it the second sentence says that nothing is known about context.
    alpha : float

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "term": "lag1", "layers": 4, "significant": 4}
    >>> answer, caveat = headline(pd.DataFrame([row | {"beta_min": 0.2, "beta_median": 0.25, "beta_max": 0.3}]))
    >>> answer
    'Yes, as a prediction: lag1 differs from zero in 4 of 4 layers of m (median beta 0.25, all above zero).'
    >>> caveat.split(",")[0]
    'That is not yet evidence of context'
    """
    if results.empty:
        return "The table has no coefficient but the intercept's, so nothing here answers the question.", _ASK
    hook = results["hook"].iloc[0]
    shown = results[results["hook"] == hook]
    terms = sort_terms(shown["term"])
    asked = _asked(terms)[:2]
    counts = [
        f"{count}{f' of {_models(rows)}' if at == 0 else ''} ({_betas(rows)})"
        for at, (count, rows) in enumerate(_counted(shown, asked))
    ]
    lags = terms.lags or terms.interactions
    lead = f"{_lead(shown[shown['term'].isin(asked)])}: " if lags else _without_lags(terms)
    n_hooks = results["hook"].nunique()
    of_hook = f" (of {hook}, the first of {n_hooks} hooks)" if n_hooks > 1 else ""
    sentence = f"{lead}{', '.join(counts)}{_rest(terms, len(asked))}{of_hook}."
    context = _context(lags[0], hook, nulls, alpha) if lags else _ASK
    return sentence[0].upper() + sentence[1:], context


def sinks_left_out(statistics: pd.DataFrame) -> str:
    """Return how many tokens the fits leave out as sinks, by model and hook; "" where they leave out none.

    Examples
    --------
    >>> sinks_left_out(pd.DataFrame({"model": "m", "hook": "resid_pre", "layer": [0, 1], "n_sinks": [0, 65]}))
    'Tokens left out as sinks, as outcome and as lag: m, resid_pre: 0 to 65 a layer, in 1 of 2 layers.'
    """
    if "n_sinks" not in statistics or not statistics["n_sinks"].any():
        return ""
    parts = []
    for (model, hook), rows in statistics.groupby(["model", "hook"], sort=False, observed=True):
        n = rows["n_sinks"]
        parts.append(
            f"{model}, {hook}: {n.min()} to {n.max()} a layer, in {(n > 0).sum()} of {len(n)} layers"
        )
    return f"Tokens left out as sinks, as outcome and as lag: {'; '.join(parts)}."


def same_weights(models: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for every two models or more of a run whose weights have one hash.

    Examples
    --------
    >>> same_weights({"name": name, "weights_sha256": "0f"} for name in ("step0", "step1"))
    ['step0 and step1 have the same weights: they are one model under several names, and count once.']
    """
    names: dict[str, list[str]] = {}
    for model in models:
        if digest := model.get("weights_sha256"):
            names.setdefault(digest, []).append(model["name"])
    return [
        f"{', '.join(alike[:-1])} and {alike[-1]} have the same weights: they are one model under several names, and "
        "count once."
        for alike in names.values()
        if len(alike) > 1
    ]


_ASK = "Whether the tokens before predict the update is asked by a formula with lags, such as log_norm ~ lag1 + lag2."
_MOST = 4  # terms of one sentence


def _asked(terms: Terms) -> list[str]:
    """Return the terms that a sentence is about: the lags; without them their interactions, or whatever there is."""
    return (terms.lags or terms.interactions or terms.others)[:_MOST]


def _counted(rows: pd.DataFrame, terms: list[str]) -> list[tuple[str, pd.DataFrame]]:
    """Return in words in how many of how many layers every term differs from zero, and the term's rows."""
    counted = []
    for term in terms:
        part = rows[rows["term"] == term]
        verb = " differs from zero" if term == terms[0] else ""
        n_significant, n_layers = int(part["significant"].sum()), int(part["layers"].sum())
        counted.append((f"{term}{verb} in {n_significant} of {n_layers} layers", part))
    return counted


def _without_lags(terms: Terms) -> str:
    return "" if terms.lags or terms.interactions else "without a lag in the formula, "


def _rest(terms: Terms, n_shown: int) -> str:
    """Return where the lags' coefficients hold, and how many terms the sentence leaves out."""
    meaning, all_of_them = terms.meaning(), {0: "", 1: "", 2: "both "}.get(n_shown, "all ")
    n_left = sum(map(len, terms)) - n_shown
    n_crossed = len(terms.interactions) if terms.lags else 0
    where = f", {all_of_them}{meaning}" if meaning else ""
    more = f"; {n_left} further {'term is' if n_left == 1 else 'terms are'} in the table" if n_left else ""
    return where + more + (f", {n_crossed} of them a lag times another term" if n_crossed else "")


def _lead(rows: pd.DataFrame) -> str:
    """Return the answer by the term that differs from zero in most layers."""
    sums = rows.groupby("term", observed=True)[["significant", "layers"]].sum()
    share = (sums["significant"] / sums["layers"]).max()
    if share == 0:
        return "No"
    return "Yes, as a prediction" if share >= 0.9 else f"In {'most' if share > 0.5 else 'some'} layers"


def _models(rows: pd.DataFrame) -> str:
    names = rows["model"].unique()
    return str(names[0]) if len(names) == 1 else f"{len(names)} models"


def _decimals(value: Any) -> str:
    """Return two decimals, or one digit of what they would round to nothing."""
    return f"{value:.1g}" if 0 < abs(value) < 0.005 else f"{value:.2f}"


def _betas(rows: pd.DataFrame) -> str:
    low, high = _decimals(rows["beta_median"].min()), _decimals(rows["beta_median"].max())
    median = f"median beta {low}" if low == high else f"median beta {low} to {high} by model"
    if rows["beta_min"].min() > 0:
        return median + ", all above zero"
    return median + (", all below zero" if rows["beta_max"].max() < 0 else "")


def _context(term: str, hook: str, nulls: pd.DataFrame | None, alpha: float) -> str:
    """Return in how many layers a lag exceeds the nulls, or that there are none."""
    if nulls is not None:
        nulls = nulls[(nulls["hook"] == hook) & (nulls["term"] == term)]
    if nulls is None or nulls.empty:
        return (
            "That is not yet evidence of context, since no nulls are in this report: with shuffled tokens or random "
            "weights betas differ from zero too, and only what exceeds them can come from word order or from training "
            "(compare_to_nulls)."
        )
    beyond = []
    for null, rows in nulls.groupby("null", sort=False, observed=True):
        n_above = int(((rows["excess"] > 0) & (rows["p_value"] < alpha)).sum())
        excess = f"median excess {_decimals(rows['excess'].median())}"
        beyond.append(f"{str(null).replace('_', ' ')} in {n_above} of {len(rows)} layers ({excess})")
    return f"Only what exceeds the nulls can be context: {term} is above {'; above '.join(beyond)}."
