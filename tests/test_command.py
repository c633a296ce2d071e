"""What all commands have in common: help, `format=`, one line for a mistake, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lmm_forget.cli.parser import (
    extract_format,
    extract_options,
    move_options_first,
    parse_folder_argument,
    run_command,
)
from lmm_forget.config import find_conf_dir
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
    options, rest = extract_options(["multirun/why/llm-seed=0", "examples=3"], ("examples",))
    assert options == {"examples": "3"} and rest == ["multirun/why/llm-seed=0"]
    assert extract_format(["a", "format=json", "b"]) == ("json", ["a", "b"])
    assert extract_format(["a"], ("text", "json")) == ("text", ["a"])
    assert parse_folder_argument(["a"], "why") == Path("a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=pdf"], r"format=pdf is not known; choose one of: table, json"),
        (["format=json", "format=table"], "format is given twice"),
    ],
)
def test_formats_that_do_not_exist(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extract_format(words)


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_one_folder(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"found {len(words)} folders, expected one: .*status multirun/<n"):
        parse_folder_argument(words, "status")


def test_a_reader_that_leaves_is_no_error() -> None:
    """`… | head -1`: no traceback, whichever command it is; the pipe is closed before anything is written."""
    code = (
        "import sys; from lmm_forget.cli.parser import run_command; sys.exit(run_command(lambda w: print('x' * 9), []))"
    )
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout is not None and done.stderr is not None
    done.stdout.close()
    assert done.stderr.read() == b"" and done.wait() == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_is_and_refuses_an_unknown_format(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib import import_module

    module = import_module(f"lmm_forget.cli.{command}")
    try:
        code = module.main(["--help"])
    except SystemExit as end:  # argparse prints its help and ends
        code = end.code
    assert code == 0 and f"lmm-forget {command}" in capsys.readouterr().out
    first = ["check"] if command == "data" else []
    assert module.main([*first, "format=pdf"]) == 2
    assert capsys.readouterr().err.startswith("lmm-forget: error: format=pdf is not known; choose one of: ")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a=b", "--config-dir", "D", "c=d"], ["--config-dir", "D", "a=b", "c=d"]),
        (["a=b", "--config-dir=D", "c=d", "-m"], ["--config-dir=D", "-m", "a=b", "c=d"]),
        (["--config-dir", "it's a ${x}, [y]=z", "a=b"], ["--config-dir", "it's a ${x}, [y]=z", "a=b"]),
        (["a=b", "--config-d", "D"], ["--config-d", "D", "a=b"]),
        (["a", "--", "b=c"], ["a", "b=c"]),
        (["a=b", "-"], ["a=b", "-"]),
    ],
)
def test_options_may_stand_anywhere(given: list[str], expected: list[str]) -> None:
    assert move_options_first(given) == expected


def test_options_are_given_once_and_have_a_value() -> None:
    for words, message in (
        (["--config-dir", "a", "b=c", "--config-dir", "d"], "--config-dir is given twice"),
        (["--config-dir", ""], "--config-dir is empty"),
        (["--config-dir= "], "--config-dir is empty"),
        (["-cd", "a", "b=c", "--config-dir", "d"], "--config-dir is given twice"),
        (["-cd", "a", "-cd", "a"], "--config-dir is given twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            move_options_first(words)
    assert move_options_first(["--fail-if", "a", "x", "--fail-if", "b"], ["--fail-if"], ["--fail-if"])[-1] == "x"


@pytest.mark.parametrize("folder", ["mine", 'it\'s "mine"', "a b", "${x}", "a,b=c", "[x]", "{y}", "ünï%41#?", "x:y"])
def test_every_command_takes_overrides_and_folders_as_run_does(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`key=value --config-dir D key=value`, whatever the folder is called, and wherever the command is given."""
    from lmm_forget import run
    from lmm_forget.cli import dashboard, plan

    home = tmp_path / f"{folder} home"
    (home / folder / "task").mkdir(parents=True)
    (home / folder / "recipe").mkdir()
    tiny = Path(find_conf_dir() / "task" / "tiny_cub200.yaml").read_text()
    (home / folder / "task" / "mine.yaml").write_text(tiny.replace("name: tiny_cub200", "name: mine"))
    (home / folder / "recipe" / "own.yaml").write_text("name: own\nrules: [{component: vision}]\n")
    monkeypatch.chdir(home)
    options = ["recipe=own", "--config-dir", folder, "seed=1"]
    single = ["sequence=single", "sequence.task=mine"]
    assert run.main([*options, *single, "sweep.dry_run=true"]) == 0
    assert "own: 1 stage" in capsys.readouterr().out
    assert dashboard.main(["entity=me", *options, *single, "format=json"]) == 0
    assert '"chartTitle": "mine"' in capsys.readouterr().out
    assert plan._compose_model_and_recipe(["recipe=own"], folder)[1]["rules"] == [{"component": "vision"}]
    assert plan.main(["model=nope", "--config-dir", folder, "recipe=own"]) == 2
    assert "there is no model 'nope'" in capsys.readouterr().err
    assert plan.main(["model=nope", "-cd", folder, "recipe=own"]) == 2
    assert "there is no model 'nope'" in capsys.readouterr().err


def test_a_file_is_no_configuration_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmm_forget import run
    from lmm_forget.cli import dashboard, data, plan

    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("{}")
    for option in ("--config-dir", "-cd"):
        for main, words in (
            (run.main, ["sweep.dry_run=true"]),
            (plan.main, []),
            (dashboard.main, ["entity=me"]),
            (data.main, ["check", "task=x"]),
        ):
            assert main([*words, option, "data.jsonl"]) == 2
            said = capsys.readouterr().err
            assert said.startswith("lmm-forget: error: the configuration folder data.jsonl is a file; give")
            assert said.count("\n") == 1
