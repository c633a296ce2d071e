"""One row per job: the choices that tell jobs apart, and the figures of merit, read from results.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from lmm_forget.report.identity import content
from lmm_forget.store.keys import NOT_WEIGHTS, TASK_PATHS, stop_view

Estimate = Mapping[str, Any]  # {value, low, high} in points

TINY = "tiny_"  # begins the name of every stand-in task
FIGURES: dict[str, str] = {
    "learning": "target learning",
    "forgetting": "target forgetting",
    "final": "held-out final",
    "worst": "held-out worst",
    "recovery": "held-out recovery",
}
MARKED = ("learning", "forgetting", "final")
"""Figures whose interval tests zero; the worst stage is picked after the fact, and recovery is never negative."""
NOTES = {
    "units": "Percentage points; 0 is no change, negative is forgetting; with 95 % intervals (low, high); "
    "* excludes 0.",
    "recovery": "Worst (picked as the lowest stage) and recovery (final - worst, never negative) carry no *.",
    "questions": "The intervals of a job cover questions, not seeds and not kinds of processor; both move figures by "
    "several points more (README).",
    "tiny": "The tiny tasks are small stand-ins: their numbers are not the paper's benchmarks.",
}


@dataclass(frozen=True)
class Row:
    """What a table or a picture of several jobs shows of one job.

    `setting` is equal for configurations that differ in seed or order alone, `content` for jobs that read the same
    model, data and references: rows with both equal are taken together. `extra` holds what tells this row's setting
    from others with the same recipe and learning rate.
    """

    job: str
    model: str | None
    recipe: str
    layers: str
    trainable: int | None
    learning_rate: float | None
    vision_learning_rate: float | None
    sequence: str
    tasks: tuple[str, ...]
    seed: int | None
    figures: Mapping[str, Estimate]
    heldout_base: float | None
    heldout_per_stage: tuple[Estimate, ...]
    cost: Mapping[str, float | None]
    setting: str
    content: str = ""
    extra: tuple[str, ...] = ()
    named_model: str | None = None

    @property
    def label(self) -> str:
        """`within`, with the model where the sweep has several."""
        return self.within if self.named_model is None else f"{self.within}, {self.named_model}"

    @property
    def within(self) -> str:
        """Recipe, with its layer range where it has one, and what else tells its setting from others of the model."""
        name = self.recipe if self.layers == "all" else f"{self.recipe} {self.layers}"
        return ", ".join((name, *self.extra))

    @property
    def rates(self) -> str:
        """The learning rates that trained something, e.g. `1e-4` or `5e-6, vision 2e-6`."""
        parts = [] if self.learning_rate is None else [rate(self.learning_rate)]
        if self.vision_learning_rate is not None:
            parts.append(f"vision {rate(self.vision_learning_rate)}")
        return ", ".join(parts) or "n/a"


def sweep_rows(results: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows of finished jobs, by model and recipe (in the order they come), then learning rate, then job name."""
    found = list(results)
    rows = _told_apart([_row(result) for result in found], found)
    models = list(dict.fromkeys(row.model for row in rows))
    labels = list(dict.fromkeys(row.within for row in rows))
    return sorted(
        rows, key=lambda row: (models.index(row.model), labels.index(row.within), _shown_rate(row), row.job)
    )


def choices(config: Mapping[str, Any], taught: Iterable[str]) -> dict[str, Any]:
    """The leaves of a configuration that make a setting, by dotted name: no seed, no order, only what moves weights.

    The same of a results.json and of the job.yaml before it.
    """
    apart = {"seed", "sequence", "tasks", *NOT_WEIGHTS[""]}
    kept: dict[str, Any] = {
        node: {k: v for k, v in value.items() if k not in NOT_WEIGHTS.get(node, ()) or node == "data"}
        if isinstance(value, Mapping)
        else value
        for node, value in config.items()
        if node not in apart
    }
    nodes = config.get("tasks") or {}
    skills = sorted(set(taught))
    kept["tasks"] = {
        task: {k: v for k, v in (nodes.get(task) or {}).items() if k not in TASK_PATHS} for task in skills
    }
    stop = stop_view(config.get("probe"))
    if stop:  # a drift alarm that ends stages
        kept["stop"] = stop
    return {"taught": " ".join(skills), **dict(_leaves(kept, ""))}


def held_out_tasks(results: Mapping[str, Any]) -> list[str]:
    """The scored benchmarks of a job's suite, in the record's order.

    `config.suite.tasks` names them, with or without the `tiny_` of their stand-ins; a record without it held
    out everything that it scored and never taught.
    """
    if "heldout_tasks" in results:  # narrowed to what all jobs of a sweep share
        return list(results["heldout_tasks"])
    scored, taught = results["base"]["scores"], {stage["task"] for stage in results["stages"]}
    suite = (results["config"].get("suite") or {}).get("tasks")
    names = scored if suite is None else {name for task in suite for name in (task, f"{TINY}{task}")}
    return [task for task in scored if task in names and task not in taught]


