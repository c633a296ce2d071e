"""Sweeps through the real command line: names, failures, what is run again, how children live and die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CRASH, MISTAKE, SLEEP, KILLED = 13, 14, 15, 16  # seeds that the stand-in understands


def status(job: Path) -> dict:
    return json.loads((job / "status.json").read_text())


def starts(job: Path) -> int:
    return len((job / "starts.txt").read_text().split())


def wait_for(path: Path, seconds: float = 120) -> str:
    limit = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.1)
    return path.read_text()


def gone(pid: int, seconds: float = 30) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.timeout(600)
def test_failures_are_named_and_only_what_is_missing_runs_again(command, tmp_path: Path) -> None:
    line = ["-m", "name=ways", f"seed=0,{CRASH},{MISTAKE},{KILLED}", "hardware.max_parallel_jobs=2"]
    first = command(*line)
    folder = tmp_path / "multirun/ways"
    assert first.returncode == 1
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "seed=0",
        "seed=13",
        "seed=14",
        "seed=16",
    ]
    assert "3 of 4 jobs failed: seed=13, seed=14, seed=16" in first.stderr.splitlines()[-1]
    assert "seed=13 failed: ZeroDivisionError: division by zero" in first.stderr
    assert "| about to divide" in first.stderr
    assert "seed=14 failed: sample 17 has no image; add the file or set data.on_bad_sample=skip" in first.stderr
    assert "seed=16 failed: its process was killed (out of memory?); the same command goes on from" in first.stderr
    assert "summary: multirun/ways/summary.html" in first.stdout
    assert {seed: status(folder / f"seed={seed}")["state"] for seed in (0, CRASH, MISTAKE, KILLED)} == {
        0: "done", CRASH: "failed", MISTAKE: "failed", KILLED: "failed"
    }  # fmt: skip
    assert not (folder / "seed=13/results.json").exists()
    mistake_log = (folder / "seed=14/job.log").read_text()
    assert "Traceback" not in mistake_log and mistake_log.count("lmm-forget: error:") == 1

    before = (folder / "seed=0/results.json").stat().st_mtime_ns
    second = command("-m", "name=ways", f"seed=0,1,{CRASH}")
    assert second.returncode == 1
    assert "1 of 3 jobs are finished already" in second.stderr
    assert (folder / "seed=0/results.json").stat().st_mtime_ns == before
    assert [starts(folder / f"seed={seed}") for seed in (0, 1, CRASH)] == [1, 1, 2]


@pytest.mark.timeout(600)
def test_a_grid_point_is_a_process_with_a_clean_environment(command, tmp_path: Path) -> None:
    leaks = {
        "MASTER_PORT": "1234",
        "TORCHELASTIC_ERROR_FILE": "x",
        "SLURM_NTASKS": "2",
        "OMP_NUM_THREADS": "7",
    }
    done = command("-m", "recipe=llm,sa_proj,llm", "hardware.threads=2", "+tasks.tiny_cub200.n_train=64", **leaks)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "multirun/tiny_onevision"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["llm", "sa_proj"]
    assert starts(folder / "llm") == 1  # asked for twice, run once
    assert (folder / "llm/starts.txt").read_text() != (folder / "sa_proj/starts.txt").read_text()
    environment = dict(
        line.split("=", 1) for line in (folder / "llm/environment.txt").read_text().splitlines() if "=" in line
    )
    assert not {"MASTER_PORT", "TORCHELASTIC_ERROR_FILE", "SLURM_NTASKS"} & set(environment)
    assert environment["OMP_NUM_THREADS"] == "2" and environment["GOMP_SPINCOUNT"] == "0"
    assert environment["OMP_WAIT_POLICY"] == "passive" and environment["TOKENIZERS_PARALLELISM"] == "false"
    assert (folder / "llm/torch.txt").read_text().splitlines() == [
        "set_num_threads(2)",
        "deterministic(True)",
    ]
    assert json.loads((folder / "llm/results.json").read_text())["config"]["tasks"]["tiny_cub200"]["n_train"] == 64
    assert not (tmp_path / "outputs").exists()


@pytest.mark.timeout(300)
def test_a_wrong_grid_point_stops_the_sweep_before_any_job_starts(command, tmp_path: Path) -> None:
    done = command("-m", "sequence=order", "sequence.order=range(118,121)")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "sequence.order=120 is out of range" in done.stderr
    assert not list(tmp_path.glob("multirun/*/*/job.yaml"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_sweep_stops_its_children_and_leaves_them_to_go_on(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, stop: signal.Signals
) -> None:
    parent = start("-m", "name=stop", f"seed={SLEEP},0", "hardware.max_parallel_jobs=1")
    job = tmp_path / f"multirun/stop/seed={SLEEP}"
    grandchild = int(wait_for(job / "children.txt"))
    parent.send_signal(stop)
    _, stderr = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "Traceback" not in stderr and "the same command goes on where it ended" in stderr
    assert gone(status(job)["pid"]) and gone(grandchild)
    assert status(job)["state"] == "interrupted"
    assert (job / "job.yaml").exists() and not (job / "results.json").exists()
    assert not (tmp_path / "multirun/stop/seed=0/starts.txt").exists()


@pytest.mark.timeout(300)
def test_children_die_with_a_killed_parent(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    parent = start(f"seed={SLEEP}")
    job = tmp_path / f"multirun/tiny_onevision/sa_proj-paper-seed{SLEEP}"
    grandchild = int(wait_for(job / "children.txt"))
    child = status(job)["pid"]
    parent.kill()
    parent.communicate(timeout=30)
    try:
        assert gone(child)
        assert status(job)["state"] == "interrupted"
    finally:
        os.kill(grandchild, signal.SIGKILL)


@pytest.mark.timeout(300)
def test_a_running_job_is_not_started_again(start, command, tmp_path: Path) -> None:
    parent = start(f"seed={SLEEP}")
    job = tmp_path / f"multirun/tiny_onevision/sa_proj-paper-seed{SLEEP}"
    wait_for(job / "children.txt")
    second = command(f"seed={SLEEP}")
    assert second.returncode == 2 and "is running already" in second.stderr
    parent.terminate()
    parent.communicate(timeout=60)
    assert starts(job) == 1


@pytest.mark.timeout(300)
def test_one_job_of_hydras_own_launcher_is_a_process_too(command, tmp_path: Path) -> None:
    done = command("-m", "hydra/launcher=basic", "seed=1,2", "recipe=llm")
    assert done.returncode == 0, done.stderr
    assert sorted(path.parent.name for path in tmp_path.glob("multirun/*/*/results.json")) == [
        "seed=1",
        "seed=2",
    ]


@pytest.mark.timeout(300)
def test_a_single_run_and_its_folder(command, tmp_path: Path) -> None:
    first = command("recipe=mlp", "seed=3")
    assert first.returncode == 0, first.stderr
    job = tmp_path / "multirun/tiny_onevision/mlp-paper-seed3"
    assert (job / "results.json").exists()
    again = command("recipe=mlp", "seed=3", "hardware.threads=2", "logger=none")  # not what, only how
    assert again.returncode == 0 and "finished already" in again.stderr and starts(job) == 1
    other = command("recipe=mlp", "seed=3", "training.max_steps=7", "data.validation=true")
    assert other.returncode == 2 and other.stderr.count("\n") == 1
    assert "data.validation: false -> true; training.max_steps: null -> 7" in other.stderr
    failed = command(f"seed={MISTAKE}")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("lmm-forget: error: sa_proj-paper-seed14: sample 17 has no image")
    assert "Traceback" not in failed.stderr and "last lines" not in failed.stderr


@pytest.mark.timeout(300)
def test_an_experiment_brings_its_own_grid(command, tmp_path: Path) -> None:
    line = [
        "-m",
        "experiment=lr_grid",
        "recipe=llm",
        "hardware.max_parallel_jobs=2",
    ]  # one recipe of the experiment's three
    done = command(*line)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "multirun/lr_grid"
    names = [f"llm-learning_rate={rate}" for rate in ("0.0001", "0.0003", "0.0008")]  # as in the whole grid
    assert sorted(path.parent.name for path in folder.glob("*/results.json")) == names
    config = json.loads((folder / names[-1] / "results.json").read_text())["config"]
    assert config["recipe"]["name"] == "llm" and config["data"]["validation"] is True
    training = config["training"]
    assert (training["learning_rate"], training["learning_rate_source"]) == (0.0008, "command line")
