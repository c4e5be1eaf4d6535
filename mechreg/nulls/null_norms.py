"""The norm frames of each null, one after the other, and the models with random weights that some of them need."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from mechreg.lags import add_lags
from mechreg.models import config_of, load_model, model_label, record_of
from mechreg.models.sources import quiet
from mechreg.norms import BATCH_TOKENS, extract_norms
from mechreg.nulls.surrogates import shuffle_norms, shuffle_tokens, token_means
from mechreg.outside import any_frames
from mechreg.schema import (
    FOLDED_SUFFIX,
    GROUP_KEYS,
    TOKEN_KEYS,
    InputError,
    Null,
    one_or_many,
    require,
    require_names,
    require_shared,
    require_whole_number,
)

NULLS: tuple[str, ...] = get_args(Null)
READ_AGAIN = ("token_order", "random_weights")  # for which a model reads the texts again


@any_frames
def null_norms(
    norms: pd.DataFrame,
    models: Any = (),
    *,
    nulls: Null | Sequence[Null] = NULLS,  # type: ignore[assignment]
    repeats: int = 5,
    skip: int = 1,
    drop_sinks: str | Iterable[str] = (),
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> dict[str, Iterator[pd.DataFrame]]:
    """Return the norm frames of each null, made one after the other as they are asked for.

    Parameters
    ----------
    norms : pandas.DataFrame
        The norm frame to be compared; its token ids are what the models read again.
    models : model, name, path, or a sequence of them
        All models of the frame, for "token_order" and "random_weights".
    nulls : sequence of str
        "token_order" (`shuffle_tokens`, then the models), "norm_order" (`shuffle_norms`), "random_weights"
        (`random_weights`), "token_identity" (`token_means`: nothing random, one frame).
    repeats : int
        Frames of each null, each with a seed of its own.
    skip, drop_sinks
        As for `add_lags`. What is left out keeps its norm, and its token its place in another order. By "size", models
        that read again leave out other tokens, which `compare_to_nulls` refuses.
    batch_tokens, progress
        As for `extract_norms`.
    seed : int

    Returns
    -------
    dict of str to iterator
        Each can be read once, as `compare_to_nulls` does; one frame is in memory at a time. Models keep their names in
        ``norms``, including those with random weights.

    Raises
    ------
    SchemaError, InputError
        A missing column, an unknown null, or a model of the frame that was not given.

    Examples
    --------
    >>> from mechreg import load_model
    >>> model = load_model("mini-s")
    >>> norms = extract_norms(model, ["The cat sat on the mat.", "The dog sat on the log."])
    >>> [len(frame) == len(norms) for frame in null_norms(norms, model, repeats=2)["random_weights"]]
    [True, True]
    """
    chosen = require_names(nulls, NULLS, name="nulls")
    require_whole_number(repeats, name="repeats", most=10_000)
    require_shared(skip=skip, seed=seed)
    require(norms, (*GROUP_KEYS, *TOKEN_KEYS, "token_id", "norm"), who="null_norms")
    loaded = _by_name(norms, models) if {*READ_AGAIN} & {*chosen} else {}
    seeds = [int(word) for word in np.random.SeedSequence(seed).generate_state(int(repeats))]
    options = {"batch_tokens": batch_tokens, "progress": progress}
    rules = one_or_many(drop_sinks)
    fixed = norms[_sinks(norms, rules, skip=0)][list(TOKEN_KEYS)]
    changed = partial(_changed, norms, ~_sinks(norms, rules, skip=skip))
    makers: dict[str, Callable[[int], pd.DataFrame]] = {
        "token_order": partial(_read_again, norms, loaded, options, partial(_other_order, fixed)),
        "norm_order": lambda number: changed(lambda frame: shuffle_norms(frame, skip=skip, seed=number)),
        "random_weights": partial(_read_again, norms, loaded, options, _other_weights),
        "token_identity": lambda number: changed(lambda frame: token_means(frame, skip=skip)),
    }
    return {null: map(makers[null], seeds[:1] if null == "token_identity" else seeds) for null in chosen}


def random_weights(model: Any, *, seed: int = 0) -> Any:
    """Return a model of the same architecture with random weights, as Hugging Face initialises them for training.

    What remains of a coefficient then comes from the architecture: averages over the same tokens are alike whatever
    is averaged.

    Parameters
    ----------
    model : TransformerLens model, str or Path
        What `load_model` gave, or a name or folder that it takes: its weights are then not read.
    seed : int
        Of the weights; the global random state is left as it was.

    Returns
    -------
    TransformerLens model
        Of the same backend, processing, dtype, device and tokenizer, called "NAME[random SEED]". A ModelError says that
        the model's Hugging Face config is not known, as of a HookedTransformer that was made elsewhere.

    Examples
    --------
    >>> random_weights("mini-s", seed=3).cfg.model_name
    'mini-s[random 3]'
    """
    import torch
    from transformers import AutoModelForCausalLM

    require_shared(seed=seed)
    config, options = config_of(model), {}
    if isinstance(model, str | Path):
        name = model_label(model)
    else:
        record = record_of(model)
        name = record.name.removesuffix(FOLDED_SUFFIX)
        if record.device_map is not None:
            raise InputError(
                f"random_weights makes a model on one device, and {name} is split over {record.device}; load it with "
                "device= instead of device_map=."
            )
        options = {key: getattr(record, key) for key in ("backend", "processing", "dtype", "device")}
        options["tokenizer"] = model.tokenizer
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(int(seed))
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    return load_model(fresh, name=f"{name}[random {seed}]", **options)


def _sinks(norms: pd.DataFrame, rules: list[str], *, skip: int) -> np.ndarray:
    """Return which rows the rules leave out."""
    if not rules:
        return np.zeros(len(norms), bool)
    return add_lags(norms, skip=skip, drop_sinks=rules)["is_sink"].to_numpy()


def _changed(
    norms: pd.DataFrame, rows: np.ndarray, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    """Return a frame with other norms in some of its rows, made of these rows alone."""
    if rows.all():
        return change(norms)
    new = change(norms[rows])["norm"].to_numpy()
    norm = norms["norm"].to_numpy(new.dtype, copy=True)
    norm[rows] = new
    return norms.assign(norm=norm)


def _other_order(
    fixed: pd.DataFrame, model: Any, tokens: pd.DataFrame, seed: int
) -> tuple[Any, pd.DataFrame]:
    """Return the tokens in another order, but for those that are fixed."""
    if fixed.empty:
        return model, shuffle_tokens(tokens, seed=seed)
    keys = list(TOKEN_KEYS)
    stay = pd.MultiIndex.from_frame(tokens[keys]).isin(pd.MultiIndex.from_frame(fixed))
    moved = [tokens[stay], shuffle_tokens(tokens[~stay], seed=seed)]
    return model, pd.concat(moved).sort_values(keys, ignore_index=True)


def _other_weights(model: Any, tokens: pd.DataFrame, seed: int) -> tuple[Any, pd.DataFrame]:
    return random_weights(model, seed=seed), tokens


def _read_again(
    norms: pd.DataFrame,
    loaded: dict[str, Any],
    options: dict[str, Any],
    changed: Callable[[Any, pd.DataFrame, int], tuple[Any, pd.DataFrame]],
    seed: int,
) -> pd.DataFrame:
    """Return the norms of each model of a frame on its tokens, after one of the two was changed."""
    frames, keys = [], list(TOKEN_KEYS)
    for name, model in loaded.items():
        own = norms[norms["model"] == name]
        tokens = own[[*keys, "token_id"]].drop_duplicates(keys).sort_values(keys, ignore_index=True)
        model, tokens = changed(model, tokens, seed)
        hooks = list(own["hook"].unique())
        frames.append(extract_norms(model, tokens, hooks=hooks, **options).assign(model=name))
    return pd.concat(frames, ignore_index=True)


def _by_name(norms: pd.DataFrame, models: Any) -> dict[str, Any]:
    """Return the models by their names in the frame, all that it has, loaded."""
    given = [load_model(model) for model in one_or_many(models)]
    loaded = {record_of(model).name: model for model in given}
    names = [str(name) for name in norms["model"].unique()]
    for name in names:
        if name not in loaded:
            raise InputError(
                f"null_norms runs the models of the frame again, and {name!r} was not given (got {list(loaded)}); "
                "give it models=, or nulls=('norm_order', 'token_identity'), which need none."
            )
    return {name: loaded[name] for name in names}
