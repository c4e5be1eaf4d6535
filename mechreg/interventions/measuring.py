"""Measuring: batches run clean and by every plan, and the changes added up document by document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechreg.forward import Batch, NextTokens, Window, padded_batches
from mechreg.interventions.clean import CleanRun
from mechreg.interventions.document_means import DocumentMeans, Tally
from mechreg.interventions.passes import Change, Edited, Outcome, Passes
from mechreg.interventions.plans import Plan
from mechreg.interventions.positions import offsets
from mechreg.norms import vector_norms
from mechreg.schema import NumericalError

NEXT_TOKEN = ("loss", "kl", "top1")
NEXT, NORMS = (
    slice(0, 3),
    slice(3, None),
)  # measures of a tally: those of the next token, and the norms of all layers
TALLIES = 2**28  # bytes of the sums of documents that are open at once


@dataclass(frozen=True)
class Measuring:
    """The passes of one model, the measures ``wanted`` of them, and the bar that shows them."""

    passes: Passes
    clean: CleanRun
    wanted: list[str]
    max_offset: int
    bar: Any

    def means(
        self, windows: Sequence[Window], plans: Sequence[Plan]
    ) -> list[tuple[DocumentMeans, DocumentMeans]]:
        """Return the effects of every plan, and the clean values beside them; as many documents at once as fit."""
        n_measures = 3 + (self.passes.n_layers if "norms" in self.wanted else 0)
        a_document = 8 * (2 * n_measures + 2) * (self.max_offset + 2) * len(plans)
        means = [(DocumentMeans(), DocumentMeans()) for _ in plans]
        kinds = [0, 0, 0] + [1] * (n_measures - 3)
        for first, n_docs, some in _by_document(windows, self.clean.docs, max(1, TALLIES // a_document)):
            tallies = [Tally(n_docs, n_measures, self.max_offset) for _ in plans]
            for batch in padded_batches(self.clean.model, self.clean.tokens, self.clean.batch_tokens, some):
                self._add(batch, plans, tallies, first)
            for (effects, cleans), tally in zip(means, tallies, strict=True):
                effects.add(tally.effects, tally.counts[:, kinds])
                cleans.add(tally.cleans, tally.counts[:, kinds])
        return means

    def _add(self, batch: Batch, plans: Sequence[Plan], tallies: list[Tally], first: int) -> None:
        """Run one batch clean and by every plan, and add the changes to the tallies."""
        rows, real, has_next = batch.rows, batch.real, batch.has_next
        doc = self.clean.docs[rows] - first
        masks = [_real(plan.masks(rows), real) for plan in plans]
        before = self.passes.run(batch.ids, restart_at={layer for mask in masks for layer in mask})
        log_before = self._logs(before, real, rows, "the clean run")
        nexts = None
        if before.hidden is not None and has_next.any():
            nexts = NextTokens(self.passes.head, batch.ids, batch.mask(has_next), self.wanted)
            losses = nexts.clean(before.hidden)
        self.bar.update(int(real.sum()))
        for plan, tally, mask in zip(plans, tallies, masks, strict=True):
            if mask:
                offset = offsets(np.logical_or.reduce([*mask.values()]))
                reached = (offset >= 0) & real
                edits = {
                    layer: Edited(batch.mask(at), self._change(plan, rows[at], layer))
                    for layer, at in mask.items()
                }
                after = self.passes.run(batch.ids, edits, before)
                if "norms" in self.wanted:
                    change = self._logs(after, reached, rows, str(plan)) - log_before
                    here = (doc[reached], offset[reached], change[:, reached], log_before[:, reached])
                    tally.add(NORMS, 1, *here)
                at = reached & has_next
                if nexts is not None and after.hidden is not None and at.any():
                    change = nexts.changes(after.hidden, at[has_next])
                    change[[name not in self.wanted for name in NEXT_TOKEN]] = 0.0
                    self._require(np.asarray(np.isfinite(change).all(axis=0)), rows[at], str(plan))
                    clean = np.zeros_like(change)
                    if "loss" in self.wanted:
                        clean[0] = losses[at[has_next]]
                    tally.add(NEXT, 0, doc[at], offset[at], change, clean)
            self.bar.update(int(real.sum()))

    def _change(self, plan: Plan, rows: Int[np.ndarray, " edited"], layer: int) -> Change:
        """Return a plan's change of vectors, which refuses those that would overflow further on."""
        dtype = next(iter(self.clean.model.parameters())).dtype
        largest = torch.finfo(torch.promote_types(dtype, torch.float32)).max ** 0.5

        def change(vectors: Tensor) -> Tensor:
            edited = plan.apply(vectors, rows, layer)
            # A layer norm squares them; where that overflows it gives zeros, which would pass for an effect.
            norms = vector_norms(einops.rearrange(edited, "rows d_model -> 1 rows d_model"))[0].cpu().numpy()
            self._require(norms < largest, rows, f"{plan.edit.name} {plan.edit.dose:g}, layer {layer}")
            return edited

        return change

    def _logs(
        self,
        outcome: Outcome,
        at: Bool[np.ndarray, "batch pos"],
        rows: Int[np.ndarray, "batch pos"],
        where: str,
    ) -> Float[np.ndarray, "layer batch pos"]:
        """Return the logarithms of norms, 0 where they are not counted or not wanted."""
        if "norms" not in self.wanted:
            return np.zeros(outcome.norms.shape)
        with np.errstate(divide="ignore"):
            logs = np.where(at, np.log(outcome.norms), 0.0)
        self._require((np.isfinite(logs).all(axis=0) | ~at).ravel(), rows.ravel(), where)
        return logs

    def _require(
        self, fine: Bool[np.ndarray, " tokens"], rows: Int[np.ndarray, " tokens"], where: str
    ) -> None:
        if not fine.all():
            token: pd.Series = self.clean.tokens.iloc[int(rows[int((~fine).argmax())])]
            raise NumericalError(
                f"An effect is NaN or infinite ({where}; document {token['doc']!r}, window {token['window']}, position "
                f"{token['position']}); no number of this run can be trusted. Use a smaller dose or dtype='float32'."
            )


def _by_document(
    windows: Sequence[Window], docs: Int[np.ndarray, " tokens"], at_once: int
) -> Iterator[tuple[int, int, list[Window]]]:
    """Yield the first of some documents, their number, and their windows."""
    groups: dict[int, list[Window]] = {}
    for window in windows:
        groups.setdefault(int(docs[window.start]) // at_once, []).append(window)
    for number, some in sorted(groups.items()):
        yield number * at_once, min(at_once, int(docs.max()) + 1 - number * at_once), some


def _real(masks: dict[int, np.ndarray], real: np.ndarray) -> dict[int, np.ndarray]:
    masks = {layer: mask & real for layer, mask in masks.items()}
    return {layer: mask for layer, mask in masks.items() if mask.any()}
