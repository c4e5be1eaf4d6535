"""Norms: token windows in, one norm per hook point, layer and token out, reduced while the model runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechreg.corpus import tokenize
from mechreg.models import HOOK_POINTS, is_transformer_lens_model, load_model, record_of
from mechreg.schema import NORM_COLUMNS, InputError, ModelError, NumericalError, did_you_mean, require

# Longer batches give no more tokens per second on two cores and cost memory; shorter ones are slower.
BATCH_TOKENS = 2048


def extract_norms(
    models: Any,
    documents: Any,
    *,
    hooks: Sequence[str] = ("attn_out",),
    batch_tokens: int = BATCH_TOKENS,
    prepend_bos: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Return the L2 norm of one vector per token at every layer of the hook points, for one or several models.

    The norm is taken inside the hook, so that memory grows with the tokens and not with d_model x tokens; the
    run stops after the last hook point wanted, so that no logits are computed.

    Parameters
    ----------
    models : model, name, path, or a sequence of them
        Anything that `load_model` takes. Names and paths are loaded when their turn comes and freed after it.
    documents : documents frame, list of str, path, or token frame
        What `read_corpus` takes or gives, or what `tokenize` gives (its windows are then taken as they are).
    hooks : sequence of str
        Of resid_pre, attn_out, resid_mid, mlp_out, resid_post (one vector of d_model per token), z and result
        (one per head: the frame then has a ``head`` column, -1 at the other hooks).
    batch_tokens : int
        Tokens in a batch, right padding included; a window longer than this is a batch of its own.
    prepend_bos : bool
    progress : bool
        A bar on standard error, where that is a terminal.

    Returns
    -------
    pandas.DataFrame
        The norm frame: model, hook, layer, (head,) depth, doc, window, position, token_id, norm (float32).

    Raises
    ------
    InputError
        An unknown hook, no model, two models of one name, or documents that cannot be used.
    ModelError
        A hook point did not fire exactly once in a layer.
    NumericalError
        An activation is NaN or infinite; names the model, hook, layer, document and position.

    Examples
    --------
    >>> norms = extract_norms("mini-s", ["The cat sat on the mat and looked at the moon."])
    >>> norms.groupby("layer").size().nunique(), float(norms["depth"].min())
    (1, 0.125)
    """
    hooks = _known_hooks(hooks)
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise InputError(f"batch_tokens must be a positive whole number; got {batch_tokens!r}.")
    frames: list[pd.DataFrame] = []
    names: set[str] = set()
    for entry in _as_list(models):
        model = load_model(entry)  # nothing else refers to it after this turn: freed before the next is loaded
        name = record_of(model).name
        if name in names:
            raise InputError(
                f"Two models are called {name!r}, and their norms would be mixed; load one with name=."
            )
        names.add(name)
        tokens = _as_tokens(model, documents, prepend_bos=prepend_bos)
        values = window_norms(model, tokens, hooks=hooks, batch_tokens=batch_tokens, progress=progress)
        frames.append(_norm_frame(name, tokens, values))
        del model, values
    return frames[0] if len(frames) == 1 else _concat(frames)


