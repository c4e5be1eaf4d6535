"""What a finding is: a question, a source, what was published, and the function that measures it again."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechreg.schema import FOLDED_SUFFIX, Processing


@dataclass(frozen=True)
class Claim:
    """One published number, or a bound where only a direction was published."""

    quantity: str  # one of those that the finding's function returns
    models: tuple[str, ...]  # hub names without their owner
    value: float | None = None  # the published number
    tolerance: float = 0.0  # how far from it still agrees
    low: float = -math.inf  # where a range or a direction was published instead: what lies between agrees
    high: float = math.inf
    because: str = ""  # why this tolerance, or which words of the source the bound stands for
    corpus: tuple[str, ...] = ()  # compared where ``documents`` begins with one of these; empty: on any text

    @property
    def interval(self) -> tuple[float, float]:
        """The lowest and the highest obtained number that agrees."""
        if self.value is None:
            return self.low, self.high
        return self.value - self.tolerance, self.value + self.tolerance

    def holds_for(self, model: str, documents: Any) -> bool:
        """Return whether the claim is about this model on these documents."""
        on_its_text = not self.corpus or (isinstance(documents, str) and documents.startswith(self.corpus))
        return on_its_text and published_name(model) in self.models

    def agrees(self, number: float) -> bool:
        """Return whether an obtained number agrees; a direction ("> 0") excludes its bound."""
        low, high = self.interval
        return low <= number <= high if math.isfinite(low) and math.isfinite(high) else low < number < high

    def __str__(self) -> str:
        low, high = self.interval
        return claimed(math.nan if self.value is None else self.value, self.tolerance, low, high)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a caller of `replicate` may choose: tokens in a batch, the random seed, a progress bar."""

    batch_tokens: int = 1024
    seed: int = 0
    progress: bool = True

    @property
    def of_passes(self) -> dict[str, Any]:
        """Those of functions that run a model."""
        return {"batch_tokens": self.batch_tokens, "progress": self.progress}


# From a loaded model, a token frame and settings to the quantities, by name.
Measure = Callable[[Any, pd.DataFrame, Settings], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A published analysis of language models that can be run again."""

    name: str
    question: str
    source: str
    measured: str  # how the source measured it, as far as it says
    models: tuple[str, ...]  # those that the source reports; run by default
    claims: tuple[Claim, ...]
    measure: Measure  # one of `mechreg.findings.measures`
    processing: Processing = "raw"
    prepend_bos: bool = False
    n_ctx: int | None = None  # tokens of a window, where the source says how many


def published_name(model: str) -> str:
    """Return what the literature calls a model: without owner, folder and processing."""
    name = model.removesuffix(FOLDED_SUFFIX).rsplit("/", 1)[-1]
    return "gpt2" if name == "gpt2-small" else name


def claimed(value: float, tolerance: float, low: float, high: float) -> str:
    """Return what was published, in a few characters; NaN where there is no value or bound."""
    if math.isfinite(value):
        return f"{value:.6g} +- {tolerance:g}" if tolerance else f"{value:.6g}"
    if math.isfinite(low) and math.isfinite(high):
        return f"{low:g} to {high:g}"
    if math.isfinite(low):
        return f"> {low:g}"
    return f"< {high:g}" if math.isfinite(high) else "none"
