"""Sets of tokens that stand for an answer format: numbers, option letters, yes and no, times, or a task's answers.

The text of every token of a tokenizer is matched, with and without a leading space, in any case. A word that the
tokenizer splits into several tokens has no token of its own; such words are only listed (`TokenSet.split_words`).
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
_NUMERALS = re.compile(r"\d+([.,]\d+)*|\d*(1st|2nd|3rd|\dth)", re.ASCII | re.IGNORECASE)
_LETTER = re.compile(r"\(?[A-Z][.):]?")
_CLOCK = re.compile(r":|:?[0-5]?\d|[0-2]?\d:([0-5]\d?)?", re.ASCII)

MIN_ANSWER_SHARE, MIN_FREQUENCY_RATIO = 0.01, 4.0
"""A learned token occurs in at least this share of a task's answers, and so many times more often than elsewhere."""


@dataclass(frozen=True)
class TokenSet:
    """A named set of token ids (ascending) with their texts; `split_words` are words of it that are no single token."""

    name: str
    source: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    split_words: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Its entry in results.json."""
        return {
            "source": self.source,
            "size": len(self.ids),
            "tokens": list(self.tokens),
            "split": list(self.split_words),
        }


def decode_token_texts(tokenizer: Any) -> dict[int, str]:
    """The text of every ordinary token by id, with its leading space; special tokens are left out."""
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


def find_number_tokens(token_texts: Mapping[int, str]) -> TokenSet:
    """Digits and figures (7, 2.5, 1,000), ordinals (3rd, third) and number words, one token each."""
    return _find_matching_tokens(
        "number",
        "numbers",
        token_texts,
        lambda core: bool(_NUMERALS.fullmatch(core)) or core.lower() in NUMBER_WORDS,
        NUMBER_WORDS,
    )


def find_letter_tokens(token_texts: Mapping[int, str]) -> TokenSet:
    """Option letters A to Z, bare or with a bracket, stop or colon; capitals only, because "a" is mostly an article."""
    letters = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    return _find_matching_tokens(
        "letter", "option letters", token_texts, lambda core: bool(_LETTER.fullmatch(core)), letters
    )


def find_yes_no_tokens(token_texts: Mapping[int, str]) -> TokenSet:
    """Yes and no."""
    return _find_matching_tokens(
        "yes_no", "yes and no", token_texts, lambda core: core.lower() in ("yes", "no"), ("yes", "no")
    )


def find_clock_tokens(token_texts: Mapping[int, str]) -> TokenSet:
    """Pieces of a time HH:MM: one or two digits below 60, the colon, and pieces that join them."""
    return _find_matching_tokens(
        "clock", "pieces of HH:MM", token_texts, lambda core: bool(_CLOCK.fullmatch(core)), (":",)
    )


TOKEN_SET_FINDERS: Mapping[str, Callable[[Mapping[int, str]], TokenSet]] = {
    "number": find_number_tokens,
    "letter": find_letter_tokens,
    "yes_no": find_yes_no_tokens,
    "clock": find_clock_tokens,
}
"""Functions that find a set in any tokenizer, by the set's name."""
LEARNED_SET_NAME = "trained"
"""The name that stands for one learned set per trained task, which is called trained:<task>."""


def find_learned_tokens(
    tokenizer: Any,
    task: str,
    answers: Iterable[str],
    other_texts: Iterable[str],
    token_texts: Mapping[int, str],
) -> TokenSet:
    """Tokens typical of a task's training answers: frequent in them, and rare in `other_texts`.

    A token counts if at least 1 % of the answers contain it, and at least 4 times the share of the other texts. If none
    is rare in the other texts, all frequent ones count, and the set's source says so. Raises ConfigError for answers
    without any token.
    """
    answer_frequency, num_answers = _count_document_frequency(tokenizer, answers)
    other_frequency, num_other_texts = _count_document_frequency(tokenizer, other_texts)
    frequent = [
        i
        for i, n in answer_frequency.items()
        if i in token_texts and token_texts[i].strip() and n >= MIN_ANSWER_SHARE * num_answers
    ]
    typical = [
        i
        for i in frequent
        if answer_frequency[i] / num_answers >= MIN_FREQUENCY_RATIO * other_frequency[i] / max(num_other_texts, 1)
    ]
    if not frequent:
        raise ConfigError(
            f"probe.token_sets: {task} has no training answers to learn from; leave out {LEARNED_SET_NAME}"
        )
    source = f"training answers of {task}" + ("" if typical else " (none of their tokens is rare elsewhere)")
    return _make_token_set(f"{LEARNED_SET_NAME}:{task}", source, typical or frequent, token_texts)


def find_token_sets(
    tokenizer: Any,
    set_names: Sequence[str],
    training_answers: Mapping[str, Sequence[str]],
    other_texts: Sequence[str],
) -> dict[str, TokenSet]:
    """The token sets with these names; `training_answers` (by task) and `other_texts` serve for the name "trained".

    Raises ConfigError for an unknown name, or a set of which the tokenizer has no token.
    """
    token_texts = decode_token_texts(tokenizer)
    token_sets: dict[str, TokenSet] = {}
    for name in set_names:
        if name == LEARNED_SET_NAME:
            for task in sorted(training_answers):
                token_set = find_learned_tokens(tokenizer, task, training_answers[task], other_texts, token_texts)
                token_sets[token_set.name] = token_set
            continue
        if name not in TOKEN_SET_FINDERS:
            raise ConfigError(
                f"probe.token_sets: there is no set {name!r}; choose from: "
                f"{', '.join((*TOKEN_SET_FINDERS, LEARNED_SET_NAME))}"
            )
        token_sets[name] = TOKEN_SET_FINDERS[name](token_texts)
        if not token_sets[name].ids:
            raise ConfigError(f"probe.token_sets: this tokenizer has no token for {name}; leave it out")
    return token_sets


def _find_matching_tokens(
    name: str,
    source: str,
    token_texts: Mapping[int, str],
    is_match: Callable[[str], bool],
    words: Sequence[str],
) -> TokenSet:
    ids = [i for i, text in token_texts.items() if text.strip() and is_match(text.strip())]
    found_texts = {token_texts[i].strip().lower() for i in ids}
    return _make_token_set(
        name, source, ids, token_texts, tuple(word for word in words if word.lower() not in found_texts)
    )


def _make_token_set(
    name: str,
    source: str,
    ids: Iterable[int],
    token_texts: Mapping[int, str],
    split_words: tuple[str, ...] = (),
) -> TokenSet:
    ordered = tuple(sorted(ids))
    return TokenSet(name, source, ordered, tuple(token_texts[i] for i in ordered), split_words)


def _count_document_frequency(tokenizer: Any, texts: Iterable[str]) -> tuple[Counter[int], int]:
    """In how many texts each token occurs, and how many texts there are."""
    frequency: Counter[int] = Counter()
    num_texts = 0
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        frequency.update(set(ids))
        num_texts += 1
    return frequency, num_texts
