"""Ends of messages: names that exist, and the one that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def suggest_closest(word: str, known_words: Sequence[str]) -> str:
    """`; did you mean X?` if a known word is close, else nothing."""
    close_matches = difflib.get_close_matches(word, known_words, n=1)
    return f"; did you mean {close_matches[0]}?" if close_matches else ""


def join_names(names: Sequence[str]) -> str:
    """Names for the end of a message; `nothing` if there are none."""
    return ", ".join(names) if names else "nothing"
