"""Job folders and the child's environment, without starting anything."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from lmm_forget.distributed.process_id import ProcessId
from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.files import write_atomic
from lmm_forget.launch.job_folders import Job, JobLocks, prepare_job_folders
from lmm_forget.launch.process_pool import (
    ProcessPool,
    _ChildProcess,
    build_child_environment,
    compute_parallel_capacity,
    list_visible_gpus,
)

CONFIG = {
    "name": "x",
    "seed": 0,
    "tasks": {},
    "hardware": {"threads": 2, "max_parallel_jobs": "auto", "accelerator": "cpu", "devices": 1, "nodes": 1},
}


def job(folder: Path, **changes: object) -> Job:
    return Job(folder.name, folder, {**CONFIG, **changes})


def test_job_yaml_is_written_once_all_folders_are_checked(tmp_path: Path) -> None:
    prepare_job_folders([job(tmp_path / "b")])
    (tmp_path / "b/results.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"b holds another configuration; it differs in seed: 0 -> 1"):
        prepare_job_folders([job(tmp_path / "a", seed=1), job(tmp_path / "b", seed=1)])
    assert not (tmp_path / "a").exists()
    assert yaml.safe_load((tmp_path / "b/job.yaml").read_text()) == CONFIG


def test_an_unfinished_job_of_another_configuration_is_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_job_folders([job(tmp_path / "a", seed=7)])
    (tmp_path / "a/training.csv").write_text("of the other one")
    waiting, _ = prepare_job_folders([job(tmp_path / "a")])
    assert [one.name for one in waiting] == ["a"]
    assert not (tmp_path / "a/training.csv").exists()
    assert yaml.safe_load((tmp_path / "a/job.yaml").read_text())["seed"] == 0
    assert "held an unfinished job of another configuration (seed: 7 -> 0)" in capsys.readouterr().err


def test_one_command_at_a_time_is_in_a_folder(tmp_path: Path) -> None:
    with JobLocks() as first:
        prepare_job_folders([job(tmp_path / "a")], first.acquire)
        with (
            JobLocks() as second,
            pytest.raises(LaunchError, match=f"a is run already by process {os.getpid()}"),
        ):
            prepare_job_folders([job(tmp_path / "a")], second.acquire)
    with JobLocks() as third:
        prepare_job_folders([job(tmp_path / "a")], third.acquire)
    (tmp_path / "a/.claim.json").write_text(
        json.dumps({**asdict(replace(ProcessId.current(), start="1")), "nonce": "n"})
    )
    with JobLocks() as fourth:  # the command before was killed
        prepare_job_folders([job(tmp_path / "a")], fourth.acquire)


def test_a_command_on_another_machine_is_watched_before_its_folders_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its claims change as long as it lives; one that is silent is watched once, not once for every folder."""
    elsewhere = {**asdict(replace(ProcessId.current(), host="login1", boot="x", pid=7)), "nonce": "n"}
    jobs = [job(tmp_path / name) for name in ("a", "b")]

    def claim(beat: int) -> None:
        for one in jobs:
            one.folder.mkdir(exist_ok=True)
            # As the package writes it: a reader must not meet a file that is half written.
            write_atomic(one.folder / ".claim.json", json.dumps({**elsewhere, "beat": beat}), durable=False)

    claim(0)
    ended = threading.Event()

    def live() -> None:
        beat = 0
        while not ended.wait(0.1):
            claim(beat := beat + 1)

    other = threading.Thread(target=live)
    other.start()
    try:
        with (
            JobLocks(stale_seconds=1.0) as folders,
            pytest.raises(LaunchError, match="a is run already by process 7 on login1"),
        ):
            prepare_job_folders(jobs, folders.acquire)
    finally:
        ended.set()
        other.join()
    capsys.readouterr()
    began = time.monotonic()
    with JobLocks(stale_seconds=1.0, heartbeat_seconds=None) as folders:
        assert len(prepare_job_folders(jobs, folders.acquire)[0]) == 2
        assert capsys.readouterr().err == "a: watching whether process 7 on login1 still runs it\n"
        assert time.monotonic() - began >= 1.0
        before = (tmp_path / "a/.claim.json").read_text()
        time.sleep(0.3)  # signs of life are a quarter of `stale` apart
        folders.refresh_leases()
        assert (tmp_path / "a/.claim.json").read_text() != before  # what other machines wait for


def test_two_grid_points_of_one_name_must_be_the_same(tmp_path: Path) -> None:
    assert len(prepare_job_folders([job(tmp_path / "a"), job(tmp_path / "a")])[0]) == 1
    with pytest.raises(ConfigError, match="two grid points are both called a but differ in seed"):
        prepare_job_folders([job(tmp_path / "a"), job(tmp_path / "a", seed=1)])


def test_finished_jobs_are_set_apart_and_fields_of_where_and_how_fast_may_change(tmp_path: Path) -> None:
    prepare_job_folders([job(tmp_path / "a")])
    (tmp_path / "a/results.json").write_text(json.dumps({"figures": {"heldout_forgetting": {"value": -3.5}}}))
    faster = job(
        tmp_path / "a",
        hardware={**CONFIG["hardware"], "threads": 8},
        store="/elsewhere",
        objective="heldout_forgetting",
    )
    waiting, finished = prepare_job_folders([faster])
    assert not waiting and finished == [faster]
    assert faster.read_objective() == -3.5
    (tmp_path / "a/results.json").write_text("{")
    with pytest.raises(LaunchError, match="damaged"):
        prepare_job_folders([faster])


