"""What all commands have in common: their description, help, parsing, one line for a mistake, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lmm_forget.cli.command import CONFIG_DIR, Action, Arguments, Command, Option
from lmm_forget.cli.exit_codes import run_with_exit_code
from lmm_forget.cli.hydra_options import move_options_first
from lmm_forget.cli.main import COMMAND_NAMES, load_command
from lmm_forget.config import find_conf_dir
from lmm_forget.errors import ConfigError, DataError


def _fail(*_: object) -> None:
    raise DataError("folder:\n  not a folder")


def _interrupt() -> None:
    raise KeyboardInterrupt


SHOW = Command(name="show", summary="show folders", run=_fail, words="FOLDER", formats=("table", "json"))
CLEAN = Command(
    name="clean",
    summary="list and remove",
    run=_fail,
    words="KEY",
    actions=(Action("ls", "", "list"), Action("rm", "KEY ...", "remove")),
    options=(
        Option("runs", "FOLDER", "where to look", repeatable=True),
        Option("force", "BOOL", "remove it all the same", choices=("true", "false"), actions=("rm",)),
    ),
)
COMPOSE = Command(
    name="compose",
    summary="compose",
    run=_fail,
    options=(Option("title", "TEXT", "a name"), CONFIG_DIR),
    formats=("table", "json"),
    override_prefixes=("",),
)


def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert SHOW.main(["there"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "lmm-forget: error: folder: not a folder\n" and captured.out == ""


def test_exit_codes() -> None:
    assert run_with_exit_code(lambda: None) == 0
    assert run_with_exit_code(lambda: 1) == 1
    assert run_with_exit_code(_interrupt) == 130


def test_help_is_made_from_the_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert CLEAN.main(["rm", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: lmm-forget clean [runs=FOLDER] [force=true|false]\n\nList and remove.\n")
    assert "  rm KEY ...  remove\n" in text and "rm: remove it all the same" in text
    assert "where to look; may be given several times" in text and "exit codes: 0 done, 2 " in text


def test_words_are_sorted_into_options_overrides_and_others() -> None:
    parsed = CLEAN.parse(["runs=a", "rm", "x", "force=true", "runs=b", "y"])
    assert (parsed.action, list(parsed.words), list(parsed.get_all("runs"))) == ("rm", ["x", "y"], ["a", "b"])
    assert parsed.get("force") == "true" and parsed.get("nothing") is None
    parsed = COMPOSE.parse(["seed=1", "-cd", "mine", "recipe", "title=a=b", "format=json", "--", "--x"])
    assert list(parsed.overrides) == ["seed=1", "recipe", "--x"] and not parsed.words
    assert (parsed.get("--config-dir"), parsed.get("title"), parsed.output_format) == ("mine", "a=b", "json")
    assert COMPOSE.parse(["--config-dir=mine"]).get("--config-dir") == "mine"


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("llm-seed=0").mkdir()
    assert SHOW.parse(["multirun/why/llm-seed=0"]).get_folder() == Path("multirun/why/llm-seed=0")
    assert list(SHOW.parse(["llm-seed=0", "llm-seed=0@2"]).words) == ["llm-seed=0", "llm-seed=0@2"]


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (SHOW, ["format=pdf"], "format=pdf is not known; choose one of: table, json"),
        (SHOW, ["format=json", "format=table"], "format is given twice"),
        (SHOW, ["format="], "format= is empty; give format=table|json"),
        (SHOW, ["fromat=json"], "there is no option fromat=; show has: format=; did you mean format?"),
        (SHOW, ["--format"], "there is no option --format; show has: format="),
        (CLEAN, [], "clean needs an action: ls, rm; see lmm-forget clean --help"),
        (CLEAN, ["rmm", "x"], "there is no action 'rmm'; choose one of: ls, rm; did you mean rm?"),
        (CLEAN, ["ls", "force=true"], "force= belongs to rm, not to ls"),
        (CLEAN, ["rm", "force=yes"], "force=yes is not known; choose one of: true, false"),
        (COMPOSE, ["-cd", "a", "--config-dir", "b"], "--config-dir is given twice"),
        (COMPOSE, ["--config-dir"], "--config-dir is empty; give --config-dir, -cd DIR"),
        (COMPOSE, ["--confi", "a"], "there is no option --confi; .*did you mean --config-dir?"),
    ],
)
def test_what_a_command_does_not_take(command: Command, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        command.parse(words)


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_one_folder(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"found {len(words)} folders, expected one: lmm-forget show multirun/<n"):
        SHOW.parse(words).get_folder()


def test_a_reader_that_leaves_is_no_error() -> None:
    """`… | head -1`: no traceback, whichever command it is; the pipe is closed before anything is written."""
    code = (
        "import sys; from lmm_forget.cli.exit_codes import run_with_exit_code; "
        "sys.exit(run_with_exit_code(lambda: print('x' * 9)))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_every_command_describes_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = load_command(name)
    assert command.name == name and command.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert f"lmm-forget {name}" in text and command.summary[1:] in " ".join(text.split())
    assert all(len(line) <= 120 for line in text.splitlines() if "Every key" not in line)
    for option in command.get_options():
        assert option.usage in " ".join(text.split())
    if command.formats:
        first = ["check"] if name == "data" else ["ls"] if name == "store" else []
        assert command.main([*first, "format=pdf"]) == 2
        assert capsys.readouterr().err.startswith("lmm-forget: error: format=pdf is not known; choose one of: ")


def test_the_words_that_hydra_parses_reach_run_as_they_are() -> None:
    seen: list[Arguments] = []
    command = Command(name="x", summary="y", run=lambda each: seen.append(each), is_parsed_by_hydra=True)
    assert command.main(["a=1", "--cfg", "job"]) == 0 and list(seen[0].words) == ["a=1", "--cfg", "job"]


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
