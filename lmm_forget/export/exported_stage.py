"""The stage that is exported: a finished job, one of its stages, and the store with its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmm_forget.errors import ConfigError, StoreError
from lmm_forget.experiment.job import read_job_config
from lmm_forget.report.job_results import load_results, load_sweep
from lmm_forget.store import Store


@dataclass(frozen=True)
class ExportedStage:
    """A stage of a finished job: `results` and `config` (job.yaml) are the job's, `index` counts its stages from 1."""

    folder: Path
    results: Mapping[str, Any]
    config: Mapping[str, Any]
    index: int
    store: Store

    @property
    def stage_entry(self) -> Mapping[str, Any]:
        """The stage's entry in results.json."""
        return dict(self.results["stages"][self.index - 1])

    @property
    def is_last(self) -> bool:
        """Whether it is the job's last stage."""
        return self.index == len(self.results["stages"])

    def find_tensor_sources(self) -> list[tuple[str, list[str]]]:
        """Which tensors come from which stage: (stage key, tensor names), in the order of the stages.

        A tensor comes from the last stage that replaced it, and from those that changed it by a low-rank update since.
        Raises StoreError when the record of a stage that is needed is not in the store.
        """
        tensor_sources: list[tuple[str, list[str]]] = []
        replaced_later: set[str] = set()
        for entry in reversed(self.results["stages"][: self.index]):
            record = self.store.find_record(entry["key"])
            if record is None:
                raise StoreError(
                    f"the weights of stage {entry['index']} ({entry['task']}) are not in the store {self.store.root} "
                    f"(key {entry['key'][:12]}…); give store=FOLDER, or run the job again to make them"
                )
            names = sorted(set(record["tensors"]) - replaced_later)
            if names:
                tensor_sources.insert(0, (entry["key"], names))
            replaced_later |= set(names) - set(record.get("lowrank") or ())
        return tensor_sources

    def iterate_changed_tensors(self, base_tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in which the stage model differs from the base, with its name, one after the other.

        `base_tensors` are the model's own by name: put each tensor into it before asking for the next one, since a
        low-rank change of a later stage is added to it. Raises StoreError when a delta is not in the store.
        """
        for key, names in self.find_tensor_sources():
            yield from self.store.iterate_delta_tensors(key, names, base_tensors)


def load_exported_stage(job_folder: str, stage_name: str, store_folder: str | None = None) -> ExportedStage:
    """The stage `stage_name` ("last" or a number from 1) of the finished job in `job_folder`.

    `store_folder` replaces the store that the job used. Raises DataError or ConfigError for a folder that is no
    finished job, and for a stage that the job does not have.
    """
    folder = Path(job_folder)
    results = _load_finished_results(folder)
    config = read_job_config(folder / "job.yaml")
    return ExportedStage(
        folder,
        results,
        config,
        _resolve_stage_index(stage_name, results),
        Store(store_folder or config["store"]),
    )


def _load_finished_results(folder: Path) -> Mapping[str, Any]:
    if (folder / "results.json").is_file():
        return load_results(folder / "results.json")
    sweep = load_sweep(folder)  # raises DataError if this is no folder of jobs either
    if [job.job for job in sweep.unfinished] == [folder.resolve().name] and not sweep.results:
        (job,) = sweep.unfinished
        reason = f": {job.error}" if job.error else ""
        raise ConfigError(f"run={folder}: the job has no results yet, it is {job.state}{reason}; finish it first")
    finished_jobs = ", ".join(sorted(sweep.results)) or "none"
    raise ConfigError(f"run={folder} is a sweep, choose one of its finished jobs: {finished_jobs}")


def _resolve_stage_index(stage_name: str, results: Mapping[str, Any]) -> int:
    stages = results["stages"]
    numbers = {"last": len(stages), **{str(entry["index"]): int(entry["index"]) for entry in stages}}
    if stage_name not in numbers:
        available = ", ".join(f"{entry['index']} ({entry['task']})" for entry in stages)
        raise ConfigError(f"stage={stage_name} does not exist; the job has: {available}, or last")
    return numbers[stage_name]
