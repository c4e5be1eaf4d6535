"""The vectors themselves, of a few documents."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import einops
import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechreg.forward import Batch, visit
from mechreg.models import HOOK_POINTS, is_per_head, load_model
from mechreg.norms.covariates import token_frame
from mechreg.norms.heads import require_heads_add_up
from mechreg.norms.reduction import BATCH_TOKENS, kept_dtype, known_hooks, known_layers, widened
from mechreg.outside import any_frames
from mechreg.schema import InputError, require_shared, require_whole_number


class Vectors(NamedTuple):
    """Vectors of one hook point, and the tokens that they are of, in the same order."""

    values: Float[np.ndarray, "layer token d"] | Float[np.ndarray, "layer head token d"]
    tokens: pd.DataFrame


@any_frames
def extract_vectors(
    model: Any,
    documents: Any,
    *,
    hook: str = "attn_out",
    layers: int | Sequence[int] | None = None,
    most_bytes: int = 2**30,
    batch_tokens: int = BATCH_TOKENS,
) -> Vectors:
    """Return the vectors of one hook point at every token of a few documents, with their token frame.

    Parameters
    ----------
    model, documents, batch_tokens
        As for `extract_norms`, of one model.
    hook : str
        One of `extract_norms`'; "result" has what each head adds, whose sum is attn_out without its bias.
    layers : int or sequence of int, optional
        Only these, in this order; all by default.
    most_bytes : int
        Vectors that take more are refused: 1 GiB by default.

    Returns
    -------
    Vectors
        ``values``, "layer token d_model", or "layer head token d" for z and result: float32, or float64 of a float64
        model; and ``tokens``.

    Raises
    ------
    InputError, ModelError
        As `extract_norms`; no such layer; too many vectors.

    Examples
    --------
    >>> vectors = extract_vectors("mini-s", ["The cat sat on the mat."], layers=[0, 3])
    >>> vectors.values.shape[0], vectors.values.shape[1] == len(vectors.tokens), vectors.values.shape[2]
    (2, True, 64)
    """
    model, hook = load_model(model), known_hooks([hook])[0]
    require_shared(batch_tokens=batch_tokens)
    require_whole_number(most_bytes, name="most_bytes")
    chosen, tokens = known_layers(model, layers), token_frame(model, documents)
    heads = [int(model.cfg.n_heads)] if is_per_head(hook) else []
    shape = (len(chosen), *heads, len(tokens), int(model.cfg.d_head if hook == "z" else model.cfg.d_model))
    size = int(np.prod(shape, dtype=np.int64)) * kept_dtype(model).itemsize
    if size > most_bytes:
        raise InputError(
            f"The vectors of {len(tokens):,} tokens in {len(chosen)} layers take {size:,} bytes, and most_bytes is "
            f"{most_bytes:,}; give fewer documents or layers=, or use extract_norms, which keeps only scalars."
        )
    values = np.empty(shape, kept_dtype(model))
    if hook == "result":
        require_heads_add_up(model)

    def look(layer: int, vectors: Tensor, batch: Batch) -> None:
        own = einops.rearrange(widened(vectors).numpy(force=True)[batch.real], "token ... d -> ... token d")
        values[chosen.index(layer)][..., batch.rows[batch.real], :] = own

    point = HOOK_POINTS[hook].place
    visit(model, tokens, point, look, layers=chosen, batch_tokens=batch_tokens, quick=True)
    return Vectors(values, tokens)
