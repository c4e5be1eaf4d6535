"""Units of text that the tokens of several models share, each model's ranks on them, and effects projected out."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import sparse, stats

from mechreg.regression import Effects, make_effects, without_singletons
from mechreg.schema import TOKEN_KEYS, InputError, NumericalError, document_ids, require

UnitCodes = Int[np.ndarray, " units"]
TokenCodes = Int[np.ndarray, " tokens"]
TokenValues = Float[np.ndarray, "tokens layers"]

WHO = "compare_tokens"
Unit = Literal["token", "span", "word"]
Effect = Literal["doc", "position", "token"]
_COLUMNS = {"token": (), "span": ("char_start", "char_end"), "word": ("word",)}


class ModelTokens(NamedTuple):
    """One model: its layers, its tokens in the order of the text, and a measure at each."""

    layers: pd.DataFrame  # model, layer, depth
    tokens: pd.DataFrame  # doc, window, position, token_id, and what names the units
    values: TokenValues

    @property
    def name(self) -> str:
        """The model's."""
        return str(self.layers["model"].iloc[0])


class Units(NamedTuple):
    """What all models have, in the order of the text; and which unit each model's tokens belong to (-1: to none)."""

    doc: UnitCodes
    identity: UnitCodes
    position: list[UnitCodes]  # of each model's first token in the unit
    unit_of: list[TokenCodes]
    docs: list[str]

    @property
    def lengths(self) -> Int[np.ndarray, " docs"]:
        """Units in each document."""
        return np.bincount(self.doc, minlength=len(self.docs))


def model_tokens(norms: pd.DataFrame, *, column: str, unit: Unit) -> ModelTokens:
    """Return the tokens of one model with the measure in every layer."""
    model = str(norms["model"].iloc[0])
    frame = norms[[*TOKEN_KEYS, "layer", "depth", "token_id", column, *_COLUMNS[unit]]]
    frame = frame.assign(doc=document_ids(frame["doc"]).to_numpy())
    place = frame.groupby(list(TOKEN_KEYS), sort=True, observed=True).ngroup().to_numpy()
    layer, layers = pd.factorize(frame["layer"], sort=True)
    n_tokens, filled = int(place.max()) + 1, place * len(layers) + layer
    if len(frame) != n_tokens * len(layers) or len(np.unique(filled)) < len(frame):
        raise InputError(
            f"{WHO} needs every token once in every layer; {model} has {len(frame)} rows for {n_tokens} tokens and "
            f"{len(layers)} layers. Extract all layers from the same documents, and keep one head."
        )
    measured = frame[column].to_numpy(np.float64, na_value=np.nan)
    if not np.isfinite(measured).all():
        raise NumericalError(f"{WHO} needs finite numbers as {column!r}; {model} has others. Leave them out.")
    values = np.empty((n_tokens, len(layers)))
    values[place, layer] = measured
    row = np.empty(n_tokens, np.int64)
    row[place] = np.arange(len(frame))
    tokens = frame.iloc[row][[*TOKEN_KEYS, "token_id", *_COLUMNS[unit]]].reset_index(drop=True)
    depth = frame.groupby("layer")["depth"].first()
    table = pd.DataFrame({"model": model, "layer": layers, "depth": depth.reindex(layers).to_numpy()})
    return ModelTokens(table, tokens, values)


def shared_units(models: Sequence[ModelTokens], *, unit: Unit, skip: int, effects: Sequence[Effect]) -> Units:
    """Return the units that every model has whole, after ``skip`` first positions, and that no effect takes whole."""
    every = [one.tokens for one in models]
    table = pd.concat(every, keys=range(len(every)), names=["of", "row"]).reset_index()
    table = table[_has_place(table, unit)]
    table["unit"] = _units(table, unit)
    table["skipped"] = table["position"] < skip
    whole = table.groupby("unit").agg(models=("of", "nunique"), skipped=("skipped", "any"))
    kept = whole.index[(whole["models"] == len(models)) & ~whole["skipped"]]
    table = table[table["unit"].isin(kept)].sort_values(["unit", "of", "doc", "window", "position"])
    by_unit = table.assign(id=table["token_id"].astype(np.int64) * len(models) + table["of"]).groupby("unit")
    whole = pd.DataFrame({"doc": by_unit["doc"].first(), "identity": by_unit["id"].agg(tuple)})
    whole["identity"] = pd.factorize(whole["identity"])[0]
    firsts = table.drop_duplicates(["unit", "of"]).set_index("unit")
    at = [f"position{number}" for number in range(len(models))]
    for number, name in enumerate(at):
        whole[name] = firsts.loc[firsts["of"] == number, "position"]
    whole["order"] = (
        pd.MultiIndex.from_frame(firsts.loc[firsts["of"] == 0, list(TOKEN_KEYS)]).argsort().argsort()
    )
    whole = whole.sort_values("order")
    groups = {"doc": ["doc"], "token": ["identity"], "position": at}
    levels = [pd.factorize(whole[name])[0] for effect in effects for name in groups[effect]]
    if levels:
        whole = whole[without_singletons(levels)]
    places = pd.Series(np.arange(len(whole)), whole.index)
    table = table[table["unit"].isin(whole.index)]
    unit_of = [np.full(len(one.tokens), -1) for one in models]
    for number_of, own in table.groupby("of"):
        unit_of[int(str(number_of))][own["row"]] = places.loc[own["unit"]]
    doc, docs = pd.factorize(whole["doc"])
    positions = [whole[name].to_numpy(np.int64) for name in at]
    return Units(doc, whole["identity"].to_numpy(), positions, unit_of, list(docs))


