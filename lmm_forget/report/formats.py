"""The summary for other programs and papers: Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from lmm_forget.report.load import Unfinished
from lmm_forget.report.rows import FIGURES, TINY, Row, count, excludes_zero, points
from lmm_forget.report.settings import Setting

_COSTS = (
    "delta_bytes",
    "state_bytes",
    "peak_memory_bytes",
    "steps",
    "teach_seconds",
    "ask_seconds",
    "total_seconds",
)


def markdown(
    summary: Mapping[str, Any],
    rows: Sequence[Row],
    settings: Sequence[Setting],
    unfinished: Sequence[Unfinished],
    pictures: Sequence[str] = (),
) -> str:
    """The summary as GitHub Markdown: question and answer, a table of settings, jobs, pictures, what is missing.

    `pictures` are the names of the .png files beside it, without their ending.
    """
    lines = [f"# {summary['name']}", "", f"**{summary['question']}** {_lines(summary['answer'])}", ""]
    if unfinished:
        lines += [f"{missing_line(len(rows), unfinished)}; they are listed below and in no mean.", ""]
    if settings:
        headings = ["recipe", "jobs", "trainable parameters", "learning rate", *FIGURES.values()]
        lines += [_md_row(headings), "|---|---:|---:|---:|" + "---:|" * len(FIGURES)]
        lines += [
            _md_row([s.first.label, jobs_text(s), *choice_texts(s.first), *_texts(s)]) for s in settings
        ]
        lines += ["", *(f"{note}  " for note in summary["notes"]), ""]
    if any(len(setting.rows) > 1 for setting in settings):
        lines += [
            "## Jobs",
            "",
            _md_row(["job", "seed", *FIGURES.values()]),
            "|---|---:|" + "---:|" * len(FIGURES),
        ]
        lines += [
            _md_row([row.job, str(row.seed), *(told(figure, row.figures[figure]) for figure in FIGURES)])
            for row in rows
        ]
        lines += [""]
    for name in pictures:
        lines += [f"![{name.replace('_', ' ')}]({name}.png)", ""]
    if unfinished:
        lines += ["## Jobs without results", ""]
        lines += [f"- `{job.job}`: {job.state}{_because(job.error)}" for job in unfinished] + [""]
    return "\n".join(lines)


def table_csv(rows: Sequence[Row], unfinished: Sequence[Unfinished]) -> str:
    """A line per job, numbers in full; jobs without results have their state and empty figures."""
    figures = [f"{figure}{part}" for figure in FIGURES for part in ("", "_low", "_high")]
    stages = max((len(row.heldout_per_stage) for row in rows), default=0)
    head = [
        "job",
        "state",
        "model",
        "recipe",
        "layers",
        "extra",
        "trainable",
        "learning_rate",
        "vision_learning_rate",
    ]
    head += ["sequence", "tasks", "seed", *figures, "heldout_base"]
    head += [f"heldout_change_stage_{stage}" for stage in range(1, stages + 1)] + list(_COSTS)
    out = io.StringIO()
    writer = csv.DictWriter(out, head, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        line: dict[str, Any] = {
            name: getattr(row, name)
            for name in (
                "job",
                "model",
                "recipe",
                "layers",
                "trainable",
                "learning_rate",
                "vision_learning_rate",
            )
        }
        line |= {"state": "done", "extra": "; ".join(row.extra), "sequence": row.sequence, "seed": row.seed}
        line |= {"tasks": " ".join(row.tasks), "heldout_base": row.heldout_base}
        for figure in FIGURES:
            for part, key in (("", "value"), ("_low", "low"), ("_high", "high")):
                line[f"{figure}{part}"] = row.figures[figure][key]
        for stage, change in enumerate(row.heldout_per_stage, start=1):
            line[f"heldout_change_stage_{stage}"] = change["value"]
        writer.writerow(line | {name: row.cost[name] for name in _COSTS})
    for job in unfinished:
        config = job.config or {}
        recipe, sequence = config.get("recipe") or {}, config.get("sequence") or {}
        tasks = " ".join(sequence.get("tasks") or [])
        line = {"job": job.job, "state": job.state, "recipe": recipe.get("name"), "tasks": tasks}
        writer.writerow(line | {"seed": config.get("seed")})
    return out.getvalue()


def latex(settings: Sequence[Setting], notes: Sequence[str]) -> str:
    """A booktabs table of the settings, to be read in with \\input; needs the packages booktabs and amsmath."""
    columns = ("learning", "forgetting", "final", "worst")
    several = any(len(setting.rows) > 1 for setting in settings)
    head = [
        "% needs \\usepackage{booktabs}",
        *(f"% {note}" for note in notes),
        "\\begin{tabular}{l" + ("r" if several else "") + "rr" + "r" * len(columns) + "}",
        "\\toprule",
        " & ".join(
            ["recipe", *(["jobs"] if several else []), "parameters", "learning rate"]
            + [_tex(FIGURES[figure]) for figure in columns]
        )
        + r" \\",
        "\\midrule",
    ]
    body = []
    for setting in settings:
        cells = [_tex(setting.first.label), *([str(len(setting.rows))] if several else [])]
        cells += [_tex(count(setting.first.trainable)), _tex(setting.first.rates)]
        cells += [_tex_estimate(figure, setting.figures[figure]) for figure in columns]
        body.append(" & ".join(cells) + r" \\")
    return "\n".join([*head, *body, "\\bottomrule", "\\end{tabular}", ""])


def missing_line(finished: int, unfinished: Sequence[Unfinished]) -> str:
    """`2 of 6 jobs have no results (1 failed, 1 running)`."""
    states: dict[str, int] = {}
    for job in unfinished:
        states[job.state] = states.get(job.state, 0) + 1
    said = ", ".join(f"{number} {state}" for state, number in states.items())
    verb = "has" if len(unfinished) == 1 else "have"
    return f"{len(unfinished)} of {finished + len(unfinished)} jobs {verb} no results ({said})"


def jobs_text(setting: Setting) -> str:
    """`3`, or `2 of 3` where jobs of the setting are missing."""
    return str(len(setting.rows)) + (
        f" of {len(setting.rows) + len(setting.missing)}" if setting.missing else ""
    )


def choice_texts(row: Row) -> list[str]:
    """Trainable parameters and learning rates."""
    return [count(row.trainable), row.rates]


def told(figure: str, estimate: Mapping[str, Any]) -> str:
    """`-79.9* [-81.6, -78.1]`, with the mark of an interval that excludes zero."""
    if estimate["low"] is None:
        return points(estimate["value"])
    mark = "*" if excludes_zero(figure, estimate) else ""
    return f"{points(estimate['value'])}{mark} [{points(estimate['low'])}, {points(estimate['high'])}]"


def skill(task: str) -> str:
    """A task's name without the mark of a stand-in."""
    return task.removeprefix(TINY)


def _texts(setting: Setting) -> list[str]:
    cells = []
    for figure in FIGURES:
        estimate = setting.figures[figure]
        spread = "" if estimate["sd"] is None else f" (sd {estimate['sd']:.1f})"
        cells.append(told(figure, estimate) + spread)
    return cells


def _lines(text: str) -> str:
    """Several lines as a Markdown list, one as it is."""
    lines = text.split("\n")
    return text if len(lines) == 1 else "\n" + "\n".join(f"\n- {line}" for line in lines)


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _because(error: str | None) -> str:
    return f" - {' '.join(error.split())}" if error else ""


def _tex(text: str) -> str:
    for sign in "\\&%$#_{}":
        text = text.replace(sign, f"\\{sign}" if sign != "\\" else "/")
    return text


def _tex_estimate(figure: str, estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "--"
    mark = "^{*}" if excludes_zero(figure, estimate) else ""
    value = f"${points(estimate['value'])}{mark}$"
    if estimate["low"] is None:
        return value
    return f"{value} {{\\scriptsize $[{points(estimate['low'])},\\,{points(estimate['high'])}]$}}"
