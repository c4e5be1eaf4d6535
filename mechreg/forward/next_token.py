"""Next token: losses, divergences and flips, a few tokens at a time where the vocabulary is large."""

from collections.abc import Collection, Iterator

import einops
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mechreg.forward.passes import End, Forward, lock_of
from mechreg.forward.precision import pinned
from mechreg.models import Model, input_device, is_wide, record_of
from mechreg.schema import AUTOCAST

CHUNK = 2**23  # logits at once: 64 MB in float64, 166 tokens of GPT-2's vocabulary
KEPT = 2**26  # logits of a clean pass that are kept for the edited ones: 256 MB in float32


class Head:
    """From what a model's unembedding reads to its logits.

    Where a model transforms its logits in a way not known here, its passes go on to the logits (``end``), which are
    then taken as they are.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.end: End = "unembed"
        self.is_autocast = record_of(model).dtype == AUTOCAST
        config = getattr(getattr(model, "original_model", None), "config", None)
        cap = getattr(config, "final_logit_softcapping", None) or getattr(
            model.cfg, "output_logits_soft_cap", 0
        )
        self.cap = float(cap) if cap and cap > 0 else 0.0
        factor, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
        self.factor = (factor if isinstance(factor, float | int) else 1.0) / (divisor or 1.0)
        ids = torch.arange(2, device=input_device(model))[None] % int(model.cfg.d_vocab)
        with Forward(model, end="logits") as run:
            logits = run(ids)
        with Forward(model, end="unembed") as run:
            ours = self(run(ids)[0])
        spread = (logits[0] - ours).abs().max() / logits[0].abs().max()
        close = 1e-4 if is_wide(model) else 0.05
        self.end = "unembed" if bool(spread < close) else "logits"

    def __call__(self, hidden: Shaped[Tensor, "tokens d"]) -> Float[Tensor, "tokens d_vocab"]:
        """Return the logits of some tokens."""
        if self.end == "logits":
            return hidden
        with lock_of(self.model), torch.inference_mode(), pinned():
            with torch.autocast(hidden.device.type, dtype=torch.bfloat16, enabled=self.is_autocast):
                logits = self.model.unembed(einops.rearrange(hidden, "tokens d -> 1 tokens d"))
            logits = einops.rearrange(logits, "1 tokens d_vocab -> tokens d_vocab") * self.factor
            return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


class NextTokens:
    """Next-token measures of one batch's passes: those ``wanted`` of "loss", "kl" and "top1", and nothing else.

    ``at`` are the tokens that have a next one in their window. Without a head, hidden vectors are logits already.
    Every pass is read in the same chunks of tokens, so that equal passes give equal bits.
    """

    def __init__(
        self,
        head: Head | None,
        ids: Int[Tensor, "batch pos"],
        at: Bool[Tensor, "batch pos"],
        wanted: Collection[str],
    ) -> None:
        self.head, self.at, self.wanted = head, at, frozenset(wanted)
        self.target = torch.roll(ids, -1, dims=1)[at]

    def clean(self, hidden: Shaped[Tensor, "batch pos d"]) -> Float[np.ndarray, " tokens"]:
        """Read the pass without an edit, and return its losses (NaN unless they are wanted)."""
        self.hidden = hidden
        losses, likeliest, logits = [], [], []
        for part, rows in chunks(self.head, hidden, self.at):
            losses.append(_losses(part, self.target[rows]) if "loss" in self.wanted else _nothing(part))
            if "top1" in self.wanted:
                likeliest.append(part.argmax(dim=1))
            if "kl" in self.wanted and len(self.target) * part.shape[1] <= KEPT:
                logits.append(part)
        self.losses, self.likeliest, self.logits = losses, likeliest, logits
        return torch.cat(losses).cpu().numpy() if losses else np.empty(0)

    def changes(
        self, hidden: Shaped[Tensor, "batch pos d"], reached: Bool[np.ndarray, " tokens"]
    ) -> Float[np.ndarray, "3 reached"]:
        """Return what an edited pass changed at some of the tokens: loss, divergence, flip; NaN where not wanted.

        The change in the next token's cross-entropy and KL(clean || edited) are in nats; the flip is 1 where the
        likeliest next token is another.
        """
        parts = []
        here = torch.from_numpy(reached).to(self.target.device)
        clean = chunks(self.head, self.hidden, self.at) if "kl" in self.wanted and not self.logits else None
        for i, (edited, rows) in enumerate(chunks(self.head, hidden, self.at)):
            kl = flip = loss = _nothing(edited)
            if "loss" in self.wanted:
                loss = _losses(edited, self.target[rows]) - self.losses[i]
            if "kl" in self.wanted:
                kl = divergences(self.logits[i] if clean is None else next(clean)[0], edited)
            if "top1" in self.wanted:
                flip = (edited.argmax(dim=1) != self.likeliest[i]).double()
            parts.append(torch.stack([loss, kl, flip])[:, here[rows]])
        return torch.cat(parts, dim=1).cpu().numpy()


def chunks(
    head: Head | None, hidden: Shaped[Tensor, "batch pos d"], at: Bool[Tensor, "batch pos"]
) -> Iterator[tuple[Float[Tensor, "tokens d_vocab"], slice]]:
    """Yield the logits of a mask's tokens, `CHUNK` numbers at a time, and the slice of the tokens that they are of."""
    chosen = hidden[at.to(hidden.device)]
    wide = chosen.shape[1] if head is None else int(head.model.cfg.d_vocab)
    size = max(1, CHUNK // wide)
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        yield (part if head is None else head(part)).to(at.device), slice(start, start + len(part))


def next_token_losses(
    hidden: Shaped[Tensor, "batch pos d"],
    tokens: Int[Tensor, "batch pos"],
    at: Bool[Tensor, "batch pos"],
    *,
    head: Head | None = None,
) -> Float[np.ndarray, " tokens"]:
    """Return the cross-entropy of the next token, in nats, after every token of a mask, as `NextTokens` does."""
    return NextTokens(head, tokens, at, ["loss"]).clean(hidden)


def divergences(
    clean: Float[Tensor, "tokens d_vocab"], edited: Float[Tensor, "tokens d_vocab"]
) -> Float[Tensor, " tokens"]:
    """Return KL(clean || edited) in nats, of logits.

    The sum is of p (q/p - 1 - log(q/p)), whose terms are 0 or more: small ones keep their digits, and equal
    distributions give 0.
    """
    log_p, log_q = (part.double().log_softmax(dim=1) for part in (clean, edited))
    step = log_q - log_p
    p = log_p.exp()
    # Where q/p could overflow it is large, and the plain difference has all its digits.
    terms = torch.where(step < 1.0, p * (step.expm1() - step), log_q.exp() - p - p * step)
    return einops.reduce(terms.clamp(min=0.0), "tokens d_vocab -> tokens", "sum")


def _losses(
    logits: Float[Tensor, "tokens d_vocab"], target: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    wide = logits.double()
    chosen = wide.gather(1, einops.rearrange(target, "tokens -> tokens 1"))
    return wide.logsumexp(dim=1) - einops.rearrange(chosen, "tokens 1 -> tokens")


def _nothing(part: Tensor) -> Float[Tensor, " tokens"]:
    return torch.full((len(part),), torch.nan, dtype=torch.float64, device=part.device)
