"""Online runs against a stand-in for W&B's server: nothing twice after a resume, no trouble for the job."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmm_forget.tracking import open_tracker
from tests.tracking.fake_job import log_job, log_training, make_config, make_stage_metrics
from tests.tracking.fake_server import KEY, Server
from tests.tracking.run_reader import Run, run_files
from tests.tracking.test_offline import ROWS

UPLOAD = "the run is kept on disk; upload it with: wandb sync "


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setenv("WANDB_BASE_URL", made.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield made
    made.close()


def test_a_resumed_job_goes_on_in_its_run_and_sends_nothing_twice(tmp_path: Path, server: Server) -> None:
    config, job = make_config(tmp_path, mode="online"), tmp_path / "job"
    first = open_tracker(config, job)
    first.log_stage(make_stage_metrics(0))
    log_training(first, 1)
    first.log_stage(make_stage_metrics(1))
    log_training(first, 2, last=15)
    assert first.close(KeyboardInterrupt()) == []
    (name,) = server.runs
    kept = server.runs[name]
    assert (kept["exit"], kept["summary"]["state"]) == (255, "interrupted")
    assert [row["_step"] for row in server.history(name)] == [0, 1, 11, 21, 23, 24, 25, 35]
    sent = list(kept["history"])

    again = open_tracker(config, job)
    again.log_stage(make_stage_metrics(0))
    again.log_stage(make_stage_metrics(1))
    log_training(again, 2, first=11)
    again.log_stage(make_stage_metrics(2))
    assert again.close() == []
    assert list(server.runs) == [name]
    assert kept["history"][: len(sent)] == sent
    assert [row["_step"] for row in server.history(name)] == ROWS
    assert [row["stage"] for row in server.history(name) if "stage" in row] == [0, 1, 2]
    assert (kept["exit"], kept["summary"]["state"]) == (0, "done")
    assert (kept["group"], kept["tags"]) == ("sweep", ["tiny_onevision", "sa_proj", "paper"])


def kept_offline(folder: Path) -> Run:
    run = Run(*run_files(folder))
    assert run.steps() == ROWS
    assert run.exit == 0
    assert len(run.tables("answers")) == 3
    return run


def test_a_closed_port_costs_a_bounded_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (notice,) = log_job(open_tracker(make_config(tmp_path, mode="online", timeout=2), tmp_path / "job"))
    assert notice.startswith("W&B was not reached (") and UPLOAD in notice and "\n" not in notice
    kept_offline(tmp_path / "job")


def test_a_server_that_hangs_costs_a_bounded_wait(tmp_path: Path, server: Server) -> None:
    server.deaf.set()
    (notice,) = log_job(open_tracker(make_config(tmp_path, mode="online", timeout=2), tmp_path / "job"))
    assert notice.startswith("W&B was not reached (") and UPLOAD in notice
    kept_offline(tmp_path / "job")


def test_out_of_quota_is_said_and_the_run_kept(tmp_path: Path, server: Server) -> None:
    server.refuses = True
    (notice,) = log_job(open_tracker(make_config(tmp_path, mode="online"), tmp_path / "job"))
    assert "storage quota exceeded" in notice
    kept_offline(tmp_path / "job")


def test_not_logged_in_is_said_and_the_run_kept(tmp_path: Path) -> None:
    (notice,) = log_job(open_tracker(make_config(tmp_path, mode="online"), tmp_path / "job"))
    assert "No API key configured" in notice
    kept_offline(tmp_path / "job")


def test_a_server_that_dies_midway_costs_a_bounded_wait(tmp_path: Path, server: Server) -> None:
    tracker = open_tracker(make_config(tmp_path, mode="online", timeout=3), tmp_path / "job")
    tracker.log_stage(make_stage_metrics(0))
    while "CreateArtifact" not in server.operations:
        time.sleep(0.05)
    server.deaf.set()
    for index in (1, 2):
        log_training(tracker, index)
        tracker.log_stage(make_stage_metrics(index))
    (notice,) = tracker.close()
    assert notice.startswith("W&B lacks something (") and UPLOAD in notice
    (path,) = (tmp_path / "job").glob("wandb/run-*/run-*.wandb")
    assert Run(path).steps() == ROWS  # on disk all the same
