"""Windows of tokens, and the batches in which they go through a model."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechreg.forward.lengths import side_of
from mechreg.forward.transfer import to_device
from mechreg.models import Model, input_device, record_of
from mechreg.schema import InputError

# What a forward pass costs beside its tokens, in tokens. On a CPU it reads all weights: SmolLM2 was fastest with 32 (of
# 16, 32 and 128). Elsewhere it launches some hundred kernels, so fewer passes are better.
PASS_TOKENS = {"cpu": 32}
PASS_TOKENS_ELSEWHERE = 1024


@dataclass(frozen=True)
class Window:
    """A run of rows of a token frame that goes through a model as one."""

    start: int
    length: int

    @property
    def rows(self) -> slice:
        """The rows, as a slice."""
        return slice(self.start, self.start + self.length)


class Batch(NamedTuple):
    """Windows padded on the right: with causal attention no real token sees the padding, so it needs no mask."""

    ids: Int[Tensor, "batch pos"]
    rows: Int[np.ndarray, "batch pos"]  # of the token frame; 0 in the padding
    real: Bool[np.ndarray, "batch pos"]

    @property
    def has_next(self) -> Bool[np.ndarray, "batch pos"]:
        """Which tokens have a next one in their window."""
        return np.pad(self.real[:, 1:], ((0, 0), (0, 1)))

    def mask(self, tokens: Bool[np.ndarray, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Return a mask of the batch's tokens as a tensor beside its ids."""
        return torch.from_numpy(tokens).to(self.ids.device)


def token_windows(model: Model, tokens: pd.DataFrame) -> list[Window]:
    """Return where each window's rows are, in the token frame's order.

    Raises
    ------
    InputError
        Windows that are not whole or not in order, that do not fit the model's context, or ids it does not have.
    """
    position = tokens["position"].to_numpy(np.int64)
    starts = np.flatnonzero(position == 0)
    if len(position) == 0 or position[0] != 0:
        raise InputError("The token frame is empty or does not begin with position 0; give whole windows.")
    lengths = np.diff(np.append(starts, len(position)))
    start = np.repeat(starts, lengths)
    doc, number = pd.factorize(tokens["doc"])[0], tokens["window"].to_numpy()
    wrong = (position != np.arange(len(position)) - start) | (doc != doc[start]) | (number != number[start])
    if wrong.any():
        row = tokens.iloc[int(wrong.argmax())]
        raise InputError(
            "The token frame's positions must count 0, 1, 2, ... within each window of a document; they do not at "
            f"document {row['doc']!r}, window {row['window']}, position {row['position']}. Give the frame as "
            "tokenize made it."
        )
    name, remedy = record_of(model).name, "tokenize the documents with this model."
    if lengths.max() > model.cfg.n_ctx:
        raise InputError(
            f"A window of {lengths.max()} tokens does not fit the context of {name}, {model.cfg.n_ctx}; {remedy}"
        )
    highest, lowest = int(tokens["token_id"].max()), int(tokens["token_id"].min())
    if lowest < 0 or highest >= model.cfg.d_vocab:
        raise InputError(
            f"Token ids run from {lowest} to {highest}, and the vocabulary of {name} has {model.cfg.d_vocab}; {remedy}"
        )
    return [Window(start, length) for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]


def padded_batches(
    model: Model, tokens: pd.DataFrame, batch_tokens: int, windows: Sequence[Window] | None = None
) -> Iterator[Batch]:
    """Yield a token frame's windows, or some of them, as padded batches that cost the least."""
    windows = token_windows(model, tokens) if windows is None else windows
    for planned in batches(model, windows, batch_tokens):
        yield padded(model, tokens, planned)


def batches(model: Model, windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Yield batches of windows of nearly the same length, longest first, at most batch_tokens with padding.

    Of all ways to cut the windows, in order of length, into batches, this is the one with the fewest tokens, padding
    included and `PASS_TOKENS` more for each pass. No batch stands on both sides of a length at which the model computes
    in another way (`side_of`).
    """
    ordered = sorted(windows, key=lambda window: (-window.length, window.start))
    side = side_of(model)
    pass_tokens = PASS_TOKENS.get(input_device(model).type, PASS_TOKENS_ELSEWHERE)
    for _, alike in itertools.groupby(ordered, key=lambda window: side(window.length)):
        together = list(alike)
        for first, last in itertools.pairwise(
            _cuts([window.length for window in together], batch_tokens, pass_tokens)
        ):
            yield together[first:last]


def _cuts(lengths: list[int], batch_tokens: int, pass_tokens: int) -> list[int]:
    """Return where batches of windows, whose lengths fall, begin and end, so that they cost the least.

    The cost of the first ``end`` windows is the least, over where their last batch begins, of
    ``cost[begin] + (end - begin) * lengths[begin]``. A later beginning that is as good as an earlier one stays so,
    since its windows are no longer, and has room for longer; so a queue of beginnings, each with the first end at
    which it is better than the one before it, finds all costs in one run over the windows.
    """
    cost, begins = [0], [0]
    queue: deque[tuple[int, int]] = deque()  # (the first end at which it is the better one, begin)

    def overtakes(begin: int, other: int) -> int:
        """Return the first end at which a later beginning is as good as an earlier one, or the earlier is full."""
        gain = lengths[other] - lengths[begin]
        more = (cost[begin] - begin * lengths[begin]) - (cost[other] - other * lengths[other])
        full = other + max(1, batch_tokens // lengths[other]) + 1
        if more <= 0:
            return begin + 1
        return min(full, max(begin + 1, -(-more // gain))) if gain > 0 else full

    for end in range(1, len(lengths) + 1):
        begin, since = end - 1, end
        while queue:
            since = overtakes(begin, queue[-1][1])
            if since > queue[-1][0]:
                break
            queue.pop()
        queue.append((since if queue else end, begin))
        while len(queue) > 1 and queue[1][0] <= end:
            queue.popleft()
        at = queue[0][1]
        cost.append(cost[at] + (end - at) * lengths[at] + pass_tokens)
        begins.append(at)
    cuts = [len(lengths)]
    while cuts[-1] > 0:
        cuts.append(begins[cuts[-1]])
    return cuts[::-1]


def padded(model: Model, tokens: pd.DataFrame, windows: Sequence[Window]) -> Batch:
    """Return windows as one batch."""
    starts, lengths = np.array([(window.start, window.length) for window in windows]).T[:, :, None]
    place = np.arange(lengths.max())
    real = place < lengths
    rows = np.where(real, starts + place, 0)
    ids = np.where(real, tokens["token_id"].to_numpy(np.int64)[rows], 0)
    return Batch(to_device(ids, input_device(model)), rows, real)
