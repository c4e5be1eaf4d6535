"""Decomposition: what a coefficient owes to documents, positions, words or the layer below, in parts that add up."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechreg.outside import any_frames
from mechreg.regression import formula_columns, require_effects
from mechreg.regression.blocks import Numbers
from mechreg.regression.clusters import require_two, sums_by_cluster
from mechreg.regression.design import take_apart
from mechreg.regression.fixed_effects import part_of, project
from mechreg.regression.results import t_columns
from mechreg.regression.rows import TAKEN_UP, Rows, columns_of, read_groups
from mechreg.regression.solve import MAX_CONDITION
from mechreg.schema import GROUP_KEYS, InputError, NumericalError, require, require_shared

WHO = "decompose"


@any_frames
def decompose(
    lagged: pd.DataFrame,
    formula: str = "log_norm ~ lag1 + lag2",
    *,
    term: str = "lag1",
    effects: str | Sequence[str] = ("doc", "position"),
    controls: Mapping[str, str] | None = None,
    conf_level: float = 0.95,
) -> pd.DataFrame:
    """Return what each control takes off a coefficient: parts that add up to the short regression's less the long's.

    Parameters
    ----------
    lagged : pandas.DataFrame
        What `add_lags` returns, with the columns of effects and controls.
    formula : str
        The short regression.
    term : str
        Its coefficient that is decomposed; of "lag1 + lag2" the sum of both.
    effects : str or sequence of str
        Columns every value of which has a level of its own in the long regression, a part each: "doc", "position",
        "token_id". Both regressions leave out rows alone in a level.
    controls : mapping of str to str, optional
        Further parts of the long regression: their names and what is added to the formula, such as
        ``{"frequency": "log_frequency", "layer_below": "layer_below + layer_below_lag1"}``.
    conf_level : float

    Returns
    -------
    pandas.DataFrame
        model, hook, layer, (head,) depth, term, part, estimate, std_error, conf_low, conf_high, n, n_docs. Parts are
        "short" (the coefficient without any of them), one for each effect and control, and "long" (what is left).

    Raises
    ------
    SchemaError, InputError, NumericalError
        As `fit_lagged`; an unknown term, two parts of one name, a control that effects take off, or one document.

    Notes
    -----
    Gelbach (2016): a part is the coefficient of the term in the short regression of what that part adds to the long
    one's prediction. It depends on what else is in the long regression, but not on an order. Errors are clustered by
    document, allow for the estimation of the levels, and have t(G-1).

    Examples
    --------
    >>> from mechreg.lags import add_lags
    >>> rng = np.random.default_rng(0)
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(list("abcd"), 50),
    ...                       "window": 0, "position": np.tile(range(50), 4), "norm": rng.lognormal(size=200)})
    >>> table = decompose(add_lags(norms)).set_index("part")["estimate"]
    >>> bool(np.isclose(table["short"], table[["doc", "position", "long"]].sum()))
    True
    """
    names, controls = require_effects(effects), dict(controls or {})
    require_shared(conf_level=conf_level)
    outcome = formula.split("~")[0]
    formulas = {"short": formula, **{part: f"{outcome} ~ {added}" for part, added in controls.items()}}
    if {"short", "long", *names} & {*controls} or not (names or controls):
        raise InputError(
            f"{WHO} needs effects= or controls=, and other names than 'short', 'long' and the effects' in controls=; "
            f"got {list(controls)}."
        )
    columns = tuple(dict.fromkeys(name for text in formulas.values() for name in formula_columns(text)))
    require(lagged, (*GROUP_KEYS, "doc", *columns, *names), who=WHO)
    tables = []
    for rows in read_groups(lagged, columns, cluster="doc", effects=names):
        having = " with complete rows"
        require_two(len(rows.layout.labels), "documents", who=WHO, where=rows.where, having=having)
        parts = _influences(rows, formulas, names, term)
        tables.append(_table(rows, term, parts, float(conf_level)))
    return pd.concat(tables, ignore_index=True)


def _table(
    rows: Rows, term: str, parts: dict[str, tuple[float, np.ndarray]], conf_level: float
) -> pd.DataFrame:
    """Return the rows of one group."""
    count = len(rows.layout.labels)
    estimate = np.array([value for value, _ in parts.values()])
    scores = sums_by_cluster(np.array([score for _, score in parts.values()]), rows.layout.cluster)
    error = np.sqrt(count / (count - 1) * (scores**2).sum(axis=0))
    numbers = t_columns(estimate, error, count - 1.0, conf_level)
    columns: dict[str, Any] = {
        **rows.keys,
        "depth": rows.depth,
        "term": term,
        "part": list(parts),
        **{name: numbers[name] for name in ("estimate", "std_error", "conf_low", "conf_high")},
        "n": len(rows.at),
        "n_docs": count,
    }
    return pd.DataFrame(columns)


def _influences(
    rows: Rows, formulas: dict[str, str], effects: tuple[str, ...], term: str
) -> dict[str, tuple[float, Numbers]]:
    """Return every part's estimate, and each row's influence on it."""
    terms, short, y = _columns(formulas["short"], rows)
    wanted = [term] if term in terms else term.split(" + ")
    if not {"Intercept", *wanted} <= {*terms}:
        raise InputError(
            f"{WHO} needs a formula with an intercept and the term {term!r}; it has {list(terms)}."
        )
    at = [terms.index(name) for name in wanted]
    added = {part: _columns(text, rows) for part, text in formulas.items() if part != "short"}
    x, place = [short], {}
    for part, (names, columns, _) in added.items():
        kept = columns[[name != "Intercept" for name in names]]
        begin = sum(map(len, x))
        place[part] = slice(begin, begin + len(kept))
        x.append(kept)
    long = np.concatenate(x)
    left = long
    if rows.effects is not None:  # which take off the intercept
        beside = np.arange(len(long)) != terms.index("Intercept")
        left = np.zeros_like(long)
        left[beside] = project(rows.effects, long[beside])
    inverse, of_short = _inverse(left, long, rows.where), _inverse(short, short, rows.where)
    b, own = inverse @ (left @ y), of_short[at].sum(axis=0) @ short
    rest = y - b @ long
    # What each part adds to the prediction, and the weights on y by which the long regression gives its share.
    fitted, weights = {}, {}
    for name in effects:
        assert rows.effects is not None
        fitted[name] = part_of(rows.effects, name, rest)
        levels = part_of(rows.effects, name, own, transposed=True)
        weights[name] = levels - (inverse @ (long @ levels)) @ left
    for part, its in place.items():
        fitted[part] = b[its] @ long[its]
        weights[part] = (inverse[:, its] @ (long[its] @ own)) @ left
    residual = rest - sum(fitted[name] for name in effects)
    about = {
        part: value - (of_short @ (short @ value)) @ short for part, value in {"short": y, **fitted}.items()
    }
    return {
        "short": (float(own @ y), own * about["short"]),
        **{
            part: (float(own @ value), own * about[part] + weights[part] * residual)
            for part, value in fitted.items()
        },
        "long": (float(b[at].sum()), (inverse[at].sum(axis=0) @ left) * residual),
    }


def _columns(formula: str, rows: Rows) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return a formula's terms, their columns and the outcome."""
    parts = take_apart(formula, rows.data, whole=True, where=rows.where)
    terms = parts.terms(formula)
    *_, outcome = columns = columns_of(parts, terms)
    return terms.names, columns[:-1], outcome


def _inverse(
    left: Float[np.ndarray, "terms rows"], whole: Float[np.ndarray, "terms rows"], where: str
) -> Float[np.ndarray, "terms terms"]:
    """Return the inverse of the products of columns; of one that is 0, the intercept beside effects, it is 0."""
    size = np.linalg.norm(left, axis=1)
    kept = np.flatnonzero(size > TAKEN_UP * np.linalg.norm(whole, axis=1))
    scaled = left[kept] / size[kept, None]
    if len(kept) < len(left) - 1 or np.linalg.cond(scaled.T) > MAX_CONDITION:
        raise NumericalError(
            f"{WHO} needs controls that vary within effects and beside each other; in {where} some do not. Leave "
            "one out."
        )
    inverse = np.zeros((len(left), len(left)))
    inverse[np.ix_(kept, kept)] = np.linalg.inv(scaled @ scaled.T) / np.outer(size[kept], size[kept])
    return inverse
