"""Surrogates: texts, norms and models in which context cannot be what links a token's norm to those before it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechreg.models import is_bridge, is_transformer_lens_model, load_model, model_label, record_of
from mechreg.models.sources import find_commit, quiet, read_config, resolve
from mechreg.norms import extract_norms
from mechreg.schema import (
    FOLDED_SUFFIX,
    GROUP_KEYS,
    TOKEN_KEYS,
    InputError,
    ModelError,
    NumericalError,
    one_or_many,
    require,
    require_option,
    require_whole_number,
)

Null = Literal["token_order", "norm_order", "random_weights", "token_identity"]
NULLS: tuple[str, ...] = get_args(Null)


def shuffle_tokens(tokens: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return the token frame with the tokens of every document in random order, for the model to read.

    What is left of a coefficient on such a text is no reading of it: the words that a document is made of, and what
    position alone does.

    Parameters
    ----------
    tokens : pandas.DataFrame
        A token frame: doc, window, position, token_id and columns that go with the token.
    seed : int

    Returns
    -------
    pandas.DataFrame
        The same rows; all columns but doc, window and position come from another token of the document, of any of
        its windows. A token that begins every window, if there are two or more (a BOS), stays where it is.

    Raises
    ------
    SchemaError
        A missing column.

    Examples
    --------
    >>> tokens = pd.DataFrame({"doc": "d", "window": 0, "position": range(4), "token_id": [5, 6, 7, 8]})
    >>> sorted(shuffle_tokens(tokens)["token_id"])
    [5, 6, 7, 8]
    """
    require(tokens, (*TOKEN_KEYS, "token_id"), who="shuffle_tokens")
    first = tokens["position"].to_numpy() == 0
    begins = tokens.loc[first, "token_id"]
    fixed = first & (len(begins) > 1 and begins.nunique() == 1)
    source = _shuffled(tokens, ["doc"], fixed, seed)
    moved = [name for name in tokens.columns if name not in TOKEN_KEYS]
    return tokens.assign(**{name: tokens[name].array[source] for name in moved})


def shuffle_norms(norms: pd.DataFrame, *, skip: int = 1, seed: int = 0) -> pd.DataFrame:
    """Return the norm frame with the norms of every window in random order.

    What is left of a coefficient then is that windows have different levels, those of their documents or a slow
    drift: any order of the tokens gives it. With levels alike it is 0.

    Parameters
    ----------
    norms : pandas.DataFrame
        A norm frame.
    skip : int
        So many first positions of each window stay where they are, as in `add_lags`.
    seed : int

    Returns
    -------
    pandas.DataFrame
        The same rows, ``norm`` moved. All models, hooks, layers and heads are put into the same order, so that
        what ties them together at a token is left; it does not depend on the order of the rows.

    Raises
    ------
    SchemaError, InputError
        A missing column, or a bad ``skip``.

    Examples
    --------
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": "d", "window": 0,
    ...                       "position": range(4), "norm": [9.0, 1.0, 2.0, 3.0]})
    >>> sorted(shuffle_norms(norms)["norm"].iloc[1:])
    [1.0, 2.0, 3.0]
    """
    require(norms, (*GROUP_KEYS, *TOKEN_KEYS, "norm"), who="shuffle_norms")
    require_whole_number(skip, name="skip", least=0)
    within = [*GROUP_KEYS, *(["head"] if "head" in norms.columns else []), "doc", "window"]
    source = _shuffled(norms, within, norms["position"].to_numpy() < skip, seed)
    return norms.assign(norm=norms["norm"].array[source])


