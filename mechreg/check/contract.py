"""What `check_model` compares, row by row, with raw Hugging Face hooks."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mechreg.check.yardstick import PARTS, Parts, hugging_face_norms, hugging_face_vectors, read_by_norms
from mechreg.corpus import tokenize
from mechreg.forward import Act, Forward, active_dropouts, named_lengths
from mechreg.models import (
    HOOK_POINTS,
    Model,
    hook_name,
    input_device,
    is_bridge,
    is_transformer_lens_model,
    load_model,
    load_reference,
    load_tolerance,
    record_of,
    relative_difference,
)
from mechreg.norms import known_hooks, window_norms
from mechreg.outside import any_frames
from mechreg.schema import AUTOCAST, InputError, MechregError, ModelError, NumericalError

Norms = dict[str, np.ndarray]  # by hook point: "layer token", or "layer head token"
Row = dict[str, Any]
# What each block adds to its residual stream: resid_pre + attn_out + mlp_out = resid_post.
SUM = ("resid_pre", "attn_out", "mlp_out", "resid_post")
BLOCK_SUM = "resid_pre + attn_out + mlp_out = resid_post"

# A norm may differ from Hugging Face's by so many times as Hugging Face's own differ from those of the same model in
# float64 at most, at that hook point. In 30 architectures, five precisions and seven hook points it was 2.7 times.
ROUNDINGS = 6
# A sum of three vectors rounds by less than so many units in the last place of their lengths.
EPSILONS_SUM = 4
EPSILONS = 2  # and this many units in the last place, where Hugging Face happens to be exact

LONGEST = 4224  # tokens of a window: Phi-3 and Mistral compute differently from 4,097 tokens on


@any_frames
def check_model(
    model: Any,
    *,
    reference: Any = None,
    hooks: Sequence[str] = ("attn_out",),
    parts: Parts | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return a table of what was checked: check, passed, value, tolerance, detail; all rows must pass.

    Token windows of ragged lengths are drawn at random, so that no tokenizer is needed for them; some stand on both
    sides of every length that the config names (rotary frequencies, sliding windows, the context), up to 4,224
    tokens. The checks: no dropout is on; every hook point fires once per layer; the norms of attn_out and of ``hooks``
    equal those of forward hooks on the raw Hugging Face model, at the place with that meaning (after a norm or a factor
    that follows the attention); a batch of ragged windows gives the numbers of each window alone; the same input gives
    the same numbers again; a changed token leaves all norms before it as they were and moves some after it; in every
    block resid_pre + attn_out + mlp_out = resid_post; the logits equal Hugging Face's; and a text gets no BOS unasked
    and one when asked.

    Parameters
    ----------
    model, hooks
        As for `extract_norms`, of one model.
    reference : transformers model, optional
        The Hugging Face model to compare with, which is copied; by default it is loaded again from where the
        model came from.
    parts : dict of str to str, optional
        For a family that the check does not know, what Hugging Face's class calls the parts of a block, by the keys of
        `mechreg.check.PARTS`: ``{"blocks": "model.layers", "attention": "mixer", "norm_after_attention": "norm2"}``.
    seed : int

    Returns
    -------
    pandas.DataFrame
        ``value`` is the largest relative difference, or a count of faults; ``tolerance`` of norms is measured, from
        the rounding of the Hugging Face model against itself in float64. Where a check fails, those that need it to
        pass are left out.

    Raises
    ------
    ModelError
        The Hugging Face model to compare with could not be loaded, or its parts have unknown names.

    Examples
    --------
    >>> bool(check_model("mini-s")["passed"].all())
    True
    """
    compared = list(dict.fromkeys(["attn_out", *known_hooks(hooks)]))
    model = load_model(model)
    _require_hook_points(model, compared)
    try:
        reference = load_reference(model, reference)
    except MechregError as error:
        raise ModelError(
            f"check_model has nothing to compare {record_of(model).name} with; give reference=, the Hugging Face "
            f"model that it was made from. ({error})"
        ) from error
    tokens = _ragged_windows(np.random.default_rng(seed), model)
    short = tokens[tokens["window"] == 1]
    is_autocast = record_of(model).dtype == AUTOCAST
    with torch.autocast(input_device(model).type, dtype=torch.bfloat16, enabled=is_autocast), torch.no_grad():
        raw = hugging_face_norms(reference, tokens, hooks=compared, parts=parts)
        logits = reference(_ids(short, reference.device), use_cache=False).logits
        unexplained, read = _raw_unexplained(reference, short, parts), read_by_norms(reference, short, parts)
    epsilon, tolerances = _tolerances(model, reference, raw, tokens, parts)
    del reference
    whole = _whole_block(model, short, logits, read, epsilon)
    table = pd.DataFrame(_checks(model, tokens, raw, tolerances, whole))
    failed = set(table.loc[~table["passed"], "check"])
    is_odd = unexplained > 0.01 and not read  # the Hugging Face model's own parts do not add up
    if is_odd and "Hugging Face parity" in failed and BLOCK_SUM not in failed:
        raise ModelError(
            f"check_model does not know where {record_of(model).name} adds its attention and MLP to the residual "
            f"stream: what it took for them in the Hugging Face model leaves {unexplained:.1g} of a block unexplained; "
            f"name them with parts= ({', '.join(PARTS)})."
        )
    return table


