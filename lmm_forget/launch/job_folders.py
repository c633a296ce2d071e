"""Job folders: where a grid point is written, when it is finished, and when a folder belongs to another job."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from lmm_forget.config.job_names import list_config_differences
from lmm_forget.distributed.heartbeat import read_job_status
from lmm_forget.distributed.process_id import ProcessId
from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.experiment.job import read_job_config
from lmm_forget.files import write_atomic
from lmm_forget.launch.slurm import squeue
from lmm_forget.launch.slurm.job_record import SlurmJobRecord
from lmm_forget.store.input_fingerprints import InputFingerprinter, describe_input_changes
from lmm_forget.store.leases import HEARTBEAT_INTERVAL, LeaseManager

MULTIRUN_DIR = Path("multirun")
LEASE_NAME = ".claim"
"""Held by the command that runs a job, in the job's folder."""
PREVIOUS_PREFIX = "previous-"
"""Begins the name of the folder that keeps the results of a job that was done again."""
POLL_SECONDS = 0.1
"""Seconds between two attempts to lock a folder that another command may hold."""
STALE_SECONDS = 15.0
"""Seconds without a heartbeat, watched, after which a job that ran on another machine counts as dead."""


@dataclass(frozen=True)
class Job:
    """One grid point: its name within the sweep, its folder, its resolved configuration."""

    name: str
    folder: Path
    config: Mapping[str, Any]

    @property
    def config_path(self) -> Path:
        """The job.yaml that its process reads."""
        return self.folder / "job.yaml"

    @property
    def log_path(self) -> Path:
        """Everything its process printed."""
        return self.folder / "job.log"

    def read_results(self) -> dict[str, Any] | None:
        """The content of results.json; None as long as the job is not finished. Raises LaunchError if it is damaged."""
        path = self.folder / "results.json"
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise LaunchError(f"{path} is damaged ({error}); delete it and run the same command again") from error
        return dict(results)

    def find_changed_inputs(self, reader: InputFingerprinter) -> tuple[list[str], str | None]:
        """What the finished job read that has changed since; and, in a sentence, why that cannot be known, if so.

        Raises LaunchError if its results are damaged.
        """
        previous_inputs = (self.read_results() or {}).get("inputs")
        if not isinstance(previous_inputs, Mapping):
            return [], "its record does not say what it read (an earlier version made it)"
        current_inputs, unreadable = reader.compute_fingerprints(self.config)
        missing = [f"{name}: {why}" for name, why in unreadable.items() if name in previous_inputs]
        return describe_input_changes(previous_inputs, current_inputs, unreadable), _join_first_lines(
            missing, 1
        ) or None

    def read_objective(self) -> float | None:
        """The finished job's figure of merit that `objective` names, in points; None where it is undefined."""
        figure = ((self.read_results() or {}).get("figures") or {}).get(self.config["objective"])
        value = figure.get("value") if isinstance(figure, Mapping) else None
        return None if value is None else float(value)


def make_job(config: Mapping[str, Any], name: str) -> Job:
    """The job of a resolved configuration, in multirun/<sweep>/<name>."""
    return Job(name, MULTIRUN_DIR / str(config["name"]) / name, config)


