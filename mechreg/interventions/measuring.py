"""Measuring: batches run clean and by every plan, and the changes added up document by document."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import einops
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechreg.forward import Batch, NextTokens, Window, chunks, padded_batches
from mechreg.interventions.clean import CleanRun
from mechreg.interventions.document_means import DocumentMeans, Tally
from mechreg.interventions.passes import Change, Edited, Outcome, Passes, Site
from mechreg.interventions.plans import Plan
from mechreg.interventions.positions import offsets
from mechreg.norms import vector_norms
from mechreg.schema import NumericalError
from mechreg.words import token_place

NEXT_TOKEN = ("loss", "kl", "top1")
ANSWERS = ("target_loss", "logit_difference")  # after every token, of tokens that the caller names
OF_LAYERS = ("norms", "difference")
# The sums of some documents are open at once: as many as fit, and no more than these batches hold.
TALLIES = 2**25  # bytes
BATCHES = 4


@dataclass(frozen=True)
class Measuring:
    """The passes of one model, the measures ``wanted`` of them, and the bar that shows them.

    ``counted`` are the tokens whose effects count. ``answers`` are the target and its foil for every document.
    """

    passes: Passes
    clean: CleanRun
    wanted: list[str]
    counted: Bool[np.ndarray, " tokens"]
    answers: Int[np.ndarray, "doc 2"]
    max_offset: int
    bar: Any

    @cached_property
    def next_token(self) -> list[str]:
        """The measures of the next token, which the last one of a window lacks."""
        return [name for name in NEXT_TOKEN if name in self.wanted]

    @cached_property
    def slots(self) -> list[tuple[str, int]]:
        """Every measure with its layer, those of the next token first."""
        plain = [(name, -1) for name in (*self.next_token, *ANSWERS) if name in self.wanted]
        of_layers = [
            (name, i) for name in OF_LAYERS if name in self.wanted for i in range(self.passes.n_layers)
        ]
        return plain + of_layers

    def means(
        self, windows: Sequence[Window], plans: Sequence[Plan]
    ) -> list[tuple[DocumentMeans, DocumentMeans]]:
        """Return the effects of every plan, and the clean values beside them; as many documents at once as fit."""
        a_document = 8 * (2 * len(self.slots) + 2) * (self.max_offset + 2) * len(plans)
        means = [(DocumentMeans(), DocumentMeans()) for _ in plans]
        kinds = [int(i >= len(self.next_token)) for i in range(len(self.slots))]
        a_doc_tokens = sum(window.length for window in windows) / (int(self.clean.docs.max()) + 1)
        in_batches = int(BATCHES * self.clean.batch_tokens / a_doc_tokens)
        at_once = max(1, min(in_batches, TALLIES // a_document))
        for first, n_docs, some in _by_document(windows, self.clean.docs, at_once):
            tallies = [Tally(n_docs, len(self.slots), self.max_offset) for _ in plans]
            for batch in padded_batches(self.clean.model, self.clean.tokens, self.clean.batch_tokens, some):
                self._add(batch, plans, tallies, first)
            for (effects, cleans), tally in zip(means, tallies, strict=True):
                effects.add(tally.effects, tally.counts[:, kinds])
                cleans.add(tally.cleans, tally.counts[:, kinds])
        return means

    def _add(self, batch: Batch, plans: Sequence[Plan], tallies: list[Tally], first: int) -> None:
        """Run one batch clean and by every plan, and add the changes to the tallies."""
        rows, real, n_next = batch.rows, batch.real, len(self.next_token)
        has_next, doc = batch.has_next, self.clean.docs[rows] - first
        for prepare in {id(p.bound.prepare): p.bound.prepare for p in plans if p.bound.prepare}.values():
            prepare(rows[real])
        masks = [_real(plan.masks(rows), real) for plan in plans]
        before = self.passes.run(batch.ids, restart_at={site.layer for mask in masks for site in mask})
        counted = self.counted[rows] & real
        clean = self._readings(before, batch, counted, "the clean run")
        nexts = None
        if n_next and before.hidden is not None and has_next.any():
            nexts = NextTokens(self.passes.head, batch.ids, batch.mask(has_next), self.wanted)
            losses = nexts.clean(before.hidden)
        self.bar.update(int(real.sum()))
        for plan, tally, mask in zip(plans, tallies, masks, strict=True):
            if mask:
                offset = offsets(np.logical_or.reduce([*mask.values()]))
                reached = (offset >= 0) & counted
                after = self.passes.run(
                    batch.ids, self._edits(plan, batch, mask), before, frozen=plan.control == "direct"
                )
                if len(self.slots) > n_next:
                    change = self._readings(after, batch, reached, str(plan), clean)
                    here = (doc[reached], offset[reached], change[:, reached], clean[:, reached])
                    tally.add(slice(n_next, None), 1, *here)
                at = reached & has_next
                if nexts is not None and after.hidden is not None and at.any():
                    change = nexts.changes(after.hidden, at[has_next])
                    change = change[[name in self.next_token for name in NEXT_TOKEN]]
                    self._require(np.asarray(np.isfinite(change).all(axis=0)), rows[at], str(plan))
                    old = np.zeros_like(change)
                    if "loss" in self.next_token:
                        old[0] = losses[at[has_next]]
                    tally.add(slice(0, n_next), 0, doc[at], offset[at], change, old)
            self.bar.update(int(real.sum()))

    def _edits(self, plan: Plan, batch: Batch, mask: Mapping[Site, np.ndarray]) -> dict[Site, Edited]:
        return {
            site: Edited(batch.mask(at), self._change(plan, batch.rows[at], site))
            for site, at in mask.items()
        }

    def _change(self, plan: Plan, rows: Int[np.ndarray, " edited"], site: Site) -> Change:
        """Return a plan's change of vectors, which refuses those that would overflow further on."""
        largest = torch.finfo(torch.promote_types(self.clean.dtype, torch.float32)).max ** 0.5

        def change(vectors: Tensor) -> Tensor:
            edited = plan.bound.apply(vectors, rows, site)
            # A layer norm squares them; where that overflows it gives zeros, which would pass for an effect.
            norms = vector_norms(einops.rearrange(edited, "rows d -> 1 rows d"))[0].cpu().numpy()
            self._require(norms < largest, rows, f"{plan.edit.name} {plan.edit.dose:g}, layer {site}")
            return edited

        return change

    def _readings(
        self,
        outcome: Outcome,
        batch: Batch,
        at: Bool[np.ndarray, "batch pos"],
        where: str,
        clean: Float[np.ndarray, "slot batch pos"] | None = None,
    ) -> Float[np.ndarray, "slot batch pos"]:
        """Return all but the next token's measures, of a clean pass or as changes from it; 0 where not counted."""
        parts = []
        if outcome.hidden is not None and {*ANSWERS} & {*self.wanted}:
            answers = np.zeros((2, *at.shape))
            own = self.answers[self.clean.docs[batch.rows[at]]]
            answers[:, at] = answer_values(self.passes, outcome.hidden, batch.mask(at), own)
            parts.append(answers[[name in self.wanted for name in ANSWERS]])
        if "norms" in self.wanted:
            with np.errstate(divide="ignore"):
                parts.append(np.where(at, np.log(outcome.norms), 0.0))
        n_changes = sum(len(part) for part in parts)
        if "difference" in self.wanted:
            values = outcome.norms if clean is None else outcome.distances
            parts.append(np.where(at, values, 0.0))
        readings = np.concatenate(parts) if parts else np.zeros((0, *at.shape))
        self._require((np.isfinite(readings).all(axis=0) | ~at).ravel(), batch.rows.ravel(), where)
        if clean is not None:
            readings[:n_changes] -= clean[:n_changes]
        return readings

    def _require(
        self, fine: Bool[np.ndarray, " tokens"], rows: Int[np.ndarray, " tokens"], where: str
    ) -> None:
        if not fine.all():
            place = token_place(self.clean.tokens, rows[int((~fine).argmax())])
            raise NumericalError(
                f"An effect is NaN or infinite ({where}; {place}); no number of this run can be trusted. Use a smaller "
                "dose or dtype='float32'."
            )