def token_means(norms: pd.DataFrame, *, skip: int = 1) -> pd.DataFrame:
    """Return the norm frame with what each token id usually has, in the other documents, in place of every norm.

    What is left of a coefficient then is which token follows which: is it the context, or the token?

    Parameters
    ----------
    norms : pandas.DataFrame
        A norm frame.
    skip : int
        So many first positions of each window do not count in the means, and stay as they are.

    Returns
    -------
    pandas.DataFrame
        The same rows; ``norm`` is exp of the mean log norm of the token id, in the same model, hook, layer and head,
        over all other documents. An id that no other document has gets their mean over all tokens.

    Raises
    ------
    SchemaError, InputError, NumericalError
        A missing column, a bad ``skip``, one document only, or a norm without a logarithm.

    Notes
    -----
    The token's own document is left out: with it, the mean of an id that occurs once is its own norm, context and
    all, and the more rare words a corpus has the more this null would repeat the very coefficient it is to judge.

    Examples
    --------
    >>> norms = pd.DataFrame({"model": "m", "hook": "attn_out", "layer": 0, "doc": ["a", "a", "b", "b"], "window": 0,
    ...                       "position": [0, 1, 0, 1], "token_id": [7, 8, 7, 8], "norm": [1.0, 2.0, 3.0, 4.0]})
    >>> token_means(norms, skip=0)["norm"].round(12).tolist()
    [3.0, 4.0, 1.0, 2.0]
    """
    require(norms, (*GROUP_KEYS, *TOKEN_KEYS, "token_id", "norm"), who="token_means")
    require_whole_number(skip, name="skip", least=0)
    if norms["doc"].nunique() < 2:
        raise InputError("token_means takes means over other documents; it needs at least two.")
    value = norms["norm"].to_numpy("float64", na_value=np.nan)
    if not (np.isfinite(value) & (value > 0)).all():
        raise NumericalError(
            "token_means needs the logarithm of every norm; some are zero, negative or not finite."
        )
    counted = norms["position"].to_numpy() >= skip
    group = [*GROUP_KEYS, *(["head"] if "head" in norms.columns else [])]
    rows = norms[[*group, "doc", "token_id"]].assign(
        log_norm=np.where(counted, np.log(value), 0.0), count=counted.astype(np.int64)
    )

    def others(keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return sum and count over the rows with the same keys in other documents."""
        here = [rows.groupby(by, observed=True)[["log_norm", "count"]] for by in (keys, [*keys, "doc"])]
        left = here[0].transform("sum") - here[1].transform("sum")
        return left["log_norm"].to_numpy(), left["count"].to_numpy()

    total, count = others([*group, "token_id"])
    overall, rest = others(group)
    if not rest.all():
        raise InputError(
            f"token_means takes means over other documents; some layer has but one with positions from {skip} on."
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, total / count, overall / rest)
    return norms.assign(norm=np.where(counted, np.exp(mean), value))


def random_weights(model: Any, *, seed: int = 0) -> Any:
    """Return a model of the same architecture with random weights, as Hugging Face initialises them for training.

    What is left of a coefficient then is the architecture: averages over the same tokens are alike whatever is
    averaged.

    Parameters
    ----------
    model : TransformerLens model, str or Path
        What `load_model` gave, or a name or folder that it takes: its weights are then not read.
    seed : int
        Of the weights; the global random state is left as it was.

    Returns
    -------
    TransformerLens model
        Of the same backend, processing, dtype, device and tokenizer, called "NAME[random SEED]".

    Raises
    ------
    ModelError
        The model's Hugging Face config is not known, as of a HookedTransformer that was made elsewhere.

    Examples
    --------
    >>> random_weights("mini-s", seed=3).cfg.model_name
    'mini-s[random 3]'
    """
    import torch
    from transformers import AutoModelForCausalLM

    require_whole_number(seed, name="seed", least=0)
    if isinstance(model, str | Path):
        name, options = model_label(model), {}
        with quiet():
            source = resolve(model)
            config = read_config(source, find_commit(source, None))
    else:
        record = record_of(model)
        if record.device_map is not None:
            raise InputError(
                f"random_weights makes a model on one device, and {record.name} is split over {record.device}; load it "
                "with device= instead of device_map=."
            )
        name, config = record.name.removesuffix(FOLDED_SUFFIX), _config_of(model)
        options = {
            "backend": record.backend,
            "processing": record.processing,
            "dtype": record.dtype,
            "device": record.device,
            "tokenizer": model.tokenizer,
        }
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(int(seed))
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    return load_model(fresh, name=f"{name}[random {seed}]", **options)


def null_norms(
    norms: pd.DataFrame,
    models: Any = (),
    *,
    nulls: Null | Sequence[Null] = NULLS,  # type: ignore[assignment]
    repeats: int = 5,
    skip: int = 1,
    seed: int = 0,
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
    skip : int
        As in `add_lags`.
    seed : int
    progress : bool
        As in `extract_norms`.

    Returns
    -------
    dict of str to iterator
        Each can be gone through once, as `compare_to_nulls` does; one frame is in memory at a time. Models are
        called what they are called in ``norms``, also those with random weights.

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
    chosen = one_or_many(nulls)
    for null in chosen:
        require_option(null, NULLS, name="nulls")
    require_whole_number(repeats, name="repeats", most=10_000)
    require_whole_number(seed, name="seed", least=0)
    require_whole_number(skip, name="skip", least=0)
    require(norms, (*GROUP_KEYS, *TOKEN_KEYS, "token_id", "norm"), who="null_norms")
    loaded = _by_name(norms, models) if {"token_order", "random_weights"} & set(chosen) else {}
    seeds = [int(word) for word in np.random.SeedSequence(seed).generate_state(int(repeats))]
    makers: dict[str, Callable[[int], pd.DataFrame]] = {
        "token_order": partial(_read_again, norms, loaded, "token_order", progress),
        "norm_order": lambda number: shuffle_norms(norms, skip=skip, seed=number),
        "random_weights": partial(_read_again, norms, loaded, "random_weights", progress),
        "token_identity": lambda number: token_means(norms, skip=skip),
    }
    return {null: map(makers[null], seeds[:1] if null == "token_identity" else seeds) for null in chosen}


def _read_again(
    norms: pd.DataFrame, loaded: dict[str, Any], null: str, progress: bool, seed: int
) -> pd.DataFrame:
    """Return the norms of the models on shuffled tokens, or of random models on the same tokens."""
    frames = []
    for name, model in loaded.items():
        mine = norms[norms["model"] == name]
        keys = ["doc", "window", "position"]
        tokens = mine[[*keys, "token_id"]].drop_duplicates(keys).sort_values(keys, ignore_index=True)
        if null == "token_order":
            tokens = shuffle_tokens(tokens, seed=seed)
        else:
            model = random_weights(model, seed=seed)
        hooks = list(mine["hook"].unique())
        frames.append(extract_norms(model, tokens, hooks=hooks, progress=progress).assign(model=name))
    return pd.concat(frames, ignore_index=True)


def _by_name(norms: pd.DataFrame, models: Any) -> dict[str, Any]:
    """Return the models by their names in the frame, all that it has, loaded."""
    entries = (
        [models] if isinstance(models, Path) or is_transformer_lens_model(models) else one_or_many(models)
    )
    loaded = {}
    for entry in entries:
        model = load_model(entry)
        loaded[record_of(model).name] = model
    for name in norms["model"].unique():
        if name not in loaded:
            raise InputError(
                f"null_norms runs the models of the frame again, and {name!r} was not given (got {list(loaded)}); "
                "give it models=, or nulls=('norm_order', 'token_identity'), which need none."
            )
    return {str(name): loaded[name] for name in norms["model"].unique()}


def _config_of(model: Any) -> Any:
    """Return the Hugging Face config that a model was made from."""
    if is_bridge(model):
        return model.original_model.config
    made_from = getattr(model, "_mechreg_original", None)
    original = None if made_from is None else made_from()
    if original is not None:
        return original.config
    record = record_of(model)
    if made_from is not None or getattr(model, "_mechreg_record", None) is None:
        raise ModelError(
            f"The Hugging Face config of {record.name} is not known; load it by name or folder with load_model, "
            "or use backend='bridge'."
        )
    with quiet():
        return read_config(record.source, record.commit)


def _shuffled(
    frame: pd.DataFrame, within: list[str], fixed: np.ndarray, seed: int
) -> Int[np.ndarray, " rows"]:
    """Return for every row the row that takes its place: at random within groups, the same for the same tokens."""
    keys = list(TOKEN_KEYS)
    token = frame.groupby(keys, observed=True, sort=True).ngroup().to_numpy()
    require_whole_number(seed, name="seed", least=0)
    draw = np.random.default_rng(seed).random(int(token.max()) + 1 if len(token) else 0)
    group = frame.groupby(within, observed=True, sort=False).ngroup().to_numpy()
    place = np.lexsort((token, fixed, group))
    taken = np.lexsort((np.where(fixed, token, draw[token] if len(token) else token), fixed, group))
    source = np.empty(len(frame), np.int64)
    source[place] = taken
    return source
