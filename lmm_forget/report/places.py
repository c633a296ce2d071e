"""What can be compared: a job after one of its stages, or its base; named as `FOLDER`, `FOLDER@2`, `FOLDER@base`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.report.load import is_job, load_results

BASE = 0


@dataclass(frozen=True)
class Place:
    """A finished job at one stage (0 is its base)."""

    folder: Path
    stage: int
    results: Mapping[str, Any]

    @property
    def last(self) -> int:
        """The job's number of stages."""
        return len(self.results["stages"])

    @property
    def name(self) -> str:
        """The job's name and its stage, e.g. `demo/sa_proj@base`; the last stage goes without saying."""
        job = "/".join(self.folder.resolve().parts[-2:])
        if self.stage == self.last:
            return job
        return f"{job}@{self.stage or 'base'}"

    def at(self, stage: int) -> Place:
        """The same job at another stage. Raises ConfigError if it has none of that number."""
        if not 0 <= stage <= self.last:
            raise ConfigError(f"{self.folder}@{stage}: no such stage, there are base and 1 to {self.last}")
        return Place(self.folder, stage, self.results)


def split_stage(word: str) -> tuple[Path, str | None]:
    """Folder and stage of `FOLDER[@STAGE]`; a folder whose own name holds an @ is taken as it stands."""
    folder, at, stage = word.rpartition("@")
    if not at or Path(word).exists():
        return Path(word), None
    return Path(folder), stage


def _no_job(folder: Path) -> str:
    """Why a folder without results is no job; where it is a sweep, which jobs it has."""
    jobs = sorted(path.parent.name for path in folder.glob("*/results.json"))
    if not jobs:
        return f"{folder}: holds no job, expected a folder with results.json"
    return f"{folder} is a sweep, name one of its finished jobs: {', '.join(jobs)}"


def place(folder: Path, stage: str | None) -> Place:
    """A job folder at `base`, `last` (the default) or the stage of that number.

    Raises DataError if the job has no usable results, ConfigError for a stage that does not exist.
    """
    if folder.name == "results.json" and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected multirun/<name>/<job>")
    if not (folder / "results.json").exists():
        raise DataError(
            f"{folder}: has no results.json, expected a finished job" if is_job(folder) else _no_job(folder)
        )
    results = load_results(folder / "results.json")
    here = Place(folder, len(results["stages"]), results)
    if stage in (None, "last"):
        return here
    if stage == "base":
        return here.at(BASE)
    if not str(stage).isdecimal():
        raise ConfigError(
            f"{folder}@{stage}: no such stage, expected base, last or a number from 1 to {here.last}"
        )
    return here.at(int(str(stage)))
