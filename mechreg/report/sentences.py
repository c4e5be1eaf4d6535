"""What the tables say: a row a term, pooled and within documents and positions, and the answer in sentences."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from mechreg.charts.terms import Terms, sort_terms
from mechreg.words import spread

CONTROLS = {
    "none": "pooled over documents",
    "doc": "within documents",
    "doc + position": "within documents and positions",
}
HALF_LIFE = "half_life"
ALPHA = 0.05  # as the sentences say
_KEYS = ["model", "hook", "term", "controls"]


def result_table(
    coefficients: pd.DataFrame,
    persistence: pd.DataFrame | None = None,
    *,
    effects: Sequence[str] = (),
) -> pd.DataFrame:
    """Return one row a model, hook, term and controls: layers, how many are significant, and the betas' range.

    ``coefficients`` are the run's own, without the levels of ``effects``; ``persistence`` has the lags with and without
    controls.
    """
    terms = coefficients[coefficients["term"] != "Intercept"].assign(controls=" + ".join(effects) or "none")
    if persistence is not None and len(persistence):
        terms = pd.concat([persistence, terms[~terms["term"].isin(persistence["term"])]])
    known = terms.reindex(columns=list({*terms.columns, "df", "n_docs", "n", "head"}))
    grouped = known.assign(significant=known["p_adjusted"] < ALPHA).groupby(_KEYS, sort=False, observed=True)
    table = grouped.agg(
        layers=("estimate", "count"),
        significant=("significant", "sum"),
        beta_min=("estimate", "min"),
        beta_median=("estimate", "median"),
        beta_max=("estimate", "max"),
        df_min=("df", "min"),
        df_max=("df", "max"),
        n_docs=("n_docs", "max"),
        n=("n", "max"),
        heads=("head", "nunique"),
    ).reset_index()
    order = {key: pd.Categorical(table[key], table[key].unique()) for key in ("model", "hook", "term")}
    return table.loc[table.assign(**order).sort_values([*order], kind="stable").index]


def side_by_side(results: pd.DataFrame) -> pd.DataFrame:
    """Return the result table in words: a column for every kind of controls; one model or hook is not named."""
    rows: dict[tuple, dict[str, str]] = {}
    columns = [name for name in CONTROLS if (results["controls"] == name).any()]
    columns += [name for name in dict.fromkeys(results["controls"]) if name not in CONTROLS]
    for row in results.to_dict("records"):
        place = rows.setdefault(tuple(row[key] for key in _KEYS[:3]), dict.fromkeys(columns, ""))
        place[row["controls"]] = _cell(row)
    keyed = [dict(zip(_KEYS[:3], place, strict=True)) | cells for place, cells in rows.items()]
    named = [key for key in _KEYS[:3] if key == "term" or results[key].nunique() > 1]
    table = pd.DataFrame(keyed, columns=[*named, *columns]).rename(
        columns={name: in_words(name) for name in columns}
    )
    return table.replace({"term": {HALF_LIFE: "half-life, tokens"}})


def in_words(controls: str) -> str:
    """Return what controls are called in a sentence."""
    return CONTROLS.get(controls, f"within {controls}")


def counted(rows: pd.DataFrame) -> str:
    """Return what a table of fits, or `result_table`, has rows of: layers, or heads where the hook is per head."""
    if "heads" in rows:
        several = rows["heads"].groupby(rows["hook"], observed=True).max() > 1
    elif "head" in rows:
        several = rows["head"].groupby(rows["hook"], observed=True).nunique() > 1
    else:
        return "layers"
    nouns = {"layers": not several.all(), "heads": several.any()}
    return " and ".join(noun for noun, is_there in nouns.items() if is_there)


def legend(results: pd.DataFrame) -> str:
    """Return what the cells of `side_by_side` hold."""
    return (
        f"Median over {counted(results)} (least to largest); in how many of them p < .05, adjusted over them and the "
        "lags."
    )


def headline(results: pd.DataFrame, *, nulls: pd.DataFrame | None = None) -> tuple[str, str, str]:
    """Return three sentences: the answer for the sum of the lags, the details, and what it says about context.

    ``results`` is of `result_table`, the sentences of its first hook. Without ``nulls`` (of `compare_to_nulls`) the
    last one says that nothing is known about context.
    """
    if results.empty:
        nothing = "The table has no coefficient but the intercept's, so nothing here answers the question."
        return nothing, "", _ASK
    hook = results["hook"].iloc[0]
    shown = results[(results["hook"] == hook) & (results["term"] != HALF_LIFE)]
    together = [term for term in dict.fromkeys(shown["term"]) if " + " in term]
    terms = sort_terms(term for term in shown["term"] if term not in together)
    asked = (together[:1] + (terms.lags or terms.interactions or terms.others))[:_MOST]
    lags = terms.lags or terms.interactions
    first, *others = (_of_term(shown[shown["term"] == term], term, first=term == asked[0]) for term in asked)
    lead = f"{_lead(shown[shown['term'].isin(asked)])}: " if lags else "without a lag in the formula, "
    rest = [*others, *_rest(terms, len(asked) - len(together[:1]))]
    beside = f"Separately: {'; '.join(rest)}. " if rest else ""
    sentence = f"{lead}{first}."
    about = beside + _sample(results[results["hook"] == hook])
    context = _context(lags[0], hook, nulls) if lags else _ASK
    return sentence[0].upper() + sentence[1:], about, context


def sinks_left_out(statistics: pd.DataFrame) -> str:
    """Return how many tokens the fits leave out as sinks, by model and hook."""
    if "n_sinks" not in statistics or not statistics["n_sinks"].any():
        return "No token but the first of each window is left out as a sink."
    parts = []
    for (model, hook), rows in statistics.groupby(["model", "hook"], sort=False, observed=True):
        n = rows["n_sinks"]
        if n.any():
            noun = counted(rows)
            in_some = f"in {(n > 0).sum()} of {len(n)} {noun}"
            parts.append(f"{model}, {hook}: {n.min():,} to {n.max():,} a {noun.removesuffix('s')}, {in_some}")
    return f"Tokens left out as sinks, as outcome and as lag: {'; '.join(parts)}."


def same_weights(models: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for every two models or more of a run whose weights have one hash."""
    return [
        f"{', '.join(alike[:-1])} and {alike[-1]} have the same weights: they are one model under several names, and "
        "count once."
        for alike in _by_weights(models)
        if len(alike) > 1
    ]


