"""Heat maps of stages against benchmarks and against tasks: their numbers, and their drawing as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lmm_forget.report.experiment_settings import ExperimentSetting, average_over_jobs
from lmm_forget.report.job_rows import TINY_PREFIX, list_heldout_tasks
from lmm_forget.report.plots import PLOT_STYLE, TEXT_COLOUR, format_change

Results = Mapping[str, Mapping[str, Any]]
CHANGE_COLOURS = LinearSegmentedColormap.from_list("change", ["#b2182b", "#f4a582", "#f7f7f7", "#92c5de", "#2166ac"])
SCORE_COLOURS = LinearSegmentedColormap.from_list("score", ["#f7f7f7", "#9ecfbf", "#1a9a78", "#0b5b46"])
MAX_MATRICES = 12
"""Settings that a picture shows at most; more would be too small to read."""


@dataclass(frozen=True)
class MatrixCell:
    """One number of a matrix (None: it does not exist), its tooltip, and whether this stage trained this task."""

    value: float | None
    tooltip: str
    is_trained_task: bool = False


@dataclass(frozen=True)
class StageMatrix:
    """Tasks (rows) by stages (columns) of one setting; `note` says from which jobs the numbers are.

    The first `num_trained_rows` rows are trained tasks, the others are held out.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[MatrixCell]]]
    num_trained_rows: int = 0


def build_heldout_change_matrix(setting: ExperimentSetting, results: Results) -> StageMatrix | None:
    """Change of each held-out benchmark since the base, after each stage; the last row is their mean.

    Over several jobs each cell is a mean; if they differ in order, stages are named by number. Returns None without
    held-out benchmarks, or if jobs have different numbers of stages.
    """
    jobs = [results[row.job] for row in setting.rows]
    tasks = [task for task in list_heldout_tasks(jobs[0]) if all(task in job["base"]["scores"] for job in jobs)]
    if not tasks or len({len(job["stages"]) for job in jobs}) > 1:
        return None
    rows = []
    for task in tasks:
        cells = []
        for stage in range(len(jobs[0]["stages"])):
            estimate = average_over_jobs([_get_change_from_base(job, task, stage) for job in jobs])
            after = f"after stage {stage + 1} ({setting.stage_names[stage]})"
            cells.append(MatrixCell(estimate["value"], f"{task} {after}: {format_change(estimate)} since the base"))
        rows.append((task.removeprefix(TINY_PREFIX), cells))
    means = [
        MatrixCell(change["value"], f"mean after stage {stage}: {format_change(change)} since the base")
        for stage, change in enumerate(setting.heldout_per_stage, start=1)
        if change["value"] is not None
    ]
    if len(means) == len(jobs[0]["stages"]):
        rows.append(("mean", means))
    return StageMatrix(
        setting.name,
        _format_jobs_note(setting),
        [stage.removeprefix(TINY_PREFIX) for stage in setting.stage_names],
        rows,
    )


def build_score_matrix(setting: ExperimentSetting, results: Results) -> StageMatrix:
    """Score of every task at the base and after each stage, trained tasks first.

    A mean over the setting's jobs if they share an order; else the first job's, because columns of different orders
    cannot be averaged.
    """
    rows_shown = setting.rows if setting.tasks else setting.rows[:1]
    jobs = [results[row.job] for row in rows_shown]
    trained_tasks = [stage["task"] for stage in jobs[0]["stages"]]
    heldout_tasks = list_heldout_tasks(jobs[0])
    others = [task for task in jobs[0]["base"]["scores"] if task not in trained_tasks and task not in heldout_tasks]
    rows = []
    for task in (*dict.fromkeys(trained_tasks), *heldout_tasks, *others):
        cells = []
        for stage in range(len(trained_tasks) + 1):
            value = mean(_get_stage_scores(job, stage)[task]["value"] for job in jobs)
            moment = f"after stage {stage} ({trained_tasks[stage - 1]})" if stage else "at the base"
            is_just_trained = stage > 0 and trained_tasks[stage - 1] == task
            cells.append(
                MatrixCell(
                    value,
                    f"{task} {moment}: {value:.1f}{', just trained' if is_just_trained else ''}",
                    is_just_trained,
                )
            )
        rows.append((task.removeprefix(TINY_PREFIX), cells))
    note = (
        _format_jobs_note(setting) if setting.tasks else f"of {rows_shown[0].job}; the other jobs train in other orders"
    )
    return StageMatrix(
        setting.name,
        note,
        ["base", *(task.removeprefix(TINY_PREFIX) for task in trained_tasks)],
        rows,
        len(set(trained_tasks)),
    )


