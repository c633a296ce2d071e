"""Reads the records of jobs: results of the finished ones, and the state of the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lmm_forget.config.instantiation import is_number
from lmm_forget.errors import DataError
from lmm_forget.report.job_identity import hash_job
from lmm_forget.store.record_schemas import RESULTS_SCHEMA

_REQUIRED_KEYS = ("job", "config", "plan", "base", "stages", "figures")


@dataclass(frozen=True)
class UnfinishedJob:
    """A job without usable results: its folder's name, its state and, if known, its error and configuration."""

    job: str
    state: str
    error: str | None = None
    config: Mapping[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Sweep:
    """A folder of jobs: `results` of the finished ones and `folders` by job name, and the `unfinished` ones.

    A job that lies in two folders (once as a single run, once as a sweep's job) stands in `results` once; `notes` are
    sentences that a reader of the report must know.
    """

    name: str
    results: dict[str, dict[str, Any]]
    unfinished: list[UnfinishedJob]
    folders: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_results(path: Path) -> dict[str, Any]:
    """One results.json, its `job.job` set to the folder's name.

    Raises DataError if it is missing, damaged or of another schema.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected the results of a finished job") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(results, dict) or results.get("schema") != RESULTS_SCHEMA:
        raise DataError(f"{path}: {_describe_schema_mismatch(results)}")
    missing = [key for key in _REQUIRED_KEYS if key not in results]
    if missing:
        raise DataError(f"{path}: has no {', '.join(missing)}, expected {', '.join(_REQUIRED_KEYS)}")
    malformed_part = _describe_malformed_part(results)
    if malformed_part:
        raise DataError(f"{path}: {malformed_part}; delete it and run the same command again")
    # a job is named by its folder, which may have been renamed
    results["job"] = {**results["job"], "job": path.resolve().parent.name}
    return results


def _describe_malformed_part(results: Mapping[str, Any]) -> str | None:
    """Describes the first part of a record that violates the schema; None if all of it is valid."""
    for key in ("job", "config", "plan", "base", "figures"):
        if not isinstance(results[key], Mapping):
            return f"{key} is {_describe_value(results[key])}, expected keys and values"
    if not isinstance(results["config"].get("recipe"), Mapping) or "name" not in results["config"]["recipe"]:
        return "config has no recipe with a name"
    stages = results["stages"]
    if not isinstance(stages, list) or not stages:
        return f"stages is {_describe_value(stages)}, expected a list of stages"
    base = results["base"].get("scores")
    if not isinstance(base, Mapping) or not base:
        return "base has no scores"
    for place, stage in enumerate(stages, start=1):
        if not isinstance(stage, Mapping) or not isinstance(stage.get("task"), str):
            return f"stage {place} has no task"
        scores = stage.get("scores")
        missing_tasks = [task for task in base if not isinstance(scores, Mapping) or task not in scores]
        if missing_tasks:
            return f"stage {place} has no score of {missing_tasks[0]}"
    for location, scores in (("base", base), *((f"stage {i}", s["scores"]) for i, s in enumerate(stages, 1))):
        for task, score in scores.items():
            if not isinstance(score, Mapping) or not is_number(score.get("value")):
                return f"{location}: the score of {task} is {_describe_value(score)}, expected a number under value"
    figures = results["figures"]
    for name in ("target_learning", "target_forgetting", "heldout_forgetting"):
        if not isinstance(figures.get(name), Mapping) or not {"value", "low", "high"} <= figures[name].keys():
            return f"figures has no whole {name}"
    heldout_figure = figures["heldout_forgetting"]
    per_stage = heldout_figure.get("per_stage")
    if not isinstance(per_stage, list) or len(per_stage) not in (0, len(stages)):
        return f"figures: heldout_forgetting.per_stage does not have {len(stages)} entries"
    if per_stage == [] and heldout_figure["value"] is not None:
        return "figures: heldout_forgetting.per_stage is empty"
    if not all(isinstance(heldout_figure.get(name), Mapping) for name in ("worst", "recovery")):
        return "figures: heldout_forgetting has no worst or recovery"
    return None


def _describe_value(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r}"[:60]


def load_sweep(folder: Path) -> Sweep:
    """All jobs directly under `folder`, or the one job that `folder` itself is.

    A folder is a job if it holds results.json, status.json or job.yaml. Of several folders with the same job one
    counts, and `notes` names the others. Raises DataError if there is no job.
    """
    folders = find_job_folders(folder)
    finished: dict[str, dict[str, Any]] = {}
    unfinished: list[UnfinishedJob] = []
    for job in folders:
        if (job / "results.json").exists():
            try:
                finished[job.name] = load_results(job / "results.json")
            except DataError as error:
                unfinished.append(UnfinishedJob(job.name, "unreadable", str(error), _read_job_config(job)))
        else:
            unfinished.append(replace(_read_job_state(job), config=_read_job_config(job)))
    deduplicated, notes = _merge_duplicate_jobs(finished)
    return Sweep(folder.resolve().name, deduplicated, unfinished, {job.name: job for job in folders}, notes)


def _merge_duplicate_jobs(
    results: Mapping[str, dict[str, Any]],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(every job once, notes that name the folders which repeat one); of equal jobs a probed one counts."""
    groups: dict[str, list[str]] = {}
    for job, job_results in results.items():
        groups.setdefault(hash_job(job_results), []).append(job)
    dropped: set[str] = set()
    notes = []
    for jobs in groups.values():
        kept_job = next((job for job in jobs if "probes" in results[job]), jobs[0])
        for job in jobs:
            if job == kept_job:
                continue
            dropped.add(job)
            are_figures_equal = _list_figure_values(results[job]) == _list_figure_values(results[kept_job])
            notes.append(
                f"{job} is {kept_job} once more (the same configuration and data): it counts once, as {kept_job}"
                f"{'' if are_figures_equal else ', although their figures differ'}."
            )
    return {job: job_results for job, job_results in results.items() if job not in dropped}, notes


def _list_figure_values(results: Mapping[str, Any]) -> list[Any]:
    """The figures without their intervals."""
    return [figure.get("value") for figure in results["figures"].values()]


def _describe_schema_mismatch(results: Any) -> str:
    """Why a record is refused: its schema, the version that wrote it, and the remedy."""
    if not isinstance(results, dict) or not isinstance(results.get("schema"), int):
        found_schema = results.get("schema") if isinstance(results, dict) else None
        return f"schema {found_schema}, this version reads schema {RESULTS_SCHEMA}"
    writer_version = (results.get("versions") or {}).get("lmm_forget")
    writer = f" (written by lmm-forget {writer_version})" if writer_version else ""
    remedy = (
        "a newer version is needed"
        if results["schema"] > RESULTS_SCHEMA
        else "delete it and run the job again to replace it"
    )
    return f"schema {results['schema']}{writer}, this version reads schema {RESULTS_SCHEMA}; {remedy}"


def is_job_folder(path: Path) -> bool:
    """Whether a folder is a job's: it holds results.json, status.json or job.yaml."""
    return path.is_dir() and any((path / name).exists() for name in ("results.json", "status.json", "job.yaml"))


def find_job_folders(folder: Path) -> list[Path]:
    """The jobs of a sweep's folder, or the folder itself if it is a job's. Raises DataError if there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected multirun/<name> or multirun/<name>/<job>")
    folders = [folder] if is_job_folder(folder) else sorted(path for path in folder.iterdir() if is_job_folder(path))
    if not folders:
        raise DataError(f"{folder}: holds no job, expected folders with job.yaml, status.json or results.json")
    return folders


def require_readable_results(sweep: Sweep) -> None:
    """Raise DataError if no job has readable results and some job has unreadable ones: there is nothing to show."""
    unreadable = [job for job in sweep.unfinished if job.state == "unreadable"]
    if unreadable and not sweep.results:
        raise DataError(unreadable[0].error or f"{unreadable[0].job} cannot be read")


def _read_job_state(job_folder: Path) -> UnfinishedJob:
    """A job without results, with the state and error from its status.json."""
    try:
        status = json.loads((job_folder / "status.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return UnfinishedJob(job_folder.name, "planned")
    except (OSError, ValueError):
        return UnfinishedJob(job_folder.name, "unreadable", "status.json cannot be read")
    state = str(status.get("state", "unknown")) if isinstance(status, dict) else "unknown"
    if state == "done":
        return UnfinishedJob(job_folder.name, "incomplete", "ended, but left no results.json")
    error = status.get("error") if isinstance(status, dict) else None
    return UnfinishedJob(job_folder.name, state, None if error is None else str(error))


def _read_job_config(job_folder: Path) -> Mapping[str, Any] | None:
    """The job's resolved configuration, None if it cannot be read."""
    try:
        config = yaml.safe_load((job_folder / "job.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return config if isinstance(config, dict) else None
