"""How shift and forgetting go together, for readers: the scatter plot, and the tables and verdicts as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lmm_forget.metrics.statements import DECIDING, PARTS, resampled, told
from lmm_forget.report.figures import INK, STYLE, look, tip
from lmm_forget.report.probes import where
from lmm_forget.report.rows import TINY

Found = Mapping[str, Any]
KINDS = ("number", "letter", "yes_no", "clock", "other")


def scatter(found: Found) -> Figure | None:
    """Each deciding shift figure against the held-out change: a point per model, hollow where training went on.

    None where nothing can be drawn. Only the first set of prompts is shown.
    """
    panels = [
        (shift, name)
        for shift, name in _deciding(found)
        if shift["prompts"] == found["shifts"][0]["prompts"] and "heldout" in shift["figures"][name]
    ]
    if not panels:
        return None
    recipes = list(dict.fromkeys(point["recipe"] for point in found["points"]))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7 * columns, 2.9 * rows + 0.8), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for panel in list(grid.flat)[len(panels) :]:
            panel.set_visible(False)
        for k, (shift, name) in enumerate(panels):
            panel = grid[k // columns][k % columns]
            panel.grid(color=INK, alpha=0.18, linewidth=0.6)
            panel.tick_params(labelsize=8)
            for point in found["points"]:
                value = point["shift"].get(f"{shift['prompts']}/{shift['mode']}", {}).get(name)
                if value is None or point["heldout"] is None:
                    continue
                colour, marker = look(recipes.index(point["recipe"]))
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
                tip(panel, value, change, f"{_model(point)}: shift {value:+.3g}, held-out {change:+.1f}")
            rho = shift["figures"][name]["heldout"]["spearman"]
            panel.set_title(f"{_where(shift)}\nSpearman {told(rho)}", fontsize=9, loc="left")
            panel.set_xlabel(_axis(name), fontsize=9)
            panel.xaxis.set_major_locator(MaxNLocator(5))
            if k % columns == 0:
                panel.set_ylabel("held-out change (points)", fontsize=9)
        _legend(figure, recipes, any(point["step"] is not None for point in found["points"]))
    return figure


def document(
    name: str, found: Found, said: Sequence[Found], turned: Sequence[Found], left_out: Sequence[str] = ()
) -> str:
    """Everything as Markdown: verdicts, course of the shift, correlations, recoveries, layers, what is said instead.

    `left_out` names jobs that are in none of it.
    """
    points = found["points"]
    recipes = list(dict.fromkeys(point["recipe"] for point in points))
    seeds = sorted({str(point["seed"]) for point in points})
    lines = [
        f"# Why it forgets: {name}",
        "",
        f"{found['jobs']} jobs: recipes {', '.join(recipes)}; seeds {', '.join(seeds)}. A shift is the difference "
        "from the base: masses as shares of probability, kl and nll in nats; held-out changes in points.",
        "",
        *([f"Left out: {', '.join(left_out)}.", ""] if left_out else []),
        *verdicts(found, said),
        *_courses(found, recipes),
    ]
    lines += ["## Shift against held-out change", ""]
    for shift in found["shifts"]:
        rows = [
            (name, told(entry["pearson"]), told(entry["spearman"]), entry["n"])
            for name, against in shift["figures"].items()
            if (entry := against.get("heldout"))
        ]
        lines += _table((_where(shift), "Pearson", "Spearman", "models"), rows)
    lines += ["## Stages after which the held-out mean had risen", ""]
    figures = [f"{name}, {_where(shift)}" for shift, name in _deciding(found)]
    lines += ["Beside the rise in points: how the distance of each figure from the base changed.", ""]
    lines += _table(("job", "after", "held-out", *figures), _rises(found))
    if found["layers"]:
        lines += ["## Who writes the change in logits (shares of the norms, final norm folded in)", ""]
        lines += _table(("job", "after", *map(part_name, PARTS)), layer_rows(found))
    lines += ["## Held-out questions that turned wrong, and formats said instead", ""]
    lines += _table(("job", "after", "wrong", *KINDS), turned_rows(turned))
    return "\n".join(lines)


def verdicts(found: Found, said: Sequence[Found]) -> list[str]:
    """The three statements, each with its evidence, as lines of Markdown."""
    lines = ["## Which of the three statements hold", ""]
    for each in said:
        lines.append(f"{each['number']}. {each['statement']}:")
        for one in each["evidence"]:
            where = one["recipe"] if "recipe" in one else f"{one['figure']}, {_where(one)}"
            lines.append(f"   - {where}: **{one['verdict']}** ({one['why']})")
        if not each["evidence"]:
            lines.append("   - nothing was recorded that could tell")
    return [*lines, "", resampled(found), ""]


def part_name(part: str) -> str:
    """`late_mlp` -> `late MLP`."""
    return part.replace("_", " ").replace("mlp", "MLP")


def layer_rows(found: Found) -> list[tuple[str, ...]]:
    """Job, skill just taught, and the four parts' shares in percent."""
    return [
        (str(e["job"]), _task(e["task"]), *(f"{100 * (e['folded'][part] or 0):.0f} %" for part in PARTS))
        for e in found["layers"]
        if "folded" in e
    ]


