"""Real training through a real Slurm, with every accident at once; the long version of tests/slurm/test_sweep.py.

    tests/slurm/start.sh
    python benchmarks/slurm_faults.py 2 60     # minutes of the time limit, seconds of notice before it

Four jobs of two tasks each: one fails on its second rank, one is cancelled, one has steps so slow that its limit comes
first, one is left in peace. The same command is then given again, and everything is compared with the same sweep run
without Slurm: results, answers and weights to the byte, and the table. The last line begins with PASSED or FAILED.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import harness
from tests.slurm.cluster import slurm

PEACE, FAILS, CANCELLED, SLOW = 0, 1, 2, 3
GRID = [
    "-m",
    "experiment=smoke",
    "suite.tasks=[ai2d,mmstar]",
    "sequence=order",
    "sequence.tasks=[cub200,timeclock]",
]
GRID += ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2", "hardware.micro_batch_size=4"]
GRID += ["training.max_steps=6", f"seed={PEACE},{FAILS},{CANCELLED},{SLOW}"]
ACCIDENTS = f"""
import os, sys, time
if "lmm_forget.launch.slurm.rank_task" in sys.orig_argv and not os.environ.get("CALM"):
    from lmm_forget.distributed import stop_signals
    index, rank = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_PROCID")
    again, plain = os.environ.get("SLURM_RESTART_COUNT", "0") != "0", stop_signals.raise_if_stop_requested
    def raise_if_stop_requested():
        if index == "{FAILS}" and rank == "1":
            raise RuntimeError("an accident on purpose")
        if index in ("{CANCELLED}", "{SLOW}") and not again:
            time.sleep(20)
        plain()
    stop_signals.raise_if_stop_requested = raise_if_stop_requested
"""


def say(line: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def read(path: Path) -> dict:
    """A JSON file that may not be there yet."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def states(sweep: Path) -> dict[str, str]:
    """State and error of every job, as `lmm-forget status` tells them."""
    line = [sys.executable, "-m", "lmm_forget", "status", str(sweep), "format=json"]
    found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    return {job["job"]: f"{job['state']} {job['error'] or ''}".strip() for job in found["jobs"]}


def accidents(folder: Path, minutes: int, notice: int) -> list[str]:
    """Run the sweep through its accidents and again; returns what went otherwise than it should have."""
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(ACCIDENTS)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(harness.ROOT), str(hook)])
    line = [
        sys.executable,
        "-m",
        "lmm_forget.run",
        *GRID,
        "name=slurm",
        "store=slurm",
        "hydra/launcher=slurm",
    ]
    line += [f"hydra.launcher.time={minutes}", f"hydra.launcher.signal={notice}", "hydra.launcher.poll=1"]
    sweep = folder / "multirun" / "slurm"
    cancelled = sweep / f"seed={CANCELLED}"
    with (folder / "slurm.log").open("ab") as log:
        first = subprocess.Popen(line, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        while first.poll() is None and "teach" not in str(read(cancelled / "status.json").get("phase")):
            time.sleep(0.2)
        number = read(cancelled / "slurm.json").get("id", "")
        say(f"scancel {number}")
        subprocess.run(["scancel", number], check=False)
        code = first.wait()
        say(f"first time: exit {code}, {states(sweep)}")
        wrong = [] if code == 1 else [f"exit code {code} with a failed job"]
        said = states(sweep)
        for seed, word in ((PEACE, "done"), (FAILS, "failed"), (CANCELLED, "interrupted"), (SLOW, "done")):
            if not said[f"seed={seed}"].startswith(word):
                wrong.append(f"seed={seed} is {said[f'seed={seed}']}, not {word}")
        output = folder / read(sweep / f"seed={SLOW}" / "slurm.json")["output"]
        starts = output.read_text().count("put back into the queue") + 1
        say(f"seed={SLOW} needed {starts} starts in one Slurm job")
        wrong += [] if starts > 1 else ["the slow job was never put back"]
        code = subprocess.run(line, cwd=folder, stdout=log, stderr=log, env={**os.environ, "CALM": "1"}).returncode
    say(f"again: exit {code}, {states(sweep)}")
    return wrong + ([] if code == 0 else [f"the second time ended with {code}"])


def table(path: Path) -> list[dict[str, str]]:
    """The sweep's table, without what was measured of the machine."""
    with path.open() as file:
        return [
            {key: value for key, value in row.items() if not key.endswith("_seconds") and "peak" not in key}
            for row in csv.DictReader(file)
        ]


def main(minutes: int, notice: int) -> bool:
    """All of it; whether everything was as it should be."""
    conf, trouble = slurm()
    if trouble:
        say(f"FAILED: {trouble}")
        return False
    os.environ["SLURM_CONF"] = str(conf)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.monotonic()
        wrong = accidents(folder, minutes, notice)
        say(f"through Slurm: {time.monotonic() - started:.0f} s")
        started = time.monotonic()
        harness.run(folder, *GRID, "name=local", "store=local", timeout=7200)
        say(f"without Slurm: {time.monotonic() - started:.0f} s")
        sweeps = [folder / "multirun" / one for one in ("slurm", "local")]
        for seed in (PEACE, FAILS, CANCELLED, SLOW):
            odd = harness.difference(*(sweep / f"seed={seed}" for sweep in sweeps))
            wrong += [f"seed={seed}: {odd}"] if odd else []
        tables = [table(sweep / "summary.csv") for sweep in sweeps]
        wrong += [] if tables[0] == tables[1] else ["the tables differ"]
    say(f"FAILED: {'; '.join(wrong)}" if wrong else "PASSED: equal to the byte, and so is the table")
    return not wrong


if __name__ == "__main__":
    sys.exit(not main(*(int(word) for word in (sys.argv[1:] + ["2", "60"][len(sys.argv) - 1 :])[:2])))
