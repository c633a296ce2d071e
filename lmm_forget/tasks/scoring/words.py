"""Text as scorers compare it: normalised strings, words, and tokens that keep every number whole."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from lmm_forget.tasks.scoring.folding import fold

# A number keeps its sign, decimal point and thousands commas, so that "1.5" is never read as "15".
WORD = re.compile(r"(?<!\w)[-+]?\d+(?:[.,]\d+)*(?!\w)|\w+")

# A sign that belongs to a word or a figure stays with it ("c++", "c#", "B-", "Na+", "<5").
# One number is one token: neither "2" nor "10" is in "10^2"; "3" is not in "3/4", "3:45", "3.5cm", "-$3", "3 million".
_SIGNED = r"(?=\d*[^\W\d])\w+(?:\+{1,2}|#)(?!\w)|(?<![\w-])[^\W\d]{1,2}-(?=\s|\Z|[.,;:!?)\]\"'])"
TOKEN = re.compile(
    r"(?<![=-])[<>≤≥]=? ?[-+]?[$€£¥₹]?\d+(?:[.,]\d+)*%?"
    r"|(?<!\w)[-+]?\d+(?:[.,]\d+)* ?[x·*] ?10\^(?:\{[^{}]*\}|[-+]?\d+)"
    r"|[√∛±∓≠] ?\d+(?:[.,]\d+)*"
    r"|[-+]?\w+(?:[.,]\w+)*\^(?:\{[^{}]*\}|[-+]?\w+)"
    r"|(?<![\w/])[-+]?(?:\d+ )?\d{1,3}/\d{1,3}(?![\w/]|[.,]\d)"
    r"|(?<!\w)[-+] ?[$€£¥₹] ?\d+(?:[.,]\d+)*"
    r"|(?<!\w)[-+]?\d+(?::\d+)+(?!\w|[.,]\d)"
    r"|(?<!\w)[-+]?\d+(?:[.,]\d+)* (?:hundred|thousand|million|billion|trillion)\b"
    r"|(?<!\w)[-+]?\d+(?:[.,]\d+)*(?![\w]|[.,]\d)"
    r"|(?<!\w)[-+]?\d+(?:[.,]\d+)+\w*"
    rf"|{_SIGNED}"
    r"|\w+"
)
_FIGURE = re.compile(r"[\d^]")
_TAG = re.compile(r"</?[a-z][a-z0-9_]*(?: [a-z-]+=[^<>]*)?/?>")
_PLAIN = re.compile(rf"{_SIGNED}|\w+")  # what TOKEN comes to where there is no figure
NEGATIONS = frozenset({"not", "never", "neither", "nor", "cannot"})
ARTICLES = frozenset({"a", "an", "the"})


def normalize(text: str) -> str:
    """The folded text (see `fold`), casefolded, runs of white space turned into one space, none at the ends."""
    return " ".join(text.lower().split()) if text.isascii() else _normalized(text)


@lru_cache(maxsize=32768)
def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", fold(text).casefold()).split())


def words(text: str) -> list[str]:
    """The words and numbers of a text in order, casefolded, without punctuation."""
    return WORD.findall(normalize(text))


def tokens(text: str) -> list[str]:
    """Like `words`, but powers, fractions, times and figures with a unit or a scale are one token each."""
    plain = normalize(text)
    if not _FIGURE.search(plain):
        return _PLAIN.findall(plain)
    if ">" in plain and "<" in plain:
        plain = _TAG.sub(
            lambda m: f" {m[0][:-1].lstrip('</')} ", plain
        )  # the ">" of "<b>5" is no sign of "5"
    return [token.replace(" ", "") if token[0] in "<>≤≥" else token for token in TOKEN.findall(plain)]


def contains(answer: Sequence[str], reference: Sequence[str]) -> bool:
    """Whether the words of `reference` (at least one) stand side by side, in order, in `answer`."""
    return next(_places(answer, reference), None) is not None


def affirms(answer: Sequence[str], reference: Sequence[str]) -> bool:
    """Whether `answer` contains `reference` in a place that has no "not" before it."""
    return any(not _negated(answer[:place]) for place in _places(answer, reference))


def _places(answer: Sequence[str], reference: Sequence[str]) -> Iterator[int]:
    n, wanted = len(reference), list(reference)
    for i in range(len(answer) - n + 1 if n else 0):
        if answer[i] == wanted[0] and list(answer[i : i + n]) == wanted:
            yield i


def _negated(before: Sequence[str]) -> bool:
    """Whether a text's next word, articles aside, is denied ("not", "isn't")."""
    left = list(before)
    while left and left[-1] in ARTICLES:
        left.pop()
    split = len(left) > 1 and left[-1] == "t" and left[-2].endswith("n")  # "isn't" in two words
    return bool(left) and (split or left[-1] in NEGATIONS or left[-1].endswith("n't"))
