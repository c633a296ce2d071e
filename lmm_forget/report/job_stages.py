"""A job at one of its stages, or at its base, named on the command line as FOLDER, FOLDER@2 or FOLDER@base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.report.job_results import is_job_folder, load_results

BASE_STAGE = 0


@dataclass(frozen=True)
class JobStage:
    """A finished job at one stage (0 is its base)."""

    folder: Path
    stage: int
    results: Mapping[str, Any]

    @property
    def last_stage(self) -> int:
        """The job's number of stages."""
        return len(self.results["stages"])

    @property
    def name(self) -> str:
        """The job's name and its stage, e.g. `demo/sa_proj@base`; without @ for the last stage."""
        job = "/".join(self.folder.resolve().parts[-2:])
        if self.stage == self.last_stage:
            return job
        return f"{job}@{self.stage or 'base'}"

    def with_stage(self, stage: int) -> JobStage:
        """The same job at another stage. Raises ConfigError if it has none of that number."""
        if not 0 <= stage <= self.last_stage:
            raise ConfigError(f"{self.folder}@{stage}: no such stage, there are base and 1 to {self.last_stage}")
        return JobStage(self.folder, stage, self.results)


def split_job_and_stage(text: str) -> tuple[Path, str | None]:
    """Folder and stage (None if not given) of FOLDER[@STAGE]; an existing folder with an @ in its name has no stage."""
    folder, separator, stage = text.rpartition("@")
    if not separator or Path(text).exists():
        return Path(text), None
    return Path(folder), stage


def _describe_missing_job(folder: Path) -> str:
    """Why a folder without results is no job; for a sweep, which finished jobs it has."""
    jobs = sorted(path.parent.name for path in folder.glob("*/results.json"))
    if not jobs:
        return f"{folder}: holds no job, expected a folder with results.json"
    return f"{folder} is a sweep, name one of its finished jobs: {', '.join(jobs)}"


def load_job_stage(folder: Path, stage: str | None) -> JobStage:
    """The job in `folder` at `stage`: "base", "last" (also for None) or a number from 1.

    Raises DataError if the job has no usable results, ConfigError for a stage that does not exist.
    """
    if folder.name == "results.json" and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected multirun/<name>/<job>")
    if not (folder / "results.json").exists():
        raise DataError(
            f"{folder}: has no results.json, expected a finished job"
            if is_job_folder(folder)
            else _describe_missing_job(folder)
        )
    results = load_results(folder / "results.json")
    job_stage = JobStage(folder, len(results["stages"]), results)
    if stage in (None, "last"):
        return job_stage
    if stage == "base":
        return job_stage.with_stage(BASE_STAGE)
    if not str(stage).isdecimal():
        raise ConfigError(
            f"{folder}@{stage}: no such stage, expected base, last or a number from 1 to {job_stage.last_stage}"
        )
    return job_stage.with_stage(int(str(stage)))
