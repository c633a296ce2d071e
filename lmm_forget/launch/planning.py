"""What the jobs of a sweep share: counted before anything starts, and used to keep side-by-side jobs apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lmm_forget.launch.jobs import Job
from lmm_forget.store.archive import RECORD, Store
from lmm_forget.store.inputs import InputReader, training_inputs
from lmm_forget.store.keys import path_keys


class Planned(BaseException):
    """The plan was all that was asked for (`sweep.plan=true`); nothing was started."""


@dataclass
class SweepPlan:
    """The stages of a sweep as paths from a base: equal beginnings are taught once.

    `paths` maps a job's name to one key per stage. What is in the store already is judged by the configuration and by
    the content of local files and code that `reader` reads; whether the weights are the same is known when a job gets
    there.
    """

    jobs: Sequence[Job]
    reader: InputReader = field(default_factory=InputReader)
    paths: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paths = {job.name: path_keys(job.config) for job in self.jobs}
        self._stores = {job.name: Store(job.config["store"]) for job in self.jobs}
        self._done: set[tuple[str, str]] = set()

    def stages(self) -> int:
        """Stages of all jobs, each counted for every job."""
        return sum(map(len, self.paths.values()))

    def different(self) -> dict[tuple[str, str], str]:
        """Every different stage, as (store, path), with the recipe that teaches it."""
        return {
            (str(self._stores[job.name].root), path): str(job.config["recipe"]["name"])
            for job in self.jobs
            for path in self.paths[job.name]
        }

    def done(self, job: Job, path: str) -> bool:
        """Whether the store has a stage that this path led to."""
        store = self._stores[job.name]
        at = (str(store.root), path)
        if at not in self._done:
            key = store.led_to(path)
            if key is None:
                return False
            tasks = job.config["sequence"]["tasks"][: self.paths[job.name].index(path) + 1]
            inputs = training_inputs(self.reader.read(job.config)[0], tasks)
            key = store.led_to(path, inputs)
            if key is None or not (store.folder(key) / RECORD).exists():
                return False
            self._done.add(at)
        return True

    def counts(self) -> dict[str, int]:
        """`jobs`, `stages` (each job's own), `different`, `in_store`, `to_train`; of jobs that are not `finished`:
        `bases`, and models to `ask`.
        """
        different = self.different()
        there = {
            (str(self._stores[job.name].root), path)
            for job in self.jobs
            for path in self.paths[job.name]
            if self.done(job, path)
        }
        open_jobs = [
            job
            for job in self.jobs
            if not (job.folder / "results.json").exists() or job.changed(self.reader)[0]
        ]
        bases = {(job.config["store"], str(job.config["model"])) for job in open_jobs}
        ask = {(str(self._stores[job.name].root), path) for job in open_jobs for path in self.paths[job.name]}
        return {
            "jobs": len(self.jobs),
            "stages": self.stages(),
            "different": len(different),
            "in_store": len(there),
            "to_train": len(different) - len(there),
            "bases": len(bases),
            "ask": len(bases) + len(ask),
            "finished": len(self.jobs) - len(open_jobs),
        }

    def line(self) -> str:
        """The plan in one line."""
        n = self.counts()
        asked = f"{_many(n['ask'], 'model')} to ask"
        if n["ask"]:
            asked += f" ({_many(n['bases'], 'base')} among them), every question once"
        finished = f"; {_many(n['finished'], 'job')} finished already" if n["finished"] else ""
        shared = f" ({n['stages']} if nothing were shared)" if n["stages"] > n["different"] else ""
        return (
            f"plan: {_many(n['jobs'], 'job')}, {_many(n['different'], 'stage')}{shared}: {n['in_store']} in the "
            f"store, {n['to_train']} to train; {asked}{finished}"
        )

    def by_recipe(self) -> list[str]:
        """The plan's stages per recipe, a line each."""
        recipes: dict[str, list[int]] = {}
        done = {at for at in self.different() if at in self._done}
        for at, recipe in self.different().items():
            total = recipes.setdefault(recipe, [0, 0])
            total[0] += 1
            total[1] += at in done
        return [
            f"  {recipe}: {_many(total, 'stage')}, {there} in the store, {total - there} to train"
            for recipe, (total, there) in sorted(recipes.items())
        ]

    def pick(self, waiting: Sequence[Job], running: Sequence[Job]) -> int:
        """Which waiting job to start beside the running ones: the first that need not wait for one of them.

        A job waits when its first missing stage is on a running job's way. Where all would wait, the first one does.
        """
        busy = {path for job in running for path in self.paths[job.name]}
        for number, job in enumerate(waiting):
            first = next((path for path in self.paths[job.name] if not self.done(job, path)), None)
            if first is None or first not in busy:
                return number
        return 0


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def wants_plan_only(config: Mapping[str, object]) -> bool:
    """Whether a job's configuration asks for the plan alone."""
    sweep = config.get("sweep")
    return isinstance(sweep, Mapping) and bool(sweep.get("plan"))


def wants_submitting_only(config: Mapping[str, object]) -> bool:
    """Whether a job's configuration asks to hand it to a scheduler and not to wait."""
    sweep = config.get("sweep")
    return isinstance(sweep, Mapping) and bool(sweep.get("submit_only"))
