"""One job whose processes torchrun started: `torchrun --nproc_per_node 2 -m lmm_forget.run hardware=ddp …`.

Every rank composes the configuration; rank 0 alone prepares the job's folder, and the others wait for it. Then all of
them run the job in this process, as the workers that lmm_forget.distributed.workers starts do.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lmm_forget.distributed.process_group import Place
from lmm_forget.errors import LaunchError, LmmForgetError
from lmm_forget.experiment import job as one_job
from lmm_forget.launch.jobs import Folders, Job, prepare
from lmm_forget.launch.planning import Planned, SweepPlan, wants_plan_only
from lmm_forget.launch.session import check_inputs, show_summary, tell_notices
from lmm_forget.metrics.resolution import resolution

RUN, FINISHED, REFUSED = b"run", b"finished", b"refused"
"""What rank 0 tells the others when it has looked at the job's folder."""
PATIENCE = 10.0
"""Seconds that other ranks of a machine leave to the first one to say what is wrong."""


def world_overrides(place: Place, given: Sequence[str]) -> list[str]:
    """Overrides that make `hardware.devices` and `hardware.nodes` what was started, where `given` does not set them.

    Raises LaunchError where it sets them otherwise, or the machines have different numbers of processes.
    """
    if place.size % place.local_size:
        raise LaunchError(
            f"{place.size} processes, {place.local_size} of them here: start the same number on every machine"
        )
    found = {"hardware.devices": place.local_size, "hardware.nodes": place.size // place.local_size}
    missing = []
    for key, number in found.items():
        values = [text.split("=", 1)[1] for text in given if text.lstrip("+").startswith(f"{key}=")]
        if not values:
            missing.append(f"{key}={number}")
        elif values[-1] != str(number):
            raise LaunchError(
                f"{key}={values[-1]}, but torchrun started {place.local_size} processes on each of "
                f"{found['hardware.nodes']} machines; leave {key} out"
            )
    return missing


def run_as_rank(job: Job, place: Place) -> int:
    """Run `job` as one of its processes; returns the exit code: 0, 1 (the job failed) or 130 (stopped).

    Raises LmmForgetError on rank 0 before anything is computed, Planned on every rank if only the plan was wanted.
    """
    if wants_plan_only(job.config):
        if place.rank == 0:
            plan = SweepPlan([job])
            print("\n".join([plan.line(), *plan.by_recipe()]))
        raise Planned
    # Before torch is imported, which reads them.
    os.environ.update(one_job.thread_environment(job.config["hardware"]["threads"]))
    with Folders() as until:
        # The store has to live until the job has joined it: without torchrun's own, rank 0 is its server.
        store = _meeting_point()
        word = _prepare(job, until, store) if place.rank == 0 else bytes(store.get("word"))
        if word != RUN:
            return 0 if word == FINISHED else 2
        code = one_job.run(job.file, dict(job.config))
        if place.rank == 0 and code == 0:
            show_summary(job.folder.parent)
            tell_notices([job])
    return {0: 0, 143: 130}.get(code, 1)


def _prepare(job: Job, until: Folders, store: Any) -> bytes:
    """Claim and write the job's folder, and tell the other ranks how that went."""
    try:
        waiting, _ = prepare([job], until.hold, check=check_inputs)
    except LmmForgetError:
        store.set("word", REFUSED)
        raise
    store.set("word", RUN if waiting else FINISHED)
    if not waiting:
        print(f"{job.name} is finished already; nothing to run", file=sys.stderr)
        show_summary(job.folder.parent)
        return FINISHED
    line = resolution(job.config)
    if line:
        print(line, file=sys.stderr, flush=True)
    return RUN


def _meeting_point() -> Any:
    """A key-value store that all ranks see, at MASTER_ADDR and MASTER_PORT."""
    from torch.distributed import PrefixStore, rendezvous

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore("lmm_forget.run", store)


def let_the_first_speak(env: Mapping[str, str]) -> None:
    """In a rank that is not the first of its machine: wait for that one to say what is wrong, which ends all of them.

    One line per machine is enough; only where the first has nothing to say does this one come to say it.
    """
    several = env.get("WORLD_SIZE", "1") not in ("", "1")
    if several and env.get("LOCAL_RANK", "0") not in ("", "0"):
        time.sleep(PATIENCE)
