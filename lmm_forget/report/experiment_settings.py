"""Groups jobs that differ only in seed or order: their mean, interval and spread, and the jobs that are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy.special import stdtrit

from lmm_forget.report.job_results import UnfinishedJob
from lmm_forget.report.job_rows import FIGURE_TITLES, JobRow, extract_setting_fields


@dataclass(frozen=True)
class ExperimentSetting:
    """One recipe at one learning rate, with all its seeds and orders.

    `name` is unique in the sweep, `name_within_model` among the settings of its model. `figures` maps a figure of merit
    to {value, low, high, over, jobs, sd, min, max}: for a single job its own interval (`over` is "questions"), for
    several the mean and Student's 95 % interval (`over` is "jobs"). `heldout_per_stage` holds the same for the held-out
    change after each stage, empty if the jobs differ in their number of stages. `missing` are jobs without results.
    """

    name: str
    name_within_model: str
    rows: tuple[JobRow, ...]
    missing: tuple[UnfinishedJob, ...]
    figures: Mapping[str, Mapping[str, Any]]
    heldout_per_stage: tuple[Mapping[str, Any], ...]

    @property
    def first_row(self) -> JobRow:
        """The row to read the choices from that all jobs of the setting share."""
        return self.rows[0]

    @property
    def tasks(self) -> tuple[str, ...] | None:
        """The tasks in the order of training; None if the jobs differ in it."""
        return self.first_row.tasks if len({row.tasks for row in self.rows}) == 1 else None

    @property
    def stage_names(self) -> list[str]:
        """Names of the stages: the trained tasks, or numbers if the jobs differ in their order."""
        count = max(len(row.tasks) for row in self.rows)
        return list(self.tasks) if self.tasks else [f"stage {stage}" for stage in range(1, count + 1)]

    @property
    def heldout_base(self) -> float | None:
        """The held-out mean before any stage."""
        values = [row.heldout_base for row in self.rows if row.heldout_base is not None]
        return mean(values) if values else None


def group_rows_by_setting(rows: Sequence[JobRow], unfinished: Sequence[UnfinishedJob] = ()) -> list[ExperimentSetting]:
    """The settings in the order of their first rows; jobs without results are added to the setting they belong to."""
    groups: dict[tuple[str, str], list[JobRow]] = {}
    for row in rows:
        groups.setdefault((row.setting, row.content), []).append(row)
    unfinished_by_setting: dict[str, list[UnfinishedJob]] = {}
    for job in unfinished:
        unfinished_by_setting.setdefault(_encode_setting(job), []).append(job)
    rates_by_label: dict[str, set[str]] = {}
    for row in rows:
        rates_by_label.setdefault(row.label, set()).add(row.learning_rates)
    settings = []
    for (setting, _), group in groups.items():
        first_row = group[0]
        rate_suffix = "" if len(rates_by_label[first_row.label]) == 1 else f" {first_row.learning_rates}"
        stage_counts = {len(row.heldout_per_stage) for row in group}
        per_stage = (
            tuple(
                average_over_jobs([row.heldout_per_stage[stage] for row in group])
                for stage in range(stage_counts.pop())
            )
            if len(stage_counts) == 1
            else ()
        )
        settings.append(
            ExperimentSetting(
                name=first_row.label + rate_suffix,
                name_within_model=first_row.label_within_model + rate_suffix,
                rows=tuple(group),
                missing=tuple(unfinished_by_setting.pop(setting, ())),
                figures={figure: average_over_jobs([row.figures[figure] for row in group]) for figure in FIGURE_TITLES},
                heldout_per_stage=per_stage,
            )
        )
    return settings


def group_settings_by_model(settings: Sequence[ExperimentSetting]) -> list[list[ExperimentSetting]]:
    """The settings of each model, in their order: learning and forgetting are only compared within a model."""
    groups: dict[str | None, list[ExperimentSetting]] = {}
    for setting in settings:
        groups.setdefault(setting.first_row.model, []).append(setting)
    return list(groups.values())


def average_over_jobs(estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and interval of one figure over jobs (see `ExperimentSetting.figures`); skips jobs where it is None."""
    defined_estimates = [estimate for estimate in estimates if estimate["value"] is not None]
    values = [float(estimate["value"]) for estimate in defined_estimates]
    entry: dict[str, Any] = {"jobs": len(values), "sd": None, "min": None, "max": None}
    if not values:
        return {"value": None, "low": None, "high": None, "over": None, **entry}
    entry.update(min=min(values), max=max(values))
    if len(estimates) == 1:
        return {key: defined_estimates[0][key] for key in ("value", "low", "high")} | {
            "over": "questions",
            **entry,
        }
    average = mean(values)
    if len(values) == 1:
        return {"value": average, "low": None, "high": None, "over": "jobs", **entry}
    entry["sd"] = stdev(values)
    half_width = float(stdtrit(len(values) - 1, 0.975)) * entry["sd"] / len(values) ** 0.5
    return {
        "value": average,
        "low": average - half_width,
        "high": average + half_width,
        "over": "jobs",
        **entry,
    }


def summarize_seed_spread(settings: Sequence[ExperimentSetting]) -> list[dict[str, Any]]:
    """For each setting with several jobs: {label, rates, jobs, <figure>: {mean, low, high, sd, min, max}}."""
    entries = []
    for setting in settings:
        if len(setting.rows) < 2:
            continue
        entry: dict[str, Any] = {
            "label": setting.first_row.label,
            "rates": setting.first_row.learning_rates,
            "jobs": len(setting.rows),
        }
        for figure, estimate in setting.figures.items():
            entry[figure] = (
                None
                if estimate["value"] is None
                else {
                    "mean": estimate["value"],
                    **{k: estimate[k] for k in ("low", "high", "sd", "min", "max")},
                }
            )
        entries.append(entry)
    return entries


def _encode_setting(job: UnfinishedJob) -> str:
    """The setting (as in `JobRow.setting`) of a job without results; empty if its job.yaml names no tasks."""
    config = job.config or {}
    tasks = (config.get("sequence") or {}).get("tasks") or []
    return json.dumps(extract_setting_fields(config, tasks), sort_keys=True, default=str) if tasks else ""
