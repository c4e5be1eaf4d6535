"""Measuring: batches run clean and by every plan, and what changed, added up document by document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechreg.forward import NextTokens, Window, batches, padded
from mechreg.interventions.clean import CleanRun
from mechreg.interventions.document_means import DocumentMeans, Tally
from mechreg.interventions.passes import Edited, Outcome, Passes
from mechreg.interventions.plans import Plan
from mechreg.interventions.positions import offsets
from mechreg.norms import vector_norms
from mechreg.schema import NumericalError

NEXT, NORMS = slice(0, 3), slice(3, None)  # measures of a tally: loss, kl, top1, and the norms of all layers
TALLIES = 2**28  # bytes of the sums of documents that are open at once


@dataclass(frozen=True)
class Measuring:
    """What is measured of one model, and how.

    Attributes
    ----------
    passes : Passes
    clean : CleanRun
    wanted : list of str
    max_offset : int
    bar : tqdm
    """

    passes: Passes
    clean: CleanRun
    wanted: list[str]
    max_offset: int
    bar: Any

    def means(
        self, windows: Sequence[Window], plans: Sequence[Plan]
    ) -> list[tuple[DocumentMeans, DocumentMeans]]:
        """Return what every plan changes, and the clean values beside it; so many documents at once as fit."""
        n_measures = 3 + (self.passes.n_layers if "norms" in self.wanted else 0)
        a_document = 8 * (2 * n_measures + 2) * (self.max_offset + 2) * len(plans)
        found = [(DocumentMeans(), DocumentMeans()) for _ in plans]
        kinds = [0, 0, 0] + [1] * (n_measures - 3)
        for first, n_docs, some in _by_document(windows, self.clean.docs, max(1, TALLIES // a_document)):
            tallies = [Tally(n_docs, n_measures, self.max_offset) for _ in plans]
            for batch in batches(self.clean.model, some, self.clean.batch_tokens):
                self._batch(batch, plans, tallies, first)
            for (effects, cleans), tally in zip(found, tallies, strict=True):
                effects.add(tally.effects, tally.counts[:, kinds])
                cleans.add(tally.cleans, tally.counts[:, kinds])
        return found

    def _batch(self, batch: list[Window], plans: Sequence[Plan], tallies: list[Tally], first: int) -> None:
        """Run one batch clean and by every plan, and add up what changed."""
        tokens, passes = self.clean.tokens, self.passes
        ids, rows, real = padded(self.clean.model, tokens, batch)
        doc = self.clean.docs[rows] - first
        masks = [_real(plan.masks(rows), real) for plan in plans]
        before = passes.clean(ids, restart_at={layer for mask in masks for layer in mask})
        log_before = np.zeros(before.norms.shape)
        if "norms" in self.wanted:
            log_before = logs(before.norms, real, rows, tokens, "the clean run")
        has_next = np.pad(real[:, 1:], ((0, 0), (0, 1)))
        nexts, losses = self._clean_predictions(before, ids, has_next)
        self.bar.update(int(real.sum()))
        for plan, tally, mask in zip(plans, tallies, masks, strict=True):
            offset = offsets(np.logical_or.reduce([np.zeros_like(real), *mask.values()]))
            reached = (offset >= 0) & real
            if mask:
                edits = {layer: self._edited(plan, rows, layer, where) for layer, where in mask.items()}
                after = passes.edited(ids, edits, before)
                where = f"{plan.edit.name} {plan.edit.dose:g}, layer {', '.join(map(str, plan.layers))}"
                if "norms" in self.wanted:
                    change = logs(after.norms, reached, rows, tokens, where) - log_before
                    here = (doc[reached], offset[reached], change[:, reached], log_before[:, reached])
                    tally.add(NORMS, 1, *here)
                at = reached & has_next
                if nexts is not None and after.hidden is not None and at.any():
                    change = nexts.changes(after.hidden, at[has_next])
                    change[[name not in self.wanted for name in ("loss", "kl", "top1")]] = 0.0
                    _require(np.asarray(np.isfinite(change).all(axis=0)), rows[at], tokens, where)
                    clean = np.zeros_like(change)
                    if "loss" in self.wanted:
                        clean[0] = losses[at[has_next]]
                    tally.add(NEXT, 0, doc[at], offset[at], change, clean)
            self.bar.update(int(real.sum()))

    def _clean_predictions(
        self, before: Outcome, ids: Int[Tensor, "batch pos"], has_next: Bool[np.ndarray, "batch pos"]
    ) -> tuple[NextTokens | None, Float[np.ndarray, " tokens"]]:
        if before.hidden is None or not has_next.any():
            return None, np.empty(0)
        at = torch.from_numpy(has_next).to(ids.device)
        nexts = NextTokens(self.passes.head, ids, at, self.wanted)
        return nexts, nexts.clean(before.hidden)

    def _edited(
        self, plan: Plan, rows: Int[np.ndarray, "batch pos"], layer: int, mask: Bool[np.ndarray, "batch pos"]
    ) -> Edited:
        changed, parameter = rows[mask], next(iter(self.clean.model.parameters()))
        wide = torch.promote_types(parameter.dtype, torch.float32)  # what layer norms are computed in
        largest = torch.finfo(wide).max ** 0.5

        def change(vectors: Tensor) -> Tensor:
            edited = plan.apply(vectors, changed, layer)
            # A layer norm squares them; where that overflows it gives zeros, which would pass for an effect.
            norms = vector_norms(einops.rearrange(edited, "rows d_model -> 1 rows d_model"))[0].cpu().numpy()
            where = f"{plan.edit.name} {plan.edit.dose:g}, layer {layer}"
            _require(norms < largest, changed, self.clean.tokens, where)
            return edited

        return Edited(torch.from_numpy(mask).to(parameter.device), change)


def _by_document(
    windows: Sequence[Window], docs: Int[np.ndarray, " tokens"], at_once: int
) -> Iterator[tuple[int, int, list[Window]]]:
    """Yield the first of some documents, how many there are, and their windows."""
    groups: dict[int, list[Window]] = {}
    for window in windows:
        groups.setdefault(int(docs[window.start]) // at_once, []).append(window)
    for number, some in sorted(groups.items()):
        yield number * at_once, min(at_once, int(docs.max()) + 1 - number * at_once), some


def _real(masks: dict[int, np.ndarray], real: np.ndarray) -> dict[int, np.ndarray]:
    masks = {layer: mask & real for layer, mask in masks.items()}
    return {layer: mask for layer, mask in masks.items() if mask.any()}


def logs(
    norms: Float[np.ndarray, "layer batch pos"],
    at: Bool[np.ndarray, "batch pos"],
    rows: Int[np.ndarray, "batch pos"],
    tokens: pd.DataFrame,
    where: str,
) -> Float[np.ndarray, "layer batch pos"]:
    """Return the logarithms of norms, 0 where they are not counted.

    Raises
    ------
    NumericalError
        One that is counted is not finite.
    """
    with np.errstate(divide="ignore"):
        found = np.where(at, np.log(norms), 0.0)
    _require((np.isfinite(found).all(axis=0) | ~at).ravel(), rows.ravel(), tokens, where)
    return found


def _require(
    fine: Bool[np.ndarray, " tokens"], rows: Int[np.ndarray, " tokens"], tokens: pd.DataFrame, where: str
) -> None:
    if not fine.all():
        token = tokens.iloc[int(rows[int((~fine).argmax())])]
        raise NumericalError(
            f"An effect is NaN or infinite ({where}; document {token['doc']!r}, window {token['window']}, position "
            f"{token['position']}); no number of this run can be trusted. Is the dose too large for the dtype?"
        )
