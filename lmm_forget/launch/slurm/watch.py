"""From submission to the last result: jobs in the queue are watched through their heartbeat and squeue."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from lmm_forget.distributed.heartbeat import close_status, read_status
from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.launch.jobs import Folders, Job, prepare
from lmm_forget.launch.live import View
from lmm_forget.launch.planning import Planned, SweepPlan, wants_plan_only, wants_submitting_only
from lmm_forget.launch.processes import Outcome, Stopped
from lmm_forget.launch.session import tell_before, tell_notices
from lmm_forget.launch.slurm import queue
from lmm_forget.launch.slurm.settings import Settings
from lmm_forget.launch.slurm.submit import check_request, queued, submit
from lmm_forget.launch.slurm.ticket import Ticket, close_ticket

CAUSES = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "it was cancelled",
    "DEADLINE": "its deadline passed",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it needed more memory than it had asked for (hydra.launcher.mem)",
    "PREEMPTED": "it was pre-empted and not put back into the queue",
    "TIMEOUT": "its time limit came before it had saved (hydra.launcher.time, hydra.launcher.signal)",
}
GOES_ON = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "PREEMPTED", "TIMEOUT")
"""Ends that are no fault of the job's: it is interrupted, and the same command goes on where it ended."""
TICK = 0.5


class Submitted(Planned):
    """Submitting was all that was asked for (`sweep.submit_only=true`); the jobs go on by themselves."""


class Detached(Stopped):
    """Ctrl-C ended the command that watched; the jobs go on by themselves."""


