"""Token by token: do two models update the same words strongly, more than unrelated series as smooth would?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechreg.outside import any_frames
from mechreg.regression import Effects
from mechreg.schema import (
    InputError,
    one_value,
    require_names,
    require_one_processing,
    require_option,
    require_shared,
    require_whole_number,
)
from mechreg.universality import token_tables
from mechreg.universality.pairs import group_of_each, require_documents
from mechreg.universality.token_agreement import Match, all_pairs
from mechreg.universality.token_units import (
    WHO,
    Effect,
    ModelTokens,
    Unit,
    Units,
    effects_of,
    model_tokens,
    require_columns,
    shared_units,
)
from mechreg.universality.verdict import Worded

EFFECTS: tuple[Effect, ...] = get_args(Effect)
# With fewer draws no p value is below .01.
MIN_DRAWS = 99
# With fewer degrees of freedom after the effects, a correlation says nothing.
MIN_DF = 20


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TokenComparison(Worded):
    """What `compare_tokens` returns: tidy frames, and ``verdict``, the same in words.

    All frames but ``yardstick`` have ``model_a`` (of a pair, the one with fewer layers) and ``model_b``. ``estimate``
    is a rank correlation after effects; ``null_mean`` and ``null_high`` are the mean and the ``conf_level`` quantile of
    the same number in unrelated series that are as smooth; ``p_value`` is one-sided, against that null;
    ``random_weights`` is the same number in models with random weights, NaN without them. ``hook``, ``column``,
    ``unit``, ``effects``, ``match``, ``conf_level``, ``n`` (units) and ``n_docs`` say what was compared.

    Attributes
    ----------
    cells : pandas.DataFrame
        A row a pair of layers: layer_a, layer_b, depth_a, depth_b, estimate, std_error, the bands (``sim``: for all
        cells of a pair at once), the null, p_value, p_adjusted (over all cells of the pair), matched.
    matched : pandas.DataFrame
        A row a layer of model_a, with its match in model_b; with ``match="best"`` the null is matched in the same way.
    pairs : pandas.DataFrame
        A row a pair: the mean over matched layers, its interval and null; ``over_random`` (estimate less
        random_weights) with its interval; same_group.
    yardstick : pandas.DataFrame
        Mean over pairs within groups, between groups, and their difference; empty without both kinds of pairs.
    verdict : tuple of str
        Sentences.
    """

    cells: pd.DataFrame
    matched: pd.DataFrame
    pairs: pd.DataFrame
    yardstick: pd.DataFrame
    verdict: tuple[str, ...]

    def _repr_html_(self) -> str:
        return self._html(self.pairs, ["estimate", "conf_low", "conf_high", "null_mean", "p_value"])


@any_frames
def compare_tokens(
    norms: pd.DataFrame,
    *,
    column: str = "norm",
    unit: Unit = "token",
    effects: Effect | Sequence[Effect] = EFFECTS,
    match: Match = "depth",
    hook: str | None = None,
    groups: Mapping[str, str] | None = None,
    random_weights: Sequence[pd.DataFrame] = (),
    skip: int = 1,
    draws: int = 199,
    conf_level: float = 0.95,
    seed: int = 0,
) -> TokenComparison:
    """Return whether models update the same tokens strongly: rank correlations of all their layers, token by token.

    Parameters
    ----------
    norms : pandas.DataFrame
        The norm frame of two models or more, on the same documents.
    column : str
        The measure. Only its ranks count, so its logarithm gives the same.
    unit : str
        What is compared. "token": tokens of one tokenizer. "span": of several tokenizers, the shortest pieces of text
        that are whole in all models, by ``char_start`` and ``char_end``. "word": words, by the ``word`` of
        `annotate_pos`. The tokens of a unit count by their mean rank.
    effects : sequence of str
        Projected out of the ranks of each model: the mean of a document ("doc"), of a position in its window
        ("position"), of a unit's token ids in all models ("token"). ``()`` leaves the plain rank correlation.
    match : str
        Which layer of the deeper model stands for each of the other, to be chosen before looking: the one nearest in
        relative "depth" or the "best", which is then also chosen in every draw of the null.
    hook, groups, conf_level, seed
        As for `compare_profiles`.
    random_weights : sequence of pandas.DataFrame
        Two norm frames or more of the same models, text and layers with random weights, such as ``null_norms(norms,
        models, nulls="random_weights")`` gives. Each model is compared with the others' further frames, since seeds of
        one size have the same random weights in one frame.
    skip : int
        Number of first positions of each window that are left out.
    draws : int
        Of the null, and of the bootstrap of documents.

    Returns
    -------
    TokenComparison

    Raises
    ------
    SchemaError, InputError, NumericalError
        A missing column, one model only, other tokenizers without spans, fewer than six shared documents, too few
        units for the effects, a bad option; a value that is NaN or infinite.

    Notes
    -----
    The null breaks what the effects leave into waves (cosines) within each document and gives each a random sign, in
    all layers of a model alike; effects are then projected out again. So series are as smooth as they were, documents
    keep their levels, and a draw has the degrees of freedom of the data. A 5% test of unrelated series rejected in 3 to
    6% of 200 simulations for a pair, in 5 to 8% for a cell, in 5 to 12% for the adjusted p of all cells (12 or 20
    documents of 75 tokens, autocorrelation 0 to .97); circular shifts in 7 to 12% and 6 to 11%.
    Standard errors are the jackknife's over documents with t(G - 1); effects, and the best match, are not found again
    without each document. A unit that an effect takes whole (the only one of its token ids) is left out.

    Examples
    --------
    >>> from mechreg import extract_norms, read_corpus
    >>> norms = extract_norms(["mini-s", "mini-s-b"], read_corpus("demo").iloc[:8], progress=False)
    >>> same = compare_tokens(norms, draws=99)
    >>> same.pairs[["model_a", "model_b", "n_docs"]].values.tolist()
    [['mini-s', 'mini-s-b', 8]]
    """
    require_option(unit, get_args(Unit), name="unit")
    require_option(match, get_args(Match), name="match")
    require_whole_number(draws, name="draws", least=MIN_DRAWS)
    require_shared(skip=skip, conf_level=conf_level, seed=seed)
    chosen = require_names(effects, EFFECTS, name="effects", least=0)
    require_columns(norms, column=column, unit=unit)
    hook = one_value(norms["hook"].unique(), hook, name="hook", who=WHO)
    norms = norms[norms["hook"] == hook]
    models = _models(norms, column, unit)
    names = [one.name for one in models]
    group_of = group_of_each(groups, names)
    units = shared_units(models, unit=unit, skip=int(skip), effects=chosen)
    require_documents(len(units.docs), names, of="with shared tokens", who=WHO)
    absorbed = effects_of(units, chosen)
    _require_df(units, absorbed)
    random = _random_values(random_weights, models, str(hook), column)
    found = all_pairs(models, units, absorbed, random, match=match, draws=int(draws), seed=seed)
    common = {"hook": str(hook), "column": column, "conf_level": float(conf_level)}
    common |= {"n": len(units.doc), "n_docs": len(units.docs)}
    common |= {"unit": unit, "effects": ", ".join(chosen), "match": match}
    table = token_tables.pairs(found, common, group_of)
    yardstick = token_tables.yardstick(found, common, group_of)
    return TokenComparison(
        cells=token_tables.cells(found, common),
        matched=token_tables.matched(found, common),
        pairs=table,
        yardstick=yardstick,
        verdict=token_tables.verdict(found, table, yardstick, group_of),
    )


def _models(norms: pd.DataFrame, column: str, unit: Unit) -> list[ModelTokens]:
    """Return the models, those of fewer layers first, so that the order of rows does not matter."""
    names = sorted(str(name) for name in norms["model"].unique())
    if len(names) < 2:
        raise InputError(
            f"{WHO} compares models; there is one, {names[0]}. Extract two from the same documents."
        )
    require_one_processing(names, who=WHO)
    models = [model_tokens(norms[norms["model"] == name], column=column, unit=unit) for name in names]
    return sorted(models, key=lambda one: len(one.layers))


def _require_df(units: Units, effects: list[Effects]) -> None:
    left = len(units.doc) - max(one.within + one.across for one in effects)
    if left < MIN_DF:
        raise InputError(
            f"{WHO} has {len(units.doc)} shared units, and {left} degrees of freedom after the effects; it needs "
            f"{MIN_DF}. Give it more documents, or fewer effects."
        )


def _random_values(
    frames: Any, models: list[ModelTokens], hook: str, column: str
) -> list[list[Float[np.ndarray, "_ _"]]]:
    """Return each model's values in each frame of random weights, at the same tokens."""
    frames = [frames] if hasattr(frames, "columns") else list(frames)
    if not frames:
        return []
    if len(frames) < 2:
        raise InputError(
            "random_weights needs two frames or more, since models of one size have the same random weights in one; "
            "make them with null_norms(..., nulls='random_weights', repeats=2)."
        )
    found: list[list] = [[] for _ in models]
    for frame in frames:
        require_columns(frame, column=column, unit="token")
        for at, model in enumerate(models):
            rows = frame[(frame["model"] == model.name) & (frame["hook"] == hook)]
            one = model_tokens(rows, column=column, unit="token") if len(rows) else None
            keys = list(one.tokens.columns) if one else []
            if one is None or not (one.layers.equals(model.layers) and one.tokens.equals(model.tokens[keys])):
                raise InputError(
                    f"random_weights must have the same tokens and layers as norms; for {model.name} it differs."
                )
            found[at].append(one.values)
    return found
