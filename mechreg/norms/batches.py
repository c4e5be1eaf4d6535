"""Windows of tokens, and the batches in which they go through a model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechreg.models import record_of
from mechreg.schema import InputError

# What a forward pass costs beside its tokens, in tokens: on two cores gpt2 takes 1.4 times as long a token for one text
# of 256 as for eight.
PASS_TOKENS = 128


@dataclass(frozen=True)
class Window:
    """A run of rows of a token frame that goes through a model as one."""

    start: int
    length: int

    @property
    def rows(self) -> slice:
        """The rows, as a slice."""
        return slice(self.start, self.start + self.length)


def token_windows(model: Any, tokens: pd.DataFrame) -> list[Window]:
    """Return where each window's rows are, in the token frame's order.

    Raises
    ------
    InputError
        Windows that are not whole or not in order, that do not fit the model's context, or ids it does not have.

    Examples
    --------
    >>> from mechreg import load_model
    >>> tokens = pd.DataFrame({"doc": "d", "window": [0, 0, 1], "position": [0, 1, 0], "token_id": 5})
    >>> token_windows(load_model("mini-s"), tokens)
    [Window(start=0, length=2), Window(start=2, length=1)]
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
    return [Window(int(start), int(length)) for start, length in zip(starts, lengths, strict=True)]


def batches(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Yield batches of windows of nearly the same length, longest first, at most batch_tokens with padding.

    Of all ways to cut the windows, in order of length, into batches, this is the one with the fewest tokens, padding
    included, where a forward pass counts as `PASS_TOKENS` more.

    Examples
    --------
    >>> [len(batch) for batch in batches([Window(0, 5), Window(5, 2), Window(7, 2)], 5)]
    [1, 2]
    >>> [len(batch) for batch in batches([Window(0, 900), Window(900, 600), Window(1500, 9), Window(1509, 9)], 4096)]
    [1, 1, 2]
    """
    ordered = sorted(windows, key=lambda window: (-window.length, window.start))
    cost, begins = [0], [0]  # of the first i windows, and where the last of their batches begins
    for end in range(1, len(ordered) + 1):
        least = None
        for begin in range(end - 1, -1, -1):
            padded = (end - begin) * ordered[begin].length
            if least is not None and padded > batch_tokens:
                break
            if least is None or cost[begin] + padded < least:
                least, at = cost[begin] + padded, begin
        cost.append((least or 0) + PASS_TOKENS)
        begins.append(at)
    cuts = [len(ordered)]
    while cuts[-1] > 0:
        cuts.append(begins[cuts[-1]])
    for end, begin in zip(cuts[-2::-1], cuts[:0:-1], strict=True):
        yield ordered[begin:end]