def _checks(
    model: Model, tokens: pd.DataFrame, raw: Norms, tolerances: dict[str, float], whole: Iterator[Row]
) -> Iterator[Row]:
    """Yield the rows of the table; those that need an earlier check to pass end with it."""
    dropouts = active_dropouts(model)
    yield _row("no dropout is on", len(dropouts), 0, ", ".join(dropouts[:3]) or "evaluation mode")
    if dropouts:
        return
    norms_of = functools.partial(window_norms, model, hooks=list(raw))
    try:
        norms = norms_of(tokens)
    except (ModelError, NumericalError) as error:
        is_number = isinstance(error, NumericalError)
        yield _row("all norms are finite" if is_number else "every hook fires once a layer", 1, 0, str(error))
        return
    yield _row("every hook fires once a layer", 0, 0, f"{', '.join(raw)}, {model.cfg.n_layers} layers")
    yield _row("Hugging Face parity", *_worst(norms, raw, tokens, tolerances))

    # One by one without the batching that is checked; the windows come in order, so their norms can be joined.
    alone = [norms_of(window) for _, window in tokens.groupby("window")]
    joined = {hook: np.concatenate([part[hook] for part in alone], axis=-1) for hook in raw}
    yield _row("ragged batch equals one by one", *_worst(norms, joined, tokens, tolerances))
    yield _row("same again on repeat", *_worst(norms_of(tokens), norms, tokens, dict.fromkeys(raw, 0.0)))

    window = tokens[tokens["window"] == tokens["window"].max()]
    at = len(window) // 2
    ids = window["token_id"].to_numpy().copy()
    ids[at] = (ids[at] + 1) % model.cfg.d_vocab
    before, after = alone[-1], norms_of(window.assign(token_id=ids))
    (early_after, early_before), (late_after, late_before) = (
        [{hook: values[..., part] for hook, values in norms.items()} for norms in (after, before)]
        for part in (slice(at), slice(at, None))
    )
    kept = _worst(early_after, early_before, window[:at], tolerances)
    yield _row("a changed token leaves those before alone", *kept)
    # The same input gives the same bits, so that any move is the token's; coarse arithmetic may round most of it away.
    moved, _, where = _worst(late_after, late_before, window[at:], dict.fromkeys(raw, 0.0))
    yield _row("a changed token moves its own norms", int(moved == 0), 0, f"by {moved:.2g}, {where}")
    yield from whole
    yield _row("lengths that the config names", 0, 0, _sides(model)[1])
    yield _row("BOS only when asked", *_bos_faults(model))


