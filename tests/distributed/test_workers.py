"""Which worker is the root cause; whole jobs of several workers are in tests/launch/test_devices.py."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lmm_forget.distributed.heartbeat import WorkerStatus, overwrite_status, read_job_status
from lmm_forget.distributed.root_cause import WorkerExit, describe_exit_code, find_root_cause
from lmm_forget.distributed.stop_signals import STOP_SIGNALS, StopRequested
from lmm_forget.distributed.workers import _write_final_status, run_workers
from lmm_forget.errors import LaunchError
from lmm_forget.experiment import job

TRAINING = {"state": "running", "phase": "stage 2/5 train", "done": 3, "total": 8, "unit": "step"}
LOST = "RuntimeError: Connection closed by peer"
DURING = " during stage 2/5 train, step 3 of 8"


def told(folder: Path, rank: int, error: str | None, when: float, **status: Any) -> None:
    """Rank `rank` failed with `error`, or in rank 0's case is in the state that `status` says, at `when`."""
    if rank == 0:
        status = {**TRAINING, **status, **({"state": "failed", "error": error} if error else {})}
        (folder / "status.json").write_text(json.dumps(status))
    else:
        WorkerStatus(folder, rank).write_final_state("failed", error)
    os.utime(folder / ("status.json" if rank == 0 else f"rank-{rank}.json"), (when, when))


@pytest.mark.parametrize(
    "words, ends, expected",
    [
        # rank 1's connections closed after its word was written
        ({0: (LOST, 9.0), 1: ("no image", 8.0)}, [(0, 1, 9), (1, 2, 9)], (2, "rank 1 of 2 failed: no image")),
        ({0: ("no image", 8.0), 1: (LOST, 9.0)}, [(0, 2, 9), (1, 1, 9)], (2, "no image")),
        ({0: ("both", 9.0), 1: ("both", 8.0)}, [(1, 2, 9), (0, 2, 9)], (2, "both")),
        ({0: (LOST, 9.0)}, [(0, 1, 9), (1, -9, 9)], (1, f"rank 1 of 2 was killed (SIGKILL){DURING}")),
        ({0: (None, 9.0), 1: (LOST, 9.0)}, [(1, 1, 9), (0, -9, 9)], (1, "rank 0 of 2 was killed (SIGKILL)")),
        # the agent had to kill rank 0, half a minute later
        ({0: (None, 9.0), 1: ("boom", 8.0)}, [(1, 1, 9), (0, -9, 39)], (1, "rank 1 of 2 failed: boom")),
        # a rank that aborts because its peer is gone is no cause
        ({0: ("boom", 8.0)}, [(1, -6, 9), (0, 1, 9)], (1, "boom")),
        ({0: (None, 8.0)}, [(1, -6, 9), (0, 143, 9)], (1, f"rank 1 of 2 ended by SIGABRT{DURING}")),
        ({0: (None, 8.0)}, [(1, 3, 9), (0, 143, 9)], (1, f"rank 1 of 2 ended with exit code 3{DURING}")),
    ],
)
def test_the_first_cause_is_told(
    tmp_path: Path,
    words: dict[int, tuple[str | None, float]],
    ends: list[tuple[int, int, float]],
    expected: tuple,
) -> None:
    for rank, (error, when) in words.items():
        told(tmp_path, rank, error, when)
    code = _write_final_status(tmp_path, 2, [WorkerExit(*end) for end in ends])
    status = read_job_status(tmp_path)
    assert (code, status["state"]) == (expected[0], "failed")
    assert status["error"].startswith(expected[1]) and "\n" not in status["error"]


def test_a_rank_that_was_stopped_for_another_ones_failure_was_not_interrupted(tmp_path: Path) -> None:
    told(tmp_path, 0, None, 9.0, state="interrupted")
    told(tmp_path, 1, "boom", 8.0)
    assert _write_final_status(tmp_path, 2, [WorkerExit(1, 1, 9), WorkerExit(0, 143, 9)]) == 1
    assert (read_job_status(tmp_path)["state"], read_job_status(tmp_path)["error"]) == (
        "failed",
        "rank 1 of 2 failed: boom",
    )


@pytest.mark.parametrize(
    "state, ends, code, after",
    [
        ("running", None, 143, "interrupted"),
        ("interrupted", None, 143, "interrupted"),
        ("interrupted", [(0, 143, 9), (1, 143, 9)], 143, "interrupted"),
        ("done", None, 0, "done"),  # it had finished when it was asked to stop
        ("failed", None, 1, "failed"),
        ("done", [], 0, "done"),
    ],
)
def test_being_asked_to_stop_is_no_failure(
    tmp_path: Path, state: str, ends: list[tuple[int, int, float]] | None, code: int, after: str
) -> None:
    overwrite_status(tmp_path, state)
    assert _write_final_status(tmp_path, 2, None if ends is None else [WorkerExit(*end) for end in ends]) == code
    assert read_job_status(tmp_path)["state"] == after


def test_a_rank_that_died_before_any_word(tmp_path: Path) -> None:
    end, cause = find_root_cause(tmp_path, [WorkerExit(1, 1, 9), WorkerExit(0, 143, 9)], {})
    assert (end.rank, cause) == (1, "ended with exit code 1 and left no cause; its last lines are in the log")


@pytest.mark.parametrize(
    ("exit_code", "cause"),
    [
        (-9, "its process was killed (out of memory?)"),
        (137, "its process was killed (out of memory?)"),
        (-6, "its process ended by SIGABRT"),
        (134, "its process ended by SIGABRT"),
        (143, "it was stopped"),
        (3, "its process ended with exit code 3 and no results"),
    ],
)
def test_an_exit_code_is_a_cause(exit_code: int, cause: str) -> None:
    assert describe_exit_code(exit_code) == cause


@pytest.mark.parametrize("asked", [StopRequested(), KeyboardInterrupt()])
def test_being_asked_to_stop_before_any_worker_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: BaseException
) -> None:
    """Importing torch to count GPUs takes seconds, in which Ctrl-C may come."""

    def counting(devices: int) -> None:
        raise asked

    monkeypatch.setattr("lmm_forget.distributed.workers._check_gpu_count", counting)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    hardware = {"nodes": 1, "devices": 2, "accelerator": "gpu", "threads": 1}
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        assert job.run_job(tmp_path / "job.yaml", {"hardware": hardware}) == 143
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        monkeypatch.setattr("lmm_forget.distributed.stop_signals._handlers_installed", False)
    assert read_job_status(tmp_path)["state"] == "interrupted"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_torch_cannot_use_is_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(LaunchError, match=r"torch can use 0 GPUs here and needs 1 .*use hardware=cpu"):
        job._check_gpu_available({"accelerator": "gpu"}, None)
    job._check_gpu_available({"accelerator": "cpu"}, None)


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("[/pytorch/third_party/gloo/…/pair.cc:534] Connection closed by peer [127.0.0.1]:41", True),
        ("[…] Read error [127.0.0.1]:41: Connection reset by peer", True),
        (
            "ncclRemoteError: A call failed, maybe through a network error or a remote process exiting early",
            True,
        ),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_lost_connection_is_no_cause(text: str, gone: bool) -> None:
    """Its traceback would stand in the log beside the one that matters."""
    assert job._is_lost_connection(RuntimeError(text)) is gone
    assert not job._is_lost_connection(ValueError(text))


def test_other_machines_workers_are_not_started_from_here(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"hardware.nodes=2: .*slurm, or torchrun"):
        run_workers(tmp_path / "job.yaml", {"hardware": {"nodes": 2, "devices": 1, "accelerator": "cpu"}})
