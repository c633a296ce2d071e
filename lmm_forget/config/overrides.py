"""What a command line may say, checked before Hydra reads it: Hydra answers some mistakes with a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lmm_forget.config.checks import GROUPS
from lmm_forget.config.hydra_keys import refuse_word
from lmm_forget.config.messages import listing
from lmm_forget.config.naming import check_name
from lmm_forget.errors import ConfigError

LONGEST, LONGEST_SHOWN = 10_000, 60
"""Characters that a word of the command line may have, and those of it that a message repeats."""
FOLDER = "give the folder that groups of your own are in (recipe/mine.yaml, task/mine.yaml)"
_SWEEPS = (",", "range(", "choice(", "interval(", "glob(", "${")


def checked(overrides: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """A command line's words as Hydra may have them; `folders` are the user's own, whose choices are listed too.

    Raises ConfigError for a folder that is a file, for a word that cannot be one, for a group that is deleted, given no
    choice or several in brackets, for a bad name, and for Hydra's own settings where they would do nothing.
    """
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"the configuration folder {folder} is a file; {FOLDER}")
    kept = []
    for word in overrides:
        key, equals, value = word.lstrip("+~").partition("=")
        _check_word(word, key)
        refuse_word(key, word)
        if word.startswith("~") and key in GROUPS:
            raise ConfigError(f"{word}: a run needs a {key}; choose one of: {_known(key, folders)}")
        if equals and key == "experiment" and value == "null":
            continue  # what run.yaml says anyway
        if equals and key in (*GROUPS, "experiment"):
            _check_choice(key, value, folders)
        if equals and key == "name" and not any(sign in value for sign in _SWEEPS):
            check_name(value.strip("'\""))
        kept.append(word)
    return kept


def _check_word(word: str, key: str) -> None:
    """Refuse what Hydra's parser stumbles over, and what no file's name, table or page could hold."""
    shown = word if len(word) <= LONGEST_SHOWN else f"{word[:LONGEST_SHOWN]}…"
    if len(word) > LONGEST:
        raise ConfigError(
            f"{shown!r} has {len(word)} characters; a word of the command line may have {LONGEST}"
        )
    odd = next((sign for sign in word if not sign.isprintable() and sign not in "\n\t\u00a0"), None)
    if odd is not None:
        raise ConfigError(
            f"{shown!r} holds the character U+{ord(odd):04X}, which nothing here can be named with"
        )
    if not key.strip():
        raise ConfigError(f"{shown!r} has no key; write key=value")
    if any(sign.isspace() for sign in key):
        raise ConfigError(
            f"cannot read {shown!r}: a key has no blanks; write key=value, and blanks in a value in quotes"
        )


def _check_choice(group: str, value: str, folders: Sequence[Path]) -> None:
    found = _read(value)
    if isinstance(found, list):
        listed = ",".join(map(str, found))
        raise ConfigError(f"{group}={value}: a run has one {group}; -m {group}={listed} makes a job of each")
    if not isinstance(found, str):
        raise ConfigError(f"{group}={value} is no choice; choose one of: {_known(group, folders)}")


def _known(group: str, folders: Sequence[Path]) -> str:
    from lmm_forget.config.composing import choices

    return listing(choices(group, folders))


def _read(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value
