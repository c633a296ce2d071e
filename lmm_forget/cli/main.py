"""The installed `lmm-forget` script; `python -m lmm_forget COMMAND …` is the same."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lmm_forget.cli.command import Command
from lmm_forget.cli.exit_codes import run_with_exit_code
from lmm_forget.errors import ConfigError, shorten_value

COMMAND_NAMES = (
    "run",
    "plan",
    "data",
    "status",
    "report",
    "compare",
    "why",
    "export",
    "store",
    "dashboard",
    "job",
    "completion",
)
"""Each is a module of lmm_forget.cli, in the order in which they are listed."""


def load_command(name: str) -> Command:
    """The description of the command `name`, one of COMMAND_NAMES."""
    command: Command = importlib.import_module(f"lmm_forget.cli.{name}").COMMAND
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, 2 for an unknown one."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv and argv[0] in COMMAND_NAMES:
        return load_command(argv[0]).main(argv[1:])
    return run_with_exit_code(lambda: _run_without_command(argv))


def _run_without_command(argv: list[str]) -> None:
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(format_command_list())
    elif argv[0] == "--version":
        from importlib.metadata import version

        print(f"lmm-forget {version('lmm-forget')}")
    else:
        from lmm_forget.config.error_messages import suggest_closest  # imports OmegaConf: for mistakes only

        names = ", ".join(COMMAND_NAMES)
        raise ConfigError(
            f"no command {shorten_value(argv[0])!r}; there are: {names}{suggest_closest(argv[0], COMMAND_NAMES)}"
        )


def run_deprecated_command(command: str) -> int:
    """What `python -m lmm_forget.COMMAND` does: print the new name on stderr, then run it; returns its exit code."""
    print(
        f"lmm-forget: note: `python -m lmm_forget.{command}` is now `lmm-forget {command}` "
        f"(or `python -m lmm_forget {command}`)",
        file=sys.stderr,
        flush=True,
    )
    return main([command, *sys.argv[1:]])


def format_command_list() -> str:
    """The list of commands, as `lmm-forget --help` prints it."""
    lines = [f"  {name:<12}{load_command(name).summary}" for name in COMMAND_NAMES]
    return "\n".join(
        [
            "usage: lmm-forget COMMAND [arguments]",
            "",
            *lines,
            "",
            "lmm-forget COMMAND --help describes a command; `lmm-forget completion --help`: tab completion.",
        ]
    )
