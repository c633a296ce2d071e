"""Put on PYTHONPATH by tests of the Slurm launcher: tasks then find an experiment that trains nothing, and no torch.

The seed says how a job goes. What stands for torch's process group agrees with everybody about everything.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
import types
from pathlib import Path

PLAIN, CRASH, LONG, LONGER = 0, 13, 15, 16
STEPS = 20


def run(config, job_dir, progress, ranks):
    from lmm_forget.distributed import stop_signals

    folder, seed = Path(job_dir), config["seed"]
    place = {
        key: os.environ.get(key)
        for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    slurm = sorted(key for key in os.environ if key.startswith("SLURM_"))
    (folder / f"place{ranks.rank}.json").write_text(json.dumps({**place, "slurm": slurm}))
    if seed == CRASH and ranks.rank == ranks.size - 1:
        raise ZeroDivisionError("division by zero")
    state = folder / "state.txt"  # stands for the store: how many steps are done
    with open(folder / f"starts{ranks.rank}.txt", "a") as file:
        print(os.getpid(), file=file)
    again = len((folder / f"starts{ranks.rank}.txt").read_text().split()) > 1
    done = int(state.read_text()) if state.exists() and ranks.is_rank_zero else 0
    progress.start_phase("stage 1 of 1: teach", STEPS, "step")
    with stop_signals.defer_stop_requests():
        while done < STEPS:
            # The first start of a long job never ends by itself, and one that waits for a rank that failed neither.
            slow = seed == CRASH or (seed in (LONG, LONGER) and not again)
            time.sleep(0.2 if slow else 0)
            done = min(done + 1, STEPS - 1 if slow else STEPS)
            if ranks.is_rank_zero:
                state.write_text(str(done))
            progress.advance(1)
            stop_signals.raise_if_stop_requested()
    if not ranks.is_rank_zero:
        return None
    meet(folder, ranks)
    estimate = {"value": -float(seed), "low": -20.0, "high": 0.0}
    figures = {name: dict(estimate) for name in ("target_learning", "target_forgetting", "target_overall")}
    parts = {"per_stage": [dict(estimate)], "worst": {**estimate, "stage": 1}}
    figures["heldout_forgetting"] = {**estimate, **parts, "recovery": dict(estimate), "sum": dict(estimate)}
    scores = {name: {"value": 50.0, "n": 4, "stderr": 1.0} for name in config["tasks"]}
    stage = {
        "index": 1,
        "task": config["sequence"]["tasks"][0],
        "key": "k",
        "weights_hash": "w",
        "steps": STEPS,
        "loss": 1.0,
        "scores": scores,
    }
    counts = {"trainable": 1, "frozen": 2, "unused": 0}
    return {
        "schema": 2,
        "job": {"name": folder.name},
        "config": config,
        "plan": {"recipe": config["recipe"]["name"], "counts": counts, "trainable": 1},
        "base": {"scores": scores},
        "stages": [stage],
        "figures": figures,
        "timings": {},
        "versions": {},
    }


def meet(folder, ranks, seconds=60):
    """Real ranks end together; here the first one would leave results before another one has begun."""
    starts = [folder / f"starts{rank}.txt" for rank in range(ranks.size)]
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        counts = [len(path.read_text().split()) if path.exists() else 0 for path in starts]
        if min(counts) == counts[0]:
            return
        time.sleep(0.05)


def gather(found, value, group=None):
    found[:] = [value] * len(found)


def nothing(*arguments, **more):
    return None


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        known = ("lmm_forget.experiment.pipeline", "torch", "torch.distributed")
        return importlib.machinery.ModuleSpec(name, self, is_package=name == "torch") if name in known else None

    def exec_module(self, module: types.ModuleType):
        if module.__name__ == "torch":
            module.set_num_threads = module.use_deterministic_algorithms = nothing
        elif module.__name__ == "torch.distributed":
            module.init_process_group = module.new_group = module.destroy_process_group = nothing
            module.all_gather_object = gather
        else:
            module.run_experiment = run


if {"lmm_forget.experiment.job", "lmm_forget.launch.slurm.rank_task"} & set(sys.orig_argv):  # a job's own process
    sys.meta_path.insert(0, Finder())
