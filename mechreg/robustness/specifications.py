"""The same coefficients under other reasonable regressions: what they owe to documents, position, words and sinks."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from mechreg.corpus import token_counts
from mechreg.lags import add_lags
from mechreg.regression import DocumentSums, LagSums, formula_columns
from mechreg.robustness.refits import (
    held_out_r_squared,
    in_folds,
    within_documents,
    within_estimates,
)
from mechreg.schema import (
    GROUP_KEYS,
    TOKEN_KEYS,
    InputError,
    document_ids,
    one_or_many,
    require,
    require_conf_level,
    require_option,
    require_whole_number,
)

Specification = Literal[
    "baseline",
    "document_effects",
    "half_panel",
    "more_lags",
    "position",
    "log_frequency",
    "is_repeat",
    "covariates",
    "first_tokens_kept",
]
SPECIFICATIONS: tuple[str, ...] = get_args(Specification)
_COVARIATES = {
    "position": "position + np.log(position + 1)",
    "log_frequency": "log_frequency",
    "is_repeat": "is_repeat",
    "covariates": "position + np.log(position + 1) + log_frequency + is_repeat",
}
_LAG, _BELOW = re.compile(r"lag(\d+)"), re.compile(r"layer_below(?:_lag(\d+))?")
_COLUMNS = ("term", "estimate", "std_error", "df", "p_value", "conf_low", "conf_high", "n", "n_docs")


def specification_curve(
    lagged: pd.DataFrame,
    formula: str = "log_norm ~ lag1 + lag2",
    *,
    specifications: Specification | Sequence[Specification] = SPECIFICATIONS,  # type: ignore[assignment]
    extra_lags: int = 2,
    folds: int = 10,
    conf_level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the coefficients of every layer under each of several specifications, one row a term.

    Parameters
    ----------
    lagged : pandas.DataFrame
        What `add_lags` gave, all its rows: the lags of some specifications are made anew from ``norm``.
    formula : str
        The baseline.
    specifications : sequence of str
        "baseline"; "document_effects": a level for every document (the within estimator, as with ``C(doc)``);
        "half_panel": the same with the half-panel jackknife, 2 b - (b of first halves + b of second halves) / 2;
        "more_lags": ``extra_lags`` beyond the longest of the formula; "position": ``position`` and
        ``np.log(position + 1)``; "log_frequency": log of the token's share in this corpus; "is_repeat": 1 where
        the document had the token before; "covariates": these three together; "first_tokens_kept": the formula
        with ``skip=0``, so that the sink at position 0 is outcome and lag.
    extra_lags : int
    folds : int
        Documents are left out in so many parts for ``held_out_r_squared``, the same in all specifications.
    conf_level : float
    seed : int
        Of the folds.

    Returns
    -------
    pandas.DataFrame
        specification, model, hook, layer, (head,) depth, term (not the intercept), estimate, std_error, df, p_value,
        conf_low, conf_high, n, n_docs, r_squared, held_out_r_squared, cov_type. All errors are clustered by
        document (crv3, t(G-1); for half_panel the jackknife over documents of the whole estimator). R2 of
        "document_effects" and "half_panel" is of what varies within documents, so it is comparable only between
        these two; R2 of specifications with another ``n`` is of other rows.

    Raises
    ------
    SchemaError, InputError, NumericalError
        As `fit_lagged` and `add_lags`; the message names the specification.

    Notes
    -----
    Levels that differ between documents raise pooled lag coefficients; taking them off lowers those of short documents
    (Nickell 1981), which the half-panel jackknife repairs (Dhaene, Jochmans 2015): in documents of a hundred tokens;
    of a dozen each coefficient stays off by some .03. It takes both halves of a document for alike: where norms
    change along a document (position), it moves for that reason too.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(list("abcd"), 50),
    ...                       "window": 0, "position": np.tile(range(50), 4), "norm": rng.lognormal(size=200)})
    >>> table = specification_curve(add_lags(norms), specifications=["baseline", "more_lags"], folds=4)
    >>> table["term"].tolist()
    ['lag1', 'lag2', 'lag1', 'lag2', 'lag3', 'lag4']
    """
    chosen = _chosen(specifications)
    require_whole_number(extra_lags, name="extra_lags", most=256)
    require_conf_level(conf_level)
    columns = formula_columns(formula)
    words = {"log_frequency", "is_repeat"}
    needed = [name for name in columns if name not in words]
    require(lagged, (*GROUP_KEYS, *TOKEN_KEYS, *needed, "norm", "log_norm"), who="robustness")
    skip = skip_of(lagged, who="robustness")
    frame = lagged
    if words & set(columns) or {*words, "covariates"} & set(chosen):
        frame = _with_words(lagged)
    docs = pd.Index(pd.unique(lagged["doc"])).sort_values()
    fold = in_folds(docs, folds=folds, seed=seed, who="robustness")
    conf_level = float(conf_level)
    parts = []
    for name in chosen:
        who = f"robustness, specification {name!r},"
        rows, text = frame, formula
        if name == "more_lags":
            lags = _more_lags(columns, extra_lags)
            rows, text = relagged(frame, lags=lags, skip=skip), f"{formula} + {' + '.join(lags)}"
        elif name == "first_tokens_kept":
            rows = relagged(frame, lags=(), skip=0)
        elif name in _COVARIATES:
            text = f"{formula} + {_COVARIATES[name]}"
        if name in ("document_effects", "half_panel"):
            table = _within(rows, text, fold, conf_level, halves=name == "half_panel", who=who)
        else:
            table = _pooled(rows, text, fold, conf_level, who=who)
        table.insert(0, "specification", name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def skip_of(lagged: pd.DataFrame, *, who: str) -> int:
    """Return how many first positions a lagged frame leaves out: those without a ``log_norm``.

    Raises
    ------
    InputError
        Others lack it too: the frame is not what `add_lags` gave.
    """
    lacks = lagged["log_norm"].isna()
    skip = int(lagged.loc[lacks, "position"].max()) + 1 if lacks.any() else 0
    if not (lacks == (lagged["position"] < skip)).all():
        raise InputError(
            f"{who} needs a frame as add_lags gave it, with 'log_norm' missing at first positions only."
        )
    return skip


def relagged(lagged: pd.DataFrame, *, lags: Iterable[str], skip: int) -> pd.DataFrame:
    """Return the lagged frame with the lags that it has and others, made anew with another ``skip``."""
    have = [str(name) for name in lagged.columns]
    numbers = {int(found[1]) for name in (*have, *lags) if (found := _LAG.fullmatch(name))}
    below = {int(found[1] or 0) for name in have if (found := _BELOW.fullmatch(name))}
    made = [n for n in have if n == "log_norm" or _LAG.fullmatch(n) or _BELOW.fullmatch(n)]
    return add_lags(lagged.drop(columns=made), lags=sorted(numbers), skip=skip, layer_below=sorted(below))


def _chosen(specifications: str | Sequence[str]) -> list[str]:
    chosen = one_or_many(specifications)
    for name in chosen:
        require_option(name, SPECIFICATIONS, name="specifications")
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"specifications must name at least one, each once; got {chosen}.")
    return chosen


