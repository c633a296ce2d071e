"""Job folders: what a grid point is written to, when it is done, and when a folder belongs to something else."""

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

from lmm_forget.config.naming import differences
from lmm_forget.distributed.heartbeat import read_status
from lmm_forget.distributed.process_id import ProcessId
from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.experiment.job import read_config
from lmm_forget.files import write_atomic
from lmm_forget.launch.slurm import queue
from lmm_forget.launch.slurm.ticket import Ticket
from lmm_forget.store.claims import BEAT, Claims
from lmm_forget.store.inputs import InputReader
from lmm_forget.store.inputs import changed as changed_inputs

ROOT = Path("multirun")
CLAIM = ".claim"
"""Held by the command that runs a job, in the job's folder."""
PREVIOUS = "previous-"
"""Begins the name of the folder that keeps what a job had found before it was done again."""
POLL = 0.1
"""Seconds between two looks at a folder that another command may be in."""
STALE = 15.0
"""Seconds without a heartbeat, watched, after which a job that ran on another machine counts as dead."""


@dataclass(frozen=True)
class Job:
    """One grid point: its name within the sweep, its folder, its resolved configuration."""

    name: str
    folder: Path
    config: Mapping[str, Any]

    @property
    def file(self) -> Path:
        """The job.yaml that its process reads."""
        return self.folder / "job.yaml"

    @property
    def log(self) -> Path:
        """Everything its process printed."""
        return self.folder / "job.log"

    def results(self) -> dict[str, Any] | None:
        """The content of results.json; None as long as the job is not finished. Raises LaunchError if it is damaged."""
        path = self.folder / "results.json"
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise LaunchError(
                f"{path} is damaged ({error}); delete it and run the same command again"
            ) from error
        return dict(results)

    def changed(self, reader: InputReader) -> tuple[list[str], str | None]:
        """What the finished job read and is not the same any more; and, in a sentence, what cannot be said about that.

        Raises LaunchError if its results are damaged.
        """
        before = (self.results() or {}).get("inputs")
        if not isinstance(before, Mapping):
            return [], "its record does not say what it read (an earlier version made it)"
        now, unreadable = reader.read(self.config)
        missing = [f"{name}: {why}" for name, why in unreadable.items() if name in before]
        return changed_inputs(before, now, unreadable), _few(missing, 1) or None

    def objective(self) -> float | None:
        """The finished job's figure of merit that `objective` names, in points; None where it is undefined."""
        figure = ((self.results() or {}).get("figures") or {}).get(self.config["objective"])
        value = figure.get("value") if isinstance(figure, Mapping) else None
        return None if value is None else float(value)


def make_job(config: Mapping[str, Any], name: str) -> Job:
    """The job of a resolved configuration, in multirun/<sweep>/<name>."""
    return Job(name, ROOT / str(config["name"]) / name, config)


def prepare(
    jobs: Sequence[Job],
    hold: Callable[[Job], None] = lambda job: None,
    *,
    reader: InputReader | None = None,
    check: Callable[[Sequence[Job]], None] = lambda jobs: None,
) -> tuple[list[Job], list[Job]]:
    """Check every folder, then write the job.yaml of those that are not finished; returns (to run, finished).

    Grid points that resolve to the same job are one job. A finished job whose model folder, data or code changed since
    (`reader` reads them) is to be run again; what it had found is kept in its folder. Nothing is written before all of
    them are checked, by `check(jobs to run)` at the end, which may raise; `hold` is then called for every job to run
    before any folder is touched. Raises ConfigError where a finished folder or an earlier grid point holds another
    configuration, LaunchError where a job runs now. A folder without results that held another configuration is begun
    anew, and stderr says so.
    """
    unique: dict[str, Job] = {}
    other: dict[str, list[str]] = {}
    for job in jobs:
        twin = unique.setdefault(job.name, job)
        changed = differences(twin.config, job.config)
        if changed:
            raise ConfigError(f"two grid points are both called {job.name} but differ in {_few(changed)}")
        _refuse_running(job)
        changed = differences(read_config(job.file), job.config) if job.file.exists() else []
        if changed and (job.folder / "results.json").exists():
            raise ConfigError(
                f"{job.folder} holds another configuration; it differs in {_few(changed)}; "
                "choose another name=… or delete the folder"
            )
        if changed:
            other[job.name] = changed
    finished = [job for job in unique.values() if job.file.exists() and job.results() is not None]
    stale = _stale(finished, reader or InputReader())
    finished = [job for job in finished if job.name not in stale]
    done = {job.name for job in finished}
    waiting = [job for job in unique.values() if job.name not in done]
    if waiting:
        check(waiting)
    for job in waiting:
        hold(job)
    for job in waiting:
        if job.name in other:
            _begin_anew(job, other[job.name])
        if job.name in stale:
            _keep_previous(job, stale[job.name])
        (job.folder / "results.json").unlink(missing_ok=True)  # results without a job.yaml are nobody's
        (job.folder / "status.json").unlink(missing_ok=True)
        write_atomic(
            job.file, yaml.safe_dump(dict(job.config), sort_keys=False, allow_unicode=True, width=110)
        )
    return waiting, finished