def _whole_block(
    model: Model, window: pd.DataFrame, logits: torch.Tensor, read: list[Norms], epsilon: float
) -> Iterator[Row]:
    """Yield whether the parts of every block add up, and whether the logits are Hugging Face's, in one window."""
    kept: dict[str, list[np.ndarray]] = {hook: [] for hook in SUM}

    def keep(hook: str) -> Act:
        return lambda vectors: kept[hook].append(vectors[0].double().cpu().numpy())

    layers = range(int(model.cfg.n_layers))
    places = [(hook_name(hook, layer), keep(hook)) for layer in layers for hook in SUM]
    ids = _ids(window, input_device(model))
    try:
        with Forward(model, places) as run:
            run(ids)
    except ModelError as error:  # a hook point that was not asked for
        yield _row(BLOCK_SUM, 0, 0, f"not tried: {error}")
    else:
        apart, what = _unexplained({hook: np.stack(vectors) for hook, vectors in kept.items()}), ""
        if read:  # the block's output is a norm's: the attention's sum must be what one of its norms reads
            what = ", a norm ends each block and another reads resid_pre + attn_out"
            sums = [kept["resid_pre"][layer] + kept["attn_out"][layer] for layer in layers]
            inputs = zip(read, sums, strict=True)
            apart = np.array(
                [min(_relative_length(one, total) for one in own.values()) for own, total in inputs]
            )
        worst = int(apart.argmax())
        yield _row(BLOCK_SUM, float(apart[worst]), EPSILONS_SUM * epsilon, f"worst: layer {worst}{what}")
    with Forward(model, end="logits") as run:
        ours = run(ids)
    record = record_of(model)
    if record.processing == "folded":  # softmax does not see that the unembedding was centred
        ours, logits = (part - part.mean(dim=-1, keepdim=True) for part in (ours, logits))
    apart_logits = relative_difference(ours.double().cpu(), logits.double().cpu())
    most = load_tolerance(torch.bfloat16 if record.dtype == AUTOCAST else logits.dtype, len(layers))
    yield _row("logits equal Hugging Face's", apart_logits, most, f"{len(window)} tokens")


