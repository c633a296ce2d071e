"""The installed `lmm-forget` script: `lmm-forget run …` is `python -m lmm_forget.run …`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from lmm_forget.cli.parser import run_command
from lmm_forget.errors import ConfigError

COMMANDS = {
    "run": "teach a sequence of skills, as one job or as a sweep (-m)",
    "plan": "which parameters a recipe moves, without loading weights",
    "why": "how output shift and forgetting go together, and which questions turned wrong",
    "data": "look at a task's data, or fetch what it links to",
    "report": "draw a sweep's tables and pictures again",
    "status": "what every job of a sweep is doing, wherever it runs",
    "store": "look into the archive of finished work, check it, clean it",
    "compare": "two jobs, two stages, or a job and its base, question by question",
    "dashboard": "build the W&B view of a project, and save it there",
    "export": "a stage's model as an ordinary Hugging Face folder",
    "job": "run one resolved job.yaml",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, 2 for an unknown one."""
    return run_command(_run_subcommand, arguments)


def _run_subcommand(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(format_command_list())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"lmm-forget {version('lmm-forget')}")
        return 0
    command, command_arguments = arguments[0], arguments[1:]
    if command not in COMMANDS:
        close_matches = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close_matches[0]}?" if close_matches else ""
        shortened = command if len(command) < 60 else f"{command[:60]}…"
        raise ConfigError(f"no command {shortened!r}; there are: {', '.join(COMMANDS)}{hint}")
    module = "experiment.job" if command == "job" else f"cli.{command}"
    return int(importlib.import_module(f"lmm_forget.{module}").main(command_arguments) or 0)


def run_deprecated_command(command: str) -> int:
    """What `python -m lmm_forget.COMMAND` does: say the new name on stderr, then run it; returns its exit code."""
    print(
        f"lmm-forget: note: `python -m lmm_forget.{command}` is now `lmm-forget {command}` "
        f"(or `python -m lmm_forget {command}`)",
        file=sys.stderr,
        flush=True,
    )
    return main([command, *sys.argv[1:]])


def format_command_list() -> str:
    """The list of commands."""
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: lmm-forget COMMAND [arguments]", "", *lines, "", "lmm-forget COMMAND --help says more."])
