"""Words: numbers with their nouns, what names a row or a token, the first line of an error, a covariance's name."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

# How standard errors were computed, by the first word of a frame's cov_type.
_COVARIANCES = {
    "nonrobust": "of equal variances",
    "hac": "robust to serial correlation",
    "hc": "robust to unequal variances",
    "jackknife": "from documents left out one by one",
}


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not 1: "1 document", "12,000 tokens"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def spread(values: Iterable[Any], form: str = "{:.2f}") -> str:
    """Return the least and the largest of some numbers, or the one that both are: "0.10 to 0.32"; NaN is none."""
    known = [value for value in values if value == value] or [math.nan]
    low, high = form.format(min(known)), form.format(max(known))
    return low if low == high else f"{low} to {high}"


def token_place(tokens: Any, row: Any) -> str:
    """Return where a row of a token frame is: "document 'a', window 0, position 3"."""
    token = tokens.iloc[int(row)]
    return f"document {token['doc']!r}, window {token['window']}, position {token['position']}"


def keys_in_words(keys: Mapping[str, Any]) -> str:
    """Return what names a row or a group: "model gpt2, hook attn_out, layer 3"."""
    return ", ".join(f"{key} {value}" for key, value in keys.items())


def first_line(error: object, *, root: bool = False) -> str:
    """Return the first line of what an error, or its ``root`` cause, says, without its full stop; else its type."""
    while root and isinstance(error, BaseException) and error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def covariance_in_words(cov_type: str) -> str:
    """Return how standard errors were computed: "crv3 (source)" is clustered by source."""
    kind, _, detail = cov_type.partition("(")
    known = _COVARIANCES.get(kind.strip().rstrip("0123"))
    return known or f"clustered by {detail.rstrip(')').replace('doc', 'document') or 'document'}"
