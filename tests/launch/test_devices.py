"""Jobs of several processes through the real command line: how their ends are told, and that nothing is left behind.

What such jobs compute is in tests/test_devices.py; here a stand-in works instead, in real processes that really meet.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.launch.test_isolated import SLEEP, gone, starts, status, wait_for

RANK_1_CRASHES, RANK_1_REFUSES, RANK_1_IS_KILLED = 21, 22, 23  # seeds that the stand-in understands
TWO = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    return {**environment, "STAND_IN_TORCH": "real"}


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(600)
def test_a_rank_that_ends_badly_ends_its_job_alone_and_is_named(command, tmp_path: Path) -> None:
    seeds = [0, RANK_1_CRASHES, RANK_1_REFUSES, RANK_1_IS_KILLED]
    done = command("-m", "name=ways", f"seed={','.join(map(str, seeds))}", "hardware.max_parallel_jobs=2", *TWO)
    folder = tmp_path / "multirun/ways"
    assert done.returncode == 1, done.stderr
    assert "3 of 4 jobs failed: seed=21, seed=22, seed=23" in done.stderr.splitlines()[-1]
    causes = {
        RANK_1_CRASHES: "rank 1 of 2 failed: ZeroDivisionError: division by zero",
        RANK_1_REFUSES: "rank 1 of 2 failed: sample 17 has no image; add the file or set data.on_bad_sample=skip",
        RANK_1_IS_KILLED: "rank 1 of 2 was killed (SIGKILL) during stage 1/1 teach, step 2 of 4; "
        "the same command goes on from the last saved state",
    }
    for seed, cause in causes.items():
        job = folder / f"seed={seed}"
        assert f"seed={seed} failed: {cause}" in done.stderr
        assert (status(job)["state"], status(job)["error"]) == ("failed", cause)
        assert not (job / "results.json").exists()
        log = (job / "job.log").read_text()
        assert log.count("lmm-forget: error:") == 1 and log.rstrip().endswith(cause)
        assert log.count("stage 1/1 teach") == 1 + log.count(cause) * ("stage" in cause)  # rank 0 alone says it
        assert all(gone(int((job / f"rank{rank}.pid").read_text())) for rank in (0, 1))
    assert "rank 1 of 2: Traceback" in (folder / f"seed={RANK_1_CRASHES}/job.log").read_text()
    assert status(folder / "seed=0")["state"] == "done"
    assert json.loads((folder / "seed=0/results.json").read_text())["figures"]
    assert (folder / "seed=0/rank0.pid").read_text() != (folder / "seed=0/rank1.pid").read_text()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_workers_never_outlive_who_started_them(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, stop: signal.Signals
) -> None:
    parent = start(f"seed={SLEEP}", *TWO)
    job = tmp_path / f"multirun/tiny_onevision/sa_proj-paper-seed{SLEEP}"
    grandchild = int(wait_for(job / "children.txt"))
    workers = [int((job / f"rank{rank}.pid").read_text()) for rank in (0, 1)]
    agent = int(Path(f"/proc/{workers[0]}/stat").read_text().rpartition(")")[2].split()[1])
    try:
        if stop == signal.SIGTERM:
            parent.terminate()
        else:
            os.kill(agent, stop)
        _, stderr = parent.communicate(timeout=90)
        assert all(map(gone, [*workers, agent]))
    finally:
        _end(grandchild)
    assert parent.returncode == (130 if stop == signal.SIGTERM else 1)
    assert status(job)["state"] == ("interrupted" if stop == signal.SIGTERM else "failed")
    assert "Traceback" not in stderr and not (job / "results.json").exists()


@pytest.mark.timeout(600)
def test_plain_torchrun(tmp_path: Path, environment: dict[str, str]) -> None:
    def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = ["--standalone", "--nproc_per_node", "2", "-m", "lmm_forget.run", *arguments]
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    line = ["recipe=mlp", "hardware=ddp", "hardware.accelerator=cpu"]
    done = torchrun(*line)
    assert done.returncode == 0, done.stderr
    job = tmp_path / "multirun/tiny_onevision/mlp-paper-seed0"
    assert json.loads((job / "results.json").read_text())["config"]["hardware"]["strategy"] == "ddp"
    assert "devices: 2" in (job / "job.yaml").read_text()
    assert done.stdout.count("summary: multirun/tiny_onevision/summary.html") == 1
    assert starts(job) == 1 and len(list(job.glob("rank?.pid"))) == 2
    assert not (job / ".claim.json").exists()
    again = torchrun(*line)
    assert again.returncode == 0 and again.stderr.count("is finished already; nothing to run") == 1
    assert starts(job) == 1
    other = torchrun(*line, "hardware.devices=4")
    assert other.returncode == 1
    assert other.stderr.count("hardware.devices=4, but torchrun started 2 processes on each of 1 machines") == 1
