"""What the jobs of a sweep share: counted before anything starts, and used to keep side-by-side jobs apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lmm_forget.launch.job_folders import Job
from lmm_forget.store.archive import RECORD_FILE, Store
from lmm_forget.store.input_fingerprints import InputFingerprinter, select_training_inputs
from lmm_forget.store.keys import compute_config_keys


@dataclass
class SweepPlan:
    """The stages of a sweep as paths from a base: equal beginnings are trained once.

    `path_keys_by_job` maps a job's name to one key per stage. What the store has is judged by the configuration and by
    the content of local files and code that `reader` reads; whether the weights are the same is known when a job gets
    there.
    """

    jobs: Sequence[Job]
    reader: InputFingerprinter = field(default_factory=InputFingerprinter)
    path_keys_by_job: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path_keys_by_job = {job.name: compute_config_keys(job.config) for job in self.jobs}
        self._stores = {job.name: Store(job.config["store"]) for job in self.jobs}
        self._done: set[tuple[str, str]] = set()

    def count_stages(self) -> int:
        """Stages of all jobs, each counted for every job."""
        return sum(map(len, self.path_keys_by_job.values()))

    def find_distinct_stages(self) -> dict[tuple[str, str], str]:
        """Every different stage, as (store, path), with the recipe that trains it."""
        return {
            (str(self._stores[job.name].root), path): str(job.config["recipe"]["name"])
            for job in self.jobs
            for path in self.path_keys_by_job[job.name]
        }

    def is_stage_stored(self, job: Job, path_key: str) -> bool:
        """Whether the store has a stage that this path led to."""
        store = self._stores[job.name]
        store_and_path = (str(store.root), path_key)
        if store_and_path not in self._done:
            key = store.find_cached_stage_key(path_key)
            if key is None:
                return False
            tasks = job.config["sequence"]["tasks"][: self.path_keys_by_job[job.name].index(path_key) + 1]
            inputs = select_training_inputs(self.reader.compute_fingerprints(job.config)[0], tasks)
            key = store.find_cached_stage_key(path_key, inputs)
            if key is None or not (store.get_stage_folder(key) / RECORD_FILE).exists():
                return False
            self._done.add(store_and_path)
        return True

    def count_work(self) -> dict[str, int]:
        """`jobs`, `stages` (each job's own), `different`, `in_store`, `to_train`; of jobs that are not `finished`:
        `bases`, and models to `evaluate`.
        """
        distinct_stages = self.find_distinct_stages()
        stored_stages = {
            (str(self._stores[job.name].root), path)
            for job in self.jobs
            for path in self.path_keys_by_job[job.name]
            if self.is_stage_stored(job, path)
        }
        open_jobs = [
            job
            for job in self.jobs
            if not (job.folder / "results.json").exists() or job.find_changed_inputs(self.reader)[0]
        ]
        bases = {(job.config["store"], str(job.config["model"])) for job in open_jobs}
        models_to_evaluate = {
            (str(self._stores[job.name].root), path) for job in open_jobs for path in self.path_keys_by_job[job.name]
        }
        return {
            "jobs": len(self.jobs),
            "stages": self.count_stages(),
            "different": len(distinct_stages),
            "in_store": len(stored_stages),
            "to_train": len(distinct_stages) - len(stored_stages),
            "bases": len(bases),
            "evaluate": len(bases) + len(models_to_evaluate),
            "finished": len(self.jobs) - len(open_jobs),
        }

    def format_plan_line(self) -> str:
        """The plan in one line."""
        counts = self.count_work()
        evaluation_text = f"{_format_count(counts['evaluate'], 'model')} to evaluate"
        if counts["evaluate"]:
            evaluation_text += f" ({_format_count(counts['bases'], 'base')} among them), every question once"
        finished = f"; {_format_count(counts['finished'], 'job')} finished already" if counts["finished"] else ""
        shared = f" ({counts['stages']} if nothing were shared)" if counts["stages"] > counts["different"] else ""
        return (
            f"plan: {_format_count(counts['jobs'], 'job')}, "
            f"{_format_count(counts['different'], 'stage')}{shared}: {counts['in_store']} in the "
            f"store, {counts['to_train']} to train; {evaluation_text}{finished}"
        )

    def format_recipe_lines(self) -> list[str]:
        """The plan's stages per recipe, a line each."""
        counts_by_recipe: dict[str, list[int]] = {}
        done = {at for at in self.find_distinct_stages() if at in self._done}
        for at, recipe in self.find_distinct_stages().items():
            total = counts_by_recipe.setdefault(recipe, [0, 0])
            total[0] += 1
            total[1] += at in done
        return [
            f"  {recipe}: {_format_count(total, 'stage')}, {num_stored} in the store, {total - num_stored} to train"
            for recipe, (total, num_stored) in sorted(counts_by_recipe.items())
        ]

    def pick_next_job(self, pending_jobs: Sequence[Job], running_jobs: Sequence[Job]) -> int:
        """Which waiting job to start beside the running ones: the first that need not wait for one of them.

        A job waits when its first missing stage is on a running job's way. Where all would wait, the first one does.
        """
        running_path_keys = {path for job in running_jobs for path in self.path_keys_by_job[job.name]}
        for number, job in enumerate(pending_jobs):
            first = next(
                (path for path in self.path_keys_by_job[job.name] if not self.is_stage_stored(job, path)),
                None,
            )
            if first is None or first not in running_path_keys:
                return number
        return 0


def _format_count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def is_dry_run(config: Mapping[str, object]) -> bool:
    """Whether a job's configuration asks for the plan alone."""
    sweep = config.get("sweep")
    return isinstance(sweep, Mapping) and bool(sweep.get("dry_run"))


def is_submit_only(config: Mapping[str, object]) -> bool:
    """Whether a job's configuration asks to hand it to a scheduler and not to wait."""
    sweep = config.get("sweep")
    return isinstance(sweep, Mapping) and bool(sweep.get("submit_only"))
