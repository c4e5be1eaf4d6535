"""What a finding is: a question, a source, what was published and how it was measured, and how to measure it again."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechreg.schema import FOLDED_SUFFIX, Processing

COLUMNS = (
    "finding",
    "model",
    "quantity",
    "published",
    "tolerance",
    "low",
    "high",
    "obtained",
    "agrees",
    "note",
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published number, or a bound where only a direction was published, of some models.

    Attributes
    ----------
    quantity : str
    models : tuple of str
        Hub names without their owner.
    value, tolerance : float, optional
        What was published and how far from it still agrees.
    low, high : float, optional
        Where a range or a direction was published instead: what lies between them agrees.
    because : str
        Why this tolerance, or whose words the bound stands for.
    corpus : tuple of str
        The number is one of this text: it holds where ``documents`` begins so, and everywhere if empty.
    """

    quantity: str
    models: tuple[str, ...]
    value: float | None = None
    tolerance: float | None = None
    low: float = -math.inf
    high: float = math.inf
    because: str
    corpus: tuple[str, ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """The lowest and the highest obtained number that agrees."""
        if self.value is None or self.tolerance is None:
            return self.low, self.high
        return self.value - self.tolerance, self.value + self.tolerance

    def holds_for(self, model: str, documents: Any) -> bool:
        """Return whether the claim is one of this model on these documents."""
        on_its_text = not self.corpus or (
            isinstance(documents, str) and documents.startswith(tuple(self.corpus))
        )
        return on_its_text and published_name(model) in self.models

    def agrees(self, number: float) -> bool:
        """Return whether an obtained number agrees; a direction ("> 0") is not met by its bound."""
        low, high = self.interval
        return low <= number <= high if math.isfinite(low) and math.isfinite(high) else low < number < high

    def __str__(self) -> str:
        return claimed(self.value, self.tolerance, *self.interval)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run may choose: tokens in a batch, the seed of what is drawn, a bar on standard error."""

    batch_tokens: int = 1024
    seed: int = 0
    progress: bool = True


# From a loaded model, a token frame and settings to the quantities, by name.
Measure = Callable[[Any, pd.DataFrame, Settings], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A published analysis of language models that can be run again.

    Attributes
    ----------
    name, question, source : str
    measured : str
        How the source measured it, as far as it says.
    models : tuple of str
        Those that something was published of; run by default.
    claims : tuple of Claim
    processing : {"raw", "folded"}
    prepend_bos : bool
    n_ctx : int, optional
        Tokens of a window, where the source says how many.
    measure : function
    """

    name: str
    question: str
    source: str
    measured: str
    models: tuple[str, ...]
    claims: tuple[Claim, ...]
    processing: Processing = "raw"
    prepend_bos: bool = False
    n_ctx: int | None = None
    measure: Measure

    def compare(
        self,
        model: str,
        documents: Any,
        obtained: Mapping[str, float],
        *,
        as_published: bool = True,
        note: str = "",
    ) -> pd.DataFrame:
        """Return published against obtained, one row a quantity; nothing is published of another way to measure."""
        rows = []
        claims = [claim for claim in self.claims if as_published and claim.holds_for(model, documents)]
        for quantity, number in obtained.items():
            claim = next((claim for claim in claims if claim.quantity == quantity), None)
            low, high = (math.nan, math.nan) if claim is None else claim.interval
            rows.append(
                {
                    "finding": self.name,
                    "model": model,
                    "quantity": quantity,
                    "published": math.nan if claim is None or claim.value is None else claim.value,
                    "tolerance": math.nan if claim is None or claim.tolerance is None else claim.tolerance,
                    "low": low,
                    "high": high,
                    "obtained": float(number),
                    "agrees": None if claim is None else claim.agrees(number),
                    "note": note,
                }
            )
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        numbers = dict.fromkeys(("published", "tolerance", "low", "high", "obtained"), "float64")
        return frame.astype({**numbers, "agrees": "boolean"})


def published_name(model: str) -> str:
    """Return what the literature calls a model: no owner, no folder, no mark of processing.

    Examples
    --------
    >>> published_name("openai-community/gpt2-xl[folded]")
    'gpt2-xl'
    """
    name = model.removesuffix(FOLDED_SUFFIX).rsplit("/", 1)[-1]
    return "gpt2" if name == "gpt2-small" else name


def claimed(value: float | None, tolerance: float | None, low: float, high: float) -> str:
    """Return what was published, in a few characters.

    Examples
    --------
    >>> claimed(1.045, 0.01, 1.035, 1.055), claimed(None, None, 0.5, float("inf"))
    ('1.045 +- 0.01', '> 0.5')
    """
    if value is not None and math.isfinite(value):
        return f"{value:.6g} +- {tolerance:g}" if tolerance else f"{value:.6g}"
    if math.isfinite(low) and math.isfinite(high):
        return f"{low:g} to {high:g}"
    if math.isfinite(low):
        return f"> {low:g}"
    return f"< {high:g}" if math.isfinite(high) else "none"
