"""The parts of the clean run that edits need: mean vectors, principal components, vectors of other documents, norms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechreg.forward import Batch, Window, visit
from mechreg.interventions.passes import Site
from mechreg.interventions.seeding import generator, uniforms
from mechreg.models import HOOK_POINTS, Model, dtype_of
from mechreg.norms import window_norms
from mechreg.schema import InputError

MAX_DONORS = 1024  # vectors kept of every layer: 315 MB in gpt2-xl

DonorPool = tuple[Int[np.ndarray, " pool"], dict[Site, Float[Tensor, "pool d"]]]


@dataclass(frozen=True)
class CleanRun:
    """The clean activations of one hook point over a corpus, computed when an edit first asks for them."""

    model: Model
    tokens: pd.DataFrame
    hook: str
    sites: Sequence[Site]
    batch_tokens: int
    seed: int
    shared: dict[int, Any] = field(default_factory=dict, repr=False)  # by edits of several doses

    def norms(self, site: Site) -> Float[np.ndarray, " tokens"]:
        """Return the norm of every token at a site."""
        return self._norms[site.layer if site.head < 0 else site]

    @cached_property
    def _norms(self) -> np.ndarray:
        norms = window_norms(self.model, self.tokens, hooks=(self.hook,), batch_tokens=self.batch_tokens)
        return norms[self.hook].astype("float64")

    @cached_property
    def means(self) -> dict[Site, Float[Tensor, " d"]]:
        """The mean vector of each site over all tokens of the corpus, in float64."""
        sums: dict[Site, Tensor] = {}

        def add(site: Site, rows: np.ndarray, vectors: Tensor) -> None:
            sums[site] = sums.get(site, 0) + einops.reduce(vectors, "rows d -> d", "sum")

        self.visit(add)
        return {site: total / len(self.tokens) for site, total in sums.items()}

    @cached_property
    def components(self) -> dict[Site, Float[Tensor, "component d"]]:
        """The principal components of each site's vectors, unit vectors, the one of most variance first."""
        products: dict[Site, Tensor] = {}
        means = self.means

        def add(site: Site, rows: np.ndarray, vectors: Tensor) -> None:
            centred = vectors - means[site]
            square = einops.einsum(centred, centred, "rows d, rows other -> d other")
            products[site] = products.get(site, 0) + square

        self.visit(add)
        components = {}
        for site, product in products.items():
            found = einops.rearrange(torch.linalg.eigh(product)[1].flip(1), "d component -> component d")
            largest = found.gather(1, found.abs().argmax(dim=1, keepdim=True))
            components[site] = found * largest.sign()  # an eigenvector has no sign of its own
        return components

    def donors(
        self, donor_pool: DonorPool, rows: Int[np.ndarray, " rows"], site: Site
    ) -> Float[Tensor, "rows d"]:
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
        draw = uniforms(self.tokens, rows, seed=self.seed, purpose="resample", site=site)
        pick = np.floor(draw * free).astype(int)
        # The document's own tokens are contiguous in the pool; the draw skips them.
        return pool[site][torch.from_numpy(np.where(pick >= first, pick + last - first, pick))].double()

    @cached_property
    def docs(self) -> Int[np.ndarray, " tokens"]:
        """The number of every token's document."""
        return pd.factorize(self.tokens["doc"])[0]

    @cached_property
    def donor_pool(self) -> DonorPool:
        """At most 1,024 rows drawn from the corpus, in the order of their documents, and their vectors by site."""
        draw = generator(self.seed, "donors").permutation(len(self.tokens))[:MAX_DONORS]
        chosen = draw[np.lexsort((draw, self.docs[draw]))]
        place = np.full(len(self.tokens), -1)
        place[chosen] = np.arange(len(chosen))
        pool: dict[Site, Tensor] = {}

        def put(site: Site, rows: np.ndarray, vectors: Tensor) -> None:
            drawn = place[rows] >= 0
            if site not in pool:
                shape = (len(chosen), vectors.shape[1])
                pool[site] = torch.empty(shape, dtype=self.dtype, device=vectors.device)
            pool[site][torch.from_numpy(place[rows][drawn])] = vectors[torch.from_numpy(drawn)].to(self.dtype)

        self.visit(put)
        return chosen, pool

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return dtype_of(self.model)

    def visit(
        self, look: Callable[[Site, np.ndarray, Tensor], None], windows: Sequence[Window] | None = None
    ) -> None:
        """Call a function with the site, the rows and the vectors, in float64, of every batch of some windows."""

        def looking(layer: int, activation: Tensor, batch: Batch) -> None:
            mask = torch.from_numpy(batch.real).to(activation.device)
            for site in self.sites:
                if site.layer == layer:
                    look(site, batch.rows[batch.real], site.of(activation)[mask].double())

        point, layers = HOOK_POINTS[self.hook].place, dict.fromkeys(site.layer for site in self.sites)
        options: Any = {"batch_tokens": self.batch_tokens, "windows": windows}
        visit(self.model, self.tokens, point, looking, layers=layers, **options)
