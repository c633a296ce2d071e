"""From submission to the last result: jobs in the queue are watched through their heartbeat and squeue."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from lmm_forget.distributed.heartbeat import close_running_status, read_job_status
from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.launch.job_folders import Job, JobLocks, prepare_job_folders
from lmm_forget.launch.local import print_job_warnings, print_sweep_plan
from lmm_forget.launch.outcomes import (
    DRY_RUN_FINISHED,
    SLURM_WATCH_STOPPED,
    SUBMIT_ONLY_FINISHED,
    JobOutcome,
    LaunchResult,
    read_log_tail,
)
from lmm_forget.launch.progress_display import ProgressDisplay
from lmm_forget.launch.slurm import squeue
from lmm_forget.launch.slurm.job_record import SlurmJobRecord, record_slurm_state
from lmm_forget.launch.slurm.settings import SlurmSettings
from lmm_forget.launch.slurm.submit import check_slurm_settings, find_queued_jobs, submit_jobs
from lmm_forget.launch.sweep_plan import SweepPlan, is_dry_run, is_submit_only

FAILURE_CAUSES = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "it was cancelled",
    "DEADLINE": "its deadline passed",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it needed more memory than it had asked for (hydra.launcher.mem)",
    "PREEMPTED": "it was pre-empted and not put back into the queue",
    "TIMEOUT": "its time limit came before it had saved (hydra.launcher.time, hydra.launcher.signal)",
}
RESUMABLE_STATES = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "PREEMPTED", "TIMEOUT")
"""Ends that are no fault of the job's: it is interrupted, and the same command goes on where it ended."""
TICK_SECONDS = 0.5


def run_jobs_in_slurm(
    jobs: Sequence[Job], settings: SlurmSettings, on_accepted: Callable[[], None] = lambda: None
) -> LaunchResult:
    """Submit what is neither finished nor in the queue, and wait for all; an outcome for each job, in the order given.

    The result ends early where only the plan was wanted, with `sweep.submit_only`, and after Ctrl-C, SIGTERM or SIGHUP.
    Raises ConfigError or LaunchError before anything is submitted. `on_accepted` is called when all is checked.
    """
    plan = SweepPlan([*{job.name: job for job in jobs}.values()])
    if is_dry_run(jobs[0].config):
        print("\n".join([plan.format_plan_line(), *plan.format_recipe_lines()]))
        return DRY_RUN_FINISHED
    if not squeue.is_slurm_available():
        raise LaunchError("hydra/launcher=slurm: there is no squeue here; start it on a machine of the cluster")
    slurm_ids = find_queued_jobs(plan.jobs)
    with JobLocks() as job_locks:
        unqueued_jobs = [job for job in plan.jobs if job.name not in slurm_ids]
        pending_jobs, finished = prepare_job_folders(
            unqueued_jobs,
            job_locks.acquire,
            input_reader=plan.reader,
            check_jobs=lambda jobs: check_slurm_settings(jobs, settings),
        )
        on_accepted()
        print_sweep_plan(plan, pending_jobs)
        if slurm_ids:
            print(f"{_format_job_count(len(slurm_ids))} in Slurm's queue already", file=sys.stderr)
        new_ids = submit_jobs(pending_jobs, settings) if pending_jobs else {}
    if new_ids:
        print(
            f"submitted {_format_job_count(len(new_ids))}: Slurm {_format_slurm_ids(new_ids)}",
            file=sys.stderr,
            flush=True,
        )
    slurm_ids.update(new_ids)
    sweep_dir = plan.jobs[0].folder.parent
    if is_submit_only(jobs[0].config):
        _print_watch_hint(sweep_dir, slurm_ids)
        return SUBMIT_ONLY_FINISHED
    outcomes = {job.name: JobOutcome(job, is_finished=True) for job in finished}
    if slurm_ids:
        queued_jobs = [job for job in plan.jobs if job.name in slurm_ids]
        with ProgressDisplay(queued_jobs, finished) as display:
            ended = SlurmMonitor(queued_jobs, slurm_ids, display, settings.poll).wait_for_jobs()
        if ended is None:
            return SLURM_WATCH_STOPPED
        outcomes |= ended
        print_job_warnings([job for job in queued_jobs if outcomes[job.name].is_finished])
    else:
        print("all jobs are finished already; nothing to submit", file=sys.stderr)
    return LaunchResult(tuple(outcomes[job.name] for job in jobs))


def check_submit_only_allowed(needs_results: bool, config: Mapping[str, object]) -> None:
    """Raise ConfigError where a sweeper needs results that `sweep.submit_only` does not wait for."""
    if needs_results and is_submit_only(config):
        raise ConfigError("sweep.submit_only=true cannot be used with a sweeper that chooses the next jobs by results")


