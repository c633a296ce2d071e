"""One row per job: the choices in which jobs differ, and the figures of merit, read from results.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from lmm_forget.config.schema.effects import select_fields
from lmm_forget.config.schema.setting import Effect
from lmm_forget.report.job_identity import hash_job_inputs
from lmm_forget.store.keys import select_early_stop_config, strip_task_paths

Estimate = Mapping[str, Any]  # {value, low, high} in points

TINY_PREFIX = "tiny_"
"""Begins the name of every synthetic task, which stands in for a real benchmark."""
FIGURE_TITLES: dict[str, str] = {
    "learning": "target learning",
    "forgetting": "target forgetting",
    "final": "held-out final",
    "worst": "held-out worst",
    "recovery": "held-out recovery",
}
TESTED_FIGURES = ("learning", "forgetting", "final")
"""Figures tested against zero; neither the worst stage, which is selected afterwards, nor recovery, which is >= 0."""
NOTE_TEXTS = {
    "units": "Percentage points; 0 is no change, negative is forgetting; with 95 % intervals (low, high); "
    "* excludes 0.",
    "recovery": "Worst (picked as the lowest stage) and recovery (final - worst, never negative) carry no *.",
    "questions": "The intervals of a job cover questions, not seeds and not kinds of processor; both move figures by "
    "several points more (README).",
    "tiny": "The tiny tasks are small stand-ins: their numbers are not the paper's benchmarks.",
}


@dataclass(frozen=True)
class JobRow:
    """What a table or a picture shows of one job.

    `setting` is equal for configurations that differ only in seed or order, `content` for jobs that read the same
    model, data and references; rows with both equal are grouped. `extra` names what distinguishes this row's setting
    from others with the same recipe and learning rate. `named_model` is set if the sweep has several models.
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
        """`label_within_model`, with the model's name if the sweep has several."""
        return self.label_within_model if self.named_model is None else f"{self.label_within_model}, {self.named_model}"

    @property
    def label_within_model(self) -> str:
        """Recipe, its layer range if it has one, and `extra`; settings of a model with equal labels differ in rate."""
        name = self.recipe if self.layers == "all" else f"{self.recipe} {self.layers}"
        return ", ".join((name, *self.extra))

    @property
    def main_learning_rate(self) -> float:
        """The decoder's learning rate, else the vision tower's; 0 if neither trained anything."""
        return self.learning_rate or self.vision_learning_rate or 0.0

    @property
    def learning_rates(self) -> str:
        """The learning rates that trained something, e.g. `1e-4` or `5e-6, vision 2e-6`."""
        parts = [] if self.learning_rate is None else [format_learning_rate(self.learning_rate)]
        if self.vision_learning_rate is not None:
            parts.append(f"vision {format_learning_rate(self.vision_learning_rate)}")
        return ", ".join(parts) or "n/a"


def build_job_rows(results: Iterable[Mapping[str, Any]]) -> list[JobRow]:
    """Rows of finished jobs, sorted by model and recipe (in order of appearance), learning rate and job name."""
    results_list = list(results)
    rows = _add_distinguishing_labels([_build_job_row(result) for result in results_list], results_list)
    models = list(dict.fromkeys(row.model for row in rows))
    labels = list(dict.fromkeys(row.label_within_model for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            models.index(row.model),
            labels.index(row.label_within_model),
            row.main_learning_rate,
            row.job,
        ),
    )


def extract_setting_fields(config: Mapping[str, Any], trained_tasks: Iterable[str]) -> dict[str, Any]:
    """The fields that define a setting, by dotted name: those that change weights, without seed and order.

    They are the same for the configuration in results.json and the one in job.yaml.
    """
    setting_fields = select_fields(config, Effect.WEIGHTS)
    for name in ("seed", "sequence", "tasks", "probe"):
        setting_fields.pop(name, None)
    if "data" in setting_fields:  # which questions are asked makes a setting too
        setting_fields["data"] = config["data"]
    nodes = config.get("tasks") or {}
    distinct_tasks = sorted(set(trained_tasks))
    setting_fields["tasks"] = {task: strip_task_paths(nodes.get(task) or {}) for task in distinct_tasks}
    early_stop_config = select_early_stop_config(config.get("probe"))
    if early_stop_config:  # a drift alarm that ends stages
        setting_fields["stop"] = early_stop_config
    return {"trained": " ".join(distinct_tasks), **dict(_iterate_leaves(setting_fields, ""))}


def list_heldout_tasks(results: Mapping[str, Any]) -> list[str]:
    """The scored benchmarks of a job's suite that it never trained, in the record's order.

    config.suite.tasks names the suite, with or without `TINY_PREFIX`; without it, every scored task that was never
    trained counts.
    """
    if "heldout_tasks" in results:  # restricted to what all jobs of a sweep share
        return list(results["heldout_tasks"])
    scored_tasks, trained_tasks = results["base"]["scores"], {stage["task"] for stage in results["stages"]}
    suite = (results["config"].get("suite") or {}).get("tasks")
    names = scored_tasks if suite is None else {name for task in suite for name in (task, f"{TINY_PREFIX}{task}")}
    return [task for task in scored_tasks if task in names and task not in trained_tasks]


