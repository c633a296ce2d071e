"""Put on PYTHONPATH by tests of the launcher: jobs then find this experiment instead of one that trains.

The seed says how a job ends, so that a grid over seeds shows every way a job can end. Torch is replaced too (its
import would be most of such a job's time); what the job asked of it stands in torch.txt. Jobs on several devices need
the real one, to talk to each other: STAND_IN_TORCH=real.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CRASH, MISTAKE, SLEEP, KILLED = 13, 14, 15, 16
RANK_1 = {21: CRASH, 22: MISTAKE, 23: KILLED}  # the same, but on rank 1 alone, after two of four steps


def run(config, job_dir, progress, ranks):
    seed = config["seed"]
    if ranks.size > 1:
        (Path(job_dir) / f"rank{ranks.rank}.pid").write_text(str(os.getpid()))
    if seed in RANK_1:
        progress.start_phase("stage 1/1 teach", 4, "step")
        for step in range(4):
            if ranks.rank == 1 and step == 2:
                time.sleep(2.5)  # so that rank 0's last heartbeat is seen
                end(RANK_1[seed])
            ranks.is_true_on_any_rank(False)
            progress.advance(1)
    if not ranks.is_rank_zero:
        ranks.is_true_on_any_rank(False)  # until rank 0 is done, which alone has results
        return None
    begin(job_dir, progress)
    if seed == CRASH:  # here and not in end(): a log's last lines have room for few callers
        print("about to divide")
        return 1 / 0
    end(seed)
    return work(config, job_dir, progress, ranks)


def end(seed):
    """End as a seed says."""
    from lmm_forget.errors import DataError

    if seed == CRASH:
        print("about to divide")
        return 1 / 0
    if seed == MISTAKE:
        raise DataError("sample 17 has no image;\n  add the file or set data.on_bad_sample=skip")
    if seed == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)


def begin(job_dir, progress):
    progress.start_phase("stage 1/1 teach", 4, "step")
    with open(Path(job_dir) / "starts.txt", "a") as file:
        print(os.getpid(), file=file)
    (Path(job_dir) / "torch.txt").write_text("\n".join(ASKED))
    (Path(job_dir) / "environment.txt").write_text("\n".join(f"{key}={value}" for key, value in os.environ.items()))


def work(config, job_dir, progress, ranks):
    if config["seed"] == SLEEP:
        child = subprocess.Popen(["sleep", "300"])
        (Path(job_dir) / "children.txt").write_text(str(child.pid))
        time.sleep(300)
    for step in range(4):
        progress.advance(1, loss=1.0 / (step + 1))
    ranks.is_true_on_any_rank(False)
    estimate = {"value": -float(config["seed"]), "low": -1.0, "high": 0.0}
    figures = {name: dict(estimate) for name in ("target_learning", "target_forgetting", "target_overall")}
    parts = {"per_stage": [dict(estimate)], "worst": {**estimate, "stage": 1}}
    figures["heldout_forgetting"] = {**estimate, **parts, "recovery": dict(estimate), "sum": dict(estimate)}
    tasks = {name: {"value": 50.0, "n": 4, "stderr": 1.0} for name in config["tasks"]}
    stage = {
        "index": 1,
        "task": config["sequence"]["tasks"][0],
        "key": "k",
        "weights_hash": "w",
        "steps": 4,
        "loss": 1.0,
    }
    return {
        "schema": 2,
        "job": {"name": Path(job_dir).name},
        "config": config,
        "plan": {
            "recipe": config["recipe"]["name"],
            "counts": {"trainable": 1, "frozen": 2, "unused": 0},
            "trainable": 1,
        },
        "base": {"scores": tasks},
        "stages": [{**stage, "scores": tasks}],
        "figures": figures,
        "timings": {},
        "versions": {},
    }


ASKED = []


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        names = [
            "lmm_forget.experiment.pipeline",
            *(["torch"] if os.environ.get("STAND_IN_TORCH") != "real" else []),
        ]
        return importlib.machinery.ModuleSpec(name, self) if name in names else None

    def exec_module(self, module):
        if module.__name__ == "torch":
            module.set_num_threads = lambda n: ASKED.append(f"set_num_threads({n})")
            module.use_deterministic_algorithms = lambda on, warn_only: ASKED.append(f"deterministic({on})")
        else:
            module.run_experiment = run


# A job's process, or the front door as one of several ranks; elsewhere everything stays what it is.
if "lmm_forget.experiment.job" in sys.orig_argv or (
    "lmm_forget.run" in sys.orig_argv and os.environ.get("WORLD_SIZE", "1") != "1"
):
    sys.meta_path.insert(0, _Finder())
