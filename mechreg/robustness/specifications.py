"""The same coefficients under other reasonable regressions: what they owe to documents, position, words and sinks."""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from mechreg.corpus import token_counts
from mechreg.lags import add_lags, lags_among
from mechreg.outside import any_frames
from mechreg.regression import fit_lagged, formula_columns, mean_group
from mechreg.robustness.held_out import held_out_r_squared, in_folds
from mechreg.schema import (
    GROUP_KEYS,
    MAX_LAGS,
    TOKEN_KEYS,
    InputError,
    NumericalError,
    group_columns,
    require,
    require_names,
    require_shared,
    require_whole_number,
)

Specification = Literal[
    "baseline",
    "document_effects",
    "document_position_effects",
    "mean_group",
    "more_lags",
    "position",
    "log_frequency",
    "is_repeat",
    "covariates",
    "first_tokens_kept",
]
SPECIFICATIONS: tuple[str, ...] = get_args(Specification)
_POSITION = "position + np.log(position + 1)"
_COVARIATES = {
    "position": _POSITION,
    "log_frequency": "log_frequency",
    "is_repeat": "is_repeat",
    "covariates": f"{_POSITION} + log_frequency + is_repeat",
}
_EFFECTS = {"document_effects": ("doc",), "document_position_effects": ("doc", "position")}
_WORDS = ("log_frequency", "is_repeat")
_COLUMNS = (
    "term", "estimate", "std_error", "df", "p_value", "conf_low", "conf_high", "n", "n_docs", "r_squared",
    "held_out_r_squared", "cov_type",
)  # fmt: skip
WHO = "specification_curve"