def mean_score(scores: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> float | None:
    """Mean strict score of `tasks` in points; None without tasks."""
    return mean(scores[task]["value"] for task in tasks) if tasks else None


def notes(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a reader must know beside the numbers."""
    tiny = any(task.startswith(TINY) for result in results for task in result["base"]["scores"])
    return [NOTES["units"], NOTES["questions"], NOTES["recovery"], *([NOTES["tiny"]] if tiny else [])]


def excludes_zero(figure: str, estimate: Estimate) -> bool:
    """Whether the figure's interval lies on one side of zero."""
    low, high = estimate["low"], estimate["high"]
    return figure in MARKED and low is not None and (low > 0 or high < 0)


def points(number: float | None) -> str:
    """Points with sign and one decimal, e.g. `-0.6`; `n/a` where there is no such figure."""
    if number is None:
        return "n/a"
    return f"{round(number, 1) + 0.0:+.1f}"


def count(number: int | None) -> str:
    """A number of parameters, e.g. `3,802.1 M`, `0.88 M` or `12.3 k`."""
    if number is None:
        return "n/a"
    if number >= 100_000:
        return f"{number / 1e6:,.{1 if number >= 10_000_000 else 2}f} M"
    return f"{number / 1e3:,.1f} k" if number >= 1000 else str(number)


def rate(number: float) -> str:
    """A learning rate, e.g. `5e-6` or `1.5e-4`."""
    mantissa, exponent = f"{number:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if number else "0"


def _row(result: Mapping[str, Any]) -> Row:
    config, figures = result["config"], result["figures"]
    recipe, training, sequence = config["recipe"], config.get("training") or {}, config.get("sequence") or {}
    heldout = figures["heldout_forgetting"]
    components = {rule.get("component") for rule in result["plan"].get("rules") or []}
    return Row(
        job=str(result["job"].get("job") or result["job"]["name"]),
        model=(config.get("model") or {}).get("name"),
        recipe=str(recipe["name"]),
        layers=str(recipe.get("layers") or "all"),
        trainable=result["plan"].get("trainable"),
        learning_rate=None if components == {"vision"} else training.get("learning_rate"),
        vision_learning_rate=training.get("vision_learning_rate") if "vision" in components else None,
        sequence=str(sequence.get("name") or "n/a"),
        tasks=tuple(stage["task"] for stage in result["stages"]),
        seed=config.get("seed"),
        figures={
            "learning": figures["target_learning"],
            "forgetting": figures["target_forgetting"],
            "final": {key: heldout[key] for key in ("value", "low", "high")},
            "worst": heldout["worst"],
            "recovery": heldout["recovery"],
        },
        heldout_base=mean_score(result["base"]["scores"], held_out_tasks(result)),
        heldout_per_stage=tuple(heldout["per_stage"]),
        cost=_cost(result),
        setting=json.dumps(
            choices(config, (stage["task"] for stage in result["stages"])), sort_keys=True, default=str
        ),
        content=content(result),
    )


def _cost(result: Mapping[str, Any]) -> dict[str, float | None]:
    """What the job took: bytes of a stage's delta and of the optimizer, seconds, and the process's peak memory."""
    plan, timings = result["plan"], result.get("timings") or {}
    stages = [stage for stage in timings.get("stages") or [] if isinstance(stage, Mapping)]
    steps = [stage.get("steps") for stage in result["stages"]]
    counts = [plan.get(part) for part in ("trainable", "frozen", "unused")]
    return {
        "parameters": None if None in counts else sum(counts),
        "delta_bytes": plan.get("delta_bytes"),
        "state_bytes": plan.get("state_bytes"),
        "peak_memory_bytes": timings.get("peak_memory_bytes"),
        "steps": None if None in steps else sum(steps),
        "teach_seconds": sum(stage.get("teach", 0.0) for stage in stages) if stages else None,
        "ask_seconds": sum(stage.get("ask", 0.0) for stage in stages) if stages else None,
        "total_seconds": timings.get("total"),
    }


def _told_apart(rows: Sequence[Row], results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows, each with what tells its setting from others of the same recipe and learning rate."""
    several_models = len({row.model for row in rows}) > 1
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.model, row.label, row.rates), []).append(place)
    extra: dict[int, list[str]] = {place: [] for place in range(len(rows))}
    for places in groups.values():
        _name_content(rows, places, extra)
        if len({rows[place].setting for place in places}) == 1:
            continue
        leaves = {
            place: choices(results[place]["config"], rows[place].tasks) | {"model.name": None}
            for place in places
        }
        names = sorted({name for each in leaves.values() for name in each})
        differ = [name for name in names if len({str(leaves[place].get(name)) for place in places}) > 1]
        if "taught" in differ:  # the skills name themselves; their own settings need not
            differ = [name for name in differ if not name.startswith("tasks.")]
        for place in places:
            known = [name for name in differ if leaves[place].get(name) is not None]
            extra[place] += [_short(name, leaves[place][name]) for name in known[:3]]
    return [
        replace(row, extra=tuple(extra[place]), named_model=str(row.model) if several_models else None)
        for place, row in enumerate(rows)
    ]


def _name_content(rows: Sequence[Row], places: Sequence[int], extra: Mapping[int, list[str]]) -> None:
    """Tell rows apart whose configurations are equal and whose model or data are not: by job, or by a digest."""
    by_setting: dict[str, list[int]] = {}
    for place in places:
        by_setting.setdefault(rows[place].setting, []).append(place)
    for alike in by_setting.values():
        contents = [rows[place].content for place in alike]
        if len(set(contents)) == 1:
            continue
        for place in alike:
            row = rows[place]
            extra[place].append(row.job if contents.count(row.content) == 1 else f"inputs {row.content[:6]}")


def _short(name: str, value: Any) -> str:
    if name == "taught":
        return f"taught {str(value).replace(TINY, '')}"
    return f"{name.rsplit('.', 1)[-1]} {value}"


def _leaves(node: Any, name: str) -> Iterable[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, node


def _shown_rate(row: Row) -> float:
    return row.learning_rate or row.vision_learning_rate or 0.0
