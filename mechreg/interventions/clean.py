"""The parts of the clean run that edits need: its mean vector, vectors of other documents, its norms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechreg.forward import Act, Batch, Forward, padded_batches
from mechreg.interventions.seeding import generator, uniforms
from mechreg.models import HOOK_POINTS, Model
from mechreg.norms import window_norms
from mechreg.schema import InputError

MAX_DONORS = 1024  # vectors kept of every layer: 315 MB in gpt2-xl

DonorPool = tuple[Int[np.ndarray, " pool"], dict[int, Float[Tensor, "pool d_model"]]]


@dataclass(frozen=True)
class CleanRun:
    """The clean activations of one hook point over a corpus, computed when an edit first asks for them."""

    model: Model
    tokens: pd.DataFrame
    hook: str
    layers: Sequence[int]
    batch_tokens: int
    seed: int

    @cached_property
    def norms(self) -> Float[np.ndarray, "layer tokens"]:
        """The norm of every layer and token."""
        norms = window_norms(self.model, self.tokens, hooks=(self.hook,), batch_tokens=self.batch_tokens)
        return norms[self.hook].astype("float64")

    @cached_property
    def means(self) -> dict[int, Float[Tensor, " d_model"]]:
        """The mean vector of each layer over all tokens of the corpus, in float64."""
        sums: dict[int, Tensor] = {}

        def add(layer: int, rows: np.ndarray, vectors: Tensor) -> None:
            total = einops.reduce(vectors, "rows d_model -> d_model", "sum")
            sums[layer] = sums.get(layer, torch.zeros_like(total)) + total

        self.visit(add)
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
            drawn = place[rows] >= 0
            if layer not in pool:
                shape = (len(chosen), vectors.shape[1])
                pool[layer] = torch.empty(shape, dtype=dtype, device=vectors.device)
            pool[layer][torch.from_numpy(place[rows][drawn])] = vectors[torch.from_numpy(drawn)].to(dtype)

        self.visit(put)
        return chosen, pool

    def visit(self, look: Callable[[int, np.ndarray, Tensor], None]) -> None:
        """Call a function with the layer, the rows and the vectors, in float64, of every batch."""

        def looking(layer: int, batch: Batch) -> Act:
            def act(activation: Tensor) -> None:
                mask = torch.from_numpy(batch.real).to(activation.device)
                look(layer, batch.rows[batch.real], activation[mask].double())

            return act

        for batch in padded_batches(self.model, self.tokens, self.batch_tokens):
            acts = [
                (f"blocks.{layer}.{HOOK_POINTS[self.hook][0]}", looking(layer, batch))
                for layer in self.layers
            ]
            with Forward(self.model, acts) as run:
                run(batch.ids)
