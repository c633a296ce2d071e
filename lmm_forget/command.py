"""What all commands have in common: help, `key=value` words, one line for a mistake, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NoReturn

from lmm_forget.errors import ConfigError, LmmForgetError

Act = Callable[[list[str]], int | None]
FORMATS = ("table", "json")


def run_command(act: Act, arguments: Sequence[str] | None, help_text: str | None = None) -> int:
    """Do what `arguments` (None: the command line's) ask `act` for; returns the exit code.

    `act` returns 0 or None when all is well, and its own code otherwise. An LmmForgetError is told in one line on
    stderr and ends with its `exit_code`, an OSError with 2; Ctrl-C with 130. Where `help_text` is given, `-h` and
    `--help` print it and `act` is not called.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if help_text is not None and {"-h", "--help"} & set(words):
            print(help_text, end="", flush=True)
            return 0
        code = act(words) or 0
        sys.stdout.flush()  # a reader that has left shows here, not while Python ends
        return code
    except LmmForgetError as error:
        complain(error)
        return error.exit_code
    except BrokenPipeError:
        reader_left()
        return 0
    except OSError as error:  # a folder that cannot be read or written, a full disk
        complain(told(error))
        return 2
    except KeyboardInterrupt:
        print("lmm-forget: stopped", file=sys.stderr, flush=True)
        return 130


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are this package's: one line, raised as ConfigError."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print with its usage."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def told(error: OSError) -> str:
    """`multirun/x: Permission denied`."""
    name = error.filename2 or error.filename
    return f"{name}: {error.strerror}" if name and error.strerror else str(error)


def complain(error: BaseException | str, who: str = "error") -> None:
    """Print an error as the one line on stderr that scripts and people look for."""
    print(f"lmm-forget: {who}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def reader_left() -> None:
    """Whoever read our output (head, less) has seen enough: nothing written from here on is an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def take_options(words: Sequence[str], names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The `name=value` words among `words` whose name is one of `names`, and all others in their order.

    Folders may have `=` in their names (`sa_proj-seed=0`), so what is no option is no mistake here. Raises ConfigError
    for an option that is given twice.
    """
    options: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in names:
            rest.append(word)
        elif name in options:
            raise ConfigError(f"{name} is given twice")
        else:
            options[name] = value
    return options, rest


def take_format(words: Sequence[str], known: Sequence[str] = FORMATS) -> tuple[str, list[str]]:
    """The value of `format=` (default: the first of `known`), and the other words. Raises ConfigError."""
    options, rest = take_options(words, ("format",))
    form = options.get("format", known[0])
    if form not in known:
        raise ConfigError(f"format={form} is not known; choose one of: {', '.join(known)}")
    return form, rest


def one_folder(words: Sequence[str], command: str) -> Path:
    """The only word of `words`, as a folder's path. Raises ConfigError for options, and unless there is one word."""
    for word in words:
        if word.startswith("-") or ("=" in word and not Path(word).exists() and "/" not in word):
            raise ConfigError(f"there is no option {word}; see python -m lmm_forget.{command} --help")
    if len(words) != 1:
        raise ConfigError(
            f"found {len(words)} folders, expected one: python -m lmm_forget.{command} multirun/<name>"
        )
    return Path(words[0])
