"""Sweeps through a real Slurm: two tasks per job, and every way in which a job does not simply finish."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.timeout(1800)  # a real scheduler, whose limits are whole minutes
PLAIN, CRASH, LONG, LONGER = 0, 13, 15, 16  # seeds that the stand-in understands
TWO_TASKS = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.poll=0.5"]


def wait_for(
    found: Callable[[], Any], what: str, command: subprocess.Popen[str] | None = None, seconds: float = 300
) -> Any:
    """What `found` returns once it is something, unless `command`, which is at work, ends before."""
    limit = time.monotonic() + seconds
    while not (value := found()):
        assert command is None or command.poll() is None, command.communicate()
        assert time.monotonic() < limit, f"{what} did not happen"
        time.sleep(0.2)
    return value


def read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def at_work(job: Path) -> str | None:
    """The Slurm id of a job once it has made steps."""
    status = read(job / "status.json")
    return read(job / "slurm.json")["id"] if status.get("done", 0) > 0 else None


def states(cluster, folder: str) -> dict[str, str]:
    shown = cluster.call("status", folder, "format=json")
    assert shown.returncode == 0, shown.stderr
    return {job["job"]: job["state"] for job in json.loads(shown.stdout)["jobs"]}


@pytest.fixture(scope="module")
def two_machines(slurm_conf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Any]]:
    """Real training, at work while the tests above wait for a limit: its job folders, in Slurm and not."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(train_and_stop, Cluster(tmp_path_factory.mktemp("two"), slurm_conf, stand_in=False))


def train_and_stop(slurm: Cluster) -> tuple[Path, Path]:
    """A run on two machines that is told to stop in the middle of training, and the same run on one, in peace."""
    line = ["experiment=smoke", "suite.tasks=[ai2d]", "sequence=single", "sequence.task=cub200"]
    line += ["hardware=ddp", "hardware.accelerator=cpu", "hardware.micro_batch_size=4", "training.max_steps=8"]
    two = ["hardware.nodes=2", "hardware.devices=1", *SLURM, "hydra.launcher.partition=both"]
    run = slurm.start("run", *line, *two, "name=two", "store=two")
    job, here = (slurm.folder / "multirun" / name / "sa_proj-single=tiny_cub200-seed0" for name in ("two", "one"))

    def teaching() -> str | None:
        status = read(job / "status.json")
        return read(job / "slurm.json").get("id") if "train" in status.get("phase", "") else None

    slurm.ask("scancel", "--signal=USR2", wait_for(teaching, "training", run, seconds=900))
    _, err = run.communicate(timeout=900)
    assert run.returncode == 0, err + (job / "job.log").read_text()[-2000:]
    assert "put back into the queue" in (slurm.folder / read(job / "slurm.json")["output"]).read_text()
    done = slurm.call("run", *line, "hardware.devices=2", "name=one", "store=one", timeout=900)
    assert done.returncode == 0, done.stderr
    return job, here


