"""Jobs that differ in seed or order alone, taken together: mean, interval and spread, and which of them are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy.special import stdtrit

from lmm_forget.report.load import Unfinished
from lmm_forget.report.rows import FIGURES, Row, choices


@dataclass(frozen=True)
class Setting:
    """One recipe at one learning rate, with all its seeds and orders.

    `name` tells it from all others of the sweep, `within` from the others of its model.
    `figures` maps a figure to {value, low, high, over, jobs, sd, min, max}: of a single job its own interval, over
    "questions"; of several the mean and Student's 95 % interval over "jobs". `heldout_per_stage` holds the same for
    the held-out change after each stage, where all jobs have as many. `missing` are its jobs without results.
    """

    name: str
    within: str
    rows: tuple[Row, ...]
    missing: tuple[Unfinished, ...]
    figures: Mapping[str, Mapping[str, Any]]
    heldout_per_stage: tuple[Mapping[str, Any], ...]

    @property
    def first(self) -> Row:
        """The job that stands for choices all of them share."""
        return self.rows[0]

    @property
    def tasks(self) -> tuple[str, ...] | None:
        """The order in which skills were taught; None where the jobs differ in it."""
        return self.first.tasks if len({row.tasks for row in self.rows}) == 1 else None

    @property
    def stages(self) -> list[str]:
        """Names of the stages: the skills, or numbers where orders differ."""
        count = max(len(row.tasks) for row in self.rows)
        return list(self.tasks) if self.tasks else [f"stage {stage}" for stage in range(1, count + 1)]

    @property
    def heldout_base(self) -> float | None:
        """The held-out mean before any stage."""
        values = [row.heldout_base for row in self.rows if row.heldout_base is not None]
        return mean(values) if values else None


def settings_of(rows: Sequence[Row], unfinished: Sequence[Unfinished] = ()) -> list[Setting]:
    """Settings in the order of their first rows; jobs without results stand with the setting that they belong to."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.setting, row.content), []).append(row)
    missing: dict[str, list[Unfinished]] = {}
    for job in unfinished:
        missing.setdefault(_setting(job), []).append(job)
    rates: dict[str, set[str]] = {}
    for row in rows:
        rates.setdefault(row.label, set()).add(row.rates)
    found = []
    for (setting, _), group in groups.items():
        first = group[0]
        rate = "" if len(rates[first.label]) == 1 else f" {first.rates}"
        stages = {len(row.heldout_per_stage) for row in group}
        per_stage = (
            tuple(over_jobs([row.heldout_per_stage[stage] for row in group]) for stage in range(stages.pop()))
            if len(stages) == 1
            else ()
        )
        found.append(
            Setting(
                name=first.label + rate,
                within=first.within + rate,
                rows=tuple(group),
                missing=tuple(missing.pop(setting, ())),
                figures={figure: over_jobs([row.figures[figure] for row in group]) for figure in FIGURES},
                heldout_per_stage=per_stage,
            )
        )
    return found


def by_model(settings: Sequence[Setting]) -> list[list[Setting]]:
    """The settings of each model, in their order: what was learned and lost is compared within a model only."""
    groups: dict[str | None, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.first.model, []).append(setting)
    return list(groups.values())


def over_jobs(estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One figure over jobs; see `Setting.figures`. Jobs in which it does not exist are not counted."""
    known = [estimate for estimate in estimates if estimate["value"] is not None]
    values = [float(estimate["value"]) for estimate in known]
    entry: dict[str, Any] = {"jobs": len(values), "sd": None, "min": None, "max": None}
    if not values:
        return {"value": None, "low": None, "high": None, "over": None, **entry}
    entry.update(min=min(values), max=max(values))
    if len(estimates) == 1:
        return {key: known[0][key] for key in ("value", "low", "high")} | {"over": "questions", **entry}
    middle = mean(values)
    if len(values) == 1:
        return {"value": middle, "low": None, "high": None, "over": "jobs", **entry}
    entry["sd"] = stdev(values)
    arm = float(stdtrit(len(values) - 1, 0.975)) * entry["sd"] / len(values) ** 0.5
    return {"value": middle, "low": middle - arm, "high": middle + arm, "over": "jobs", **entry}


def spread(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each setting with several jobs: {label, rates, jobs, <figure>: {mean, low, high, sd, min, max}}."""
    entries = []
    for setting in settings_of(rows):
        if len(setting.rows) < 2:
            continue
        entry: dict[str, Any] = {
            "label": setting.first.label,
            "rates": setting.first.rates,
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


def _setting(job: Unfinished) -> str:
    """The setting to which a job without results belongs; empty if its job.yaml does not say."""
    config = job.config or {}
    tasks = (config.get("sequence") or {}).get("tasks") or []
    return json.dumps(choices(config, tasks), sort_keys=True, default=str) if tasks else ""