def prepare_job_folders(
    jobs: Sequence[Job],
    lock_job: Callable[[Job], None] = lambda job: None,
    *,
    input_reader: InputFingerprinter | None = None,
    check_jobs: Callable[[Sequence[Job]], None] = lambda jobs: None,
) -> tuple[list[Job], list[Job]]:
    """Check every folder, then write the job.yaml of those that are not finished; returns (to run, finished).

    Grid points that resolve to the same job are one job. A finished job whose model folder, data or code changed since
    (`input_reader` reads them) is run again; its results are kept in its folder. Nothing is written before all of them
    are checked, by `check_jobs(jobs to run)` at the end, which may raise; `lock_job` is then called for every job to
    run before any folder is touched. Raises ConfigError where a finished folder or an earlier grid point holds another
    configuration, LaunchError where a job runs now. A folder without results that held another configuration is
    emptied, which is noted on stderr.
    """
    jobs_by_name: dict[str, Job] = {}
    changed_settings: dict[str, list[str]] = {}
    for job in jobs:
        earlier_job = jobs_by_name.setdefault(job.name, job)
        changed = list_config_differences(earlier_job.config, job.config)
        if changed:
            raise ConfigError(f"two grid points are both called {job.name} but differ in {_join_first_lines(changed)}")
        _check_not_running(job)
        changed = (
            list_config_differences(read_job_config(job.config_path), job.config) if job.config_path.exists() else []
        )
        if changed and (job.folder / "results.json").exists():
            raise ConfigError(
                f"{job.folder} holds another configuration; it differs in {_join_first_lines(changed)}; "
                "choose another name=… or delete the folder"
            )
        if changed:
            changed_settings[job.name] = changed
    finished = [job for job in jobs_by_name.values() if job.config_path.exists() and job.read_results() is not None]
    stale_jobs = _find_stale_jobs(finished, input_reader or InputFingerprinter())
    finished = [job for job in finished if job.name not in stale_jobs]
    finished_names = {job.name for job in finished}
    pending_jobs = [job for job in jobs_by_name.values() if job.name not in finished_names]
    if pending_jobs:
        check_jobs(pending_jobs)
    for job in pending_jobs:
        lock_job(job)
    for job in pending_jobs:
        if job.name in changed_settings:
            _clear_folder(job, changed_settings[job.name])
        if job.name in stale_jobs:
            _archive_previous_results(job, stale_jobs[job.name])
        (job.folder / "results.json").unlink(missing_ok=True)  # results without a job.yaml are nobody's
        (job.folder / "status.json").unlink(missing_ok=True)
        write_atomic(job.config_path, yaml.safe_dump(dict(job.config), sort_keys=False, allow_unicode=True, width=110))
    return pending_jobs, finished


class JobLocks:
    """The job folders that one command keeps others out of, until the block ends.

    A command on another machine or in another container cannot be seen: it counts as alive while its leases change. A
    thread changes them every `heartbeat_seconds`; with None, in a process that forks, `refresh_leases` has to be called
    instead.
    """

    def __init__(
        self, stale_seconds: float = STALE_SECONDS, heartbeat_seconds: float | None = HEARTBEAT_INTERVAL
    ) -> None:
        """`stale_seconds`: how long a command that cannot be seen may be silent while we watch it."""
        self._stale_seconds, self._heartbeat_seconds = stale_seconds, heartbeat_seconds
        self._exit_stack = ExitStack()
        self._leases: list[LeaseManager] = []
        self._dead_holders: set[str] = set()
        self._created_folders: list[Path] = []
        self._next_refresh = 0.0

    def __enter__(self) -> JobLocks:
        """Nothing is held yet."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let others in; folders that were made for a job that is refused after all are taken away again."""
        self._exit_stack.close()
        for folder in reversed(self._created_folders):
            with suppress(OSError):  # something lies in it
                folder.rmdir()

    def _create_folder(self, folder: Path) -> None:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._created_folders.extend(reversed(missing))

    def acquire(self, job: Job) -> None:
        """Lock a job's folder; waits `stale_seconds`, once, for a command that cannot be seen and is silent.

        Raises LaunchError if another command is in it.
        """
        self._create_folder(job.folder)
        self.refresh_leases()  # of the folders before this one
        holder = LeaseManager(job.folder, heartbeat_interval=None).describe_holder(LEASE_NAME)
        lease = LeaseManager(
            job.folder,
            heartbeat_interval=self._heartbeat_seconds,
            timeout=0 if holder in self._dead_holders else self._stale_seconds,
        )
        deadline = time.monotonic() + self._stale_seconds + 1
        has_waited = False
        while not self._try_acquire(lease):
            # None also where the attempt has just taken a dead command's lease away.
            alive = lease.is_holder_alive(LEASE_NAME)
            if alive or time.monotonic() > deadline:
                raise LaunchError(
                    f"{job.name} is run already by {lease.describe_holder(LEASE_NAME)}; wait for it or stop it"
                )
            if (
                alive is None
                and lease.describe_holder(LEASE_NAME)
                and not has_waited
                and holder not in self._dead_holders
            ):
                has_waited = True
                print(f"{job.name}: watching whether {holder} still runs it", file=sys.stderr, flush=True)
            self.refresh_leases()
            time.sleep(POLL_SECONDS)
        if has_waited and holder:
            self._dead_holders.add(holder)
        self._leases.append(lease)

    def _try_acquire(self, lease: LeaseManager) -> bool:
        attempt = lease.acquire(LEASE_NAME, wait=False)
        is_held = attempt.__enter__()
        self._exit_stack.push(attempt)
        return is_held

    def refresh_leases(self) -> None:
        """Show other machines that this command is alive; cheap enough for a loop."""
        if time.monotonic() >= self._next_refresh:
            self._next_refresh = time.monotonic() + self._stale_seconds / 4
            for lease in self._leases:
                lease.send_heartbeat()


