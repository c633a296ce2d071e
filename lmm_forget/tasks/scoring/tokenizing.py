"""Normalise texts and split them into words, or into tokens that keep every number whole."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from lmm_forget.tasks.scoring.unicode_folding import fold_unicode

# A number keeps its sign, decimal point and thousands commas, so that "1.5" is never read as "15".
WORD = re.compile(r"(?<!\w)[-+]?\d+(?:[.,]\d+)*(?!\w)|\w+")

# A sign that belongs to a word or number stays with it ("c++", "c#", "B-", "Na+", "<5").
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
_WORD_TOKEN = re.compile(rf"{_SIGNED}|\w+")  # equivalent to TOKEN for texts without digits
NEGATIONS = frozenset({"not", "never", "neither", "nor", "cannot"})
ARTICLES = frozenset({"a", "an", "the"})


def normalize_text(text: str) -> str:
    """Apply `fold_unicode`, fold the case, and make every run of white space one blank (none at the ends)."""
    return " ".join(text.lower().split()) if text.isascii() else _normalize_unicode_text(text)


@lru_cache(maxsize=32768)
def _normalize_unicode_text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", fold_unicode(text).casefold()).split())


def split_words(text: str) -> list[str]:
    """The words and numbers of a text in order, case folded, without punctuation."""
    return WORD.findall(normalize_text(text))


def tokenize_text(text: str) -> list[str]:
    """Like `split_words`, but a power, fraction, time, or number with unit or scale is one token."""
    normalized = normalize_text(text)
    if not _FIGURE.search(normalized):
        return _WORD_TOKEN.findall(normalized)
    if ">" in normalized and "<" in normalized:
        normalized = _TAG.sub(
            lambda m: f" {m[0][:-1].lstrip('</')} ", normalized
        )  # the ">" of "<b>5" does not mean "more than"
    return [token.replace(" ", "") if token[0] in "<>≤≥" else token for token in TOKEN.findall(normalized)]


def contains_words(answer_words: Sequence[str], reference_words: Sequence[str]) -> bool:
    """Whether `answer_words` contain `reference_words` (at least one word) side by side and in order."""
    return next(_find_occurrences(answer_words, reference_words), None) is not None


def contains_words_without_negation(answer_words: Sequence[str], reference_words: Sequence[str]) -> bool:
    """Whether `answer_words` contain `reference_words` in a place without a negation before it."""
    return any(
        not _ends_in_negation(answer_words[:start]) for start in _find_occurrences(answer_words, reference_words)
    )


def _find_occurrences(answer_words: Sequence[str], reference_words: Sequence[str]) -> Iterator[int]:
    n, target = len(reference_words), list(reference_words)
    for i in range(len(answer_words) - n + 1 if n else 0):
        if answer_words[i] == target[0] and list(answer_words[i : i + n]) == target:
            yield i


def _ends_in_negation(preceding_words: Sequence[str]) -> bool:
    """Whether these words negate the next one: they end in "not", "isn't" or similar, apart from articles."""
    remaining = list(preceding_words)
    while remaining and remaining[-1] in ARTICLES:
        remaining.pop()
    is_split_contraction = (
        len(remaining) > 1 and remaining[-1] == "t" and remaining[-2].endswith("n")
    )  # "isn't" in two words
    return bool(remaining) and (is_split_contraction or remaining[-1] in NEGATIONS or remaining[-1].endswith("n't"))