def _more_lags(columns: tuple[str, ...], extra: int) -> list[str]:
    longest = max((int(found[1]) for name in columns if (found := _LAG.fullmatch(name))), default=0)
    return [f"lag{lag}" for lag in range(longest + 1, longest + 1 + extra)]


def _with_words(lagged: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with ``log_frequency`` and ``is_repeat``, each as it is where it is there already."""
    wanted = [name for name in ("log_frequency", "is_repeat") if name not in lagged.columns]
    if not wanted:
        return lagged
    require(lagged, ("token_id",), who="robustness")
    keys = ["model", *TOKEN_KEYS]
    tokens = lagged[[*keys, "token_id"]].drop_duplicates(keys)
    words = pd.concat(
        [
            part[keys].join(token_counts(part, covariates=wanted))
            for _, part in tokens.groupby("model", observed=True, sort=False)
        ]
    )
    joined = lagged[keys].merge(words, on=keys, how="left")
    return lagged.assign(**{name: joined[name].to_numpy() for name in wanted})


def _pooled(
    frame: pd.DataFrame, formula: str, fold: pd.Series, conf_level: float, *, who: str
) -> pd.DataFrame:
    moments = LagSums.from_frame(frame, formula, max_lag=None)
    table = moments.coefficients(cov="crv3", adjust="none", conf_level=conf_level)
    held_out = [
        held_out_r_squared(sums, fold[sums.labels].to_numpy(), who=who) for sums in moments.document_sums()
    ]
    keys = [key for key in (*GROUP_KEYS, "head") if key in table.columns]
    group = table.groupby(keys, sort=False).ngroup()
    table = table.assign(held_out_r_squared=np.array(held_out)[group])
    keep = [*keys, "depth", *_COLUMNS, "r_squared", "held_out_r_squared", "cov_type"]
    return table.loc[table["term"] != "Intercept", keep]


def _within(
    frame: pd.DataFrame, formula: str, fold: pd.Series, conf_level: float, *, halves: bool, who: str
) -> pd.DataFrame:
    """Return the rows of the within estimator, or of its half-panel jackknife."""
    doc = pd.Categorical(document_ids(frame["doc"]), categories=fold.index)
    # Every group splits its own complete rows: the halves of the shortest lag's rows are not those of the longest.
    frame = frame.assign(half_document=2 * doc.codes.astype("int64") + _second_half(frame, formula))
    moments = LagSums.from_frame(frame, formula, cluster="half_document", max_lag=None)
    parts = []
    for part in moments.document_sums():
        number, at = np.unique(part.labels.to_numpy() // 2, return_inverse=True)
        whole = np.zeros((len(number), *part.sums.shape[1:]))
        np.add.at(whole, at, part.sums)
        document = part._replace(sums=whole, labels=fold.index[number])
        # One row in the sums of [x, y] for the estimator's every ingredient: all rows, then the halves.
        of_whole = within_documents(document, who=who)
        ingredients = [(1.0, of_whole.sums)]
        if halves:
            of_halves = within_documents(part, who=who).sums
            ingredients = [(2.0, of_whole.sums)]
            for half in (0, 1):
                sums = np.zeros_like(of_whole.sums)
                here = part.labels.to_numpy() % 2 == half
                sums[at[here]] = of_halves[here]
                ingredients.append((-0.5, sums))
        parts.append(
            _within_rows(
                document, of_whole.names, ingredients, fold[document.labels].to_numpy(), conf_level, who=who
            )
        )
    return pd.concat(parts, ignore_index=True)


class _Weighted(NamedTuple):
    """An estimator that is a weighted sum of within estimators."""

    ingredients: list[tuple[float, Float[np.ndarray, "docs columns columns"]]]
    where: str
    who: str

    def estimate(self, without: Float[np.ndarray, "fits docs"]) -> Float[np.ndarray, "fits terms"]:
        """Return the coefficients without some of the documents (1 where one is left out), for each fit."""
        found = np.zeros((len(without), self.ingredients[0][1].shape[-1] - 1))
        for weight, sums in self.ingredients:
            left = sums.sum(axis=0) - np.tensordot(without, sums, axes=1)
            found = found + weight * within_estimates(left, where=self.where, who=self.who)
        return found


def _within_rows(
    document: DocumentSums,
    names: tuple[str, ...],
    ingredients: list[tuple[float, Float[np.ndarray, "docs columns columns"]]],
    fold: Int[np.ndarray, " docs"],
    conf_level: float,
    *,
    who: str,
) -> pd.DataFrame:
    estimator = _Weighted(ingredients, document.where, who)
    sums, count = ingredients[0][1], len(document.labels)
    if count < 2:
        raise InputError(f"{who} needs at least two documents; {document.where} has {count}.")
    estimate = estimator.estimate(np.zeros((1, count)))[0]
    moved = estimator.estimate(np.eye(count)) - estimate
    error = np.sqrt((count - 1) / count * (moved**2).sum(axis=0))
    half = stats.t.ppf((1 + conf_level) / 2, count - 1) * error
    left_out = np.unique(fold)[:, None] == fold
    of_others = estimator.estimate(left_out.astype(float))
    tests = np.tensordot(left_out.astype(float), sums, axes=1)
    return pd.DataFrame(
        {
            **document.keys,
            "depth": document.depth,
            "term": names,
            "estimate": estimate,
            "std_error": error,
            "df": float(count - 1),
            "p_value": 2 * stats.t.sf(np.abs(estimate / error), count - 1),
            "conf_low": estimate - half,
            "conf_high": estimate + half,
            "n": document.n,
            "n_docs": count,
            "r_squared": _r_squared(sums.sum(axis=0)[None], estimate[None]),
            "held_out_r_squared": _r_squared(tests, of_others),
            "cov_type": "crv3" if len(ingredients) == 1 else "jackknife over documents",
        }
    )


def _r_squared(
    sums: Float[np.ndarray, "parts columns columns"], estimate: Float[np.ndarray, "parts terms"]
) -> float:
    """Return 1 - squared errors / squares over all parts, each with its coefficients."""
    left = np.concatenate([-estimate, np.ones((len(estimate), 1))], axis=1)
    error = np.einsum("pi,pij,pj->", left, sums, left)
    return float(1 - error / sums[:, -1, -1].sum())


def _second_half(frame: pd.DataFrame, formula: str) -> Int[np.ndarray, " rows"]:
    """Return 1 for the complete rows in the second half of their group's document, else 0."""
    complete = frame[list(formula_columns(formula))].notna().all(axis=1).to_numpy()
    keys = [key for key in (*GROUP_KEYS, "head") if key in frame.columns]
    rows = frame.loc[complete, [*keys, *TOKEN_KEYS]].reset_index(drop=True)
    by = rows.sort_values(["window", "position"]).groupby([*keys, "doc"], observed=True, sort=False)
    second = 2 * by.cumcount() >= by["position"].transform("size")
    found = np.zeros(len(frame), np.int64)
    found[complete] = second.sort_index().to_numpy()
    return found
