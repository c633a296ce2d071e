"""Refusing changes nothing: what lies in job folders stays as it is to the byte, and no file or folder is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.launch import local
from lmm_forget.launch.job_folders import Job, JobLocks, prepare_job_folders
from lmm_forget.run import main
from tests.cli.command_lines import TASK
from tests.cli.test_command_lines import state

SMALL = ("name=demo", "recipe=llm", "data.train_samples=8")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an interrupted job and a finished one, on a machine without a GPU and without Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    config = resolve_config(compose_config(SMALL))
    folder = tmp_path / "multirun" / "demo"
    left = Job("llm-paper-seed0", folder / "llm-paper-seed0", config)
    done = Job("llm-paper-seed1", folder / "llm-paper-seed1", {**config, "seed": 1})
    swept = Job("seed=1", folder / "seed=1", {**config, "seed": 1})
    prepare_job_folders([left, done, swept])
    for name, text in (
        ("status.json", '{"state": "interrupted", "phase": "train"}'),
        ("training.csv", "stage,task,step,loss\n1,tiny_cub200,1,2.5\n"),
        ("job.log", "19:00:00 teach tiny_cub200 (2 steps)\n"),
        ("store.json", '{"store": "x", "stages": [], "models": []}'),
    ):
        (left.folder / name).write_text(text)
    for job in (done, swept):
        (job.folder / "results.json").write_text(json.dumps({"figures": {}}))
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "task").mkdir()
    (tmp_path / "conf" / "task" / "mine.yaml").write_text(TASK.replace("data.jsonl", "no.jsonl"))
    for name, text in (("moved", "run: {dir: there}"), ("swept", "sweep: {dir: there}")):
        path = tmp_path / "conf" / "experiment" / f"{name}.yaml"
        path.write_text(f"# @package _global_\nhydra:\n  {text}\n")
    return tmp_path


REFUSED = {
    "no GPU, and an interrupted job": ([*SMALL, "hardware=gpu"], "no GPU is visible here"),
    "no GPU, a sweep": (["-m", *SMALL, "hardware=gpu", "seed=0,2,3"], "no GPU is visible here"),
    "no GPU, a new sweep": (["-m", "name=new", "hardware=gpu", "seed=0,1"], "no GPU is visible here"),
    "no such machines": ([*SMALL, "hardware.nodes=2"], "hardware.nodes=2"),
    "no model": ([*SMALL, "model.path=nowhere"], "model.path=nowhere is not a model folder"),
    "no model, a sweep": (["-m", *SMALL, "model.path=a,b"], "model.path=a is not a model folder"),
    "no model at all": (["model=other"], "neither `path` nor `hub_id`"),
    "no such task class": ([*SMALL, "+tasks.tiny_ai2d._target_=no.Task"], "there is no _target_ no.Task"),
    "no such scorer": ([*SMALL, "+tasks.tiny_ai2d.scorer=3"], "tiny_ai2d"),
    "no data": (
        ["--config-dir", "conf", "sequence=single", "sequence.task=mine"],
        "task mine: no.jsonl is missing",
    ),
    "a finished job of another configuration": (
        ["name=demo", "recipe=llm", "data.train_samples=9", "seed=1"],
        "holds another configuration",
    ),
    "one of a sweep is such a job": (
        ["-m", "name=demo", "recipe=llm", "data.train_samples=9", "seed=2,1"],
        "multirun/demo/seed=1 holds another configuration",
    ),
    "no Slurm": (["-m", *SMALL, "hydra/launcher=slurm", "seed=0,1"], "there is no squeue here"),
    "no Slurm, one job": ([*SMALL, "hydra/launcher=slurm"], "there is no squeue here"),
    "a wrong launcher field": ([*SMALL, "+hydra.launcher.nope=1"], "there is no hydra.launcher.nope"),
    "nobody to submit to": (["-m", *SMALL, "sweep.submit_only=true", "seed=0,1"], "add hydra/launcher=slurm"),
    "Hydra's folder of a run": ([*SMALL, "hydra.run.dir=there"], "set name=NAME"),
    "Hydra's folder of a sweep": (["-m", *SMALL, "hydra.sweep.dir=there", "seed=0,1"], "set name=NAME"),
    "Hydra's folder of a job": (["-m", *SMALL, "++hydra.sweep.subdir=there", "seed=0,1"], "set name=NAME"),
    "Hydra's second copy": ([*SMALL, "hydra.output_subdir=.hydra"], "job.yaml"),
    "another working directory": ([*SMALL, "hydra.job.chdir=true"], "go there first"),
    "Hydra's folder in a YAML": (
        ["--config-dir", "conf", "experiment=moved"],
        "hydra.run.dir=there in a YAML",
    ),
    "the same of a sweep": (
        ["-m", "--config-dir", "conf", "experiment=swept", "seed=0,1"],
        "hydra.sweep.dir=there in a YAML",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_command_leaves_every_file_as_it_is(
    case: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, message = REFUSED[case]
    monkeypatch.setattr(local, "ProcessPool", None)  # nothing may get as far as starting a job
    before = state(home)
    code = main(words)
    said = capsys.readouterr()
    assert code == 2 and said.out == "" and message in said.err
    assert said.err.startswith("lmm-forget: error: ") and said.err.count("\n") == 1
    assert state(home) == before


def test_a_job_that_another_command_runs_is_refused_and_the_others_leave_no_folder(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resolve_config(compose_config([*SMALL, "name=fresh"]))
    jobs = [Job(name, home / "multirun" / "fresh" / name, config) for name in ("one", "two", "three")]
    with JobLocks(heartbeat_seconds=None) as others:
        others.acquire(jobs[1])
        before = {path: None for path in (home / "multirun").rglob("*") if not path.name.startswith(".claim")}
        with (
            pytest.raises(Exception, match="two is run already by"),
            JobLocks(heartbeat_seconds=None) as folders,
        ):
            prepare_job_folders(jobs, folders.acquire)
        after = {path: None for path in (home / "multirun").rglob("*") if not path.name.startswith(".claim")}
        assert after == before
    assert not (home / "multirun" / "fresh").exists()


def test_an_accepted_sweep_has_its_grid_in_its_own_folder(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []

    class Stub:
        def __init__(self, *given: Any) -> None:
            pass

        def run_all(self, jobs: Any) -> list[Any]:
            from lmm_forget.launch.outcomes import JobOutcome

            assert (home / "multirun" / "grid" / "multirun.yaml").is_file()  # as soon as jobs start
            ran.extend(jobs)
            return [JobOutcome(job, is_finished=False, cause="not started") for job in jobs]

    monkeypatch.setattr(local, "ProcessPool", Stub)
    assert main(["-m", "name=grid", "seed=0,1", "hydra.launcher.grace=1"]) == 1
    assert len(ran) == 2
    text = (home / "multirun" / "grid" / "multirun.yaml").read_text()
    assert "seed=0,1" in text and "dir: ${lmm_forget.sweep_folder:}" in text
    assert not [path for path in home.iterdir() if path.name not in ("multirun", "conf")]
