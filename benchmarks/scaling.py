"""What running jobs side by side and sharing a job among devices gain on this machine, through the real command line.

    python benchmarks/scaling.py [--repeats 1] [--steps 20] [--report scaling.json]

Every line is printed as soon as it is known, with the load of the machine before it began: what else runs decides as
much as the code does. The base is asked beforehand, so that only the jobs' own work is timed:

- two jobs one after the other, and the same two side by side: the ratio of their wall times (2 is perfect);
- one job on one device, and the same job on two (ddp): the ratio, and that of its training alone;
- the overhead of a job: its wall time less what its record says its stages and the base took.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import harness

JOB = [
    "experiment=smoke",
    "suite.tasks=[ai2d,mmstar]",
    "sequence=single",
    "sequence.task=cub200",
    "data.train_samples=64",
    "data.eval_samples=8",
    "training.global_batch_size=16",
    "hardware.micro_batch_size=8",
]
TWO_DEVICES = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]


def timed(folder: Path, *words: str) -> float:
    """Wall seconds of a command in `folder`."""
    started = time.monotonic()
    harness.run(folder, *words)
    return time.monotonic() - started


def spent(results: dict[str, Any]) -> tuple[float, float]:
    """Seconds that a job taught for, and that it worked for in all, as its record says."""
    timings = results["timings"]
    return sum(stage["train"] for stage in timings["stages"]), float(timings["total"])


def once(folder: Path, steps: int) -> dict[str, float]:
    """All figures of one round, in seconds and ratios."""
    job = [*JOB, f"training.max_steps={steps}"]
    timed(folder, *job, "name=base", "seed=99")  # asks the base, and warms the disk's cache
    figures: dict[str, float] = {"load": os.getloadavg()[0]}
    figures["one_after_the_other"] = timed(folder, "-m", *job, "name=after", "seed=0,1", "hardware.max_parallel_jobs=1")
    figures["side_by_side"] = timed(folder, "-m", *job, "name=beside", "seed=2,3", "hardware.max_parallel_jobs=2")
    figures["one_device"] = timed(folder, *job, "name=one", "seed=4")
    figures["two_devices"] = timed(folder, *job, "name=two", "seed=5", *TWO_DEVICES)
    figures["load_after"] = os.getloadavg()[0]
    done = {name.split("/")[0]: results for name, results in harness.jobs(folder).items()}
    for devices, name in (("one_device", "one"), ("two_devices", "two")):
        taught, total = spent(done[name])
        figures[f"{devices}_teaching"] = taught
        figures[f"{devices}_overhead"] = figures[devices] - total
    figures["ratio_side_by_side"] = figures["one_after_the_other"] / figures["side_by_side"]
    figures["ratio_two_devices"] = figures["one_device"] / figures["two_devices"]
    figures["ratio_two_devices_teaching"] = figures["one_device_teaching"] / figures["two_devices_teaching"]
    return figures


def main() -> None:
    """Measure, print the medians and, where asked, write every figure to a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    rounds = []
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(once(Path(folder), given.steps))
        for name, value in rounds[-1].items():
            print(f"{name:<28}{value:8.2f}", flush=True)
        print(flush=True)
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    print(
        f"median of {len(rounds)} on {os.cpu_count()} cores, load {medians['load']:.1f}: two jobs side by side "
        f"{medians['ratio_side_by_side']:.2f} times as fast as one after the other; one job on two devices "
        f"{medians['ratio_two_devices']:.2f} times as fast ({medians['ratio_two_devices_teaching']:.2f} in training); "
        f"overhead of a job {medians['one_device_overhead']:.1f} s, on two devices "
        f"{medians['two_devices_overhead']:.1f} s"
    )
    if given.report:
        given.report.write_text(json.dumps({"rounds": rounds, "medians": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
