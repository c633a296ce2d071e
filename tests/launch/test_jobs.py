"""Job folders and the child's environment, without starting anything."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.launch.jobs import Job, prepare
from lmm_forget.launch.processes import child_environment, side_by_side, visible_gpus

CONFIG = {
    "name": "x",
    "seed": 0,
    "tasks": {},
    "hardware": {"threads": 2, "jobs": "auto", "accelerator": "cpu"},
}


def job(folder: Path, **changes: object) -> Job:
    return Job(folder.name, folder, {**CONFIG, **changes})


def test_job_yaml_is_written_once_all_folders_are_checked(tmp_path: Path) -> None:
    prepare([job(tmp_path / "b")])
    with pytest.raises(ConfigError, match=r"b holds another configuration; it differs in seed: 0 -> 1"):
        prepare([job(tmp_path / "a", seed=1), job(tmp_path / "b", seed=1)])
    assert not (tmp_path / "a").exists()
    assert yaml.safe_load((tmp_path / "b/job.yaml").read_text()) == CONFIG


def test_two_grid_points_of_one_name_must_be_the_same(tmp_path: Path) -> None:
    assert len(prepare([job(tmp_path / "a"), job(tmp_path / "a")])[0]) == 1
    with pytest.raises(ConfigError, match="two grid points are both called a but differ in seed"):
        prepare([job(tmp_path / "a"), job(tmp_path / "a", seed=1)])


def test_finished_jobs_are_set_apart_and_fields_of_where_and_how_fast_may_change(tmp_path: Path) -> None:
    prepare([job(tmp_path / "a")])
    (tmp_path / "a/results.json").write_text(json.dumps({"figures": {"heldout_forgetting": {"value": -3.5}}}))
    faster = job(
        tmp_path / "a",
        hardware={**CONFIG["hardware"], "threads": 8},
        store="/elsewhere",
        objective="heldout_forgetting",
    )
    waiting, finished = prepare([faster])
    assert not waiting and finished == [faster]
    assert faster.objective() == -3.5
    (tmp_path / "a/results.json").write_text("{")
    with pytest.raises(LaunchError, match="damaged"):
        prepare([faster])


@pytest.mark.parametrize("age, alive, runs", [(0, True, True), (0, False, False), (300, True, False)])
def test_only_a_fresh_heartbeat_of_a_live_process_counts_as_running(
    tmp_path: Path, age: int, alive: bool, runs: bool
) -> None:
    prepare([job(tmp_path / "a")])
    dead = 2**22 - 3  # above what this kernel hands out by default
    updated = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    status = {
        "state": "running",
        "pid": os.getpid() if alive else dead,
        "host": socket.gethostname(),
        "updated": updated,
    }
    (tmp_path / "a/status.json").write_text(json.dumps(status))
    if runs:
        with pytest.raises(LaunchError, match="running already"):
            prepare([job(tmp_path / "a")])
    else:
        assert len(prepare([job(tmp_path / "a")])[0]) == 1


def test_a_job_gets_its_gpu_and_no_trace_of_another_launcher(tmp_path: Path) -> None:
    base = {
        "PATH": "/bin",
        "RANK": "1",
        "LOCAL_RANK": "0",
        "SLURM_PROCID": "3",
        "TORCHELASTIC_RUN_ID": "r",
        "MASTER_ADDR": "h",
    }
    env = child_environment(job(tmp_path / "a"), "2", base)
    assert env["CUDA_VISIBLE_DEVICES"] == "2" and env["OMP_NUM_THREADS"] == "2" and env["PATH"] == "/bin"
    assert not [
        key for key in env if key.startswith(("RANK", "LOCAL_RANK", "SLURM_", "TORCHELASTIC", "MASTER"))
    ]
    assert "CUDA_VISIBLE_DEVICES" not in child_environment(job(tmp_path / "a"), None, base)


def test_how_many_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)))
    assert side_by_side([CONFIG]) == (4, [])
    assert side_by_side([{**CONFIG, "hardware": {**CONFIG["hardware"], "threads": 16}}]) == (1, [])
    assert side_by_side([{**CONFIG, "hardware": {**CONFIG["hardware"], "jobs": 6}}]) == (6, [])
    gpu = {**CONFIG, "hardware": {**CONFIG["hardware"], "accelerator": "gpu"}}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert side_by_side([gpu]) == (2, ["3", "5"])
    assert side_by_side([{**gpu, "hardware": {**gpu["hardware"], "jobs": 8}}]) == (2, ["3", "5"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    with pytest.raises(ConfigError, match="no GPU is visible"):
        side_by_side([gpu])
