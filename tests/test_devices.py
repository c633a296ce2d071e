"""Jobs on two devices through the real command line: what one of them suffers is the others' affair in no way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests import harness

pytestmark = pytest.mark.timeout(1800)  # real processes; a busy machine is not a failure
SMALL = [
    "experiment=smoke",
    "suite.tasks=[ai2d]",
    "sequence=single",
    "sequence.task=cub200",
    "data.eval_samples=4",
    "training.max_steps=4",
    "checkpoint_every=1",
    "hardware=ddp",
    "hardware.accelerator=cpu",
]
RECIPE = """\
# Attention projections move; how it ends is the method's affair.
name: {how}
layers: all
learning_rate: 3e-4
method: {{_target_: mishap.Mishap, how: {how}}}
rules: [{{component: language, sublayers: [q_proj, k_proj, v_proj, o_proj]}}]
"""
HANG = 90.0
"""Seconds in which a sweep neither says a word nor computes, after which it hangs."""
IDLE = 2.0
"""Seconds of processor time that waiting processes use up in `HANG` at most (rank 0's heart goes on beating)."""


def command(cwd: Path, *arguments: str, **extra: str) -> tuple[int, str]:
    """The command's exit code and all it printed; AssertionError if it hangs."""
    for how in ("none", "before", "middle"):
        path = cwd / "mine" / "recipe" / f"{how}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECIPE.format(how=how))
    path = os.pathsep.join([str(harness.ROOT), str(harness.ROOT / "tests" / "mishaps")])
    with (cwd / "run.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lmm_forget.run", "--config-dir", "mine", *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, **extra},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    moved, said, used = time.monotonic(), 0, 0.0
    try:
        while process.poll() is None:
            logs = [log for log in (cwd / "run.log", *cwd.glob("multirun/*/*/job.log")) if log.exists()]
            size, seconds = sum(log.stat().st_size for log in logs), _processor_seconds(process.pid)
            if size != said or not used - IDLE < seconds < used + IDLE:
                moved, said, used = time.monotonic(), size, seconds
            assert time.monotonic() - moved < HANG, f"it hangs: {(cwd / 'run.log').read_text()}"
            time.sleep(0.2)
    finally:
        harness.kill(process, everyone=True)
    return process.returncode, (cwd / "run.log").read_text()


def _processor_seconds(pid: int) -> float:
    """What a process and its living descendants have used."""
    total = 0
    for one in harness.family(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def test_a_job_that_fails_and_a_rank_that_is_killed_change_no_other_result(tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()

    code, text = command(together, "-m", *SMALL, "recipe=before,middle,none", "hardware.max_parallel_jobs=1")
    assert code == 1, text
    assert "before failed: RuntimeError: it failed before the first step" in text
    assert "middle failed: RuntimeError: it failed in a step" in text
    assert "2 of 3 jobs failed: before, middle; the same command runs only what is missing" in text
    assert [path.parent.name for path in together.glob("multirun/*/*/results.json")] == ["none"]

    (alone / "once").touch()
    code, text = command(alone, *SMALL, "recipe=none", KILL_ONCE=str(alone / "once"))
    job = alone / "multirun/smoke/none-single=tiny_cub200-seed0"
    status = json.loads((job / "status.json").read_text())
    assert code == 1 and status["state"] == "failed", text
    assert text.splitlines()[-1].startswith(
        "lmm-forget: error: none-single=tiny_cub200-seed0: rank 1 of 2 was killed (SIGKILL)"
    )
    assert "during stage 1 of 1: train tiny_cub200" in status["error"] and not (job / "results.json").exists()
    assert len(list((alone / "multirun/.store/partial").glob("*"))) == 1  # something to go on from

    code, text = command(alone, *SMALL, "recipe=none")
    assert code == 0, text
    (stage,) = json.loads((job / "results.json").read_text())["timings"]["stages"]
    assert stage["resumed_at"] > 0
    assert harness.difference(together / "multirun/smoke/none", job) is None
