"""The one forward engine: batches, hooks, early stop, precision, and next-token losses."""

from mechreg.forward.batches import Batch as Batch
from mechreg.forward.batches import Window as Window
from mechreg.forward.batches import batches as batches
from mechreg.forward.batches import padded as padded
from mechreg.forward.batches import padded_batches as padded_batches
from mechreg.forward.batches import token_windows as token_windows
from mechreg.forward.lengths import named_lengths as named_lengths
from mechreg.forward.lengths import side_of as side_of
from mechreg.forward.next_token import Head as Head
from mechreg.forward.next_token import NextTokens as NextTokens
from mechreg.forward.next_token import chunks as chunks
from mechreg.forward.next_token import next_token_losses as next_token_losses
from mechreg.forward.passes import Act as Act
from mechreg.forward.passes import Forward as Forward
from mechreg.forward.passes import active_dropouts as active_dropouts
from mechreg.forward.passes import token_bar as token_bar
from mechreg.forward.precision import pinned as pinned
from mechreg.forward.transfer import Arriving as Arriving
from mechreg.forward.transfer import one_late as one_late
from mechreg.forward.visits import visit as visit
