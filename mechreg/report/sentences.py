"""What the tables say: one row a term, one sentence a model, and the answer in two."""

from typing import Any

import pandas as pd


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
    """Return what the tables say, one sentence a model and hook.

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "term": "lag1", "layers": 4, "significant": 3}
    >>> answer(pd.DataFrame([row | {"beta_median": 0.25}]))
    ['m, attn_out: lag1 differs from zero in 3 of 4 layers (median beta 0.25).']
    """
    sentences = []
    for (model, hook), rows in results.groupby(["model", "hook"], sort=False, observed=True):
        said = ", ".join(
            f"{row.term} {'differs from zero ' if i == 0 else ''}in {row.significant} of {row.layers} layers "
            f"(median beta {_decimals(row.beta_median)})"
            for i, row in enumerate(rows.itertuples())
        )
        sentences.append(f"{model}, {hook}: {said}.")
    return sentences


def headline(
    results: pd.DataFrame, *, nulls: pd.DataFrame | None = None, alpha: float = 0.05
) -> tuple[str, str]:
    """Return the answer in two sentences: what the coefficients say of prediction, and what of context.

    Parameters
    ----------
    results : pandas.DataFrame
        What `result_table` gives. The sentences are of the first hook in it.
    nulls : pandas.DataFrame, optional
        What `compare_to_nulls` gives. Without it the second sentence says that nothing is known of context: shuffled
        tokens and random weights have betas that differ from zero too.
    alpha : float

    Examples
    --------
    >>> row = {"model": "m", "hook": "attn_out", "term": "lag1", "layers": 4, "significant": 4}
    >>> said, caveat = headline(pd.DataFrame([row | {"beta_min": 0.2, "beta_median": 0.25, "beta_max": 0.3}]))
    >>> said
    'Yes, as a prediction: lag1 differs from zero in 4 of 4 layers of m (median beta 0.25, all above zero).'
    >>> caveat.split(",")[0]
    'That is not yet evidence of context'
    """
    if results.empty:
        return "There are no coefficients to answer from.", ""
    hook = results["hook"].iloc[0]
    shown = results[results["hook"] == hook]
    parts, lead = [], ""
    for at, (term, rows) in enumerate(shown.groupby("term", sort=False, observed=True)):
        found, of = int(rows["significant"].sum()), int(rows["layers"].sum())
        if at == 0:
            lead = _lead(found, of)
        if at == 2:
            parts.append(f"further terms in the table ({shown['term'].nunique() - 2})")
            break
        where = f"of {_models(rows)}" if at == 0 else ""
        verb = "differs from zero in" if at == 0 else "in"
        parts.append(f"{term} {verb} {found} of {of} layers {where}".rstrip() + f" ({_betas(rows)})")
    of_hook = (
        f" (of {hook}, the first of {results['hook'].nunique()} hooks)"
        if results["hook"].nunique() > 1
        else ""
    )
    return f"{lead}: {', '.join(parts)}{of_hook}.", _context(shown, hook, nulls, alpha)


def _lead(found: int, of: int) -> str:
    if found == 0:
        return "No"
    return (
        "Yes, as a prediction" if found >= 0.9 * of else f"In {'most' if found > of / 2 else 'some'} layers"
    )


def _models(rows: pd.DataFrame) -> str:
    names = rows["model"].unique()
    return str(names[0]) if len(names) == 1 else f"{len(names)} models"


def _decimals(value: Any) -> str:
    """Return two decimals, or one digit of what they would round to nothing."""
    return f"{value:.1g}" if 0 < abs(value) < 0.005 else f"{value:.2f}"


def _betas(rows: pd.DataFrame) -> str:
    low, high = _decimals(rows["beta_median"].min()), _decimals(rows["beta_median"].max())
    said = f"median beta {low}" if low == high else f"median beta {low} to {high} by model"
    if rows["beta_min"].min() > 0:
        return said + ", all above zero"
    return said + (", all below zero" if rows["beta_max"].max() < 0 else "")


def _context(shown: pd.DataFrame, hook: str, nulls: pd.DataFrame | None, alpha: float) -> str:
    """Return what the nulls say of the first term, or that they have not been asked."""
    term = shown["term"].iloc[0]
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
        found = int(((rows["excess"] > 0) & (rows["p_value"] < alpha)).sum())
        excess = f"median excess {_decimals(rows['excess'].median())}"
        beyond.append(f"{str(null).replace('_', ' ')} in {found} of {len(rows)} layers ({excess})")
    return f"Only what exceeds the nulls can be context: {term} is above {'; above '.join(beyond)}."
