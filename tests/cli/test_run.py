"""The front door itself: help, refusals, exit codes; and the job process on its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.cli.hydra_options import move_options_first
from lmm_forget.distributed.process_group import RankInfo
from lmm_forget.errors import LaunchError
from lmm_forget.launch.torchrun import build_world_size_overrides
from lmm_forget.run import main

ROOT = Path(__file__).resolve().parents[2]


COMMAND = {
    "run": ["lmm_forget.run"],
    "lmm-forget": ["lmm_forget"],
    "job": ["lmm_forget", "job"],
}


def call(command: str, *arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **extra}
    line = [sys.executable, "-m", *COMMAND[command], *arguments]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_help_is_quick_and_lists_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "mine/task").mkdir(parents=True)
    (tmp_path / "mine/task/my_skill.yaml").write_text("role: target\n")
    done = call("run", "--help", "--config-dir", "mine", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr
    for word in (
        "mlp_gateup",
        "sa_proj",
        "tiny_onevision",
        "range(0,120)",
        "experiment=smoke",
        "my_skill",
        "--config-dir",
    ):
        assert word in done.stdout
    assert not list(tmp_path.glob("multirun")) and not list(tmp_path.glob("outputs"))


def test_help_of_a_group_and_of_a_setting(tmp_path: Path) -> None:
    done = call("run", "--help", "--config-dir", ".", "training.max_steps", "logger", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr
    assert "training.max_steps: a whole number of at least 1, or null" in done.stdout
    assert "logger.project: " in done.stdout and "training.epochs" not in done.stdout
    refused = call("run", "--help", "trainig", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "there is no group or setting 'trainig'" in refused.stderr and "did you mean training?" in refused.stderr


def test_options_may_stand_behind_overrides() -> None:
    given = ["seed=1", "--config-dir", "mine", "recipe=llm", "-m", "--cfg", "job"]
    assert move_options_first(given) == ["--config-dir", "mine", "-m", "--cfg", "job", "seed=1", "recipe=llm"]
    assert move_options_first(["seed=1", "--config-dir"]) == ["--config-dir", "seed=1"]


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    line = f"{sys.executable} -m lmm_forget.run --help | head -1"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("usage: python -m lmm_forget.run") and "Error" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["recipe=nope"], ["-m", "seed=-1,-2"]])
def test_the_front_door_imports_no_torch(tmp_path: Path, arguments: list[str]) -> None:
    program = (
        "import sys\nfrom lmm_forget.run import main\nmain(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'lightning', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["recipe=nope"], "there is no recipe 'nope'; choose one of: ewc, full"),
        (["sequence=single", "sequence.task=nope"], "there is no task 'nope'"),
        (["-m", "recipe=llm,nope"], "there is no recipe 'nope'"),
        (["-m", "training.epochs=1,0"], "training.epochs=0 cannot be used"),
        (["-m", "name=a,b"], "name cannot be varied"),
        (["-m", "hydra/launcher=basic", "hardware.devices=2", "recipe=llm,mlp"], "hydra/launcher=isolated"),
        (
            ["-m", "hydra/launcher=basic", "hardware=ddp", "recipe=llm,mlp"],
            "isolated, the default: python -m",
        ),
        (["-m", "--cfg", "job"], "-m starts a sweep"),
        (["--recipe", "llm"], "unrecognized arguments: --recipe"),
        (["--config-dir", "nowhere"], "nowhere' not found"),
        (["+hydra.nope=1", "training.x=1"], "there is no 'training.x'"),
    ],
)
def test_a_wrong_choice_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = call("run", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("lmm-forget: error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not list(tmp_path.glob("multirun/*/*/job.yaml"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["training=null"], "training=null is no choice; choose one of: default"),
        (["recipe=3"], "recipe=3 is no choice; choose one of: ewc, full"),
        (["recipe=[sa_proj,llm]"], "a run has one recipe; -m recipe=sa_proj,llm makes a job of each"),
        (["~recipe"], "~recipe: a run needs a recipe; choose one of: ewc, full"),
        (["name=../x"], "name='../x' cannot be a folder"),
        (["name=ünï"], "name='ünï' cannot be a folder"),
        (["name=" + "x" * 300], "has 300 characters; a folder's name may have 200"),
        (["tasks=3"], "tasks=3 must be keys and values"),
        (["tasks.ai2d.path=x"], "a change to a task is added: +tasks.ai2d.path=…"),
        (["probe.n=3"], "probe=none has no settings; choose another: both"),
        (["sequence.tasks=cub200"], "sequence.tasks=cub200 must be a list: sequence.tasks=[cub200]"),
        (["sequence=single", "sequence.task=3"], "sequence.task=3 is no name"),
        (["+suite.subset.samples=0"], "suite.subset.samples=0 cannot be used; it must be a whole number of at least 1"),
        (["-m", "seed=range(0,0)"], "the sweep has no grid point"),
        (["-m", "experiment=demo,why"], "experiment=demo is a sweep itself, over recipe"),
        (["--experimental-rerun", "x.pickle"], "--experimental-rerun is not supported"),
    ],
)
def test_what_hydra_would_answer_with_a_traceback(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("lmm-forget: error: ") and said.count("\n") == 1
    assert message in said
    assert not list(tmp_path.rglob("*")) or arguments[0] == "-m"  # nothing is left where nothing was begun


def test_a_plan_leaves_nothing_behind(tmp_path: Path) -> None:
    done = call("run", "-m", "recipe=llm,mlp", "sweep.dry_run=true", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("plan: 2 jobs, 10 stages: 0 in the store")
    assert not list(tmp_path.rglob("*"))


def test_a_sweep_started_as_one_job_says_so(tmp_path: Path) -> None:
    done = call("run", "experiment=lr_grid", "sweep.dry_run=true", cwd=tmp_path)
    assert done.returncode == 0 and "plan: 1 job" in done.stdout
    assert "experiment=lr_grid is a sweep over recipe, training.learning_rate" in done.stderr


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "multirun").write_text("a file")
    done = call("run", "experiment=smoke", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "multirun" in done.stderr and "Traceback" not in done.stderr


def test_what_torchrun_cannot_start_is_refused(tmp_path: Path) -> None:
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    sweep = call("run", "-m", "recipe=llm,mlp", cwd=tmp_path, **ranks)
    assert sweep.returncode == 2 and "-m under torchrun" in sweep.stderr and sweep.stderr.count("\n") == 1
    assert "plain python -m lmm_forget.run -m recipe=llm,mlp" in sweep.stderr
    half = call("run", "recipe=llm", cwd=tmp_path, **{**ranks, "WORLD_SIZE": "2"})
    assert half.returncode == 2 and half.stderr.count("\n") == 1
    assert "WORLD_SIZE=2 is set but not LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT" in half.stderr
    assert not (tmp_path / "multirun").exists()


@pytest.mark.parametrize(
    "place, given, expected",
    [
        ((2, 2), [], ["hardware.devices=2", "hardware.nodes=1"]),
        ((8, 4), ["recipe=llm"], ["hardware.devices=4", "hardware.nodes=2"]),
        ((8, 4), ["hardware.nodes=2", "+hardware.devices=4"], []),
        ((8, 4), ["hardware.devices=8"], "hardware.devices=8, but torchrun started 4 processes on each of 2"),
        ((3, 2), [], "3 processes, 2 of them here"),
    ],
)
def test_devices_and_nodes_are_those_that_torchrun_started(
    place: tuple[int, int], given: list[str], expected: list[str] | str
) -> None:
    size, here = place
    if isinstance(expected, str):
        with pytest.raises(LaunchError, match=expected):
            build_world_size_overrides(RankInfo(0, size, 0, here), given)
    else:
        assert build_world_size_overrides(RankInfo(0, size, 0, here), given) == expected


def test_the_configuration_can_be_printed(tmp_path: Path) -> None:
    done = call("run", "--cfg", "job", "--resolve", "recipe=mlp", cwd=tmp_path)
    assert done.returncode == 0 and "name: mlp\n" in done.stdout and "name: tiny_onevision\n" in done.stdout


def test_the_script_lists_and_dispatches(tmp_path: Path) -> None:
    listed = call("lmm-forget", cwd=tmp_path)
    assert listed.returncode == 0 and "  run " in listed.stdout and "  plan " in listed.stdout
    unknown = call("lmm-forget", "rum", cwd=tmp_path)
    assert unknown.returncode == 2 and "did you mean run?" in unknown.stderr and unknown.stderr.count("\n") == 1
    inner = call("lmm-forget", "run", "recipe=nope", cwd=tmp_path)
    assert inner.returncode == 2 and inner.stderr.startswith("lmm-forget: error: there is no recipe")
    assert call("lmm-forget", "run", "--help", cwd=tmp_path).stdout == call("run", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot read job.yaml"),
        ("[1", "is not YAML"),
        ("seed: 0\n", "is not a resolved job configuration"),
    ],
)
def test_a_job_refuses_a_file_that_is_none(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "job.yaml").write_text(text)
    done = call("job", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_status_is_written_while_a_job_lives(tmp_path: Path) -> None:
    from lmm_forget.distributed.heartbeat import StatusFile, close_running_status, read_job_status

    with StatusFile(tmp_path) as status:
        assert read_job_status(tmp_path)["phase"] == "starting"
        status.start_phase("train", 8, "step")
        status.advance(2, loss=0.5)
        status.advance(2, rate="x")
        limit = time.monotonic() + 10
        while read_job_status(tmp_path)["done"] != 4:
            assert time.monotonic() < limit
            time.sleep(0.05)
        seen = read_job_status(tmp_path)
        assert (seen["state"], seen["total"], seen["unit"], seen["pid"]) == (
            "running",
            8,
            "step",
            os.getpid(),
        )
        assert seen["info"] == {"loss": 0.5, "rate": "x"} and seen["rate"] > 0
        assert seen["started"] <= seen["updated"]
    close_running_status(tmp_path, "failed", "killed")
    assert (read_job_status(tmp_path)["state"], read_job_status(tmp_path)["error"]) == ("failed", "killed")
    close_running_status(tmp_path, "interrupted")  # the last word stays
    assert read_job_status(tmp_path)["state"] == "failed"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


BAD_YAML = {
    "latin": ("name: café\n".encode("latin-1"), "x.yaml is not UTF-8"),
    "utf16": ("name: a\n".encode("utf-16"), "x.yaml is not UTF-8"),
    "tabs": (b"name: a\n\tb: 3\n", "x.yaml is not readable YAML: line 2, column 1: found character"),
    "twice": (b"name: a\nname: b\n", "x.yaml is not readable YAML: line 2, column 1: found duplicate key"),
    "list": (b"- 1\n", "must hold keys and values"),
    "number": (b"3\n", "x.yaml must hold keys and values"),
    "brackets": (b"name: [1\n", "x.yaml is not readable YAML"),
    "tag": (b"name: !!python/object:os.system x\n", "x.yaml is not readable YAML"),
    "control": (b"name: \x00\n", "x.yaml is not readable YAML"),
    "cycle": (b"defaults: [x]\n", "the defaults lists of the YAMLs in mine include each other"),
}


@pytest.mark.parametrize("kind", BAD_YAML)
@pytest.mark.parametrize("group", ["recipe", "task"])
def test_a_yaml_of_the_users_that_cannot_be_used_is_named(
    kind: str, group: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    content, message = BAD_YAML[kind]
    if group == "task" and kind == "cycle":
        pytest.skip("a task's YAML has no defaults list")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / group).mkdir(parents=True)
    (tmp_path / "mine" / group / "x.yaml").write_bytes(content)
    choice = ["recipe=x"] if group == "recipe" else ["sequence=single", "sequence.task=x"]
    assert main(["--config-dir", "mine", *choice, "sweep.dry_run=true"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lmm-forget: error: ") and said.count("\n") == 1 and message in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run =3"], "a key has no blanks"),
        (["=3"], "'=3' has no key"),
        (["+"], "'+' has no key"),
        ([""], "'' has no key"),
        (["seed=\x00"], "the character U+0000"),
        (["seed=" + "1" * 20_000], "a word of the command line may have 10000"),
        (["seed=" + "9" * 30], "seed=" + "9" * 30 + " cannot be used"),
        (["hydra=3"], "would replace Hydra's own settings"),
        (["hydra.sweeper=5"], "set hydra/sweeper=NAME"),
        (["+hydra.launcher=x"], "set hydra/launcher=NAME"),
        (["hydra/launcher=null"], "Config group override must be a string"),
        (["~hydra/launcher"], "choose hydra/launcher=NAME"),
        (["recipe.name=[1]"], "the chosen recipe has no name"),
        (["recipe.rules=3"], "recipe.rules=3 cannot be used; it must be a list of rules"),
        (["+tasks.tiny_ai2d=3"], "tasks.tiny_ai2d=3 must be keys and values"),
        (["+tasks.tiny_ai2d.max_new_tokens=x"], "tasks.tiny_ai2d: max_new_tokens=x cannot be used; it must be a whole"),
        (["+tasks.tiny_ai2d.role=target"], "a task's role and name stand in its YAML"),
    ],
)
def test_odd_words_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "sweep.dry_run=true"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lmm-forget: error: ") and said.count("\n") == 1 and message in said
    assert len(said) < 600 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", ["plan", "compare", "status", "dashboard", "why", "data", "store", "export", "report"]
)
def test_old_commands_answer_with_the_new_name(command: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", f"lmm_forget.{command}", "--help"]
    done = subprocess.run(
        line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and f"lmm-forget {command}" in done.stdout
    assert done.stderr.startswith(f"lmm-forget: note: `python -m lmm_forget.{command}` is now `lmm-forget {command}`")
    assert done.stderr.count("\n") == 1
