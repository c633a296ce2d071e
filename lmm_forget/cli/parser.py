"""What all commands have in common: help, `key=value` words, one line for a mistake, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NoReturn

from lmm_forget.errors import ConfigError, LmmForgetError, format_os_error, print_error

Command = Callable[[list[str]], int | None]
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
OUTPUT_FORMATS = ("table", "json")


def run_command(command: Command, arguments: Sequence[str] | None, help_text: str | None = None) -> int:
    """Do what `arguments` (None: the command line's) ask `act` for; returns the exit code.

    `act` returns 0 or None when all is well, and its own code otherwise. An LmmForgetError is told in one line on
    stderr and ends with its `exit_code`, an OSError with 2; Ctrl-C with 130. Where `help_text` is given, `-h` and
    `--help` print it and `act` is not called.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if help_text is not None and {"-h", "--help"} & set(argv):
            print(help_text, end="", flush=True)
            return 0
        code = command(argv) or 0
        sys.stdout.flush()  # a reader that has left shows here, not while Python ends
        return code
    except LmmForgetError as error:
        print_error(error)
        return error.exit_code
    except BrokenPipeError:
        handle_broken_pipe()
        return 0
    except OSError as error:  # a folder that cannot be read or written, a full disk
        print_error(_describe_stdout_error(error) or format_os_error(error))
        return 2
    except KeyboardInterrupt:
        print("lmm-forget: stopped", file=sys.stderr, flush=True)
        return 130


class CommandLineParser(argparse.ArgumentParser):
    """argparse whose complaints are this package's: one line, raised as ConfigError; options may stand anywhere."""

    def parse_arguments(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments of a command line, its options wherever they stand among other words. Raises ConfigError."""
        value_actions = [action for action in self._actions if action.option_strings and action.nargs is None]
        names = [name for action in value_actions for name in action.option_strings]
        repeatable_options = [
            name for action in value_actions if isinstance(action.default, list) for name in action.option_strings
        ]
        return self.parse_args(move_options_first(arguments, names, repeatable_options))

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print with its usage."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def move_options_first(
    arguments: Sequence[str],
    options_with_value: Collection[str] = OPTIONS_WITH_VALUE,
    repeatable_options: Collection[str] = (),
) -> list[str]:
    """The same command line, options before other words: argparse refuses `a=b --config-dir mine c=d`.

    `valued` are the options that are followed by a value, `often` those of them that may be given several times.
    Raises ConfigError for an option given twice, or whose value is empty.
    """
    options: list[str] = []
    others: list[str] = []
    given_options: set[str] = set()
    words = iter(arguments)
    for word in words:
        if word == "--":
            others.extend(words)
            break
        if not word.startswith("-") or word == "-":
            others.append(word)
            continue
        options.append(word)
        name, equals, value = word.partition("=")
        if name not in options_with_value and not (
            name.startswith("--") and any(v.startswith(name) for v in options_with_value)
        ):
            continue
        long = SHORT_OPTIONS.get(name, name)
        if long in given_options and name not in repeatable_options:
            raise ConfigError(f"{long} is given twice")
        given_options.add(long)
        following = value if equals else next(words, None)
        if following is not None and not following.strip():
            raise ConfigError(f"{name} is empty")
        if following is not None and not equals:
            options.append(following)
    return [*options, *others]


def _describe_stdout_error(error: OSError) -> str | None:
    """The line for an error that names no file, where it was standard output that could not be written."""
    if error.filename is not None or error.errno is None:
        return None
    try:  # what Python had kept for it is gone after the error: one more sign shows whether it takes any
        os.write(sys.stdout.fileno(), b"\n")
    except (OSError, ValueError) as retry_error:
        if getattr(retry_error, "errno", None) != error.errno:
            return None
        handle_broken_pipe()  # or Python tries once more while it ends
        return f"standard output: {error.strerror or error}"
    return None


def handle_broken_pipe() -> None:
    """Whoever read our output (head, less) has seen enough: nothing written from here on is an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def extract_options(arguments: Sequence[str], option_names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The `name=value` words among `words` whose name is one of `names`, and all others in their order.

    Folders may have `=` in their names (`sa_proj-seed=0`), so what is no option is no mistake here. Raises ConfigError
    for an option that is given twice.
    """
    options: dict[str, str] = {}
    remaining: list[str] = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals or name not in option_names:
            remaining.append(word)
        elif name in options:
            raise ConfigError(f"{name} is given twice")
        else:
            options[name] = value
    return options, remaining


def extract_format(arguments: Sequence[str], allowed_formats: Sequence[str] = OUTPUT_FORMATS) -> tuple[str, list[str]]:
    """The value of `format=` (default: the first of `known`), and the other words. Raises ConfigError."""
    options, remaining = extract_options(arguments, ("format",))
    output_format = options.get("format", allowed_formats[0])
    if output_format not in allowed_formats:
        raise ConfigError(f"format={output_format} is not known; choose one of: {', '.join(allowed_formats)}")
    return output_format, remaining


def parse_folder_argument(arguments: Sequence[str], command_name: str) -> Path:
    """The only word of `words`, as a folder's path. Raises ConfigError for options, and unless there is one word."""
    for word in arguments:
        if word.startswith("-") or ("=" in word and not Path(word).exists() and "/" not in word):
            raise ConfigError(f"there is no option {word}; see python -m lmm_forget.{command_name} --help")
    if len(arguments) != 1:
        raise ConfigError(
            f"found {len(arguments)} folders, expected one: python -m lmm_forget.{command_name} multirun/<name>"
        )
    return Path(arguments[0])