def run_in_slurm(
    jobs: Sequence[Job], settings: Settings, accepted: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Submit what is neither finished nor in the queue, and wait for all; an outcome for each job, in the order given.

    Raises ConfigError or LaunchError before anything is submitted, Planned when only the plan was wanted, Submitted
    with `sweep.submit_only`, Detached after Ctrl-C, SIGTERM or SIGHUP. `accepted` is called when all is checked.
    """
    plan = SweepPlan([*{job.name: job for job in jobs}.values()])
    if wants_plan_only(jobs[0].config):
        print("\n".join([plan.line(), *plan.by_recipe()]))
        raise Planned
    if not queue.available():
        raise LaunchError(
            "hydra/launcher=slurm: there is no squeue here; start it on a machine of the cluster"
        )
    ids = queued(plan.jobs)
    with Folders() as folders:
        rest = [job for job in plan.jobs if job.name not in ids]
        waiting, finished = prepare(
            rest, folders.hold, reader=plan.reader, check=lambda jobs: check_request(jobs, settings)
        )
        accepted()
        tell_before(plan, waiting)
        if ids:
            print(f"{_many(len(ids))} in Slurm's queue already", file=sys.stderr)
        fresh = submit(waiting, settings) if waiting else {}
    if fresh:
        print(f"submitted {_many(len(fresh))}: Slurm {_bases(fresh)}", file=sys.stderr, flush=True)
    ids.update(fresh)
    sweep = plan.jobs[0].folder.parent
    if wants_submitting_only(jobs[0].config):
        _say_where(sweep, ids)
        raise Submitted
    outcomes = {job.name: Outcome(job, finished=True) for job in finished}
    if ids:
        there = [job for job in plan.jobs if job.name in ids]
        with View(there, finished) as view:
            outcomes.update(Watch(there, ids, view, settings.poll).run())
        tell_notices([job for job in there if outcomes[job.name].finished])
    else:
        print("all jobs are finished already; nothing to submit", file=sys.stderr)
    return [outcomes[job.name] for job in jobs]


def refuse_without_waiting(optimizes: bool, config: Mapping[str, object]) -> None:
    """Raise ConfigError where a sweeper needs results that `sweep.submit_only` does not wait for."""
    if optimizes and wants_submitting_only(config):
        raise ConfigError(
            "sweep.submit_only=true cannot be used with a sweeper that chooses the next jobs by results"
        )


class Watch:
    """Waits for jobs in Slurm. A job has ended when two looks in a row find it ended or gone; files may lag behind."""

    def __init__(self, jobs: Sequence[Job], ids: Mapping[str, str], view: View, poll: float) -> None:
        self._jobs, self._ids, self._view, self._poll = {job.name: job for job in jobs}, dict(ids), view, poll
        self._started: set[str] = set()
        self._gone: set[str] = set()
        self._silent = False
        self._signals = 0

    def run(self) -> dict[str, Outcome]:
        """Every job's outcome, by name. Raises Detached after Ctrl-C, SIGTERM or SIGHUP."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        outcomes: dict[str, Outcome] = {}
        following = 0.0
        try:
            while len(outcomes) < len(self._jobs):
                if self._signals:
                    left = {name: self._ids[name] for name in self._jobs if name not in outcomes}
                    _say_where(next(iter(self._jobs.values())).folder.parent, left)
                    raise Detached("stopped watching; the same command watches again")
                if time.monotonic() >= following:
                    following = time.monotonic() + self._poll
                    self._look(outcomes)
                self._view.tick()
                time.sleep(min(TICK, self._poll))
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return outcomes

    def _look(self, outcomes: dict[str, Outcome]) -> None:
        names = [name for name in self._jobs if name not in outcomes]
        try:
            seen = queue.look(self._ids[name] for name in names)
        except queue.Unreachable as error:
            if not self._silent:
                self._view.say(f"{error}; waiting for it")
            self._silent = True
            return
        self._silent = False
        for name in names:
            found = seen.get(self._ids[name])
            if found is not None and not found.ended:
                self._gone.discard(name)
                if found.running and name not in self._started:
                    self._started.add(name)
                    self._view.started(self._jobs[name])
            elif name in self._gone or (self._jobs[name].folder / "results.json").exists():
                outcomes[name] = conclude(self._jobs[name], found)
                if name not in self._started:
                    self._view.started(self._jobs[name])
                self._view.ended(outcomes[name])
            else:
                self._gone.add(name)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1


def conclude(job: Job, found: queue.Seen | None) -> Outcome:
    """How a job ended that Slurm does not run any more, from what it left and Slurm's last word; its files say so too.

    Results are results, whatever Slurm says; then the job's own word, then Slurm's.
    """
    state = found.state if found else (ticket.ended if (ticket := Ticket.read(job.folder)) else None)
    if found:
        close_ticket(job.folder, found.state)
    if (job.folder / "results.json").exists():
        return Outcome(job, finished=True)
    status = read_status(job.folder)
    if status.get("state") == "failed" and state not in CAUSES:
        cause = str(status.get("error") or "it failed")
        return Outcome(job, finished=False, cause=cause, log_tail=tail(job.log))
    cause = CAUSES.get(str(state)) or (
        "it was stopped" if status.get("state") == "interrupted" else "its Slurm job ended without results"
    )
    close_status(job.folder, "interrupted" if state in GOES_ON else "failed", cause)
    return Outcome(job, finished=False, cause=cause, log_tail=() if state in GOES_ON else _last_words(job))


def _last_words(job: Job) -> tuple[str, ...]:
    """The end of what the batch script printed; where that is nothing, of what the job printed."""
    ticket = Ticket.read(job.folder)
    return (tail(Path(ticket.output)) if ticket and ticket.output else ()) or tail(job.log)


def tail(path: Path, lines: int = 12) -> tuple[str, ...]:
    """The last lines of a file that are not blank; none if there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 16384))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.strip())[-lines:]


def _say_where(sweep: Path, ids: Mapping[str, str]) -> None:
    """How to look at jobs that go on by themselves, and how to end them."""
    if ids:
        print(f"{_many(len(ids))} in Slurm's queue, and {'go' if len(ids) > 1 else 'goes'} on by itself")
        print(f"  watch:  lmm-forget status {sweep}")
        print(f"  cancel: scancel {_bases(ids)}", flush=True)
    else:
        print(f"nothing is in Slurm's queue; lmm-forget status {sweep} shows every job", flush=True)


def _bases(ids: Mapping[str, str]) -> str:
    """Slurm ids as scancel takes them: an array as a whole where all of it is meant."""
    return " ".join(dict.fromkeys(one.partition("_")[0] for one in ids.values()))


def _many(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