def test_a_failure_a_cancelled_job_and_one_over_its_limit(two_machines, cluster, tmp_path: Path) -> None:
    slurm = cluster()
    line = ["-m", *TWO_TASKS, *SLURM, "name=ways", f"seed={PLAIN},{CRASH},{LONG},{LONGER}"]
    line += ["hydra.launcher.time=1", "hydra.launcher.signal=10"]
    sweep = tmp_path / "multirun" / "ways"
    plain, crash, long, longer = (sweep / f"seed={seed}" for seed in (PLAIN, CRASH, LONG, LONGER))
    first = slurm.start("run", *line)
    slurm.ask("scancel", wait_for(lambda: at_work(longer), "a first step", first))
    # Meanwhile the same jobs here; those that are long by themselves end with their second start.
    for seed in (LONG, LONGER):
        (tmp_path / "multirun" / "local" / f"seed={seed}").mkdir(parents=True)
        (tmp_path / "multirun" / "local" / f"seed={seed}" / "starts0.txt").write_text("earlier\n")
    local = slurm.call("run", "-m", "name=local", f"seed={PLAIN},{LONG},{LONGER}")
    assert local.returncode == 0, local.stderr
    out, err = first.communicate(timeout=600)
    assert first.returncode == 1, err
    assert "submitted 4 jobs: Slurm" in err and "Traceback" not in out + err
    assert "seed=13 failed: rank 1 failed: ZeroDivisionError: division by zero" in err
    assert "seed=16 failed: it was cancelled" in err
    assert "2 of 4 jobs failed: seed=13, seed=16" in err.splitlines()[-1]
    assert states(slurm, "multirun/ways") == {
        "seed=0": "done", "seed=13": "failed", "seed=15": "done", "seed=16": "interrupted"
    }  # fmt: skip
    assert read(long / "results.json")  # its limit was a minute; it needed two starts in one Slurm job
    assert [len((long / f"starts{rank}.txt").read_text().split()) for rank in (0, 1)] == [2, 2]
    assert (
        "saved; put back into the queue (start 2)" in Path(tmp_path / read(long / "slurm.json")["output"]).read_text()
    )

    place = [read(plain / f"place{rank}.json") for rank in (0, 1)]
    assert [(one["RANK"], one["LOCAL_RANK"]) for one in place] == [("0", "0"), ("1", "1")]
    assert {(one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"], one["MASTER_ADDR"]) for one in place} == {
        ("2", "2", "127.0.0.1")
    }
    assert place[0]["MASTER_PORT"] == place[1]["MASTER_PORT"] != read(long / "place0.json")["MASTER_PORT"]
    assert "SLURM_NTASKS" not in place[0]["slurm"]  # Lightning would take it for an order

    again = slurm.call("run", *line)
    assert again.returncode == 1 and "submitted 2 jobs" in again.stderr
    assert "2 of 4 jobs are finished already" in again.stderr
    assert states(slurm, "multirun/ways") == {
        "seed=0": "done", "seed=13": "failed", "seed=15": "done", "seed=16": "done"
    }  # fmt: skip

    there, here = ((tmp_path / f"multirun/{name}/summary.csv").read_text() for name in ("ways", "local"))
    assert [row for row in there.splitlines() if not row.startswith("seed=13,")] == here.splitlines()


def test_submitted_without_waiting_watched_and_left_alone(cluster, tmp_path: Path) -> None:
    slurm = cluster()
    line = ["-m", *SLURM, "name=later", f"seed={PLAIN},{LONG}", "sweep.submit_only=true"]
    submitted = slurm.call("run", *line)
    assert submitted.returncode == 0, submitted.stderr
    assert "lmm-forget status multirun/later" in submitted.stdout and "scancel" in submitted.stdout
    long = tmp_path / "multirun" / "later" / f"seed={LONG}"
    slurm_id = wait_for(lambda: at_work(long), "a first step")
    wait_for(lambda: (long.parent / f"seed={PLAIN}" / "results.json").exists(), "the other job's end")
    assert states(slurm, "multirun/later") == {"seed=0": "done", "seed=15": "running"}

    again = slurm.call("run", *line)
    assert "1 job in Slurm's queue already" in again.stderr and "submitted" not in again.stderr
    assert read(long / "slurm.json")["id"] == slurm_id
    here = slurm.call("run", "-m", "name=later", f"seed={PLAIN},{LONG}")  # the same jobs, not in Slurm
    assert here.returncode == 2 and f"seed=15 is in Slurm's queue as job {slurm_id}" in here.stderr
    other = slurm.call("run", *line, "recipe=llm")
    assert other.returncode == 2 and "with another configuration (recipe" in other.stderr

    watcher = slurm.start("run", *line[:-1])
    wait_for(lambda: "seed=15: started" in (watcher.stderr.readline() or "seed=15: started"), "watching")
    watcher.send_signal(signal.SIGINT)
    out, err = watcher.communicate(timeout=120)
    assert watcher.returncode == 130 and f"cancel: scancel {slurm_id.partition('_')[0]}" in out
    assert "stopped watching; the same command watches again" in err

    slurm.ask("scancel", "--signal=USR2", slurm_id)  # as Slurm tells jobs of a time limit or a pre-emption ahead
    wait_for(lambda: (long / "results.json").exists(), "the end of its second start")
    assert len((long / "starts0.txt").read_text().split()) == 2
    assert states(slurm, "multirun/later") == {"seed=0": "done", "seed=15": "done"}
    assert read(long / "place0.json")["RANK"] is None  # one device: an ordinary process


def test_a_run_on_two_machines_goes_on_and_equals_one_on_one(two_machines) -> None:
    job, here = two_machines.result(timeout=1700)
    assert harness.difference(job, here) is None