def turned_rows(turned: Sequence[Found]) -> list[tuple[str, ...]]:
    """Job, skill just taught, how many turned wrong, and how many of them were answered in each other format."""
    return [
        (
            str(row["job"]),
            _task(row["task"]),
            str(row["turned_wrong"]),
            *(str(row["said_instead"][kind]) for kind in KINDS),
        )
        for row in turned
    ]


def _courses(found: Found, recipes: Sequence[str]) -> Iterator[str]:
    """A table per deciding figure: a line per recipe, a column per model on the way; means over a recipe's jobs."""
    places = dict.fromkeys(
        (p["stage"], p["task"], p["step"])
        for p in sorted(found["points"], key=lambda p: (p["stage"], p["step"] or float("inf")))
    )
    heads = [f"{_task(task)}{'' if step is None else f', step {step}'}" for _, task, step in places]
    for shift, name in _deciding(found):
        key, base = f"{shift['prompts']}/{shift['mode']}", shift["base"].get(name)
        yield from (f"## {_axis(name)[0].upper()}{_axis(name)[1:]}, {_where(shift)}", "")
        if base is not None:
            yield from (f"The base's own value is {base:.3f}.", "")
        yield from _table(("recipe", *heads), _course(found["points"], recipes, places, key, name))
    yield from ("## Held-out change", "")
    yield from _table(("recipe", *heads), _course(found["points"], recipes, places, "", "heldout"))


def _course(
    points: Sequence[Found], recipes: Sequence[str], places: Iterable[tuple[Any, ...]], key: str, name: str
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


def _rises(found: Found) -> list[tuple[str, ...]]:
    """Job, skill just taught, rise of the held-out mean, and how each deciding figure's distance changed."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for shift, name in _deciding(found):
        for rise in shift["recovery"][name]["rises"]:
            place = (str(rise["job"]), _task(rise["task"]), f"{rise['heldout']:+.1f}")
            rows.setdefault(place, []).append(f"{rise['distance']:+.3f}")
    return [(*place, *cells) for place, cells in rows.items()]


def _deciding(found: Found) -> list[tuple[Found, str]]:
    """(entry of `shifts`, figure) of every figure that decides."""
    return [
        (shift, name)
        for shift in found["shifts"]
        for name, mode in DECIDING
        if mode == shift["mode"] and name in shift["recovery"]
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    if not rows:
        return ["None.", ""]
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(map(str, line)) + " |" for line in lines), ""]


def _legend(figure: Figure, recipes: Sequence[str], milestones: bool) -> None:
    handles = []
    for place, recipe in enumerate(recipes):
        colour, marker = look(place)
        handles.append(
            Line2D([], [], color=colour, marker=marker, markersize=5, linestyle="none", label=recipe)
        )
    if milestones:
        hollow = Line2D([], [], color=INK, marker="o", markersize=5, linestyle="none")
        hollow.set(markerfacecolor="none", label="hollow: within a stage")
        handles.append(hollow)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=9)


def _axis(name: str) -> str:
    known = {"kl": "KL from the base (nats)", "nll": "rise of the loss on the given answers (nats)"}
    if name.endswith("_mass"):
        return f"rise of the share of {name.removesuffix('_mass').replace('_', '/')} tokens"
    return known.get(name, name)


def _where(shift: Found) -> str:
    return where(shift["prompts"], shift["mode"])


def _model(point: Found) -> str:
    step = "" if point["step"] is None else f", step {point['step']}"
    return f"{point['recipe']} seed {point['seed']}, {_task(point['task'])}{step}"


def _task(name: Any) -> str:
    return str(name).removeprefix(TINY)
