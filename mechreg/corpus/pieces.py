"""Long texts, cut where GPT-2's tokenizer cuts anyway, so that tokenizing them takes the memory of a piece.

GPT-2's byte-level BPE first splits a text into words by the matches of

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

one after another (every character starts one), and merges bytes only within a word. Cut a text before a space or
line feed that follows a character other than white space. Then:

1. No word reaches over the cut. Words of the first six kinds and of ``" ?..."`` have white space only at their start,
   words of the last two are nothing but white space: in none does white space follow another character.
2. Left of the cut the words are the same without what follows it. A word that ends before the cut could only depend on
   it through a repetition, which the white space at the cut ends just as the end of the text would, or through the look
   ahead ``(?!\\S)``, which looks at the character behind a run of white space: as the last character left of the cut is
   none, that is left of the cut too.
3. Right of the cut they are the same without what precedes it: the first word begins there, and nothing looks back.

The same holds of special tokens in the text unless they contain white space or strip it from what follows (``rstrip``).
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

PIECE = 100_000  # characters; a longer text is cut
# Of a text without a place to cut, each character takes 140 bytes of memory ("a") to 450 ("中"): more is refused.
LONGEST_PIECE = 5_000_000
_PLACE = re.compile(r"[ \n]")


def cuts_anyway(backend: Any) -> bool:
    """Return whether a tokenizer of the tokenizers library splits texts in GPT-2's manner, and does nothing else."""
    if backend.normalizer is not None or type(backend.pre_tokenizer).__name__ != "ByteLevel":
        return False
    splits = json.loads(backend.pre_tokenizer.__getstate__())
    added = backend.get_added_tokens_decoder().values()
    return (
        (splits.get("use_regex"), splits.get("add_prefix_space")) == (True, False)
        and type(backend.model).__name__ == "BPE"
        and not backend.model.dropout  # it would draw other numbers
        and not any(token.rstrip or re.search(r"\s", token.content) for token in added)
    )


def pieces_of(text: str, *, size: int = PIECE) -> Iterator[tuple[int, str]]:
    """Yield where each piece of a text begins, and the piece: at least so many characters, but for the last."""
    start = 0
    while len(text) - start > size:
        places = (place.start() for place in _PLACE.finditer(text, start + max(size, 1)))
        # Letters, marks, numbers, punctuation, symbols: white space in no version of Unicode, as others may be.
        place = next((at for at in places if unicodedata.category(text[at - 1])[0] in "LMNPS"), None)
        if place is None:
            break
        yield start, text[start:place]
        start = place
    yield start, text[start:]
