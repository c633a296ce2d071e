"""Text as scorers compare it: normalised strings and words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# A number keeps its sign, decimal point and thousands commas, so that "1.5" is never read as "15".
WORD = re.compile(r"(?<!\w)[-+]?\d+(?:[.,]\d+)*(?!\w)|\w+")


def normalize(text: str) -> str:
    """NFKC form, casefolded, runs of white space turned into one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def words(text: str) -> list[str]:
    """The words and numbers of a text in order, casefolded, without punctuation."""
    return WORD.findall(normalize(text))


def contains(answer: Sequence[str], reference: Sequence[str]) -> bool:
    """Whether the words of `reference` (at least one) stand side by side, in order, in `answer`."""
    n = len(reference)
    return n > 0 and any(list(answer[i : i + n]) == list(reference) for i in range(len(answer) - n + 1))
