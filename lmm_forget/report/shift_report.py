"""Relation of output shift and forgetting as a report: a scatter plot, and tables and verdicts as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lmm_forget.metrics.forgetting_statements import (
    DECIDING_FIGURES,
    LAYER_PARTS,
    describe_resampling,
    format_correlation,
)
from lmm_forget.report.job_rows import TINY_PREFIX
from lmm_forget.report.plots import PLOT_STYLE, TEXT_COLOUR, add_tooltip, choose_colour_and_marker
from lmm_forget.report.probe_plots import format_prompts_label

Findings = Mapping[str, Any]
REPLY_FORMATS = ("number", "letter", "yes_no", "clock", "other")


def plot_shift_scatter(findings: Findings) -> Figure | None:
    """Each deciding shift metric against the held-out change; a point per model, hollow for a milestone in a stage.

    Only the first set of prompts is shown. None if there is nothing to draw.
    """
    panels = [
        (shift, name)
        for shift, name in _list_deciding_figures(findings)
        if shift["prompts"] == findings["shifts"][0]["prompts"] and "heldout" in shift["figures"][name]
    ]
    if not panels:
        return None
    recipes = list(dict.fromkeys(point["recipe"] for point in findings["points"]))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(3.7 * columns, 2.9 * rows + 0.8), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for panel in list(grid.flat)[len(panels) :]:
            panel.set_visible(False)
        for k, (shift, name) in enumerate(panels):
            panel = grid[k // columns][k % columns]
            panel.grid(color=TEXT_COLOUR, alpha=0.18, linewidth=0.6)
            panel.tick_params(labelsize=8)
            for point in findings["points"]:
                value = point["shift"].get(f"{shift['prompts']}/{shift['mode']}", {}).get(name)
                if value is None or point["heldout"] is None:
                    continue
                colour, marker = choose_colour_and_marker(recipes.index(point["recipe"]))
                face = colour if point["step"] is None else "none"
                change = point["heldout"]
                panel.plot(
                    [value],
                    [change],
                    marker=marker,
                    markersize=5,
                    markerfacecolor=face,
                    markeredgecolor=colour,
                    linestyle="none",
                )
                add_tooltip(
                    panel,
                    value,
                    change,
                    f"{_format_model_label(point)}: shift {value:+.3g}, held-out {change:+.1f}",
                )
            rho = shift["figures"][name]["heldout"]["spearman"]
            panel.set_title(f"{_format_shift_label(shift)}\nSpearman {format_correlation(rho)}", fontsize=9, loc="left")
            panel.set_xlabel(_format_axis_label(name), fontsize=9)
            panel.xaxis.set_major_locator(MaxNLocator(5))
            if k % columns == 0:
                panel.set_ylabel("held-out change (points)", fontsize=9)
        _add_recipe_legend(figure, recipes, any(point["step"] is not None for point in findings["points"]))
    return figure


def render_shift_report(
    name: str,
    findings: Findings,
    statements: Sequence[Findings],
    flip_counts: Sequence[Findings],
    skipped_jobs: Sequence[str] = (),
) -> str:
    """The report as Markdown: verdicts, shift over time, correlations, recoveries, layers, formats of wrong answers.

    `findings` come from `correlate_shift_with_forgetting`, `statements` from `judge_forgetting_statements`,
    `flip_counts` from `count_flips`; `skipped_jobs` names jobs that none of them covers.
    """
    points = findings["points"]
    recipes = list(dict.fromkeys(point["recipe"] for point in points))
    seeds = sorted({str(point["seed"]) for point in points})
    lines = [
        f"# Why it forgets: {name}",
        "",
        f"{findings['jobs']} jobs: recipes {', '.join(recipes)}; seeds {', '.join(seeds)}. A shift is the difference "
        "from the base: masses as shares of probability, kl and nll in nats; held-out changes in points.",
        "",
        *([f"Left out: {', '.join(skipped_jobs)}.", ""] if skipped_jobs else []),
        *format_verdicts(findings, statements),
        *_format_shift_tables(findings, recipes),
    ]
    lines += ["## Shift against held-out change", ""]
    for shift in findings["shifts"]:
        rows = [
            (name, format_correlation(entry["pearson"]), format_correlation(entry["spearman"]), entry["n"])
            for name, against in shift["figures"].items()
            if (entry := against.get("heldout"))
        ]
        lines += _format_markdown_table((_format_shift_label(shift), "Pearson", "Spearman", "models"), rows)
    lines += ["## Stages after which the held-out mean had risen", ""]
    figures = [f"{name}, {_format_shift_label(shift)}" for shift, name in _list_deciding_figures(findings)]
    lines += ["Beside the rise in points: how the distance of each figure from the base changed.", ""]
    lines += _format_markdown_table(("job", "after", "held-out", *figures), _format_recovery_rows(findings))
    if findings["layers"]:
        lines += ["## Which blocks change the logits (shares of the norms, final norm folded in)", ""]
        lines += _format_markdown_table(
            ("job", "after", *map(format_part_name, LAYER_PARTS)), format_layer_rows(findings)
        )
    lines += ["## Held-out questions that turned wrong, and formats of the answers now", ""]
    lines += _format_markdown_table(("job", "after", "wrong", *REPLY_FORMATS), format_flip_rows(flip_counts))
    return "\n".join(lines)


def format_verdicts(findings: Findings, statements: Sequence[Findings]) -> list[str]:
    """The three statements, each with its evidence, as lines of Markdown."""
    lines = ["## Which of the three statements hold", ""]
    for each in statements:
        lines.append(f"{each['number']}. {each['statement']}:")
        for evidence in each["evidence"]:
            subject = (
                evidence["recipe"] if "recipe" in evidence else f"{evidence['figure']}, {_format_shift_label(evidence)}"
            )
            lines.append(f"   - {subject}: **{evidence['verdict']}** ({evidence['why']})")
        if not each["evidence"]:
            lines.append("   - no record can decide it")
    return [*lines, "", describe_resampling(findings), ""]


def format_part_name(part: str) -> str:
    """`late_mlp` -> `late MLP`."""
    return part.replace("_", " ").replace("mlp", "MLP")


def format_layer_rows(findings: Findings) -> list[tuple[str, ...]]:
    """Rows of (job, task just trained, the four parts' shares in percent)."""
    return [
        (
            str(e["job"]),
            _strip_tiny_prefix(e["task"]),
            *(f"{100 * (e['folded'][part] or 0):.0f} %" for part in LAYER_PARTS),
        )
        for e in findings["layers"]
        if "folded" in e
    ]


def format_flip_rows(flip_counts: Sequence[Findings]) -> list[tuple[str, ...]]:
    """Rows of (job, task just trained, questions that turned wrong, how many of them now have each other format)."""
    return [
        (
            str(row["job"]),
            _strip_tiny_prefix(row["task"]),
            str(row["right_to_wrong"]),
            *(str(row["changed_formats"][kind]) for kind in REPLY_FORMATS),
        )
        for row in flip_counts
    ]


def _format_shift_tables(findings: Findings, recipes: Sequence[str]) -> Iterator[str]:
    """A table per deciding metric: a row per recipe, a column per stage or milestone; means over a recipe's jobs."""
    places = dict.fromkeys(
        (p["stage"], p["task"], p["step"])
        for p in sorted(findings["points"], key=lambda p: (p["stage"], p["step"] or float("inf")))
    )
    column_names = [f"{_strip_tiny_prefix(task)}{'' if step is None else f', step {step}'}" for _, task, step in places]
    for shift, name in _list_deciding_figures(findings):
        key, base = f"{shift['prompts']}/{shift['mode']}", shift["base"].get(name)
        yield from (
            f"## {_format_axis_label(name)[0].upper()}{_format_axis_label(name)[1:]}, {_format_shift_label(shift)}",
            "",
        )
        if base is not None:
            yield from (f"The base's own value is {base:.3f}.", "")
        yield from _format_markdown_table(
            ("recipe", *column_names), _format_shift_rows(findings["points"], recipes, places, key, name)
        )
    yield from ("## Held-out change", "")
    yield from _format_markdown_table(
        ("recipe", *column_names), _format_shift_rows(findings["points"], recipes, places, "", "heldout")
    )


def _format_shift_rows(
    points: Sequence[Findings], recipes: Sequence[str], places: Iterable[tuple[Any, ...]], key: str, name: str
) -> list[tuple[str, ...]]:
    rows = []
    for recipe in recipes:
        cells = []
        for place in places:
            values = [
                value
                for p in points
                if p["recipe"] == recipe and (p["stage"], p["task"], p["step"]) == place
                if (value := p["shift"].get(key, {}).get(name) if key else p[name]) is not None
            ]
            cells.append(f"{mean(values):{'+.3f' if key else '+.1f'}}" if values else "")
        rows.append((recipe, *cells))
    return rows


def _format_recovery_rows(findings: Findings) -> list[tuple[str, ...]]:
    """Rows of (job, task just trained, rise of the held-out mean, change of each deciding metric's distance)."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for shift, name in _list_deciding_figures(findings):
        for rise in shift["recovery"][name]["rises"]:
            place = (str(rise["job"]), _strip_tiny_prefix(rise["task"]), f"{rise['heldout']:+.1f}")
            rows.setdefault(place, []).append(f"{rise['distance']:+.3f}")
    return [(*place, *cells) for place, cells in rows.items()]


def _list_deciding_figures(findings: Findings) -> list[tuple[Findings, str]]:
    """(entry of findings["shifts"], metric) for every metric that decides a statement."""
    return [
        (shift, name)
        for shift in findings["shifts"]
        for name, mode in DECIDING_FIGURES
        if mode == shift["mode"] and name in shift["recovery"]
    ]


def _format_markdown_table(column_names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    if not rows:
        return ["None.", ""]
    lines = [column_names, ["---"] * len(column_names), *rows]
    return [*("| " + " | ".join(map(str, line)) + " |" for line in lines), ""]


def _add_recipe_legend(figure: Figure, recipes: Sequence[str], has_milestones: bool) -> None:
    handles = []
    for place, recipe in enumerate(recipes):
        colour, marker = choose_colour_and_marker(place)
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=5, linestyle="none", label=recipe))
    if has_milestones:
        hollow = Line2D([], [], color=TEXT_COLOUR, marker="o", markersize=5, linestyle="none")
        hollow.set(markerfacecolor="none", label="hollow: within a stage")
        handles.append(hollow)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=9)


def _format_axis_label(name: str) -> str:
    labels = {"kl": "KL from the base (nats)", "nll": "rise of the loss on the given answers (nats)"}
    if name.endswith("_mass"):
        return f"rise of the share of {name.removesuffix('_mass').replace('_', '/')} tokens"
    return labels.get(name, name)


def _format_shift_label(shift: Findings) -> str:
    return format_prompts_label(shift["prompts"], shift["mode"])


def _format_model_label(point: Findings) -> str:
    step = "" if point["step"] is None else f", step {point['step']}"
    return f"{point['recipe']} seed {point['seed']}, {_strip_tiny_prefix(point['task'])}{step}"


def _strip_tiny_prefix(name: Any) -> str:
    return str(name).removeprefix(TINY_PREFIX)
