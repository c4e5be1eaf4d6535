"""Next token: what logits say of the token that comes."""

import einops
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOGIT_ROWS = 128  # tokens whose distributions are held in float64 at once: 51 MB each with GPT-2's vocabulary


def next_token_losses(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    at: Bool[Tensor, "batch pos"],
) -> Float[np.ndarray, " tokens"]:
    """Return the cross-entropy of the next token, in nats, after every token of a mask.

    Examples
    --------
    >>> mask = torch.tensor([[True, False]])
    >>> next_token_losses(torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), mask).round(4).tolist()
    [1.3863]
    """
    target = torch.roll(tokens, -1, dims=1)[at]
    losses = []
    for part, wanted in zip(logits[at].split(LOGIT_ROWS), target.split(LOGIT_ROWS), strict=True):
        wide = part.double()
        chosen = wide.gather(1, einops.rearrange(wanted, "tokens -> tokens 1"))
        losses.append(wide.logsumexp(dim=1) - einops.rearrange(chosen, "tokens 1 -> tokens"))
    return torch.cat(losses).cpu().numpy()


def batch_losses(
    logits: Float[Tensor, "batch pos d_vocab"], ids: Int[Tensor, "batch pos"], lengths: list[int]
) -> Float[np.ndarray, "batch pos"]:
    """Return the cross-entropy of the next token after every token that has one, NaN elsewhere.

    Examples
    --------
    >>> batch_losses(torch.zeros(1, 3, 7), torch.zeros(1, 3, dtype=torch.int64), [2]).round(2)
    array([[1.95,  nan,  nan]])
    """
    place = np.arange(ids.shape[1])
    has_next = np.stack([place < length - 1 for length in lengths])
    losses = np.full(has_next.shape, np.nan)
    if has_next.any():
        losses[has_next] = next_token_losses(logits, ids, torch.from_numpy(has_next).to(ids.device))
    return losses