class SlurmMonitor:
    """Waits for jobs in Slurm. A job has ended when two polls in a row find it ended or gone; files may lag behind."""

    def __init__(
        self, jobs: Sequence[Job], slurm_ids: Mapping[str, str], display: ProgressDisplay, poll_seconds: float
    ) -> None:
        self._jobs, self._ids, self._view, self._poll = (
            {job.name: job for job in jobs},
            dict(slurm_ids),
            display,
            poll_seconds,
        )
        self._started: set[str] = set()
        self._missing_once: set[str] = set()
        self._is_unreachable = False
        self._signal_count = 0

    def wait_for_jobs(self) -> dict[str, JobOutcome] | None:
        """Every job's outcome, by name; None after Ctrl-C, SIGTERM or SIGHUP, which the jobs do not see."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        previous = {number: signal.signal(number, self._count_signal) for number in numbers}
        outcomes: dict[str, JobOutcome] = {}
        next_poll = 0.0
        try:
            while len(outcomes) < len(self._jobs):
                if self._signal_count:
                    remaining_ids = {name: self._ids[name] for name in self._jobs if name not in outcomes}
                    _print_watch_hint(next(iter(self._jobs.values())).folder.parent, remaining_ids)
                    return None
                if time.monotonic() >= next_poll:
                    next_poll = time.monotonic() + self._poll
                    self._poll_queue(outcomes)
                self._view.on_tick()
                time.sleep(min(TICK_SECONDS, self._poll))
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return outcomes

    def _poll_queue(self, outcomes: dict[str, JobOutcome]) -> None:
        names = [name for name in self._jobs if name not in outcomes]
        try:
            slurm_jobs = squeue.query_jobs(self._ids[name] for name in names)
        except squeue.SlurmUnreachable as error:
            if not self._is_unreachable:
                self._view.print_message(f"{error}; waiting for it")
            self._is_unreachable = True
            return
        self._is_unreachable = False
        for name in names:
            slurm_job = slurm_jobs.get(self._ids[name])
            if slurm_job is not None and not slurm_job.has_ended:
                self._missing_once.discard(name)
                if slurm_job.is_running and name not in self._started:
                    self._started.add(name)
                    self._view.on_job_started(self._jobs[name])
            elif name in self._missing_once or (self._jobs[name].folder / "results.json").exists():
                outcomes[name] = determine_outcome(self._jobs[name], slurm_job)
                if name not in self._started:
                    self._view.on_job_started(self._jobs[name])
                self._view.on_job_ended(outcomes[name])
            else:
                self._missing_once.add(name)

    def _count_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal_count += 1


def determine_outcome(job: Job, slurm_job: squeue.SlurmJobInfo | None) -> JobOutcome:
    """How a job ended that Slurm does not run any more, from its files and Slurm's state; status.json is corrected.

    Results count first, whatever Slurm's state; then the job's status.json, then Slurm's state.
    """
    state = slurm_job.state if slurm_job else (record.ended if (record := SlurmJobRecord.read(job.folder)) else None)
    if slurm_job:
        record_slurm_state(job.folder, slurm_job.state)
    if (job.folder / "results.json").exists():
        return JobOutcome(job, is_finished=True)
    status = read_job_status(job.folder)
    if status.get("state") == "failed" and state not in FAILURE_CAUSES:
        cause = str(status.get("error") or "it failed")
        return JobOutcome(job, is_finished=False, cause=cause, log_tail=read_log_tail(job.log_path))
    cause = FAILURE_CAUSES.get(str(state)) or (
        "it was stopped" if status.get("state") == "interrupted" else "its Slurm job ended without results"
    )
    close_running_status(job.folder, "interrupted" if state in RESUMABLE_STATES else "failed", cause)
    return JobOutcome(
        job,
        is_finished=False,
        cause=cause,
        log_tail=() if state in RESUMABLE_STATES else _read_last_output(job),
    )


def _read_last_output(job: Job) -> tuple[str, ...]:
    """The end of what the batch script printed; where that is nothing, of what the job printed."""
    slurm_record = SlurmJobRecord.read(job.folder)
    batch_output = read_log_tail(Path(slurm_record.output)) if slurm_record and slurm_record.output else ()
    return batch_output or read_log_tail(job.log_path)


def _print_watch_hint(sweep_dir: Path, slurm_ids: Mapping[str, str]) -> None:
    """How to look at jobs that go on by themselves, and how to end them."""
    if slurm_ids:
        print(
            f"{_format_job_count(len(slurm_ids))} in Slurm's queue, and "
            f"{'go' if len(slurm_ids) > 1 else 'goes'} on by itself"
        )
        print(f"  watch:  lmm-forget status {sweep_dir}")
        print(f"  cancel: scancel {_format_slurm_ids(slurm_ids)}", flush=True)
    else:
        print(f"nothing is in Slurm's queue; lmm-forget status {sweep_dir} shows every job", flush=True)


def _format_slurm_ids(slurm_ids: Mapping[str, str]) -> str:
    """Slurm ids as scancel takes them: an array as a whole where all of it is meant."""
    return " ".join(dict.fromkeys(slurm_id.partition("_")[0] for slurm_id in slurm_ids.values()))


def _format_job_count(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