def _status(folder: Path, holder: ProcessId, beat: int = 1) -> None:
    content = {"state": "running", "beat": beat, **asdict(holder), "updated": "1970-01-01T00:00:00+00:00"}
    (folder / "status.json").write_text(json.dumps(content))


def test_a_job_runs_as_long_as_its_process_lives_whatever_the_clock_says(tmp_path: Path) -> None:
    prepare_job_folders([job(tmp_path / "a")])
    _status(tmp_path / "a", ProcessId.current())
    with pytest.raises(LaunchError, match=f"a is running already .process {os.getpid()} on"):
        prepare_job_folders([job(tmp_path / "a")])
    _status(tmp_path / "a", replace(ProcessId.current(), start="1"))  # its number was given to another process
    prepare_job_folders([job(tmp_path / "a")])


def test_a_job_on_another_machine_runs_as_long_as_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmm_forget.launch.job_folders.STALE_SECONDS", 1.0)
    distant = replace(ProcessId.current(), host="elsewhere")
    prepare_job_folders([job(tmp_path / "a")])
    _status(tmp_path / "a", distant)
    beating = threading.Timer(0.2, _status, (tmp_path / "a", distant, 2))
    beating.start()
    with pytest.raises(LaunchError, match="on elsewhere"):
        prepare_job_folders([job(tmp_path / "a")])
    beating.join()
    prepare_job_folders([job(tmp_path / "a")])  # silent for as long as we watched


def test_a_job_gets_its_gpu_and_no_trace_of_another_launcher(tmp_path: Path) -> None:
    base = {
        "PATH": "/bin",
        "RANK": "1",
        "LOCAL_RANK": "0",
        "SLURM_PROCID": "3",
        "TORCHELASTIC_RUN_ID": "r",
        "MASTER_ADDR": "h",
    }
    env = build_child_environment(job(tmp_path / "a"), ["2", "4"], base)
    assert env["CUDA_VISIBLE_DEVICES"] == "2,4" and env["OMP_NUM_THREADS"] == "2" and env["PATH"] == "/bin"
    assert not [key for key in env if key.startswith(("RANK", "LOCAL_RANK", "SLURM_", "TORCHELASTIC", "MASTER"))]
    assert "CUDA_VISIBLE_DEVICES" not in build_child_environment(job(tmp_path / "a"), [], base)


def on(hardware: dict[str, object], **changes: object) -> dict[str, object]:
    return {**CONFIG, "hardware": {**hardware, **changes}}


def test_how_many_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)))
    assert compute_parallel_capacity([CONFIG]) == (4, [])
    cpu, gpu = CONFIG["hardware"], {**CONFIG["hardware"], "accelerator": "gpu"}
    assert compute_parallel_capacity([on(cpu, threads=16)]) == (1, [])
    assert compute_parallel_capacity([on(cpu, max_parallel_jobs=6)]) == (6, [])
    assert compute_parallel_capacity([on(cpu, devices=2)]) == (2, [])
    with pytest.raises(ConfigError, match=r"hardware.nodes=2: .* torchrun --nnodes 2 --nproc_per_node 4 -m"):
        compute_parallel_capacity([on(cpu, devices=4, nodes=2)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert compute_parallel_capacity([on(gpu)]) == (2, ["3", "5"])
    assert compute_parallel_capacity([on(gpu, max_parallel_jobs=8)]) == (2, ["3", "5"])
    assert compute_parallel_capacity([on(gpu, devices=2)]) == (1, ["3", "5"])
    with pytest.raises(ConfigError, match=r"hardware.devices=3, but 2 GPUs are visible here; use .*devices=2"):
        compute_parallel_capacity([on(gpu, devices=3)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert list_visible_gpus() == []
    with pytest.raises(ConfigError, match="no GPU is visible"):
        compute_parallel_capacity([on(gpu)])


class Calm:
    """A watcher that does not care."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *told: None


def test_jobs_of_several_gpus_share_out_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {**CONFIG["hardware"], "accelerator": "gpu"}
    jobs = [job(tmp_path / str(n), hardware={**gpu, "devices": n}) for n in (1, 2, 3)]
    prepare_job_folders(jobs)
    given: dict[str, list[str]] = {}
    at_once: list[int] = []

    def start(pool: ProcessPool, one: Job, gpus: list[str]) -> None:
        given[one.name] = gpus
        child = subprocess.Popen(["sleep", "0.5"], start_new_session=True)
        one.log_path.touch()
        pool._children.append(_ChildProcess(one, child, gpus, 0))
        at_once.append(sum(len(child.gpus) for child in pool._children))

    monkeypatch.setattr(ProcessPool, "_start_job", start)
    outcomes = ProcessPool(3, Calm(), ["a", "b", "c", "d"]).run_all(jobs)
    assert {name: len(gpus) for name, gpus in given.items()} == {"1": 1, "2": 2, "3": 3}
    assert set(given["1"]).isdisjoint(given["2"]) and at_once[1] == 3
    assert max(at_once) <= 4  # the third waited until there was room for it
    assert [outcome.is_finished for outcome in outcomes] == [False] * 3