def counted_once(results: pd.DataFrame, models: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the rows of a result table without those of models whose weights an earlier one has."""
    again = [name for alike in _by_weights(models) for name in alike[1:]]
    return results[~results["model"].isin(again)] if again and len(results) else results


def _by_weights(models: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the names of models, those with the same weights together."""
    names: dict[str, list[str]] = {}
    for model in models:
        if digest := model.get("weights_sha256"):
            names.setdefault(digest, []).append(model["name"])
    return [*names.values()]


_ASK = "Whether the tokens before predict the update is asked by a formula with lags, such as log_norm ~ lag1 + lag2."
_MOST = 4  # terms of one sentence


def _cell(row: Mapping[Any, Any]) -> str:
    if not row["layers"]:
        return "not computed"
    decimals = _decimals if row["term"] != HALF_LIFE else "{:.2g}".format
    text = decimals(row["beta_median"])
    if row["layers"] > 1:
        text += f" ({decimals(row['beta_min'])} to {decimals(row['beta_max'])})"
    return text if row["term"] == HALF_LIFE else f"{text}, {row['significant']} of {row['layers']}"


def _of_term(rows: pd.DataFrame, term: str, *, first: bool) -> str:
    """Return in how many layers a term differs from zero, and its median, under every kind of controls."""
    several, parts, missing = rows["controls"].nunique() > 1, list[str](), ""
    for controls, part in rows.groupby("controls", sort=False):
        where = f" {in_words(str(controls))}" if several and first else ""
        if not part["layers"].sum():
            missing += f", not computed{where}"
            continue
        models = rows["model"].unique()
        of_models = str(models[0]) if len(models) == 1 else f"{len(models)} models"
        layers = f" {counted(part)} of {of_models}" if first and not parts else ""
        low, high = _decimals(part["beta_median"].min()), _decimals(part["beta_median"].max())
        median = low if low == high else f"{low} to {high} by model"
        median = f"median {median}" if first and not parts else median
        parts.append(f"in {part['significant'].sum()} of {part['layers'].sum()}{layers}{where} ({median})")
    return f"{term}{' differs from zero' if first else ''} {' and '.join(parts)}{missing}"


def _sample(rows: pd.DataFrame) -> str:
    """Return how many documents and tokens there were, what the documents are worth, and for how long norms persist."""
    sentences, noun = [], counted(rows).removesuffix("s")
    if rows["n_docs"].notna().any():
        coefficients = rows[rows["term"] != HALF_LIFE]
        docs = spread(rows["n_docs"], "{:,.0f}")
        df = spread([coefficients["df_min"].min(), coefficients["df_max"].max()], "{:,.0f}")
        tokens = f"{spread(rows['n'], '{:,.0f}')} tokens per {noun}"
        sentences.append(f"{docs} documents, {tokens}; effective degrees of freedom {df}.")
        if docs == "1":
            sentences = [f"One document, {tokens}: the intervals treat its tokens as independent."]
    half = rows[(rows["term"] == HALF_LIFE) & (rows["layers"] > 0)]
    if len(half):
        tokens = spread([half["beta_min"].min(), half["beta_max"].max()], "{:.2g}")
        sentences.append(
            f"Within documents and positions the slow part of the autocorrelation halves in {tokens} tokens, by {noun} "
            f"(distinguishable from white noise in {half['layers'].sum()})."
        )
    return " ".join(sentences)


def _rest(terms: Terms, n_shown: int) -> list[str]:
    """Return where the lags' coefficients hold, and how many terms the sentences leave out."""
    meaning = terms.meaning()
    n_left = sum(map(len, terms)) - n_shown
    n_crossed = len(terms.interactions) if terms.lags else 0
    crossed = f", {n_crossed} of them a lag times another term" if n_crossed else ""
    more = f"{n_left} further {'term is' if n_left == 1 else 'terms are'} in the table{crossed}"
    return [*([f"lags hold {meaning}"] if meaning else []), *([more] if n_left else [])]


def _lead(rows: pd.DataFrame) -> str:
    """Return the answer by the term that differs from zero in most layers, under the last controls that it has."""
    known = rows[rows["layers"] > 0]
    rows = known[known["controls"] == known["controls"].iloc[-1]] if len(known) else rows
    sums = rows.groupby("term", observed=True)[["significant", "layers"]].sum()
    share = (sums["significant"] / sums["layers"]).max()
    if not share > 0:
        return "No"
    return (
        "Yes, as a prediction" if share >= 0.9 else f"In {'most' if share > 0.5 else 'some'} {counted(rows)}"
    )


def _decimals(value: Any) -> str:
    """Return two decimals, or one digit of what they would round to nothing."""
    return f"{value:.1g}" if 0 < abs(value) < 0.005 else f"{value:.2f}"


def _context(term: str, hook: str, nulls: pd.DataFrame | None) -> str:
    """Return in how many layers a lag exceeds the nulls, or that there are none."""
    if nulls is not None:
        nulls = nulls[(nulls["hook"] == hook) & (nulls["term"] == term)]
    if nulls is None or nulls.empty:
        return (
            "This does not show an effect of context: texts with shuffled tokens and networks with random weights have "
            "such coefficients too, and this report has no such nulls (nulls of a run, or compare_to_nulls)."
        )
    beyond = []
    for null, rows in nulls.groupby("null", sort=False, observed=True):
        n_above = int(((rows["excess"] > 0) & (rows["p_value"] < ALPHA)).sum())
        excess = f"median excess {_decimals(rows['excess'].median())}"
        beyond.append(f"{str(null).replace('_', ' ')} in {n_above} of {len(rows)} {counted(rows)} ({excess})")
    # Norms in another order, and a token's usual norm, have neighbours that are alike for no reason at all.
    told = {"token_order": "word order", "random_weights": "training"}
    told = {null: source for null, source in told.items() if (nulls["null"] == null).any()}
    meaning = (
        "An excess over these says that neighbours are alike, not why: compare token_order, random_weights"
    )
    if told:
        names = " or ".join(told).replace("_", " ")
        meaning = f"Only an excess over {names} can come from {' or '.join(told.values())}"
    return f"Beside the nulls: {term} is above {'; above '.join(beyond)} (p < .05, not adjusted). {meaning}."
