"""Is every number of this model what raw Hugging Face hooks say, batched or not?"""

from collections.abc import Callable, Sequence
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch

from mechreg.corpus import tokenize
from mechreg.forward import active_dropouts, named_lengths, pinned
from mechreg.models import load_model, load_reference, record_of
from mechreg.norms import known_hooks, window_norms
from mechreg.schema import AUTOCAST, InputError, MechregError, ModelError, NumericalError

# Largest relative difference of a norm allowed, by dtype. In float32 Hugging Face's own two attention paths differ by
# 2e-7 with random weights and by 5e-6 where trained heads cancel (float64: 4e-16, bfloat16: 5e-3); the mildest mistake
# met, folded weights, is 8e-3. Room for deeper models, none for a mistake.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3, AUTOCAST: 2e-2}

LONGEST = 4224  # tokens of a window: Phi-3 and Mistral compute in another way from 4,097 on

# What Hugging Face's architectures call the parts of a block, and the projection inside the attention.
PARTS = {
    "attention": ("attn", "self_attn", "attention", "self_attention"),
    "mlp": ("mlp",),
    "second norm": ("ln_2", "post_attention_layernorm"),
    "output projection": ("c_proj", "o_proj", "out_proj", "dense"),
}


def check_model(
    model: Any, *, reference: Any = None, hooks: Sequence[str] = ("attn_out",), seed: int = 0
) -> pd.DataFrame:
    """Return a table of what was checked: check, passed, value, tolerance, detail; all rows must pass.

    Token windows of ragged lengths are drawn at random, so that no tokenizer is needed for them; some stand on both
    sides of every length that the config names (rotary frequencies, sliding windows, the context), up to 4,224
    tokens. Checked are:
    no dropout is on; every hook point fires once per layer; the norms of attn_out and of ``hooks`` against
    forward hooks on the raw Hugging Face model; a batch of ragged windows gives what each window gives alone;
    the same input gives the same numbers again; a changed token leaves all norms before it alone and moves some
    after it; and a text gets no BOS unasked and one when asked.

    Parameters
    ----------
    model : str, Path or model
        Anything that `load_model` takes.
    reference : transformers model, optional
        The Hugging Face model to compare with, which is copied; by default it is loaded again from where the
        model came from.
    hooks : sequence of str
        As in `extract_norms`.
    seed : int

    Returns
    -------
    pandas.DataFrame
        ``value`` is the largest relative difference of a norm, or a count of faults. Checks that need an earlier
        one to pass are left out where it fails.

    Raises
    ------
    ModelError
        The Hugging Face model to compare with is not to be had, or its parts have unknown names.

    Examples
    --------
    >>> bool(check_model("mini-s")["passed"].all())
    True
    """
    hooks = known_hooks(hooks)
    compared = list(dict.fromkeys(["attn_out", *hooks]))
    model = load_model(model)
    record = record_of(model)
    if record.dtype not in TOLERANCES:
        raise ModelError(f"check_model knows {', '.join(TOLERANCES)}; {record.name} is {record.dtype}.")
    tolerance = TOLERANCES[record.dtype]
    reference = _reference(model, reference)
    tokens = _ragged_windows(np.random.default_rng(seed), model)
    raw = hugging_face_norms(reference, tokens, hooks=compared)
    rows = []

    dropouts = active_dropouts(model)
    rows.append(_row("no dropout is on", len(dropouts), 0, ", ".join(dropouts[:3]) or "evaluation mode"))
    if dropouts:
        return pd.DataFrame(rows)
    try:
        norms = window_norms(model, tokens, hooks=compared)
    except (ModelError, NumericalError) as error:
        is_number = isinstance(error, NumericalError)
        rows.append(
            _row("all norms are finite" if is_number else "every hook fires once a layer", 1, 0, str(error))
        )
        return pd.DataFrame(rows)
    rows.append(
        _row("every hook fires once a layer", 0, 0, f"{', '.join(compared)}, {model.cfg.n_layers} layers")
    )
    rows.append(_row("Hugging Face parity", *_worst(norms, raw, tokens, tolerance)))

    # One by one without the batching that is checked; the windows come in order, so their norms can be joined.
    alone = [window_norms(model, window, hooks=compared) for _, window in tokens.groupby("window")]
    joined = {hook: np.concatenate([part[hook] for part in alone], axis=-1) for hook in compared}
    rows.append(_row("ragged batch equals one by one", *_worst(norms, joined, tokens, tolerance)))
    again = window_norms(model, tokens, hooks=compared)
    rows.append(_row("same again on repeat", *_worst(again, norms, tokens, 0.0)))

    window = tokens[tokens["window"] == tokens["window"].max()]
    at = len(window) // 2
    ids = window["token_id"].to_numpy().copy()
    ids[at] = (ids[at] + 1) % model.cfg.d_vocab
    before, after = alone[-1], window_norms(model, window.assign(token_id=ids), hooks=compared)
    early, late = slice(at), slice(at, None)
    rows.append(
        _row(
            "a changed token leaves those before alone",
            *_worst(_at(after, early), _at(before, early), window[early], tolerance),
        )
    )
    moved, _, where = _worst(_at(after, late), _at(before, late), window[late], tolerance)
    rows.append(
        _row("a changed token moves its own norms", int(moved <= tolerance), 0, f"by {moved:.2g}, {where}")
    )
    rows.append(_row("lengths that the config names", 0, 0, _sides(model)[1]))
    rows.append(_row("BOS only when asked", *_bos_faults(model)))
    return pd.DataFrame(rows)