def _clear_folder(job: Job, changed: Sequence[str]) -> None:
    """Empty a folder that an unfinished job of another configuration left; what it finished lies in the store."""
    print(
        f"{job.folder} held an unfinished job of another configuration ({_join_first_lines(changed)}); it is "
        "begun anew",
        file=sys.stderr,
        flush=True,
    )
    for path in job.folder.iterdir():
        if path.name == f"{LEASE_NAME}.json":
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _find_stale_jobs(finished: Sequence[Job], input_reader: InputFingerprinter) -> dict[str, list[str]]:
    """Finished jobs whose model, data or code is not what they read, with what changed; doubts are noted on stderr."""
    changes_by_job: dict[str, list[str]] = {}
    doubts: dict[str, list[str]] = {}
    for job in finished:
        changed, doubt = job.find_changed_inputs(input_reader)
        if changed:
            changes_by_job[job.name] = changed
        elif doubt:
            doubts.setdefault(doubt, []).append(job.name)
    for doubt, names in doubts.items():
        print(
            f"lmm-forget: note: {_join_first_lines(names, 3)}: whether the inputs are still the same cannot "
            f"be checked ({doubt}); "
            "the results stand as they are",
            file=sys.stderr,
        )
    return changes_by_job


def _archive_previous_results(job: Job, changed: Sequence[str]) -> None:
    """Move what a finished job left into `previous-<n>` of its folder, its results first: the job is done again."""
    archive_dir = next(path for number in count(1) if not (path := job.folder / f"{PREVIOUS_PREFIX}{number}").exists())
    print(
        f"{job.folder} was finished, but what it read has changed ({_join_first_lines(changed)}): it is done "
        "again, and its former "
        f"results go to {archive_dir.name}/",
        file=sys.stderr,
        flush=True,
    )
    archive_dir.mkdir()
    (job.folder / "results.json").rename(archive_dir / "results.json")
    for path in sorted(job.folder.iterdir()):
        if path.name != f"{LEASE_NAME}.json" and not path.name.startswith(PREVIOUS_PREFIX):
            path.rename(archive_dir / path.name)


def _check_not_running(job: Job) -> None:
    """Two processes must not write one folder. What lives here is seen; elsewhere, heartbeats are waited for.

    A job that waits in a queue has no process yet; its Slurm record names the one it will be.
    """
    slurm_record = SlurmJobRecord.read(job.folder)
    if slurm_record is not None and slurm_record.id and not slurm_record.ended and squeue.is_slurm_available():
        slurm_job = squeue.query_jobs([slurm_record.id]).get(slurm_record.id)
        if slurm_job is not None and not slurm_job.has_ended:
            raise LaunchError(
                f"{job.name} is in Slurm's queue as job {slurm_record.id} ({slurm_job.state.lower()}); wait for it or "
                f"scancel {slurm_record.id}"
            )
    status = read_job_status(job.folder)
    process_id = ProcessId.parse(status)
    if status.get("state") != "running" or process_id is None:
        return
    alive = process_id.is_alive()
    if alive is None:
        alive = _has_heartbeat(job.folder, status.get("beat"))
    if alive:
        raise LaunchError(
            f"{job.name} is running already (process {process_id.pid} on {process_id.host}); wait for it or stop it"
        )


def _has_heartbeat(job_dir: Path, last_beat: Any) -> bool:
    """Whether a job on another machine shows a sign of life while we watch (clocks of two machines may differ)."""
    limit = time.monotonic() + STALE_SECONDS
    while time.monotonic() < limit:
        status = read_job_status(job_dir)
        if status.get("state") != "running":
            return False
        if status.get("beat") != last_beat:
            return True
        time.sleep(0.5)
    return False


def _join_first_lines(lines: Sequence[str], max_lines: int = 4) -> str:
    more = len(lines) - max_lines
    return "; ".join(lines[:max_lines]) + (f"; and {more} more fields" if more > 0 else "")
