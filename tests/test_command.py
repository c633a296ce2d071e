"""What all commands have in common: help, `format=`, one line for a mistake, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lmm_forget.command import one_folder, run_command, take_format, take_options
from lmm_forget.errors import ConfigError, DataError

COMMANDS = ("compare", "dashboard", "data", "export", "plan", "report", "status", "store", "why")


def _mistake(words: list[str]) -> None:
    raise DataError(f"{words[0]}:\n  not a folder")


def _stopped(words: list[str]) -> None:
    raise KeyboardInterrupt


def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(_mistake, ["there"]) == 2
    said = capsys.readouterr()
    assert said.err == "lmm-forget: error: there: not a folder\n" and said.out == ""


def test_exit_codes() -> None:
    assert run_command(lambda _: None, []) == 0
    assert run_command(lambda _: 1, []) == 1
    assert run_command(_stopped, []) == 130


def test_help_comes_before_anything_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(_mistake, ["there", "-h"], "usage: …\n") == 0
    assert capsys.readouterr().out == "usage: …\n"


def test_words_with_an_equals_sign_that_are_no_options_stay_words() -> None:
    options, rest = take_options(["multirun/why/llm-seed=0", "examples=3"], ("examples",))
    assert options == {"examples": "3"} and rest == ["multirun/why/llm-seed=0"]
    assert take_format(["a", "format=json", "b"]) == ("json", ["a", "b"])
    assert take_format(["a"], ("text", "json")) == ("text", ["a"])
    assert one_folder(["a"], "why") == Path("a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=pdf"], r"format=pdf is not known; choose one of: table, json"),
        (["format=json", "format=table"], "format is given twice"),
    ],
)
def test_formats_that_do_not_exist(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        take_format(words)


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_one_folder(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"found {len(words)} folders, expected one: .*status multirun/<n"):
        one_folder(words, "status")


def test_a_reader_that_leaves_is_no_error() -> None:
    """`… | head -1`: no traceback, whichever command it is; the pipe is closed before anything is written."""
    code = "import sys; from lmm_forget.command import run_command; sys.exit(run_command(lambda w: print('x' * 9), []))"
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout is not None and done.stderr is not None
    done.stdout.close()
    assert done.stderr.read() == b"" and done.wait() == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_is_and_refuses_an_unknown_format(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib import import_module

    try:
        module = import_module(f"lmm_forget.{command}.__main__")
    except ModuleNotFoundError:
        module = import_module(f"lmm_forget.{command}")
    try:
        code = module.main(["--help"])
    except SystemExit as end:  # argparse prints its help and ends
        code = end.code
    assert code == 0 and f"python -m lmm_forget.{command}" in capsys.readouterr().out
    first = ["check"] if command == "data" else []
    assert module.main([*first, "format=pdf"]) == 2
    assert capsys.readouterr().err.startswith("lmm-forget: error: format=pdf is not known; choose one of: ")