@any_frames
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
        What `add_lags` returns, all its rows: some specifications compute other lags from ``norm``.
    formula : str
        The baseline.
    specifications : sequence of str
        "baseline"; "document_effects": a level for every document; "document_position_effects": one for every position
        too; "mean_group": the mean of documents' own slopes, with both effects and the half-panel jackknife;
        "more_lags": ``extra_lags`` beyond the longest of the formula; "position": ``position`` and
        ``np.log(position + 1)``; "log_frequency": log of the token's share in this corpus; "is_repeat": 1 if
        the token occurred earlier in its document; "covariates": these three together; "first_tokens_kept": the formula
        with ``skip=0``, so that the sink at position 0 is outcome and lag.
    extra_lags : int
    folds, seed : int
        Documents are left out in so many parts for ``held_out_r_squared``, the same in all specifications.
    conf_level : float

    Returns
    -------
    pandas.DataFrame
        specification, model, hook, layer, (head,) depth, term (not the intercept), estimate, std_error, df, p_value,
        conf_low, conf_high, n, n_docs, r_squared, held_out_r_squared, cov_type. All errors are clustered by
        document (crv3; of "mean_group" the spread of the slopes over documents). R2 where there are effects is of what
        they leave, and missing for "mean_group"; R2 of specifications with another ``n`` is of other rows.

    Raises
    ------
    SchemaError, InputError, NumericalError
        As `fit_lagged` and `add_lags`; the message names the specification.

    Notes
    -----
    Levels that differ between documents and a trend along them raise pooled lag coefficients; document effects lower
    those of short documents (Nickell 1981), which the half-panel jackknife of `mean_group` repairs.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(list("abcd"), 50),
    ...                       "window": 0, "position": np.tile(range(50), 4), "norm": rng.lognormal(size=200)})
    >>> table = specification_curve(add_lags(norms), specifications=["baseline", "more_lags"], folds=4)
    >>> table["term"].tolist()
    ['lag1', 'lag2', 'lag1', 'lag2', 'lag3', 'lag4']
    """
    chosen = require_names(specifications, SPECIFICATIONS, name="specifications")
    require_whole_number(extra_lags, name="extra_lags", most=MAX_LAGS)
    require_shared(conf_level=conf_level)
    columns = formula_columns(formula)
    needed = [name for name in columns if name not in _WORDS]
    require(lagged, (*GROUP_KEYS, *TOKEN_KEYS, *needed, "norm", "log_norm"), who=WHO)
    skip = skip_of(lagged)
    if {*_WORDS, "covariates"} & {*columns, *chosen}:
        lagged = _with_words(lagged)
    fold = in_folds(lagged["doc"], folds=folds, seed=seed)
    parts = []
    for name in chosen:
        try:
            rows, text = lagged, formula
            if name == "more_lags":
                longest = max(lags_among(columns)[0], default=0)
                lags = [longest + extra for extra in range(1, extra_lags + 1)]
                rows = relagged(lagged, lags=lags, skip=skip)
                text += "".join(f" + lag{lag}" for lag in lags)
            elif name == "first_tokens_kept":
                rows = relagged(lagged, skip=0)
            elif name in _COVARIATES:
                text += f" + {_COVARIATES[name]}"
            if name == "mean_group":
                table = mean_group(rows, text, conf_level=conf_level)
                table = table.assign(r_squared=np.nan, held_out_r_squared=np.nan, cov_type="mean group")
                table = table[[*group_columns(table), "depth", *_COLUMNS]]
            else:
                table = _pooled(rows, text, fold, float(conf_level), _EFFECTS.get(name, ()))
        except (InputError, NumericalError) as error:
            raise type(error)(f"{WHO}, specification {name!r}: {error}") from error
        table.insert(0, "specification", name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def skip_of(lagged: pd.DataFrame) -> int:
    """Return how many first positions a lagged frame leaves out: those, and sinks, have no ``log_norm``."""
    lacks = lagged["log_norm"].isna() & ~lagged.get("is_sink", pd.Series(False, lagged.index))
    skip = int(lagged.loc[lacks, "position"].max()) + 1 if lacks.any() else 0
    if not (lacks == (lagged["position"] < skip)).all():
        raise InputError(
            "Other lags need a frame as add_lags returns it, with 'log_norm' missing at first positions only."
        )
    return skip


def relagged(lagged: pd.DataFrame, *, lags: Iterable[int] = (), skip: int) -> pd.DataFrame:
    """Return the lagged frame with its own lags and others, computed again with another ``skip``."""
    have = [str(name) for name in lagged.columns]
    own, layer_below = lags_among(have)
    made = [name for name in have if name == "log_norm" or any(lags_among([name]))]
    return add_lags(
        lagged.drop(columns=made),
        lags=sorted({*own, *lags}),
        skip=skip,
        layer_below=layer_below,
        drop_sinks="is_sink" if "is_sink" in have else (),
    )


def _with_words(lagged: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with ``log_frequency`` and ``is_repeat``, each as it is where the frame has it."""
    wanted = [name for name in _WORDS if name not in lagged.columns]
    if not wanted:
        return lagged
    require(lagged, ("token_id",), who=WHO)
    keys = ["model", *TOKEN_KEYS]
    tokens = lagged[[*keys, "token_id"]].drop_duplicates(keys)
    of_models = tokens.groupby("model", observed=True, sort=False)
    words = pd.concat([part[keys].join(token_counts(part, covariates=wanted)) for _, part in of_models])
    joined = lagged[keys].merge(words, on=keys, how="left")
    return lagged.assign(**{name: joined[name].to_numpy() for name in wanted})


def _pooled(
    frame: pd.DataFrame, formula: str, fold: pd.Series, conf_level: float, effects: tuple[str, ...]
) -> pd.DataFrame:
    """Return the rows of least squares over all documents, clustered by them."""
    fits = fit_lagged(frame, formula, cov="crv3", adjust="none", conf_level=conf_level, effects=effects)
    table, sums = fits.coefficients, fits.sums.document_sums()
    held_out = [held_out_r_squared(group, fold[group.labels].to_numpy()) for group in sums]
    keys = group_columns(table)
    group = table.groupby(keys, sort=False).ngroup()
    table = table.assign(held_out_r_squared=np.array(held_out)[group])
    return table.loc[table["term"] != "Intercept", [*keys, "depth", *_COLUMNS]]
