"""What an edit may need to know of the clean run: its mean vector, vectors of other documents, its norms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechreg.forward import batches, padded, token_windows
from mechreg.interventions.passes import Edited, Passes
from mechreg.interventions.seeding import generator, uniforms
from mechreg.norms import window_norms
from mechreg.schema import InputError

MAX_DONORS = 1024  # vectors kept of every layer: 315 MB in gpt2-xl

DonorPool = tuple[Int[np.ndarray, " pool"], dict[int, Float[Tensor, "pool d_model"]]]


@dataclass(frozen=True)
class CleanRun:
    """The clean activations of one hook point over a corpus, read when an edit first asks for them."""

    model: Any
    tokens: pd.DataFrame
    hook: str
    layers: Sequence[int]
    batch_tokens: int
    seed: int

    @cached_property
    def norms(self) -> Float[np.ndarray, "layer tokens"]:
        """The norm of every layer and token."""
        return window_norms(self.model, self.tokens, hooks=(self.hook,), batch_tokens=self.batch_tokens)[
            self.hook
        ].astype("float64")

    @cached_property
    def means(self) -> dict[int, Float[Tensor, " d_model"]]:
        """The mean vector of each layer over all tokens of the corpus, in float64."""
        sums: dict[int, Tensor] = {}

        def add(layer: int, rows: np.ndarray, vectors: Tensor) -> None:
            total = einops.reduce(vectors, "rows d_model -> d_model", "sum")
            sums[layer] = sums.get(layer, torch.zeros_like(total)) + total

        self._visit(add)
        return {layer: total / len(self.tokens) for layer, total in sums.items()}

    def donors(
        self, donor_pool: DonorPool, rows: Int[np.ndarray, " rows"], layer: int
    ) -> Float[Tensor, "rows d_model"]:
        """Return for every row the vector of a token of another document, drawn from the pool at random."""
        pool_rows, pool = donor_pool
        owner, own = self.docs[pool_rows], self.docs[rows]
        first, last = np.searchsorted(owner, own, "left"), np.searchsorted(owner, own, "right")
        free = len(pool_rows) - (last - first)
        if (free == 0).any():
            doc = self.tokens["doc"].iat[int(rows[int((free == 0).argmax())])]
            raise InputError(
                f"Ablate('resample') takes vectors of other documents, and there is none for {doc!r}; give more "
                "documents."
            )
        draw = uniforms(self.tokens, rows, seed=self.seed, purpose="resample", layer=layer)
        pick = np.floor(draw * free).astype(int)
        # The document's own tokens stand together in the pool; the draw steps over them.
        return pool[layer][torch.from_numpy(np.where(pick >= first, pick + last - first, pick))].double()

    @cached_property
    def docs(self) -> Int[np.ndarray, " tokens"]:
        """The number of every token's document."""
        return pd.factorize(self.tokens["doc"])[0]

    @cached_property
    def donor_pool(self) -> DonorPool:
        """At most 1,024 rows drawn from the corpus, in the order of their documents, and their vectors by layer."""
        draw = generator(self.seed, "donors").permutation(len(self.tokens))[:MAX_DONORS]
        chosen = draw[np.lexsort((draw, self.docs[draw]))]
        place = np.full(len(self.tokens), -1)
        place[chosen] = np.arange(len(chosen))
        pool: dict[int, Tensor] = {}
        dtype = next(iter(self.model.parameters())).dtype

        def put(layer: int, rows: np.ndarray, vectors: Tensor) -> None:
            wanted = place[rows] >= 0
            if layer not in pool:
                shape = (len(chosen), vectors.shape[1])
                pool[layer] = torch.empty(shape, dtype=dtype, device=vectors.device)
            pool[layer][torch.from_numpy(place[rows][wanted])] = vectors[torch.from_numpy(wanted)].to(dtype)

        self._visit(put)
        return chosen, pool

    def _visit(self, act: Callable[[int, np.ndarray, Tensor], None]) -> None:
        """Call a function with the layer, the rows and the vectors of every batch."""
        passes = Passes(self.model, hook=self.hook, norm_hook=self.hook, norms=False, logits=False)
        for batch in batches(self.model, token_windows(self.model, self.tokens), self.batch_tokens):
            ids, rows, real = padded(self.model, self.tokens, batch)

            def looked_at(layer: int, rows: np.ndarray) -> Callable[[Tensor], Tensor]:
                def change(vectors: Tensor) -> Tensor:
                    act(layer, rows, vectors)
                    return vectors

                return change

            edits = {
                layer: Edited(torch.from_numpy(real).to(ids.device), looked_at(layer, rows[real]))
                for layer in self.layers
            }
            passes.edited(ids, edits)
