"""The one forward engine: batches, hooks, early stop, precision, and what is predicted of the next token."""

from mechreg.forward.batches import Window, batches, padded, token_windows
from mechreg.forward.lengths import named_lengths, side_of
from mechreg.forward.next_token import Head, NextTokens, chunks, next_token_losses
from mechreg.forward.passes import Act, Forward, active_dropouts
from mechreg.forward.precision import pinned
from mechreg.forward.transfer import Arriving, one_late, to_device

__all__ = [
    "Act",
    "Arriving",
    "Forward",
    "Head",
    "NextTokens",
    "Window",
    "active_dropouts",
    "batches",
    "chunks",
    "named_lengths",
    "next_token_losses",
    "one_late",
    "padded",
    "pinned",
    "side_of",
    "to_device",
    "token_windows",
]
