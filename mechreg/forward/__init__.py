"""The one forward engine: batches, hooks, early stop, precision, and next-token losses."""

from mechreg.forward.batches import Batch, Window, batches, padded, padded_batches, token_windows
from mechreg.forward.lengths import named_lengths, side_of
from mechreg.forward.next_token import Head, NextTokens, chunks, next_token_losses
from mechreg.forward.passes import Act, Forward, active_dropouts, token_bar
from mechreg.forward.precision import pinned
from mechreg.forward.transfer import Arriving, one_late
from mechreg.forward.visits import visit

__all__ = [
    "Act",
    "Arriving",
    "Batch",
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
    "padded_batches",
    "pinned",
    "side_of",
    "token_bar",
    "token_windows",
    "visit",
]
