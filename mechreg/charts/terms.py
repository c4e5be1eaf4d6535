"""Which terms of a formula are its lags, which their interactions, and what a lag's coefficient then means."""

import re
from collections.abc import Iterable
from typing import NamedTuple

INTERCEPT = "Intercept"
_LAG = re.compile(r"\blag(\d+)\b")
_LEVEL = re.compile(r"\[[^\]]*\]")


class Terms(NamedTuple):
    """The terms of a formula but its intercept: lags by themselves, lags times something else, all others."""

    lags: list[str]
    interactions: list[str]
    others: list[str]

    def meaning(self) -> str:
        """Return at which values of its interactions' other factors a lag's coefficient holds; "" where it has none.

        Examples
        --------
        >>> sort_terms(["lag1", "C(pos)[T.ADP]", "lag1:C(pos)[T.ADP]", "lag1:position"]).meaning()
        'at the reference level of C(pos) and where position is 0'
        """
        if not self.lags:
            return ""
        fixed = {}
        for term in self.interactions:
            for factor in term.split(":") if ":" in _LEVEL.sub("", term) else []:
                name = _LEVEL.sub("", factor)
                if name and not _LAG.search(name):
                    fixed[name] = (
                        f"at the reference level of {name}" if factor.endswith("]") else f"where {name} is 0"
                    )
        return " and ".join(fixed.values())


def sort_terms(terms: Iterable[str]) -> Terms:
    """Return the terms of a formula, sorted by what they have to do with the tokens before.

    A lag alone, transformed or not ("lag1", "center(lag2)"), is one of the lags.
    """
    sorted_terms = Terms([], [], [])
    for term in dict.fromkeys(terms):
        bare = _LEVEL.sub("", str(term))
        if term == INTERCEPT:
            continue
        if not _LAG.search(bare):
            sorted_terms.others.append(term)
        elif ":" in bare or len(set(_LAG.findall(bare))) > 1:
            sorted_terms.interactions.append(term)
        else:
            sorted_terms.lags.append(term)
    sorted_terms.lags.sort(key=lambda term: int(_LAG.findall(_LEVEL.sub("", term))[0]))
    return sorted_terms
