"""Is every number of this model what raw Hugging Face hooks say, batched or not?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechreg.corpus import tokenize
from mechreg.models import load_model, load_reference, record_of
from mechreg.norms import window_norms
from mechreg.schema import InputError, MechregError, ModelError

# Largest relative difference of a norm allowed, by dtype. Float32: ten times what two exact ways of computing
# the same attention differ by (2.3e-7 measured); half precisions: three times their worst (5e-3 for bfloat16).
TOLERANCES = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 2e-2, "float16": 5e-3}
ATTENTION_NAMES = ("attn", "self_attn", "attention", "self_attention")


def check_model(
    model: Any, *, reference: Any = None, hooks: Sequence[str] = ("attn_out",), seed: int = 0
) -> pd.DataFrame:
    """Return a table of what was checked: check, passed, value, tolerance, detail; all rows must pass.

    Token windows of ragged lengths are drawn at random, so that no tokenizer is needed for them. Checked are:
    attn_out norms against forward hooks on the raw Hugging Face model's attention modules; every hook point
    fires once per layer; a batch of ragged windows gives what each window gives alone; no BOS is added;
    a changed token leaves all norms before it alone; and the same input gives the same numbers again.

    Parameters
    ----------
    model : str, Path or model
        Anything that `load_model` takes.
    reference : transformers model, optional
        The Hugging Face model to compare with; by default it is loaded again from where the model came from.
    hooks : sequence of str
    seed : int

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    ModelError
        The Hugging Face model to compare with is not known or not to be had; give ``reference=``.

    Examples
    --------
    >>> bool(check_model("mini-s")["passed"].all())
    True
    """
    model = load_model(model)
    record = record_of(model)
    tolerance = TOLERANCES[record.dtype]
    if reference is None:
        try:
            reference = load_reference(model)
        except MechregError as error:
            raise ModelError(
                f"check_model has nothing to compare {record.name} with; give reference=, "
                f"the Hugging Face model that it was made from. ({error})"
            ) from error
    rng = np.random.default_rng(seed)
    tokens = _ragged_windows(rng, model)
    rows: list[dict[str, Any]] = []

    def row(check: str, value: float, limit: float, detail: str) -> None:
        rows.append(
            {"check": check, "passed": bool(value <= limit), "value": value, "tolerance": limit, "detail": detail}
        )

    try:
        norms = window_norms(model, tokens, hooks=hooks)
    except ModelError as error:
        row("every hook fires once a layer", 1.0, 0.0, str(error))
        return pd.DataFrame(rows)
    row("every hook fires once a layer", 0.0, 0.0, f"{', '.join(hooks)} in {model.cfg.n_layers} layers")

    if "attn_out" not in norms:
        norms |= window_norms(model, tokens, hooks=("attn_out",))
    raw = hugging_face_norms(reference, tokens)
    row("Hugging Face parity", _difference(norms["attn_out"], raw), tolerance, "attn_out, one window at a time")

    # The model alone, as a user calls it: the mechanism that pads must not be what is tested here.
    alone = [window_norms(model, window, hooks=hooks) for _, window in tokens.groupby("window")]
    worst = max(
        _difference(norms[hook], np.concatenate([part[hook] for part in alone], axis=-1)) for hook in hooks
    )
    row("ragged batch equals one by one", worst, tolerance, f"{len(alone)} windows of 2 to {_longest(tokens)} tokens")

    again = window_norms(model, tokens, hooks=hooks)
    worst = max(_difference(norms[hook], again[hook]) for hook in hooks)
    row("deterministic on repeat", worst, 0.0, "the same tokens twice")

    # The same window twice in one batch, one token changed: no batch shape can blur the comparison.
    window = tokens[tokens["window"] == tokens["window"].max()]
    at = len(window) // 2
    ids = window["token_id"].to_numpy().copy()
    ids[at] = (ids[at] + 1) % model.cfg.d_vocab
    changed = window_norms(model, window.assign(token_id=ids), hooks=hooks)
    original = window_norms(model, window, hooks=hooks)
    before = max(_difference(original[h][..., :at], changed[h][..., :at]) for h in hooks)
    row("causality", before, tolerance, f"token {at} changed, norms at tokens 0 to {at - 1}")
    after = max(_difference(original[h][..., at:], changed[h][..., at:]) for h in hooks)
    row("a changed token is felt", float(after <= tolerance), 0.0, f"norms from token {at} on change")

    doubled = _extra_bos(model)
    row("no BOS added to text", float(doubled), 0.0, "no tokenizer" if model.tokenizer is None else "tokenize(...)")
    return pd.DataFrame(rows)


def hugging_face_norms(reference: Any, tokens: pd.DataFrame) -> np.ndarray:
    """Return attn_out norms of a raw Hugging Face model, "layer token", from plain forward hooks.

    One window at a time, with no padding and nothing of TransformerLens or `window_norms`: the yardstick.

    Raises
    ------
    ModelError
        The model's attention modules are not found under a name that is known.

    Examples
    --------
    >>> from mechreg.corpus import tokenize
    >>> model = load_model("mini-s")
    >>> hugging_face_norms(load_reference(model), tokenize(model, ["A short text."])).shape[0]
    4
    """
    captured: dict[int, torch.Tensor] = {}
    handles = []
    for layer, module in enumerate(attention_modules(reference)):

        def hook(module: Any, inputs: Any, output: Any, layer: int = layer) -> None:
            captured[layer] = output[0] if isinstance(output, tuple) else output

        handles.append(module.register_forward_hook(hook))
    parts = []
    try:
        for _, window in tokens.groupby(["doc", "window"], observed=True, sort=False):
            ids = torch.tensor(window["token_id"].to_numpy(np.int64), device=reference.device)
            with torch.no_grad():
                reference(ids.unsqueeze(0))
            parts.append(
                np.stack([np.linalg.norm(captured[i][0].double().cpu().numpy(), axis=-1) for i in sorted(captured)])
            )
    finally:
        for handle in handles:
            handle.remove()
    return np.concatenate(parts, axis=1)


def attention_modules(reference: Any) -> list[Any]:
    """Return a Hugging Face model's attention modules, layer by layer.

    Raises
    ------
    ModelError
        They are not found under a name that is known.
    """
    for module in reference.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module):
            name = next((n for n in ATTENTION_NAMES if hasattr(module[0], n)), None)
            if name is not None:
                return [getattr(block, name) for block in module]
    raise ModelError(
        f"{type(reference).__name__} has no list of blocks with an attention module named {ATTENTION_NAMES}."
    )


def _ragged_windows(rng: np.random.Generator, model: Any) -> pd.DataFrame:
    """Return six windows of random tokens, the shortest of 2 and the longest of 60 at most."""
    longest = min(60, model.cfg.n_ctx)
    if longest < 2:
        raise InputError("check_model needs a context of at least 2 tokens.")
    lengths = np.unique(np.linspace(2, longest, 6).astype(int))
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


def _extra_bos(model: Any) -> int:
    """Return how many BOS tokens a text gains by being tokenized."""
    if getattr(model, "tokenizer", None) is None:
        return 0
    ids = tokenize(model, ["Hello there, world."])["token_id"]
    return int((ids == model.tokenizer.bos_token_id).sum())


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.max(np.abs(ours - theirs) / np.abs(theirs), initial=0.0))


def _longest(tokens: pd.DataFrame) -> int:
    return int(tokens["position"].max()) + 1
