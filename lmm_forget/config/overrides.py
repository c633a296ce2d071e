"""What a command line may say, checked before Hydra reads it: Hydra answers some mistakes with a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lmm_forget.config.conf_dirs import list_group_choices
from lmm_forget.config.hydra_settings import check_hydra_override
from lmm_forget.config.job_names import check_sweep_name
from lmm_forget.config.renamed import refuse_renamed_key
from lmm_forget.config.schema.job_config import REQUIRED_GROUPS
from lmm_forget.config.suggestions import join_names
from lmm_forget.errors import ConfigError

MAX_OVERRIDE_LENGTH, MAX_SHOWN_LENGTH = 10_000, 60
"""Characters that a word of the command line may have, and those of it that a message repeats."""
CONFIG_DIR_HINT = "give the folder that groups of your own are in (recipe/mine.yaml, task/mine.yaml)"
_SWEEP_SYNTAX = (",", "range(", "choice(", "interval(", "glob(", "${")


def check_overrides(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> list[str]:
    """A command line's words as Hydra may have them; `config_dirs` are the user's own, whose choices are listed too.

    A callback of the user's is a new key, for which Hydra wants a +: it gets one where the user left it out.
    Raises ConfigError for a folder that is a file, for a word that cannot be one, for a group that is deleted, given no
    choice or several in brackets, for a bad name, and for Hydra's own settings where they would do nothing.
    """
    for folder in config_dirs:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"the configuration folder {folder} is a file; {CONFIG_DIR_HINT}")
    accepted = []
    for override in overrides:
        key, equals, value = override.lstrip("+~").partition("=")
        _check_override_text(override, key)
        check_hydra_override(key, override)
        refuse_renamed_key(key)
        if override.startswith("~") and key in REQUIRED_GROUPS:
            raise ConfigError(
                f"{override}: a run needs a {key}; choose one of: {_format_known_choices(key, config_dirs)}"
            )
        if equals and key == "experiment" and value == "null":
            continue  # what run.yaml says anyway
        if equals and key in (*REQUIRED_GROUPS, "experiment"):
            _check_group_choice(key, value, config_dirs)
        if equals and key == "name" and not any(sign in value for sign in _SWEEP_SYNTAX):
            check_sweep_name(value.strip("'\""))
        accepted.append(f"++{override}" if key.startswith("callbacks.") and override[0] not in "+~" else override)
    return accepted


def _check_override_text(override: str, key: str) -> None:
    """Refuse what Hydra's parser stumbles over, and what no file's name, table or page could hold."""
    shortened = override if len(override) <= MAX_SHOWN_LENGTH else f"{override[:MAX_SHOWN_LENGTH]}…"
    if len(override) > MAX_OVERRIDE_LENGTH:
        raise ConfigError(
            f"{shortened!r} has {len(override)} characters; a word of the command line may have {MAX_OVERRIDE_LENGTH}"
        )
    unprintable = next((sign for sign in override if not sign.isprintable() and sign not in "\n\t\u00a0"), None)
    if unprintable is not None:
        raise ConfigError(
            f"{shortened!r} holds the character U+{ord(unprintable):04X}, which nothing here can be named with"
        )
    if not key.strip():
        raise ConfigError(f"{shortened!r} has no key; write key=value")
    if any(sign.isspace() for sign in key):
        raise ConfigError(
            f"cannot read {shortened!r}: a key has no blanks; write key=value, and blanks in a value in quotes"
        )


def _check_group_choice(group: str, value: str, config_dirs: Sequence[Path]) -> None:
    choice = _parse_yaml_value(value)
    if isinstance(choice, list):
        listed = ",".join(map(str, choice))
        raise ConfigError(f"{group}={value}: a run has one {group}; -m {group}={listed} makes a job of each")
    if not isinstance(choice, str):
        raise ConfigError(f"{group}={value} is no choice; choose one of: {_format_known_choices(group, config_dirs)}")


def _format_known_choices(group: str, config_dirs: Sequence[Path]) -> str:
    return join_names(list_group_choices(group, config_dirs))


def _parse_yaml_value(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value
