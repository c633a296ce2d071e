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

from lmm_forget.distributed.process_group import RankInfo
from lmm_forget.errors import LaunchError, LmmForgetError
from lmm_forget.experiment.job import build_thread_environment, run_job
from lmm_forget.launch.job_folders import Job, JobLocks, prepare_job_folders
from lmm_forget.launch.local import check_job_inputs, print_job_warnings, write_and_print_summary
from lmm_forget.launch.sweep_plan import SweepPlan, is_dry_run
from lmm_forget.metrics.interval_width import describe_interval_widths

RUN, FINISHED, REFUSED = b"run", b"finished", b"refused"
"""What rank 0 decides when it has prepared the job's folder; the others wait for it."""
RANK_ZERO_SECONDS = 10.0
"""Seconds that other ranks of a machine wait for the first one to print what is wrong."""


def build_world_size_overrides(rank_info: RankInfo, overrides: Sequence[str]) -> list[str]:
    """Overrides that make `hardware.devices` and `hardware.nodes` what was started, where `overrides` do not set them.

    Raises LaunchError where it sets them otherwise, or the machines have different numbers of processes.
    """
    if rank_info.size % rank_info.local_size:
        raise LaunchError(
            f"{rank_info.size} processes, {rank_info.local_size} of them here: start the same number on every machine"
        )
    started_counts = {
        "hardware.devices": rank_info.local_size,
        "hardware.nodes": rank_info.size // rank_info.local_size,
    }
    missing_overrides = []
    for key, number in started_counts.items():
        values = [text.split("=", 1)[1] for text in overrides if text.lstrip("+").startswith(f"{key}=")]
        if not values:
            missing_overrides.append(f"{key}={number}")
        elif values[-1] != str(number):
            raise LaunchError(
                f"{key}={values[-1]}, but torchrun started {rank_info.local_size} processes on each of "
                f"{started_counts['hardware.nodes']} machines; leave {key} out"
            )
    return missing_overrides


def run_job_on_rank(job: Job, rank_info: RankInfo) -> int:
    """Run `job` as one of its processes; returns the exit code: 0, 1 (the job failed) or 130 (stopped).

    Raises LmmForgetError on rank 0 before anything is computed.
    """
    if is_dry_run(job.config):
        if rank_info.rank == 0:
            plan = SweepPlan([job])
            print("\n".join([plan.format_plan_line(), *plan.format_recipe_lines()]))
        return 0
    # Before torch is imported, which reads them.
    os.environ.update(build_thread_environment(job.config["hardware"]["threads"]))
    with JobLocks() as job_locks:
        # The store has to live until the job has joined it: without torchrun's own, rank 0 is its server.
        rendezvous_store = _open_rendezvous_store()
        decision = (
            _prepare_and_broadcast(job, job_locks, rendezvous_store)
            if rank_info.rank == 0
            else bytes(rendezvous_store.get("decision"))
        )
        if decision != RUN:
            return 0 if decision == FINISHED else 2
        code = run_job(job.config_path, dict(job.config))
        if rank_info.rank == 0 and code == 0:
            write_and_print_summary(job.folder.parent)
            print_job_warnings([job])
    return {0: 0, 143: 130}.get(code, 1)


def _prepare_and_broadcast(job: Job, job_locks: JobLocks, rendezvous_store: Any) -> bytes:
    """Lock and write the job's folder, and let the other ranks know how that went."""
    try:
        pending_jobs, _ = prepare_job_folders([job], job_locks.acquire, check_jobs=check_job_inputs)
    except LmmForgetError:
        rendezvous_store.set("decision", REFUSED)
        raise
    rendezvous_store.set("decision", RUN if pending_jobs else FINISHED)
    if not pending_jobs:
        print(f"{job.name} is finished already; nothing to run", file=sys.stderr)
        write_and_print_summary(job.folder.parent)
        return FINISHED
    line = describe_interval_widths(job.config)
    if line:
        print(line, file=sys.stderr, flush=True)
    return RUN


def _open_rendezvous_store() -> Any:
    """A key-value store that all ranks see, at MASTER_ADDR and MASTER_PORT."""
    from torch.distributed import PrefixStore, rendezvous

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore("lmm_forget.run", store)


def wait_for_rank_zero_error(environment: Mapping[str, str]) -> None:
    """In a rank that is not the first of its machine: wait for that one to print what is wrong, which ends all of them.

    One line per machine is enough; this rank prints its own only where the first one has found nothing wrong.
    """
    is_distributed = environment.get("WORLD_SIZE", "1") not in ("", "1")
    if is_distributed and environment.get("LOCAL_RANK", "0") not in ("", "0"):
        time.sleep(RANK_ZERO_SECONDS)