def _has_place(table: pd.DataFrame, unit: Unit) -> Bool[np.ndarray, " tokens"]:
    """Return which tokens can be in a unit: not an added BOS, not a space put before the text, not "no word"."""
    if unit == "span":
        return ((table["char_start"] >= 0) & (table["char_start"] < table["char_end"])).to_numpy()
    return (table["word"] >= 0).to_numpy() if unit == "word" else np.ones(len(table), bool)


def _units(table: pd.DataFrame, unit: Unit) -> TokenCodes:
    """Return the number of each token's unit."""
    if unit != "span":
        keys = list(TOKEN_KEYS) if unit == "token" else ["doc", "word"]
        number = table.groupby(keys, sort=False).ngroup().to_numpy()
        if unit == "token" and (table.groupby(number)["token_id"].nunique() > 1).any():
            raise InputError(
                f"{WHO} finds different token ids at the same place: the models have different tokenizers or windows. "
                "Join the spans of tokenize(..., spans=True) with join_annotations, and choose unit='span'."
            )
        return number
    # A unit begins where the text is cut for all models: no token that began before goes on.
    doc = pd.factorize(table["doc"])[0]
    offset = doc * (int(table["char_end"].max()) + 1)
    start, end = offset + table["char_start"].to_numpy(), offset + table["char_end"].to_numpy()
    order = np.lexsort((end, start))
    reached = np.maximum.accumulate(end[order])
    number = np.empty(len(table), np.int64)
    number[order] = np.cumsum(np.r_[False, start[order][1:] >= reached[:-1]])
    return number


def unit_ranks(values: TokenValues, unit_of: TokenCodes, n_units: int) -> Float[np.ndarray, "units layers"]:
    """Return the ranks of units in each layer: of the mean rank of a unit's tokens among all tokens of units.

    Ranks come first, so that any increasing function of the measure gives the same.
    """
    inside = np.flatnonzero(unit_of >= 0)
    ranks = stats.rankdata(values[inside], axis=0)
    at = (np.arange(len(inside)), unit_of[inside])
    membership = sparse.csr_array((np.ones(len(inside)), at), shape=(len(inside), n_units))
    return stats.rankdata((membership.T @ ranks) / np.asarray(membership.sum(axis=0)).reshape(-1, 1), axis=0)


def effects_of(units: Units, effects: Sequence[Effect]) -> list[Effects]:
    """Return each model's effects; models with the same positions share them."""
    made: list[Effects] = []
    for number, position in enumerate(units.position):
        same = next((at for at in range(number) if (units.position[at] == position).all()), None)
        if same is not None and made:
            made.append(made[same])
            continue
        groups = {"doc": units.doc, "position": position, "token": units.identity}
        codes: dict[str, UnitCodes] = {name: groups[name] for name in effects}
        codes = codes or {"all": np.zeros_like(units.doc)}
        made.append(make_effects(codes, None))
    return made


def require_columns(norms: pd.DataFrame, *, column: str, unit: Unit) -> None:
    """Check that the frame has the columns that a comparison by such units needs."""
    remedy = {
        "span": "the spans of tokenize(..., spans=True)",
        "word": "the words of annotate_pos(tokenize(..., spans=True), documents)",
    }
    require(norms, ("model", "hook", "layer", "depth", *TOKEN_KEYS, "token_id", column), who=WHO)
    lacking = [name for name in _COLUMNS[unit] if name not in norms.columns]
    if lacking:
        raise InputError(
            f"unit={unit!r} needs the columns {list(_COLUMNS[unit])}; the frame lacks {lacking}. Join {remedy[unit]} "
            f"of every model with join_annotations(norms, tokens, columns={list(_COLUMNS[unit])})."
        )