def answer_values(
    passes: Passes,
    hidden: Float[Tensor, "batch pos d"],
    at: Bool[Tensor, "batch pos"],
    answers: Int[np.ndarray, "tokens 2"],
) -> Float[np.ndarray, "2 tokens"]:
    """Return the target's cross-entropy in nats after some tokens, and its logit less the foil's."""
    values = []
    ids = torch.from_numpy(answers).to(at.device)
    for part, rows in chunks(passes.head, hidden, at):
        wide = part.double()
        logits = wide.gather(1, ids[rows])
        values.append(torch.stack([wide.logsumexp(dim=1) - logits[:, 0], logits[:, 0] - logits[:, 1]]))
    return torch.cat(values, dim=1).cpu().numpy() if values else np.empty((2, 0))


def _by_document(
    windows: Sequence[Window], docs: Int[np.ndarray, " tokens"], at_once: int
) -> Iterator[tuple[int, int, list[Window]]]:
    """Yield the first of some documents, their number, and their windows."""
    groups: dict[int, list[Window]] = {}
    for window in windows:
        groups.setdefault(int(docs[window.start]) // at_once, []).append(window)
    for number, some in sorted(groups.items()):
        yield number * at_once, min(at_once, int(docs.max()) + 1 - number * at_once), some


def _real(masks: dict[Site, np.ndarray], real: np.ndarray) -> dict[Site, np.ndarray]:
    masks = {site: mask & real for site, mask in masks.items()}
    return {site: mask for site, mask in masks.items() if mask.any()}
