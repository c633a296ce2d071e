"""Sets of tokens that stand for an answer format: numbers, option letters, yes and no, times, or what a task teaches.

They are found by looking at every token of a tokenizer as text: with and without a leading space, in any case. A word
that the tokenizer writes in several pieces has no token of its own; such words are listed as `split`, not guessed at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmm_forget.errors import ConfigError

_CARDINALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion"
)
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
NUMBER_WORDS = (*_CARDINALS.split(), *_ORDINALS.split())
_FIGURES = re.compile(r"\d+([.,]\d+)*|\d*(1st|2nd|3rd|\dth)", re.ASCII | re.IGNORECASE)
_LETTER = re.compile(r"\(?[A-Z][.):]?")
_CLOCK = re.compile(r":|:?[0-5]?\d|[0-2]?\d:([0-5]\d?)?", re.ASCII)

LEAST_SHARE, LEAST_RATIO = 0.01, 4.0
"""A learned token stands in at least this share of a task's answers, and so many times more often than elsewhere."""


@dataclass(frozen=True)
class TokenSet:
    """A named set of token ids (ascending) with their texts; `split` are words of it that are no single token."""

    name: str
    source: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    split: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What results.json shows of it."""
        return {
            "source": self.source,
            "size": len(self.ids),
            "tokens": list(self.tokens),
            "split": list(self.split),
        }


def token_texts(tokenizer: Any) -> dict[int, str]:
    """Text of every ordinary token by id, its leading space kept; special tokens are left out."""
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = [i for i in range(len(tokenizer)) if i not in special]
    raw = tokenizer.convert_ids_to_tokens(ids)
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    # SentencePiece tokenizers drop the space of a first token when they decode it.
    return {
        i: f" {text.lstrip()}" if str(piece).startswith("▁") else text
        for i, piece, text in zip(ids, raw, texts, strict=True)
    }


def number_tokens(texts: Mapping[int, str]) -> TokenSet:
    """Digits and figures (7, 2.5, 1,000), ordinals (3rd, third) and number words, one token each."""
    return _matching(
        "number",
        "numbers",
        texts,
        lambda core: bool(_FIGURES.fullmatch(core)) or core.lower() in NUMBER_WORDS,
        NUMBER_WORDS,
    )


def letter_tokens(texts: Mapping[int, str]) -> TokenSet:
    """Option letters A to Z, bare or with a bracket, stop or colon; capitals only, as `a` is mostly an article."""
    letters = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    return _matching("letter", "option letters", texts, lambda core: bool(_LETTER.fullmatch(core)), letters)


def yes_no_tokens(texts: Mapping[int, str]) -> TokenSet:
    """Yes and no."""
    return _matching("yes_no", "yes and no", texts, lambda core: core.lower() in ("yes", "no"), ("yes", "no"))


def clock_tokens(texts: Mapping[int, str]) -> TokenSet:
    """Pieces of a time HH:MM: one or two digits below 60, the colon, and pieces that join them."""
    return _matching("clock", "pieces of HH:MM", texts, lambda core: bool(_CLOCK.fullmatch(core)), (":",))


KNOWN: Mapping[str, Callable[[Mapping[int, str]], TokenSet]] = {
    "number": number_tokens,
    "letter": letter_tokens,
    "yes_no": yes_no_tokens,
    "clock": clock_tokens,
}
"""The sets that every tokenizer is searched for, by name."""
TAUGHT = "taught"
"""The name that stands for one learned set per taught task, `taught:<task>`."""


def learned_tokens(
    tokenizer: Any, task: str, answers: Iterable[str], elsewhere: Iterable[str], texts: Mapping[int, str]
) -> TokenSet:
    """Tokens typical of a task's training answers: frequent in them, and rare in the texts `elsewhere`.

    A token counts if at least 1 % of the answers hold it, and at least 4 times the share of the other texts.
    Where none is rare elsewhere, all frequent ones count, and the source says so. Raises ConfigError for answers
    that hold no token at all.
    """
    own, n_own = _document_frequency(tokenizer, answers)
    other, n_other = _document_frequency(tokenizer, elsewhere)
    frequent = [i for i, n in own.items() if i in texts and texts[i].strip() and n >= LEAST_SHARE * n_own]
    typical = [i for i in frequent if own[i] / n_own >= LEAST_RATIO * other[i] / max(n_other, 1)]
    if not frequent:
        raise ConfigError(
            f"probe.token_sets: {task} has no training answers to learn from; leave out {TAUGHT}"
        )
    source = f"training answers of {task}" + ("" if typical else " (none of their tokens is rare elsewhere)")
    return _set(f"{TAUGHT}:{task}", source, typical or frequent, texts)


def find_sets(
    tokenizer: Any, names: Sequence[str], lessons: Mapping[str, Sequence[str]], elsewhere: Sequence[str]
) -> dict[str, TokenSet]:
    """The token sets called `names`; `lessons` holds training answers by task, for `taught`.

    Raises ConfigError for an unknown name, or a set of which the tokenizer has no token.
    """
    texts = token_texts(tokenizer)
    found: dict[str, TokenSet] = {}
    for name in names:
        if name == TAUGHT:
            for task in sorted(lessons):
                one = learned_tokens(tokenizer, task, lessons[task], elsewhere, texts)
                found[one.name] = one
            continue
        if name not in KNOWN:
            raise ConfigError(
                f"probe.token_sets: there is no set {name!r}; choose from: {', '.join((*KNOWN, TAUGHT))}"
            )
        found[name] = KNOWN[name](texts)
        if not found[name].ids:
            raise ConfigError(f"probe.token_sets: this tokenizer has no token for {name}; leave it out")
    return found


def _matching(
    name: str, source: str, texts: Mapping[int, str], test: Callable[[str], bool], words: Sequence[str]
) -> TokenSet:
    ids = [i for i, text in texts.items() if text.strip() and test(text.strip())]
    have = {texts[i].strip().lower() for i in ids}
    return _set(name, source, ids, texts, tuple(word for word in words if word.lower() not in have))


def _set(
    name: str, source: str, ids: Iterable[int], texts: Mapping[int, str], split: tuple[str, ...] = ()
) -> TokenSet:
    ordered = tuple(sorted(ids))
    return TokenSet(name, source, ordered, tuple(texts[i] for i in ordered), split)


def _document_frequency(tokenizer: Any, texts: Iterable[str]) -> tuple[Counter[int], int]:
    """In how many texts each token stands, and how many texts there are."""
    seen: Counter[int] = Counter()
    n = 0
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        seen.update(set(ids))
        n += 1
    return seen, n
