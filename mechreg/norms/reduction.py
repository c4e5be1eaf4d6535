"""Forward passes that leave one float per hook point, layer and token."""

from collections.abc import Iterator, Sequence
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mechreg.forward import (
    Act,
    Arriving,
    Forward,
    Head,
    batches,
    next_token_losses,
    one_late,
    padded,
    token_windows,
)
from mechreg.models import HOOK_POINTS, record_of
from mechreg.norms.heads import require_heads_add_up
from mechreg.schema import (
    InputError,
    NumericalError,
    one_or_many,
    require,
    require_option,
    require_whole_number,
)

# Longer batches give no more tokens per second on two cores and cost memory; shorter ones are slower.
BATCH_TOKENS = 2048


def window_norms(
    model: Any,
    tokens: pd.DataFrame,
    *,
    hooks: Sequence[str] = ("attn_out",),
    batch_tokens: int = BATCH_TOKENS,
    surprisal: bool = False,
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
    surprisal : bool
        The same passes go on to the logits, and give every token's surprisal under the entry "surprisal".

    Returns
    -------
    dict of str to numpy.ndarray
        "layer token", or "layer head token" for z and result; float32, or float64 of a float64 model. Surprisal
        is "token", in nats and float64, NaN at position 0, which nothing predicts.

    Raises
    ------
    InputError, ModelError, NumericalError
        As in `extract_norms`.

    Examples
    --------
    >>> from mechreg import load_model, tokenize
    >>> model = load_model("mini-s")
    >>> window_norms(model, tokenize(model, ["Once upon a time."]))["attn_out"].shape[0]
    4
    """
    hooks = known_hooks(hooks)
    require_whole_number(batch_tokens, name="batch_tokens")
    require(tokens, ("doc", "window", "position", "token_id"), who="window_norms")
    captured: dict[tuple[str, int], Tensor] = {}
    wanted = [(hook, layer) for hook in hooks for layer in range(model.cfg.n_layers)]
    acts = [
        (f"blocks.{layer}.{HOOK_POINTS[hook][0]}", _capture(captured, hook, layer)) for hook, layer in wanted
    ]
    run = Forward(model, acts, end="unembed" if surprisal else "acts", quick=True)
    windows = token_windows(model, tokens)
    if "result" in hooks:
        require_heads_add_up(model)
    head = Head(model) if surprisal else None
    if head is not None:
        run.end = head.end
    cfg, parameter = model.cfg, next(iter(model.parameters()))
    dtype = np.float64 if parameter.dtype == torch.float64 else np.float32
    values = {
        hook: np.empty((cfg.n_layers, *([cfg.n_heads] if is_per_head(hook) else []), len(tokens)), dtype)
        for hook in hooks
    }
    surprisals = np.full(len(tokens), np.nan)
    with run, tqdm(total=len(tokens), unit="tok", unit_scale=True, disable=None if progress else True) as bar:

        def passes() -> Iterator[tuple[np.ndarray, np.ndarray, Arriving[tuple[str, int]]]]:
            for batch in batches(model, windows, batch_tokens):
                ids, rows, real = padded(model, tokens, batch)
                hidden = run(ids)
                arriving = Arriving(captured)
                if head is not None and hidden is not None and real.shape[1] > 1:
                    has_next = np.pad(real[:, 1:], ((0, 0), (0, 1)))
                    at = torch.from_numpy(has_next).to(ids.device)
                    surprisals[rows[has_next] + 1] = next_token_losses(hidden, ids, at, head=head)
                yield rows, real, arriving

        for rows, real, arriving in one_late(passes()):
            for (hook, layer), norms in arriving.arrays().items():
                found = np.moveaxis(norms, 1, 0)[:, real] if is_per_head(hook) else norms[real]
                if not np.isfinite(found).all():
                    raise _not_finite(model, hook, layer, found, tokens.iloc[rows[real]])
                values[hook][layer, ..., rows[real]] = found.T
            bar.update(int(real.sum()))
    if surprisal:
        _require_finite_surprisal(model, surprisals, tokens)
        values["surprisal"] = surprisals
    return values


def _capture(captured: dict[tuple[str, int], Tensor], hook: str, layer: int) -> Act:
    """Return what keeps the norms of one hook point: it knows its layer, where a bridge's name may be an alias."""
    reduced = head_norms if is_per_head(hook) else vector_norms

    def capture(activation: Tensor) -> None:
        captured[hook, layer] = reduced(activation)

    return capture


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


def known_hooks(hooks: Sequence[str]) -> list[str]:
    """Return the names of hook points as a list, each known and given once.

    Raises
    ------
    InputError
        Lists the right names.

    Examples
    --------
    >>> known_hooks("attn_out")
    ['attn_out']
    """
    hooks = one_or_many(hooks)
    for hook in hooks:
        require_option(hook, list(HOOK_POINTS), name="hooks")
    if not hooks or len(set(hooks)) < len(hooks):
        raise InputError(f"hooks must name at least one hook point, each once; got {hooks}.")
    return hooks


def is_per_head(hook: str) -> bool:
    """Return whether a hook point has a vector for every head.

    Examples
    --------
    >>> is_per_head("z"), is_per_head("attn_out")
    (True, False)
    """
    return "head" in HOOK_POINTS[hook][1].split()


def _require_finite_surprisal(model: Any, surprisals: np.ndarray, tokens: pd.DataFrame) -> None:
    bad = ~np.isfinite(surprisals) & (tokens["position"].to_numpy() > 0)
    if bad.any():
        token = tokens.iloc[int(bad.argmax())]
        raise NumericalError(
            f"The surprisal of model {record_of(model).name!r}, document {token['doc']!r}, window {token['window']}, "
            f"position {token['position']} is NaN or infinite (check the weights, or use dtype='float32')."
        )


def _not_finite(model: Any, hook: str, layer: int, norms: np.ndarray, tokens: pd.DataFrame) -> NumericalError:
    """Return the error that names the first NaN or infinite norm of a window, "pos" or "head pos"."""
    place = np.argwhere(~np.isfinite(norms))[0]
    token = tokens.iloc[int(place[-1])]
    head = f", head {place[0]}" if is_per_head(hook) else ""
    return NumericalError(
        f"The activation of model {record_of(model).name!r}, hook {hook!r}, layer {layer}{head}, document "
        f"{token['doc']!r}, window {token['window']}, position {token['position']} is NaN or infinite; "
        "no norm of this run can be trusted (check the weights, or use dtype='float32')."
    )
