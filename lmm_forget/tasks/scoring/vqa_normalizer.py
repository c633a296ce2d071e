"""The official normaliser of VQA answers, and accuracy as agreement with several annotators."""

from __future__ import annotations

import re
from functools import lru_cache

DELETED_OR_SPACED = ';/[]"{}()=+\\_-><@`!'
DIGIT_OF_WORD = {
    "none": "0",
    **{
        word: str(digit)
        for digit, word in enumerate(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        )
    },
}
ARTICLES = frozenset({"a", "an", "the"})
PERIOD = re.compile(r"\.(?!\d)")
MAX_REMOVED_PERIODS = 32
"""The official code passes a flag where the number of replacements belongs; the flag's value is 32."""

_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _build_contraction_fixes() -> dict[str, str]:
    """Misspelt -> correct contraction, for every listed form without one of its apostrophes."""
    fixes = {}
    for word in _CONTRACTED.split():
        for position, letter in enumerate(word):
            if letter == "'":
                fixes[word[:position] + word[position + 1 :]] = word
    return fixes


CONTRACTIONS = _build_contraction_fixes() | {"somebody'd": "somebodyd", "'ows'at": "'ow's'at"}
"""Misspelt word -> its replacement in the official table; two entries follow no rule."""


@lru_cache(maxsize=65536)
def normalize_vqa_answer(text: str) -> str:
    """Normalise an answer as the official evaluation of VQA and TextVQA does (EvalAI; Goyal et al. 2017).

    The text becomes lower case. Commas and question marks are deleted. Each other punctuation mark is deleted if it
    occurs beside a blank anywhere in the text, else replaced by a blank. Full stops are deleted unless a digit follows.
    Number words up to ten become digits, articles are deleted, missing apostrophes of contractions are restored, and
    "'s" becomes a word of its own.
    """
    stripped = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    stripped = stripped.replace("\n", " ").replace("\t", " ").strip()
    cleaned = stripped
    for mark in DELETED_OR_SPACED:
        if mark in stripped:
            beside_blank = mark + " " in stripped or " " + mark in stripped
            cleaned = cleaned.replace(mark, "" if beside_blank else " ")
    words = [DIGIT_OF_WORD.get(word, word) for word in PERIOD.sub("", cleaned, count=MAX_REMOVED_PERIODS).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def compute_annotator_accuracy(num_matches: int, num_annotators: int, num_needed: int = 3) -> float:
    """Mean over the annotators, each left out in turn, of min(1, matches among the others / `num_needed`).

    `num_matches` of the `num_annotators` gave the answer (Antol et al. 2015). With ten annotators and `num_needed` 3,
    four matches make 1, three 0.9, two 0.6 and one 0.3.
    """
    if num_annotators < 1:
        return 0.0
    score_without_matching = min(1.0, max(0, num_matches - 1) / num_needed)
    score_without_other = min(1.0, num_matches / num_needed)
    total = num_matches * score_without_matching + (num_annotators - num_matches) * score_without_other
    return total / num_annotators
