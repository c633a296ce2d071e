"""Hydra's own options on the command line of `run`: they may stand anywhere among the overrides."""

from __future__ import annotations

from collections.abc import Sequence

from lmm_forget.errors import ConfigError

OPTIONS_WITH_VALUE = (
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--info",
    "-i",
)
"""Hydra's options that are followed by a value."""
SHORT_OPTIONS = {"-cd": "--config-dir", "-cp": "--config-path", "-cn": "--config-name"}
"""Hydra's short names, and the options that they are."""


def move_options_first(arguments: Sequence[str]) -> list[str]:
    """The same command line, options before overrides: argparse refuses `a=b --config-dir mine c=d`.

    Raises ConfigError for an option given twice, or whose value is empty.
    """
    options: list[str] = []
    overrides: list[str] = []
    given_options: set[str] = set()
    words = iter(arguments)
    for word in words:
        if word == "--":
            overrides.extend(words)
            break
        if not word.startswith("-") or word == "-":
            overrides.append(word)
            continue
        options.append(word)
        name, equals, value = word.partition("=")
        is_abbreviated = name.startswith("--") and any(option.startswith(name) for option in OPTIONS_WITH_VALUE)
        if name not in OPTIONS_WITH_VALUE and not is_abbreviated:
            continue
        long_name = SHORT_OPTIONS.get(name, name)
        if long_name in given_options:
            raise ConfigError(f"{long_name} is given twice")
        given_options.add(long_name)
        option_value = value if equals else next(words, None)
        if option_value is not None and not option_value.strip():
            raise ConfigError(f"{name} is empty")
        if option_value is not None and not equals:
            options.append(option_value)
    return [*options, *overrides]