@pinned()
def hugging_face_norms(
    reference: Any, tokens: pd.DataFrame, *, hooks: Sequence[str] = ("attn_out",)
) -> dict[str, np.ndarray]:
    """Return the norms of a raw Hugging Face model from plain forward hooks, as `window_norms` gives them.

    One window at a time, with no padding and nothing of TransformerLens or `window_norms`: the yardstick.

    Parameters
    ----------
    reference : transformers model
        In evaluation mode.
    tokens : pandas.DataFrame
        What `tokenize` gives.
    hooks : sequence of str
        As in `extract_norms`.

    Returns
    -------
    dict of str to numpy.ndarray
        Float64, "layer token", or "layer head token" for z and result.

    Raises
    ------
    ModelError
        The model's blocks, or the parts of them that the hooks need, have no name that is known.

    Examples
    --------
    >>> from mechreg.corpus import tokenize
    >>> model = load_model("mini-s")
    >>> hugging_face_norms(load_reference(model), tokenize(model, ["A short text."]))["attn_out"].shape[0]
    4
    """
    blocks, n_heads = _blocks(reference), reference.config.num_attention_heads
    kept: dict[tuple[str, int], np.ndarray] = {}
    handles = []
    parts: dict[str, list[np.ndarray]] = {hook: [] for hook in hooks}
    try:
        for layer, block in enumerate(blocks):
            for hook in hooks:

                def keep(value: np.ndarray, key: tuple[str, int] = (hook, layer)) -> None:
                    kept[key] = value

                handles.append(_listen(block, hook, n_heads, keep))
        for _, window in tokens.groupby(["doc", "window"], observed=True, sort=False):
            ids = torch.tensor(window["token_id"].to_numpy(np.int64), device=reference.device)
            with torch.no_grad():
                reference(ids.unsqueeze(0), use_cache=False)
            for hook in hooks:
                vectors = np.stack([kept[hook, layer] for layer in range(len(blocks))])
                parts[hook].append(np.linalg.norm(vectors, axis=-1))
    finally:
        for handle in handles:
            handle.remove()
    return {hook: np.concatenate(norms, axis=-1) for hook, norms in parts.items()}


def _listen(block: Any, hook: str, n_heads: int, keep: Callable[[np.ndarray], None]) -> Any:
    """Register a plain forward hook that hands on a hook point's vectors, "pos d" or "head pos d"."""

    def plain(value: Any) -> np.ndarray:
        return (value[0] if isinstance(value, tuple) else value)[0].double().cpu().numpy()

    def heads(z: Any) -> np.ndarray:
        return einops.rearrange(plain(z), "pos (head d_head) -> head pos d_head", head=n_heads)

    if hook == "resid_pre":
        return block.register_forward_pre_hook(
            lambda module, args, kwargs: keep(plain(args or kwargs["hidden_states"])), with_kwargs=True
        )
    if hook == "resid_post":
        return block.register_forward_hook(lambda module, args, output: keep(plain(output)))
    if hook == "resid_mid":
        return _part(block, "second norm").register_forward_pre_hook(lambda module, args: keep(plain(args)))
    if hook == "mlp_out":
        return _part(block, "mlp").register_forward_hook(lambda module, args, output: keep(plain(output)))
    attention = _part(block, "attention")
    if hook == "attn_out":
        return attention.register_forward_hook(lambda module, args, output: keep(plain(output)))
    projection = _part(attention, "output projection")
    if hook == "z":
        return projection.register_forward_pre_hook(lambda module, args: keep(heads(args)))
    weight = projection.weight.detach().double().cpu().numpy()
    w_o = einops.rearrange(
        weight.T
        if isinstance(projection, torch.nn.Linear)
        else weight,  # GPT-2's Conv1D is the other way round
        "(head d_head) d_model -> head d_head d_model",
        head=n_heads,
    )
    return projection.register_forward_pre_hook(lambda module, args: keep(heads(args) @ w_o))


