"""How a launch ends early: its result comes back as a value, and ends whatever Hydra would do next."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.launch import local
from lmm_forget.launch.outcomes import DRY_RUN_FINISHED, SWEEP_STOPPED, read_log_tail
from lmm_forget.launch.process_pool import ProcessPool
from lmm_forget.run import main


@pytest.mark.parametrize("launcher", ["isolated", "basic"])
def test_a_dry_run_prints_the_plan_once_and_ends_the_sweep(
    launcher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", f"hydra/launcher={launcher}", "recipe=llm,mlp", "hydra.sweeper.max_batch_size=1"]
    assert main([*words, "sweep.dry_run=true"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("plan: 1 job") == 1 and captured.err == ""
    assert not list(tmp_path.iterdir())


def test_a_stopped_sweep_asks_for_no_further_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the first of two batches runs."""
    batches: list[Any] = []

    def stop_at_once(self: ProcessPool, jobs: Any) -> None:
        batches.append(jobs)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ProcessPool, "run_all", stop_at_once)
    assert main(["-m", "seed=0,1", "hydra.sweeper.max_batch_size=1"]) == SWEEP_STOPPED.early_exit_code == 130
    assert len(batches) == 1
    assert capsys.readouterr().err.endswith(f"lmm-forget: {SWEEP_STOPPED.message}\n")


def test_a_pool_that_got_a_signal_returns_none() -> None:
    class Signalled:
        def on_tick(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        on_job_started = on_job_ended = on_tick

    pool = ProcessPool(1, Signalled())  # type: ignore[arg-type]
    assert pool.run_all([]) == []
    pool._children.append(_finished_child())
    assert pool.run_all([]) is None


def _finished_child() -> Any:
    import subprocess
    import sys

    from lmm_forget.launch.job_folders import Job
    from lmm_forget.launch.process_pool import _ChildProcess

    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    return _ChildProcess(Job("x", Path("nowhere"), {}), process, [], 0)


def test_a_dry_run_of_jobs_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmm_forget.config import compose_config, resolve_config
    from lmm_forget.launch.job_folders import make_job

    monkeypatch.chdir(tmp_path)
    config = resolve_config(compose_config(["experiment=smoke", "sweep.dry_run=true"]))
    assert local.run_jobs([make_job(config, "x")]) is DRY_RUN_FINISHED


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    assert read_log_tail(log) == ()
    log.write_text("before\n" + "".join(f"line {i}\n\n" for i in range(20)))
    assert read_log_tail(log, max_lines=2) == ("line 18", "line 19")
    assert read_log_tail(log, start=len("before\n"), max_lines=99)[0] == "line 0"
