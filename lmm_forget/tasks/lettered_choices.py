"""Write and parse lettered options (`A. text`) of multiple-choice questions."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from lmm_forget.errors import DataError

LETTERS = string.ascii_uppercase
_OPTION = re.compile(r"^\(?([A-Z])[.):] ?(.+?)\s*$")


def append_choices(question: str, choices: Sequence[str]) -> str:
    """The question followed by one line `A. text` per option."""
    options = zip(LETTERS, choices, strict=False)
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in options)])


def parse_choice_letter(answer: str, num_choices: int) -> str:
    """The letter of a reference, given as a letter ("B") or a position from 0 ("1").

    Raises DataError if it is not among the first `num_choices` letters.
    """
    text = answer.strip()
    index = int(text) if text.isdecimal() else LETTERS.find(text.upper()) if len(text) == 1 else -1
    if not 0 <= index < num_choices:
        raise DataError(f"answer {answer!r} is neither a letter nor a position among {num_choices} options")
    return LETTERS[index]


def parse_listed_choices(question: str) -> tuple[str, ...] | None:
    """The options that a question lists itself, one per line from A on; None if there are fewer than two."""
    choices: list[str] = []
    for line in question.splitlines():
        match = _OPTION.match(line)
        if match and len(choices) < len(LETTERS) and match.group(1) == LETTERS[len(choices)]:
            choices.append(match.group(2))
    return tuple(choices) if len(choices) > 1 else None