def _blocks(reference: Any) -> torch.nn.ModuleList:
    """Return a Hugging Face model's blocks: the list of modules that have an attention."""
    for module in reference.modules():
        is_list = isinstance(module, torch.nn.ModuleList) and len(module) > 0
        if is_list and any(hasattr(module[0], name) for name in PARTS["attention"]):
            return module
    raise ModelError(
        f"{type(reference).__name__} has no list of blocks with an attention called "
        f"{', '.join(PARTS['attention'])}; check_model cannot compare it."
    )


def _part(module: Any, part: str) -> Any:
    for name in PARTS[part]:
        if hasattr(module, name):
            return getattr(module, name)
    raise ModelError(
        f"{type(module).__name__} has no {part} called {', '.join(PARTS[part])}; give check_model hooks that do "
        "not need it, such as hooks=('attn_out',)."
    )


def _reference(model: Any, original: Any) -> Any:
    """Return a Hugging Face model of the checked one's dtype and device, in evaluation mode."""
    try:
        return load_reference(model, original)
    except MechregError as error:
        raise ModelError(
            f"check_model has nothing to compare {record_of(model).name} with; give reference=, the Hugging Face "
            f"model that it was made from. ({error})"
        ) from error


def _ragged_windows(rng: np.random.Generator, model: Any) -> pd.DataFrame:
    """Return windows of random tokens: six of 2 to 60, and on both sides of every length that the config names."""
    longest = min(60, model.cfg.n_ctx)
    if longest < 2:
        raise InputError("check_model needs a context of at least 2 tokens.")
    lengths = np.union1d(np.linspace(2, longest, 6).astype(int), _sides(model)[0])
    frames = [
        pd.DataFrame(
            {
                "doc": f"window-{i}",
                "window": i,
                "position": np.arange(length),
                "token_id": rng.integers(0, model.cfg.d_vocab, length),
            }
        )
        for i, length in enumerate(lengths)
    ]
    # One window begins with the BOS token: HookedTransformer can take it for padding.
    bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    if bos is not None:
        frames[-1].loc[0, "token_id"] = bos
    return pd.concat(frames, ignore_index=True)


def _sides(model: Any) -> tuple[list[int], str]:
    """Return the lengths on both sides of those that a config names, as far as they are tried, and all in words."""
    named, fits = named_lengths(model), min(int(model.cfg.n_ctx), LONGEST)
    sides = {side for length in named.values() for side in (length, length + 1) if 2 <= side <= fits}
    said = [f"{name} {length}{' (not tried)' if length > fits else ''}" for name, length in named.items()]
    return sorted(sides), ", ".join(said)


def _worst(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tokens: pd.DataFrame, tolerance: float
) -> tuple[float, float, str]:
    """Return the largest relative difference, the tolerance, and where the difference is."""
    worst, detail = -1.0, ""
    for hook, norms in theirs.items():
        if ours[hook].shape != norms.shape:
            return np.inf, tolerance, f"{hook}: {ours[hook].shape} norms where {norms.shape} were expected"
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.abs(ours[hook].astype(float) - norms) / np.abs(norms)
        relative = np.where(ours[hook] == norms, 0.0, np.nan_to_num(relative, nan=np.inf))
        place = np.unravel_index(relative.argmax(), relative.shape)
        if relative[place] > worst:
            worst = float(relative[place])
            token = tokens.iloc[int(place[-1])]
            detail = f"worst: {hook}, layer {place[0]}, {token['doc']}, position {token['position']}"
    return worst, tolerance, detail


def _at(norms: dict[str, np.ndarray], positions: slice) -> dict[str, np.ndarray]:
    return {hook: values[..., positions] for hook, values in norms.items()}


def _bos_faults(model: Any) -> tuple[int, int, str]:
    """Return how many of three ways of tokenizing give another number of BOS tokens than was asked for."""
    if getattr(model, "tokenizer", None) is None:
        return 0, 0, "no tokenizer"
    text, bos = "Hello there, world.", model.tokenizer.bos_token
    asked = [(text, False, 0)] + ([(text, True, 1), (bos + text, True, 1)] if bos is not None else [])
    got = [
        int((tokenize(model, [line], prepend_bos=prepend)["token_id"] == model.tokenizer.bos_token_id).sum())
        for line, prepend, _ in asked
    ]
    wanted = [count for _, _, count in asked]
    return (
        sum(a != b for a, b in zip(got, wanted, strict=True)),
        0,
        f"{got} in {len(got)} texts, wanted {wanted}",
    )


def _row(check: str, value: float | int, limit: float | int, detail: str) -> dict[str, Any]:
    return {
        "check": check,
        "passed": bool(value <= limit),
        "value": float(value),
        "tolerance": float(limit),
        "detail": detail,
    }