def plot_heat_maps(matrices: Sequence[StageMatrix], title: str, *, is_change: bool) -> Figure:
    """Draw at most `MAX_MATRICES` matrices, one below the other, with one scale of colours."""
    shown = list(matrices)[:MAX_MATRICES]
    values = [abs(cell.value) for m in shown for _, cells in m.rows for cell in cells if cell.value is not None]
    max_value = max(values, default=1.0) or 1.0
    heights = [0.9 + 0.26 * len(matrix.rows) for matrix in shown]
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(6.2, sum(heights) + 0.4), layout="constrained")
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for matrix, axes in zip(shown, panels, strict=True):
            grid = [[float("nan") if cell.value is None else cell.value for cell in cells] for _, cells in matrix.rows]
            axes.imshow(
                grid,
                cmap=CHANGE_COLOURS if is_change else SCORE_COLOURS,
                vmin=-max_value if is_change else 0,
                vmax=max_value if is_change else 100,
                aspect="auto",
            )
            for y, (_, cells) in enumerate(matrix.rows):
                for x, cell in enumerate(cells):
                    if cell.value is not None:
                        dark = abs(cell.value) > (0.62 * max_value if is_change else 55)
                        axes.text(
                            x,
                            y,
                            format_whole_number(cell.value, with_sign=is_change),
                            ha="center",
                            va="center",
                            fontsize=8,
                            color="white" if dark else "#222222",
                            fontweight="bold" if cell.is_trained_task else "normal",
                        )
            axes.set_yticks(range(len(matrix.rows)), [name for name, _ in matrix.rows], fontsize=8)
            axes.set_xticks(range(len(matrix.columns)), matrix.columns, fontsize=8)
            axes.tick_params(length=0, colors=TEXT_COLOUR)
            axes.set_title(matrix.title, fontsize=9, loc="left")
            axes.spines[:].set_visible(False)
    return figure


def format_whole_number(value: float | None, *, with_sign: bool) -> str:
    """A cell's number without decimals and without negative zero; empty for None."""
    if value is None:
        return ""
    return f"{round(value):+d}" if with_sign and round(value) else f"{round(value):d}"


def format_cell_colour(value: float | None, max_value: float, *, is_change: bool) -> str:
    """The CSS background of a cell: transparent at zero, so that it suits a light and a dark page."""
    if value is None:
        return "transparent"
    strength = min(1.0, abs(value) / max_value) if max_value else 0.0
    colour = "26, 154, 120" if not is_change else "66, 135, 214" if value > 0 else "217, 74, 60"
    return f"rgba({colour}, {0.75 * strength:.2f})"


def _get_change_from_base(job: Mapping[str, Any], task: str, stage: int) -> Mapping[str, Any]:
    entry = job["stages"][stage]["scores"][task]
    recorded_change = entry.get("against_base")
    if recorded_change:
        return dict(recorded_change)
    return {"value": entry["value"] - job["base"]["scores"][task]["value"], "low": None, "high": None}


def _get_stage_scores(job: Mapping[str, Any], stage: int) -> Mapping[str, Any]:
    return dict(job["stages"][stage - 1]["scores"] if stage else job["base"]["scores"])


def _format_jobs_note(setting: ExperimentSetting) -> str:
    count = len(setting.rows)
    return "" if count == 1 else f"mean of {count} jobs"