def _unexplained(vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return by layer what resid_pre + attn_out + mlp_out leaves of resid_post, of the lengths of all four at most."""
    before, attention, mlp, after = (vectors[hook] for hook in SUM)
    lengths = sum(np.linalg.norm(vectors[hook], axis=-1) for hook in SUM)
    return (np.linalg.norm(before + attention + mlp - after, axis=-1) / lengths).max(axis=-1)


def _relative_length(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return np.inf
    return float((np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)).max())


def _raw_unexplained(reference: Any, window: pd.DataFrame, parts: Parts | None) -> float:
    """Return the same of the Hugging Face model, infinite where a part's name is not known."""
    try:
        (vectors,) = hugging_face_vectors(reference, window, SUM, parts)
    except ModelError:
        return np.inf
    return float(_unexplained(vectors).max())


def _ids(window: pd.DataFrame, device: torch.device) -> torch.Tensor:
    return torch.tensor(window["token_id"].to_numpy(np.int64)[None], device=device)


def _require_hook_points(model: Model, hooks: Sequence[str]) -> None:
    available = [hook for hook, (place, _) in HOOK_POINTS.items() if f"blocks.0.{place}" in model.hook_dict]
    missing = [hook for hook in hooks if hook not in available]
    if missing:
        raise ModelError(
            f"{record_of(model).name} has no hook point {missing[0]!r}, which check_model was to compare; it has "
            f"{', '.join(available) or 'none'}."
        )


def _tolerances(
    model: Model, reference: Any, raw: Norms, tokens: pd.DataFrame, parts: Parts | None
) -> tuple[float, dict[str, float]]:
    """Return the epsilon of what is computed, and how much norms may differ by rounding alone, at each hook point.

    It is measured: the same Hugging Face model, which is cast for it, in float64, or a float64 one in float32, and
    scaled to what the architecture computes in. Many compute norms, rotations and softmax in float32, whatever their
    weights are.
    """
    dtype = reference.dtype
    coarsest = max((dtype, *_computed_in(model, reference)), key=lambda kind: torch.finfo(kind).eps)
    epsilon = torch.finfo(coarsest).eps
    other = torch.float32 if dtype == torch.float64 else torch.float64
    if hasattr(reference, "set_experts_implementation"):
        reference.set_experts_implementation("eager")  # other implementations have no float64 products
    try:
        cast = hugging_face_norms(reference.to(other), tokens, hooks=list(raw), parts=parts)
    except Exception:  # XGLM and others cannot run in float64, and each fails differently
        return epsilon, dict.fromkeys(raw, load_tolerance(dtype, model.cfg.n_layers))
    scale = epsilon / torch.finfo(other).eps if dtype == torch.float64 else 1.0
    return epsilon, {
        hook: max(EPSILONS * epsilon, ROUNDINGS * scale * float(_relative(raw[hook], cast[hook]).max()))
        for hook in raw
    }


def _computed_in(*models: Any) -> set[torch.dtype]:
    """Return the floating-point types of all that is computed when models run."""
    seen: set[torch.dtype] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            tensors = (part for part in tree_leaves(made) if isinstance(part, torch.Tensor))
            seen.update(tensor.dtype for tensor in tensors if tensor.is_floating_point())
            return made

    with torch.no_grad(), Watch():
        for model in models:
            is_hooked = is_transformer_lens_model(model) and not is_bridge(model)
            ids = torch.ones((1, 2), dtype=torch.int64, device=input_device(model))
            model(ids) if is_hooked else model(ids, use_cache=False)
    return seen


def _ragged_windows(rng: np.random.Generator, model: Model) -> pd.DataFrame:
    """Return windows of random tokens: six of 2 to 60, and on both sides of every length that the config names."""
    longest = min(60, model.cfg.n_ctx)
    if longest < 2:
        raise InputError("check_model needs a context of at least 2 tokens.")
    lengths = np.union1d(np.linspace(2, longest, 6).astype(int), np.array(_sides(model)[0], int))
    frames = []
    for i, length in enumerate(lengths):
        ids = {"position": np.arange(length), "token_id": rng.integers(0, model.cfg.d_vocab, length)}
        frames.append(pd.DataFrame({"doc": f"window-{i}", "window": i, **ids}))
    # One window begins with the BOS token: HookedTransformer can take it for padding.
    bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    if bos is not None:
        frames[-1].loc[0, "token_id"] = bos
    return pd.concat(frames, ignore_index=True)


def _sides(model: Model) -> tuple[list[int], str]:
    """Return the lengths tried, on both sides of those that a config names, and the named lengths in words."""
    named, fits = named_lengths(model), min(int(model.cfg.n_ctx), LONGEST)
    sides = {side for length in named.values() for side in (length, length + 1) if 2 <= side <= fits}
    words = [f"{name} {length}{' (not tried)' if length > fits else ''}" for name, length in named.items()]
    return sorted(sides), ", ".join(words)


def _worst(
    ours: Norms,
    theirs: Norms,
    tokens: pd.DataFrame,
    tolerances: dict[str, float],
) -> tuple[float, float, str]:
    """Return the largest relative difference, of the hook where it is most of its tolerance, that, and the place."""
    worst = []
    for hook, norms in theirs.items():
        limit = tolerances[hook]
        if ours[hook].shape != norms.shape:
            return np.inf, limit, f"{hook}: {ours[hook].shape} norms where {norms.shape} were expected"
        relative = _relative(ours[hook], norms)
        place = np.unravel_index(relative.argmax(), relative.shape)
        token = tokens.iloc[int(place[-1])]
        where = f"worst: {hook}, layer {place[0]}, {token['doc']}, position {token['position']}"
        worst.append((float(relative[place]), limit, where))
    return max(worst, key=lambda difference: difference[0] / (difference[1] or 1))


def _relative(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the differences of norms over the second ones, infinite where one is not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(ours.astype(float) - theirs) / np.abs(theirs)
    return np.where(ours == theirs, 0.0, np.nan_to_num(relative, nan=np.inf))


def _bos_faults(model: Model) -> tuple[int, int, str]:
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
    faults = sum(a != b for a, b in zip(got, wanted, strict=True))
    return faults, 0, f"{got} in {len(got)} texts, wanted {wanted}"


def _row(check: str, value: float | int, limit: float | int, detail: str) -> Row:
    return {
        "check": check,
        "passed": bool(value <= limit),
        "value": float(value),
        "tolerance": float(limit),
        "detail": detail,
    }