class Folders:
    """The job folders that one command keeps others out of, until the block ends.

    A command on another machine or in another container cannot be seen: it counts as alive while its claims change. A
    thread changes them every `beat` seconds; with None, in a process that forks, `refresh` has to be called instead.
    """

    def __init__(self, stale: float = STALE, beat: float | None = BEAT) -> None:
        """`stale` is in seconds: how long a command that cannot be seen may be silent while we watch it."""
        self._stale, self._beat = stale, beat
        self._held = ExitStack()
        self._claims: list[Claims] = []
        self._gone: set[str] = set()
        self._made: list[Path] = []
        self._next = 0.0

    def __enter__(self) -> Folders:
        """Nothing is held yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Let others in; folders that were made for a job that is refused after all are taken away again."""
        self._held.close()
        for folder in reversed(self._made):
            with suppress(OSError):  # something lies in it
                folder.rmdir()

    def _make(self, folder: Path) -> None:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made.extend(reversed(missing))

    def hold(self, job: Job) -> None:
        """Take a job's folder; waits `stale` seconds, once, for a command that cannot be seen and says nothing.

        Raises LaunchError if another command is in it.
        """
        self._make(job.folder)
        self.refresh()  # of the folders before this one
        holder = Claims(job.folder, beat=None).holder(CLAIM)
        claims = Claims(job.folder, beat=self._beat, silence=0 if holder in self._gone else self._stale)
        limit = time.monotonic() + self._stale + 1
        waited = False
        while not self._take(claims):
            # None also where the attempt has just taken a dead command's claim away.
            alive = claims.alive(CLAIM)
            if alive or time.monotonic() > limit:
                raise LaunchError(
                    f"{job.name} is run already by {claims.holder(CLAIM)}; wait for it or stop it"
                )
            if alive is None and claims.holder(CLAIM) and not waited and holder not in self._gone:
                waited = True
                print(f"{job.name}: watching whether {holder} still runs it", file=sys.stderr, flush=True)
            self.refresh()
            time.sleep(POLL)
        if waited and holder:
            self._gone.add(holder)
        self._claims.append(claims)

    def _take(self, claims: Claims) -> bool:
        attempt = claims.claim(CLAIM, wait=False)
        held = attempt.__enter__()
        self._held.push(attempt)
        return held

    def refresh(self) -> None:
        """Show other machines that this command is alive; cheap enough for a loop."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._stale / 4
            for claims in self._claims:
                claims.refresh()


def _begin_anew(job: Job, changed: Sequence[str]) -> None:
    """Empty a folder that an unfinished job of another configuration left; what it finished lies in the store."""
    print(
        f"{job.folder} held an unfinished job of another configuration ({_few(changed)}); it is begun anew",
        file=sys.stderr,
        flush=True,
    )
    for path in job.folder.iterdir():
        if path.name == f"{CLAIM}.json":
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _stale(finished: Sequence[Job], reader: InputReader) -> dict[str, list[str]]:
    """Finished jobs whose model, data or code is not what they read, with what changed; stderr hears of doubts."""
    found: dict[str, list[str]] = {}
    doubts: dict[str, list[str]] = {}
    for job in finished:
        changed, doubt = job.changed(reader)
        if changed:
            found[job.name] = changed
        elif doubt:
            doubts.setdefault(doubt, []).append(job.name)
    for doubt, names in doubts.items():
        print(
            f"lmm-forget: note: {_few(names, 3)}: whether the inputs are still the same cannot be checked ({doubt}); "
            "the results stand as they are",
            file=sys.stderr,
        )
    return found


def _keep_previous(job: Job, changed: Sequence[str]) -> None:
    """Move what a finished job left into `previous-<n>` of its folder, its results first: the job is done again."""
    aside = next(path for number in count(1) if not (path := job.folder / f"{PREVIOUS}{number}").exists())
    print(
        f"{job.folder} was finished, but what it read has changed ({_few(changed)}): it is done again, and its former "
        f"results go to {aside.name}/",
        file=sys.stderr,
        flush=True,
    )
    aside.mkdir()
    (job.folder / "results.json").rename(aside / "results.json")
    for path in sorted(job.folder.iterdir()):
        if path.name != f"{CLAIM}.json" and not path.name.startswith(PREVIOUS):
            path.rename(aside / path.name)


def _refuse_running(job: Job) -> None:
    """Two processes must not write one folder. What lives here is seen; elsewhere, heartbeats are waited for.

    A job that waits in a queue has no process yet; its ticket says which one it will be.
    """
    ticket = Ticket.read(job.folder)
    if ticket is not None and ticket.id and not ticket.ended and queue.available():
        seen = queue.look([ticket.id]).get(ticket.id)
        if seen is not None and not seen.ended:
            raise LaunchError(
                f"{job.name} is in Slurm's queue as job {ticket.id} ({seen.state.lower()}); wait for it or "
                f"scancel {ticket.id}"
            )
    status = read_status(job.folder)
    holder = ProcessId.parse(status)
    if status.get("state") != "running" or holder is None:
        return
    alive = holder.is_alive()
    if alive is None:
        alive = _beats(job.folder, status.get("beat"))
    if alive:
        raise LaunchError(
            f"{job.name} is running already (process {holder.pid} on {holder.host}); wait for it or stop it"
        )


def _beats(folder: Path, before: Any) -> bool:
    """Whether a job on another machine shows a sign of life while we watch (clocks of two machines may differ)."""
    limit = time.monotonic() + STALE
    while time.monotonic() < limit:
        status = read_status(folder)
        if status.get("state") != "running":
            return False
        if status.get("beat") != before:
            return True
        time.sleep(0.5)
    return False


def _few(lines: Sequence[str], most: int = 4) -> str:
    more = len(lines) - most
    return "; ".join(lines[:most]) + (f"; and {more} more fields" if more > 0 else "")