def compute_mean_score(scores: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> float | None:
    """Mean strict score of `tasks` in points; None without tasks."""
    return mean(scores[task]["value"] for task in tasks) if tasks else None


def list_report_notes(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Sentences that a reader must know to understand the numbers."""
    has_tiny_tasks = any(task.startswith(TINY_PREFIX) for result in results for task in result["base"]["scores"])
    return [
        NOTE_TEXTS["units"],
        NOTE_TEXTS["questions"],
        NOTE_TEXTS["recovery"],
        *([NOTE_TEXTS["tiny"]] if has_tiny_tasks else []),
    ]


def is_significant(figure: str, estimate: Estimate) -> bool:
    """Whether the figure's interval lies on one side of zero."""
    low, high = estimate["low"], estimate["high"]
    return figure in TESTED_FIGURES and low is not None and (low > 0 or high < 0)


def format_points(value: float | None) -> str:
    """Points with sign and one decimal, e.g. `-0.6`; `n/a` for None."""
    if value is None:
        return "n/a"
    return f"{round(value, 1) + 0.0:+.1f}"


def format_parameter_count(num_parameters: int | None) -> str:
    """A number of parameters, e.g. `3,802.1 M`, `0.88 M` or `12.3 k`."""
    if num_parameters is None:
        return "n/a"
    if num_parameters >= 100_000:
        return f"{num_parameters / 1e6:,.{1 if num_parameters >= 10_000_000 else 2}f} M"
    return f"{num_parameters / 1e3:,.1f} k" if num_parameters >= 1000 else str(num_parameters)


def format_learning_rate(learning_rate: float) -> str:
    """A learning rate, e.g. `5e-6` or `1.5e-4`."""
    mantissa, exponent = f"{learning_rate:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if learning_rate else "0"


def _build_job_row(result: Mapping[str, Any]) -> JobRow:
    config, figures = result["config"], result["figures"]
    recipe, training, sequence = config["recipe"], config.get("training") or {}, config.get("sequence") or {}
    heldout = figures["heldout_forgetting"]
    components = {rule.get("component") for rule in result["plan"].get("rules") or []}
    return JobRow(
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
        heldout_base=compute_mean_score(result["base"]["scores"], list_heldout_tasks(result)),
        heldout_per_stage=tuple(heldout["per_stage"]),
        cost=_collect_costs(result),
        setting=json.dumps(
            extract_setting_fields(config, (stage["task"] for stage in result["stages"])),
            sort_keys=True,
            default=str,
        ),
        content=hash_job_inputs(result),
    )


def _collect_costs(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Cost of the job: bytes of a stage's delta and of the optimizer, steps, seconds, and peak memory in bytes."""
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
        "train_seconds": sum(stage.get("train", 0.0) for stage in stages) if stages else None,
        "evaluate_seconds": sum(stage.get("evaluate", 0.0) for stage in stages) if stages else None,
        "total_seconds": timings.get("total"),
    }


def _add_distinguishing_labels(rows: Sequence[JobRow], results: Sequence[Mapping[str, Any]]) -> list[JobRow]:
    """The rows with `extra` and `named_model`, so that settings of the same recipe and learning rate differ in name."""
    several_models = len({row.model for row in rows}) > 1
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.model, row.label, row.learning_rates), []).append(place)
    extra_labels: dict[int, list[str]] = {place: [] for place in range(len(rows))}
    for places in groups.values():
        _distinguish_by_inputs(rows, places, extra_labels)
        if len({rows[place].setting for place in places}) == 1:
            continue
        leaves = {
            place: extract_setting_fields(results[place]["config"], rows[place].tasks) | {"model.name": None}
            for place in places
        }
        names = sorted({name for each in leaves.values() for name in each})
        differing_names = [name for name in names if len({str(leaves[place].get(name)) for place in places}) > 1]
        if "trained" in differing_names:  # the tasks differ in name, so their settings need not be shown
            differing_names = [name for name in differing_names if not name.startswith("tasks.")]
        for place in places:
            defined_names = [name for name in differing_names if leaves[place].get(name) is not None]
            extra_labels[place] += [_format_setting_field(name, leaves[place][name]) for name in defined_names[:3]]
    return [
        replace(row, extra=tuple(extra_labels[place]), named_model=str(row.model) if several_models else None)
        for place, row in enumerate(rows)
    ]


def _distinguish_by_inputs(
    rows: Sequence[JobRow], places: Sequence[int], extra_labels: Mapping[int, list[str]]
) -> None:
    """Add a label to rows of equal configuration but different model or data: the job's name, or a hash."""
    by_setting: dict[str, list[int]] = {}
    for place in places:
        by_setting.setdefault(rows[place].setting, []).append(place)
    for same_setting in by_setting.values():
        contents = [rows[place].content for place in same_setting]
        if len(set(contents)) == 1:
            continue
        for place in same_setting:
            row = rows[place]
            extra_labels[place].append(row.job if contents.count(row.content) == 1 else f"inputs {row.content[:6]}")


def _format_setting_field(name: str, value: Any) -> str:
    if name == "trained":
        return f"trained on {str(value).replace(TINY_PREFIX, '')}"
    return f"{name.rsplit('.', 1)[-1]} {value}"


def _iterate_leaves(node: Any, prefix: str) -> Iterable[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _iterate_leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