def window_norms(
    model: Any,
    tokens: pd.DataFrame,
    *,
    hooks: Sequence[str] = ("attn_out",),
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Return the norms of a token frame's rows, an array for each hook point: the frame's rows in its order.

    Parameters
    ----------
    model : TransformerLens model
    tokens : pandas.DataFrame
        What `tokenize` gives: doc, window, position, token_id.
    hooks, batch_tokens, progress
        As in `extract_norms`.

    Returns
    -------
    dict of str to numpy.ndarray
        Float32, "layer token", or "layer head token" for z and result.

    Examples
    --------
    >>> from mechreg.corpus import tokenize
    >>> model = load_model("mini-s")
    >>> window_norms(model, tokenize(model, ["Once upon a time."]))["attn_out"].shape[0]
    4
    """
    hooks = _known_hooks(hooks)
    require(tokens, ("doc", "window", "position", "token_id"), who="window_norms")
    windows = _windows(model, tokens)
    ids = tokens["token_id"].to_numpy(np.int64)
    cfg, device = model.cfg, next(iter(model.parameters())).device
    shapes = {"head": (cfg.n_layers, cfg.n_heads, len(ids)), "": (cfg.n_layers, len(ids))}
    values = {hook: np.full(shapes["head" if _is_per_head(hook) else ""], np.nan, np.float32) for hook in hooks}
    run = _ReducedRun(model, hooks)
    with run, tqdm(total=len(ids), unit="tok", unit_scale=True, disable=None if progress else True) as bar:
        for batch in _batches(windows, batch_tokens):
            length = max(window.length for window in batch)
            # Right padding: with causal attention no real token can see it, so no mask is needed.
            padded = np.zeros((len(batch), length), np.int64)
            for row, window in enumerate(batch):
                padded[row, : window.length] = ids[window.start : window.start + window.length]
            run.forward(torch.from_numpy(padded).to(device))
            for (hook, layer), norms in run.captured.items():
                for row, window in enumerate(batch):
                    rows = slice(window.start, window.start + window.length)
                    values[hook][layer, ..., rows] = norms[row, ..., : window.length]
            bar.update(sum(window.length for window in batch))
    _require_finite(record_of(model).name, tokens, values)
    return values


def vector_norms(activation: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos"]:
    """Return the L2 norm over d_model of one hook point, at every token.

    Half-precision activations are squared in float32, where their sum neither overflows nor rounds.

    Examples
    --------
    >>> vector_norms(torch.ones(1, 2, 4))
    tensor([[2., 2.]])
    """
    wide = activation if activation.dtype == torch.float64 else activation.float()
    return einops.reduce(wide.square(), "batch pos d -> batch pos", "sum").sqrt()


def head_norms(activation: Float[Tensor, "batch pos head d"]) -> Float[Tensor, "batch head pos"]:
    """Return the L2 norm of every head's vector at every token, over d_head (z) or d_model (result).

    Examples
    --------
    >>> head_norms(torch.ones(1, 3, 2, 4)).shape
    torch.Size([1, 2, 3])
    """
    wide = activation if activation.dtype == torch.float64 else activation.float()
    return einops.reduce(wide.square(), "batch pos head d -> batch head pos", "sum").sqrt()


class _AllCaptured(Exception):
    """Raised by the last hook that is wanted: nothing above it in the model needs to run."""


@dataclass
class _ReducedRun:
    """Forward passes with a hook at every wanted hook point, each leaving one float per token.

    The hooks stay on the model between batches and are gone after the ``with`` block. They know their layer
    from a closure: on a bridge a hook point's own name may be an alias of the one that was asked for.
    """

    model: Any
    hooks: Sequence[str]
    captured: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = range(self.model.cfg.n_layers)
        self.wanted = [(hook, layer) for hook in self.hooks for layer in layers]
        self.places = {
            f"blocks.{layer}.{HOOK_POINTS[hook][0]}": self._capture(hook, layer) for hook, layer in self.wanted
        }
        lacking = [place for place in self.places if place not in self.model.hook_dict]
        if lacking:
            raise ModelError(
                f"{record_of(self.model).name} has no hook point {lacking[0]!r} "
                f"({len(lacking)} of {len(self.places)} are not there); describe_model lists those it has."
            )

    def __enter__(self) -> "_ReducedRun":
        self._context = self.model.hooks(fwd_hooks=list(self.places.items()))
        self._split_heads = "result" in self.hooks and not self.model.cfg.use_attn_result
        if self._split_heads:  # gated off by default: TransformerLens lists the hook point and never fires it
            self.model.set_use_attn_result(True)
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)
        if self._split_heads:
            self.model.set_use_attn_result(False)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> None:
        self.captured, self.doubled = {}, []
        options = {"use_cache": False} if hasattr(self.model, "original_model") else {}
        # A mask of ones, since HookedTransformer takes leading BOS ids for padding when its tokenizer pads left.
        mask = torch.ones_like(tokens)
        with torch.inference_mode():
            try:
                self.model(tokens, return_type=None, attention_mask=mask, **options)
            except _AllCaptured:
                pass
        silent = [key for key in self.wanted if key not in self.captured]
        if silent or self.doubled:
            hook, layer = (silent or self.doubled)[0]
            raise ModelError(
                f"{record_of(self.model).name}: the hook point {hook!r} of layer {layer} fired "
                f"{'not at all' if silent else 'twice'} in one forward pass; every layer must fire once."
            )

    def _capture(self, hook: str, layer: int) -> Any:
        reduce_to_norms = head_norms if _is_per_head(hook) else vector_norms

        def capture(activation: Tensor, hook: Any = None, *, key: tuple[str, int] = (hook, layer)) -> None:
            if key in self.captured:
                self.doubled.append(key)
            self.captured[key] = reduce_to_norms(activation).float().cpu().numpy()
            if len(self.captured) == len(self.wanted):
                raise _AllCaptured

        return capture


@dataclass(frozen=True)
class _Window:
    start: int
    length: int


def _windows(model: Any, tokens: pd.DataFrame) -> list[_Window]:
    """Return where each window's rows are; they must be whole, in order, and fit the model."""
    position = tokens["position"].to_numpy(np.int64)
    starts = np.flatnonzero(position == 0)
    if len(position) == 0 or position[0] != 0:
        raise InputError("The token frame is empty or does not begin with position 0; give whole windows.")
    lengths = np.diff(np.append(starts, len(position)))
    expected = np.arange(len(position)) - np.repeat(starts, lengths)
    if not np.array_equal(position, expected):
        row = int(np.flatnonzero(position != expected)[0])
        raise InputError(
            f"The token frame's positions must count 0, 1, 2, ... within each window; row {row} has "
            f"{position[row]} where {expected[row]} was expected. Give the frame as tokenize made it."
        )
    if lengths.max() > model.cfg.n_ctx:
        raise InputError(
            f"A window of {lengths.max()} tokens does not fit the context of {record_of(model).name}, "
            f"{model.cfg.n_ctx}; tokenize the documents with this model."
        )
    highest, lowest = int(tokens["token_id"].max()), int(tokens["token_id"].min())
    if lowest < 0 or highest >= model.cfg.d_vocab:
        raise InputError(
            f"Token ids run from {lowest} to {highest}, and the vocabulary of {record_of(model).name} has "
            f"{model.cfg.d_vocab}; tokenize the documents with this model."
        )
    return [_Window(int(start), int(length)) for start, length in zip(starts, lengths, strict=True)]


def _batches(windows: list[_Window], batch_tokens: int) -> Iterable[list[_Window]]:
    """Yield batches of windows of nearly the same length, at most batch_tokens with their padding."""
    batch: list[_Window] = []
    for window in sorted(windows, key=lambda window: (window.length, window.start), reverse=True):
        if batch and (len(batch) + 1) * batch[0].length > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _norm_frame(name: str, tokens: pd.DataFrame, values: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return the tidy norm frame: hooks, then layers, then heads, then tokens in the corpus's order."""
    doc = tokens["doc"].astype("category")
    per_head = any(values_of_hook.ndim == 3 for values_of_hook in values.values())
    frames = []
    for hook, norms in values.items():
        n_layers, n_heads = norms.shape[0], norms.shape[1] if norms.ndim == 3 else 1
        repeats, rows = n_layers * n_heads, len(tokens)
        layer = np.repeat(np.arange(n_layers), n_heads * rows)
        columns: dict[str, Any] = {
            "model": pd.Categorical.from_codes(np.zeros(len(layer), np.int8), categories=[name]),
            "hook": pd.Categorical.from_codes(np.zeros(len(layer), np.int8), categories=[hook]),
            "layer": layer,
        }
        if per_head:
            heads = np.arange(n_heads) if norms.ndim == 3 else np.array([-1])
            columns["head"] = np.tile(np.repeat(heads, rows), n_layers).astype(np.int16)
        columns["depth"] = (layer + 0.5) / n_layers
        columns["doc"] = pd.Categorical.from_codes(np.tile(doc.cat.codes, repeats), dtype=doc.dtype)
        for column in ("window", "position", "token_id"):
            columns[column] = np.tile(tokens[column].to_numpy(), repeats)
        columns["norm"] = norms.reshape(-1)
        frames.append(pd.DataFrame(columns).astype(NORM_COLUMNS))
    return frames[0] if len(frames) == 1 else _concat(frames)


def _concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Return frames on top of each other, their categories united (plain concat would make strings of them)."""
    whole = pd.concat(
        [frame.astype({key: "object" for key in ("model", "hook", "doc")}) for frame in frames], ignore_index=True
    )
    return whole.astype({key: dtype for key, dtype in NORM_COLUMNS.items() if key in whole})


def _require_finite(name: str, tokens: pd.DataFrame, values: dict[str, np.ndarray]) -> None:
    for hook, norms in values.items():
        if np.isfinite(norms).all():
            continue
        place = np.argwhere(~np.isfinite(norms))[0]
        token = tokens.iloc[int(place[-1])]
        raise NumericalError(
            f"The activation of model {name!r}, hook {hook!r}, layer {place[0]}, document {token['doc']!r}, "
            f"window {token['window']}, position {token['position']} is NaN or infinite; "
            "no norm of this run can be trusted (check the weights, or use dtype='float32')."
        )


def _as_tokens(model: Any, documents: Any, *, prepend_bos: bool) -> pd.DataFrame:
    if isinstance(documents, pd.DataFrame) and "token_id" in documents.columns:
        if prepend_bos:
            raise InputError("prepend_bos=True is for texts; tokenize(..., prepend_bos=True) makes such windows.")
        return documents
    return tokenize(model, documents, prepend_bos=prepend_bos)


def _as_list(models: Any) -> list[Any]:
    many = isinstance(models, Iterable) and not isinstance(models, str) and not is_transformer_lens_model(models)
    entries = list(models) if many and not isinstance(models, torch.nn.Module) else [models]
    if not entries:
        raise InputError("extract_norms needs at least one model; got an empty list.")
    return entries


def _known_hooks(hooks: Sequence[str]) -> list[str]:
    hooks = [hooks] if isinstance(hooks, str) else list(hooks)
    for hook in hooks:
        if hook not in HOOK_POINTS:
            raise InputError(
                f"There is no hook {hook!r}; hooks are {', '.join(HOOK_POINTS)}.{did_you_mean(hook, HOOK_POINTS)}"
            )
    if not hooks or len(set(hooks)) < len(hooks):
        raise InputError(f"hooks must name at least one hook point, each once; got {hooks}.")
    return hooks


def _is_per_head(hook: str) -> bool:
    return "head" in HOOK_POINTS[hook][1].split()
