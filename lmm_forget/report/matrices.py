"""Stage by benchmark and stage by task: the numbers behind the heat maps, and the heat maps as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lmm_forget.report.figures import INK, STYLE, told_change
from lmm_forget.report.rows import TINY, held_out_tasks
from lmm_forget.report.settings import Setting, over_jobs

Results = Mapping[str, Mapping[str, Any]]
CHANGE = LinearSegmentedColormap.from_list("change", ["#b2182b", "#f4a582", "#f7f7f7", "#92c5de", "#2166ac"])
SCORE = LinearSegmentedColormap.from_list("score", ["#f7f7f7", "#9ecfbf", "#1a9a78", "#0b5b46"])
PANELS = 12
"""Settings that a picture still shows; more would be too small to read."""


@dataclass(frozen=True)
class Cell:
    """One number of a matrix (None: it does not exist), its words, and whether this stage taught the task."""

    value: float | None
    tip: str
    taught: bool = False


@dataclass(frozen=True)
class Matrix:
    """Tasks (rows) by stages (columns) of one setting; `note` says which jobs the numbers are of.

    The first `taught` rows are skills that were taught.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    taught: int = 0


def held_out_changes(setting: Setting, results: Results) -> Matrix | None:
    """Change of each held-out benchmark since the base, after each stage; the last row is their mean.

    Over several jobs each cell is a mean; where they differ in order, stages are told by their number. None without
    held-out benchmarks or where jobs have different numbers of stages.
    """
    jobs = [results[row.job] for row in setting.rows]
    tasks = [task for task in held_out_tasks(jobs[0]) if all(task in job["base"]["scores"] for job in jobs)]
    if not tasks or len({len(job["stages"]) for job in jobs}) > 1:
        return None
    rows = []
    for task in tasks:
        cells = []
        for stage in range(len(jobs[0]["stages"])):
            estimate = over_jobs([_change(job, task, stage) for job in jobs])
            after = f"after stage {stage + 1} ({setting.stages[stage]})"
            cells.append(Cell(estimate["value"], f"{task} {after}: {told_change(estimate)} since the base"))
        rows.append((task.removeprefix(TINY), cells))
    means = [
        Cell(change["value"], f"mean after stage {stage}: {told_change(change)} since the base")
        for stage, change in enumerate(setting.heldout_per_stage, start=1)
        if change["value"] is not None
    ]
    if len(means) == len(jobs[0]["stages"]):
        rows.append(("mean", means))
    return Matrix(setting.name, _note(setting), [stage.removeprefix(TINY) for stage in setting.stages], rows)


def scores(setting: Setting, results: Results) -> Matrix:
    """Score of every task at the base and after each stage, the taught ones first.

    The mean over jobs where they share an order; else of the first job, since a mean over orders means nothing here.
    """
    rows_shown = setting.rows if setting.tasks else setting.rows[:1]
    jobs = [results[row.job] for row in rows_shown]
    taught = [stage["task"] for stage in jobs[0]["stages"]]
    held = held_out_tasks(jobs[0])
    others = [task for task in jobs[0]["base"]["scores"] if task not in taught and task not in held]
    rows = []
    for task in (*dict.fromkeys(taught), *held, *others):
        cells = []
        for stage in range(len(taught) + 1):
            value = mean(_scores(job, stage)[task]["value"] for job in jobs)
            when = f"after stage {stage} ({taught[stage - 1]})" if stage else "at the base"
            just = stage > 0 and taught[stage - 1] == task
            cells.append(Cell(value, f"{task} {when}: {value:.1f}{', just taught' if just else ''}", just))
        rows.append((task.removeprefix(TINY), cells))
    note = (
        _note(setting) if setting.tasks else f"of {rows_shown[0].job}; the other jobs teach in other orders"
    )
    return Matrix(
        setting.name, note, ["base", *(task.removeprefix(TINY) for task in taught)], rows, len(set(taught))
    )


def picture(matrices: Sequence[Matrix], title: str, *, change: bool) -> Figure:
    """Heat maps of at most `PANELS` matrices, one below the other, with one scale of colours."""
    shown = list(matrices)[:PANELS]
    values = [
        abs(cell.value) for m in shown for _, cells in m.rows for cell in cells if cell.value is not None
    ]
    most = max(values, default=1.0) or 1.0
    heights = [0.9 + 0.26 * len(matrix.rows) for matrix in shown]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, sum(heights) + 0.4), layout="constrained")
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for matrix, axes in zip(shown, panels, strict=True):
            grid = [
                [float("nan") if cell.value is None else cell.value for cell in cells]
                for _, cells in matrix.rows
            ]
            axes.imshow(
                grid,
                cmap=CHANGE if change else SCORE,
                vmin=-most if change else 0,
                vmax=most if change else 100,
                aspect="auto",
            )
            for y, (_, cells) in enumerate(matrix.rows):
                for x, cell in enumerate(cells):
                    if cell.value is not None:
                        dark = abs(cell.value) > (0.62 * most if change else 55)
                        axes.text(
                            x,
                            y,
                            whole(cell.value, sign=change),
                            ha="center",
                            va="center",
                            fontsize=8,
                            color="white" if dark else "#222222",
                            fontweight="bold" if cell.taught else "normal",
                        )
            axes.set_yticks(range(len(matrix.rows)), [name for name, _ in matrix.rows], fontsize=8)
            axes.set_xticks(range(len(matrix.columns)), matrix.columns, fontsize=8)
            axes.tick_params(length=0, colors=INK)
            axes.set_title(matrix.title, fontsize=9, loc="left")
            axes.spines[:].set_visible(False)
    return figure


def whole(value: float | None, *, sign: bool) -> str:
    """A cell's number without decimals; no negative zero, nothing where there is no number."""
    if value is None:
        return ""
    return f"{round(value):+d}" if sign and round(value) else f"{round(value):d}"


def shade(value: float | None, most: float, *, change: bool) -> str:
    """The background of an HTML cell: transparent at zero, so that it suits a light and a dark page."""
    if value is None:
        return "transparent"
    strength = min(1.0, abs(value) / most) if most else 0.0
    colour = "26, 154, 120" if not change else "66, 135, 214" if value > 0 else "217, 74, 60"
    return f"rgba({colour}, {0.75 * strength:.2f})"


def _change(job: Mapping[str, Any], task: str, stage: int) -> Mapping[str, Any]:
    entry = job["stages"][stage]["scores"][task]
    known = entry.get("against_base")
    if known:
        return dict(known)
    return {"value": entry["value"] - job["base"]["scores"][task]["value"], "low": None, "high": None}


def _scores(job: Mapping[str, Any], stage: int) -> Mapping[str, Any]:
    return dict(job["stages"][stage - 1]["scores"] if stage else job["base"]["scores"])


def _note(setting: Setting) -> str:
    count = len(setting.rows)
    return "" if count == 1 else f"mean of {count} jobs"
