"""The report as one HTML file: no other file, no network, nothing but what the records say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import yaml

from lmm_forget.report.differences import MOST, Difference
from lmm_forget.report.figures import inline, svg, targets_per_stage, told_change
from lmm_forget.report.formats import choice_texts, jobs_text, missing_line, skill
from lmm_forget.report.load import Sweep
from lmm_forget.report.matrices import Matrix, held_out_changes, scores, shade, whole
from lmm_forget.report.pair_table import p_text
from lmm_forget.report.rows import (
    FIGURES,
    MARKED,
    NOTES,
    Row,
    choices,
    count,
    excludes_zero,
    held_out_tasks,
    points,
)
from lmm_forget.report.samples import Browser
from lmm_forget.report.settings import Setting, by_model
from lmm_forget.report.table import interval
from lmm_forget.report.verdict import front

HEATMAPS = 12
"""Settings whose heat maps a page carries."""
OPEN_HEATMAPS = 6
DETAILED = 12
"""Jobs whose own pictures a page carries."""
DESCRIBED = {
    "learning_vs_forgetting": "target learning against held-out forgetting, a point per recipe and learning rate",
    "heldout_per_stage": "held-out mean at the base and after each stage",
    "probe_shift": "shift of the output tokens at every stage and milestone",
    "probe_layers": "contribution of attention and MLP of each layer to the change of the logits",
    "probe_vs_forgetting": "shift of the output tokens against held-out forgetting",
}
EXPLAINED = {
    "learning": "each skill right after its own stage, against the base",
    "forgetting": "earlier skills at the end, against right after their own stage",
    "final": "mean over the benchmarks never trained on, after the last stage, against the base",
    "worst": "the same after the stage where it is lowest",
    "recovery": "final minus worst",
}


def page(
    summary: Mapping[str, Any],
    sweep: Sweep,
    rows: Sequence[Row],
    settings: Sequence[Setting],
    *,
    figures: Mapping[str, str],
    compared: Sequence[Difference],
    samples: Browser,
) -> str:
    """The whole document. `figures` are SVG documents by name; those that `DESCRIBED` names are shown."""
    drawn = {name: inline(figures[name], text, name) for name, text in DESCRIBED.items() if name in figures}
    groups = by_model(settings)
    return (
        _environment()
        .get_template("summary.html.j2")
        .render(
            summary=summary,
            style=_source("summary.css"),
            script=_source("summary.js"),
            settings=[_setting(setting, group) for group in groups for setting in group],
            headings=FIGURES,
            explained=EXPLAINED,
            several=any(len(setting.rows) > 1 for setting in settings),
            jobs=[_job(row) for row in rows],
            unfinished=sweep.unfinished,
            missing=missing_line(len(rows), sweep.unfinished) if sweep.unfinished else "",
            orphans=_orphans(sweep, settings),
            compared=_by_reference(compared),
            panels=len(groups),
            by_question=any(each.basis.startswith("questions") for each in compared),
            most=MOST,
            pictures=drawn,
            changes=_heat(settings, sweep, change=True),
            matrices=_heat(settings, sweep, change=False),
            hidden_heatmaps=max(0, len(settings) - HEATMAPS),
            open_heatmaps=OPEN_HEATMAPS,
            details=_details(sweep),
            costs=[_cost(setting) for setting in settings],
            samples=_json(samples.data) if samples else "",
            sample_notes=samples.notes,
            made=_made(sweep, settings),
            subtitle=_subtitle(sweep, rows),
            about=_about(sweep, rows),
            tiny=NOTES["tiny"] if NOTES["tiny"] in summary["notes"] else "",
            notes=sweep.notes,
        )
    )


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    return resources.files("lmm_forget.report").joinpath(name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that cannot end the <script> element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _setting(setting: Setting, group: Sequence[Setting]) -> dict[str, Any]:
    """A row of the table; `group` are all settings of its model."""
    parameters, rates = choice_texts(setting.first)
    figures = []
    for figure in FIGURES:
        estimate = setting.figures[figure]
        spread: list[str] = []
        if estimate["sd"] is not None:
            spread = [f"sd {estimate['sd']:.1f}", f"{points(estimate['min'])} to {points(estimate['max'])}"]
        figures.append(
            {
                "name": FIGURES[figure],
                "value": points(estimate["value"]),
                "mark": excludes_zero(figure, estimate),
                "markable": figure in MARKED,
                "between": interval(estimate),
                "spread": spread,
            }
        )
    return {
        "label": setting.first.label,
        "parameters": parameters,
        "rates": rates,
        "jobs": jobs_text(setting),
        "missing": [f"{job.job} ({job.state})" for job in setting.missing],
        "best": len(group) > 1 and setting in front(group),
        "figures": figures,
    }


def _job(row: Row) -> dict[str, Any]:
    return {
        "job": row.job,
        "seed": row.seed,
        "tasks": " → ".join(skill(task) for task in row.tasks),
        "figures": [
            (
                points(row.figures[figure]["value"]),
                "*" if excludes_zero(figure, row.figures[figure]) else "",
                interval(row.figures[figure]),
            )
            for figure in FIGURES
        ],
    }


def _orphans(sweep: Sweep, settings: Sequence[Setting]) -> int:
    """Jobs without results of settings that have no result at all."""
    return len(sweep.unfinished) - sum(len(setting.missing) for setting in settings)


def _by_reference(compared: Sequence[Difference]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The differences to each reference, in the order of references."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in compared:
        found.setdefault(each.against, []).append(_compared(each))
    return list(found.items())


def _compared(each: Difference) -> dict[str, Any]:
    def cell(entry: Mapping[str, Any] | None) -> tuple[str, str, bool]:
        if entry is None:
            return "n/a", "", False
        p = entry["p_holm"]
        return told_change(entry), "" if p is None else p_text(p), p is not None and p < 0.05

    return {
        "name": each.name,
        "basis": each.basis,
        "learning": cell(each.learning),
        "final": cell(each.final),
    }


def _heat(settings: Sequence[Setting], sweep: Sweep, *, change: bool) -> list[dict[str, Any]]:
    """Heat maps as tables: every cell with its text, colour and tip."""
    make = held_out_changes if change else scores
    shown = [m for setting in settings[:HEATMAPS] if (m := make(setting, sweep.results)) is not None]
    every = [
        abs(cell.value) for m in shown for _, cells in m.rows for cell in cells if cell.value is not None
    ]
    most = max(every, default=1.0) if change else 100.0
    return [_table(matrix, most, change) for matrix in shown]


def _table(matrix: Matrix, most: float, change: bool) -> dict[str, Any]:
    return {
        "title": matrix.title,
        "note": matrix.note,
        "columns": matrix.columns,
        "taught": matrix.taught,
        "rows": [
            (
                name,
                [
                    {
                        "text": whole(cell.value, sign=change) or "n/a",
                        "colour": shade(cell.value, most, change=change),
                        "tip": cell.tip,
                        "taught": cell.taught,
                    }
                    for cell in cells
                ],
            )
            for name, cells in matrix.rows
        ],
    }


def _details(sweep: Sweep) -> list[tuple[str, str]]:
    if len(sweep.results) > DETAILED:
        return []
    return [
        (
            job,
            inline(svg(targets_per_stage(results)), f"target scores per stage of {job}", f"targets{place}"),
        )
        for place, (job, results) in enumerate(sweep.results.items())
    ]


def _cost(setting: Setting) -> dict[str, str]:
    costs = [row.cost for row in setting.rows]

    def mean(name: str) -> float | None:
        values = [cost[name] for cost in costs if cost[name] is not None]
        return sum(values) / len(values) if values else None  # type: ignore[arg-type]

    trainable, parameters = setting.first.trainable, mean("parameters")
    share = f" ({100 * trainable / parameters:.2g} %)" if trainable and parameters else ""
    return {
        "name": setting.name,
        "parameters": f"{count(trainable)}{share}",
        "delta": _bytes(mean("delta_bytes")),
        "state": _bytes(mean("state_bytes")),
        "memory": _bytes(mean("peak_memory_bytes")),
        "steps": "n/a" if mean("steps") is None else f"{mean('steps'):,.0f}",
        "teach": _seconds(mean("teach_seconds")),
        "ask": _seconds(mean("ask_seconds")),
        "total": _seconds(mean("total_seconds")),
    }


def _bytes(number: float | None) -> str:
    if number is None:
        return "n/a"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def _seconds(number: float | None) -> str:
    if number is None:
        return "n/a"
    if number < 60:
        return f"{number:.1f} s"
    hours, minutes = divmod(round(number) // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {round(number) % 60:02d} s"


def _subtitle(sweep: Sweep, rows: Sequence[Row]) -> str:
    if not rows:
        return "no job has finished yet"
    models = ", ".join(dict.fromkeys(str(row.model) for row in rows if row.model))
    tasks = {row.tasks for row in rows}
    order = " → ".join(skill(task) for task in rows[0].tasks) if len(tasks) == 1 else f"{len(tasks)} orders"
    seeds = sorted({row.seed for row in rows if row.seed is not None})
    told = f"{len(rows)} job{'s' if len(rows) > 1 else ''} finished"
    return " · ".join(
        part
        for part in (
            models,
            f"taught {order}",
            f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds" if seeds else "",
            told + (f", {len(sweep.unfinished)} without results" if sweep.unfinished else ""),
        )
        if part
    )


def _about(sweep: Sweep, rows: Sequence[Row]) -> str:
    """What was done, for somebody who meets such a page for the first time."""
    if not rows:
        return ""
    held = len(held_out_tasks(next(iter(sweep.results.values()))))
    skills = max(len(row.tasks) for row in rows)
    teaching = f"{skills} skills were taught, one after another" if skills > 1 else "A skill was taught"
    asking = (
        f"; before and after each, the model answered {held} benchmarks that were never taught"
        if held
        else ""
    )
    return (
        f"{teaching}, by each recipe: a choice of which parameters may move{asking}. What it learned shows in the "
        f"skills, what it forgot in {'the held-out benchmarks and ' if held else ''}the earlier skills."
    )


def _made(sweep: Sweep, settings: Sequence[Setting]) -> dict[str, Any]:
    """How the numbers came about: what all jobs share, what differs, versions, data, stage keys."""
    results = sweep.results
    leaves = {
        job: choices(found["config"], ()) | {"seed": found["config"].get("seed")}
        for job, found in results.items()
    }
    names = list(dict.fromkeys(name for each in leaves.values() for name in each if name != "taught"))
    differ = [name for name in names if len({str(each.get(name)) for each in leaves.values()}) > 1]
    whole_configs = [found["config"] for found in results.values()]
    shared = _shared(whole_configs) if whole_configs else {}
    versions: dict[str, list[str]] = {}
    for found in results.values():
        for name, version in (found.get("versions") or {}).items():
            known = versions.setdefault(name, [])
            if version not in known:
                known.append(version)
    data: dict[tuple[str, str], list[str]] = {}
    for found in results.values():
        for task, entry in (found.get("data") or {}).items():
            for use, about in entry.items():
                told = f"{about['samples']:,} of {about['split']}, {about['fingerprint']}"
                known = data.setdefault((task, use), [])
                if told not in known:
                    known.append(told)
    if "git" in versions:  # of this code, not of the program
        versions["the code (git commit)"] = versions.pop("git")
    return {
        "shared": yaml.safe_dump(shared, sort_keys=False, allow_unicode=True, width=100) if shared else "",
        "differ": differ[:20],
        "values": [(job, [_plain(leaves[job].get(name)) for name in differ[:20]]) for job in results],
        "versions": [(name, ", ".join(known)) for name, known in versions.items()],
        "mixed": [name for name, known in versions.items() if len(known) > 1],
        "data": [(task, use, known) for (task, use), known in data.items()],
        "jobs": [
            {
                "job": job,
                "hash": found["job"].get("hash"),
                "base": str(found["base"].get("weights_hash") or "")[:16],
                "stages": [(stage["task"], str(stage.get("key") or "")[:16]) for stage in found["stages"]],
            }
            for job, found in results.items()
        ],
    }


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all configurations have in common, in the layout of the first."""
    first, *others = configs
    found: dict[str, Any] = {}
    for key, value in first.items():
        if not all(key in other for other in others):
            continue
        values = [other[key] for other in others]
        if isinstance(value, Mapping) and all(isinstance(each, Mapping) for each in values):
            inner = _shared([value, *values])
            if inner or not value:
                found[key] = inner
        elif all(each == value for each in values):
            found[key] = value
    return found
