"""The errors a user can meet: one line each, saying what is wrong, where, and what would be right."""

from __future__ import annotations

import sys
from typing import ClassVar

MAX_MESSAGE_LENGTH = 2000
"""Characters of a message."""


class LmmForgetError(Exception):
    """Root of every error that is the input's or the environment's fault, shown as one line without a traceback."""

    exit_code: ClassVar[int] = 2

    def __str__(self) -> str:
        """The message; of one that echoes more than anybody reads, such as a picture in a cell, both ends."""
        text = super().__str__()
        return text if len(text) <= MAX_MESSAGE_LENGTH else shorten_value(text, MAX_MESSAGE_LENGTH)


class ConfigError(LmmForgetError):
    """A choice in the configuration cannot be used."""


class PlanError(LmmForgetError):
    """A tune plan matches nothing, or does not cover the model."""


class DataError(LmmForgetError):
    """A dataset, a sample or an image cannot be used."""


class StoreError(LmmForgetError):
    """A record or a delta in the store is missing, damaged or of another version."""


class LaunchError(LmmForgetError):
    """A job could not be started, or ended without a result."""


def shorten_value(value: object, max_length: int = 80) -> str:
    """A value as messages echo it: on one line, without control characters, and its middle left out if it is long."""
    text = str(value)
    if len(text) > 4 * max_length:  # of a whole file's content only the ends are looked at
        text = text[: 2 * max_length] + "…" + text[-2 * max_length :]
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    if len(text) <= max_length:
        return text
    head = max_length // 3
    return f"{text[:head]}…{text[head + 1 - max_length :]}"


def format_os_error(error: OSError) -> str:
    """`multirun/x: Permission denied`."""
    name = error.filename2 or error.filename
    return f"{name}: {error.strerror}" if name and error.strerror else str(error)


def print_error(error: BaseException | str, label: str = "error") -> None:
    """Print an error as the one line on stderr that scripts and people look for; endless words are cut."""
    words = (word if len(word) <= 300 else f"{word[:200]}…{word[-60:]}" for word in str(error).split())
    print(f"lmm-forget: {label}: {' '.join(words)}", file=sys.stderr, flush=True)
