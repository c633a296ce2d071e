"""Lettered options under a question."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from lmm_forget.errors import DataError

LETTERS = string.ascii_uppercase
_OPTION = re.compile(r"^\(?([A-Z])[.):] ?(.+?)\s*$")


def append_choices(question: str, choices: Sequence[str]) -> str:
    """The question with one line `A. text` per option below it."""
    options = zip(LETTERS, choices, strict=False)
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in options)])


def parse_choice_letter(answer: str, num_choices: int) -> str:
    """The letter of a reference that is a letter ("B") or a position from 0 ("1"). DataError beyond `n` options."""
    text = answer.strip()
    index = int(text) if text.isdecimal() else LETTERS.find(text.upper()) if len(text) == 1 else -1
    if not 0 <= index < num_choices:
        raise DataError(f"answer {answer!r} is neither a letter nor a position among {num_choices} options")
    return LETTERS[index]


def parse_listed_choices(question: str) -> tuple[str, ...] | None:
    """Options that a published question already lists, one per line from A on; None if there are not two."""
    choices: list[str] = []
    for line in question.splitlines():
        match = _OPTION.match(line)
        if match and len(choices) < len(LETTERS) and match.group(1) == LETTERS[len(choices)]:
            choices.append(match.group(2))
    return tuple(choices) if len(choices) > 1 else None
