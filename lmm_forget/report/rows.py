"""One row per job: the choices that tell jobs apart, and the figures of merit, read from results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

Estimate = Mapping[str, Any]  # {value, low, high} in points

TINY = "tiny_"  # begins the name of every stand-in task
FIGURES: dict[str, str] = {
    "learning": "target learning",
    "forgetting": "target forgetting",
    "final": "held-out final",
    "worst": "held-out worst",
    "recovery": "held-out recovery",
}
NOTES = {
    "units": "Percentage points; 0 is no change, negative is forgetting; with 95 % intervals (low, high).",
    "recovery": "Recovery is final - worst: never negative, so its interval is no test.",
    "questions": "Intervals cover questions, not seeds.",
    "tiny": "The tiny tasks are small stand-ins: their numbers are not the paper's benchmarks.",
}


@dataclass(frozen=True)
class Row:
    """What a table or a picture of several jobs shows of one job."""

    job: str
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

    @property
    def label(self) -> str:
        """Recipe, with its layer range where it has one."""
        return self.recipe if self.layers == "all" else f"{self.recipe} {self.layers}"

    @property
    def rates(self) -> str:
        """The learning rates that trained something, e.g. `1e-4` or `5e-6, vision 2e-6`."""
        parts = [] if self.learning_rate is None else [rate(self.learning_rate)]
        if self.vision_learning_rate is not None:
            parts.append(f"vision {rate(self.vision_learning_rate)}")
        return ", ".join(parts) or "n/a"

    @property
    def setting(self) -> tuple[Any, ...]:
        """What stays the same over seeds and orders: recipe, learning rates and which tasks are taught."""
        return (self.label, self.learning_rate, self.vision_learning_rate, tuple(sorted(self.tasks)))


def sweep_rows(results: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows of finished jobs, by recipe (in the order they come), then learning rate, then job name."""
    rows = [_row(result) for result in results]
    first = {label: place for place, label in reversed(list(enumerate(row.label for row in rows)))}
    return sorted(rows, key=lambda row: (first[row.label], _shown_rate(row), row.job))


def held_out_tasks(results: Mapping[str, Any]) -> list[str]:
    """The scored benchmarks of a job's suite, in the record's order.

    `config.suite.tasks` names them, with or without the `tiny_` of their stand-ins; a record without it held
    out everything that it scored and never taught.
    """
    scored, taught = results["base"]["scores"], {stage["task"] for stage in results["stages"]}
    suite = (results["config"].get("suite") or {}).get("tasks")
    names = scored if suite is None else {name for task in suite for name in (task, f"{TINY}{task}")}
    return [task for task in scored if task in names and task not in taught]


def mean_score(scores: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> float | None:
    """Mean strict score of `tasks` in points; None without tasks."""
    return mean(scores[task]["value"] for task in tasks) if tasks else None


def spread(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each setting with several seeds or orders: {label, rates, jobs, <figure>: {mean, min, max}}."""
    settings: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        settings.setdefault(row.setting, []).append(row)
    entries = []
    for group in settings.values():
        if len(group) < 2:
            continue
        entry: dict[str, Any] = {"label": group[0].label, "rates": group[0].rates, "jobs": len(group)}
        for figure in FIGURES:
            values = [
                row.figures[figure]["value"] for row in group if row.figures[figure]["value"] is not None
            ]
            entry[figure] = {"mean": mean(values), "min": min(values), "max": max(values)} if values else None
        entries.append(entry)
    return entries


def notes(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a reader must know beside the numbers."""
    tiny = any(task.startswith(TINY) for result in results for task in result["base"]["scores"])
    return [NOTES["units"], NOTES["questions"], NOTES["recovery"], *([NOTES["tiny"]] if tiny else [])]


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
    )


def _shown_rate(row: Row) -> float:
    return row.learning_rate or row.vision_learning_rate or 0.0
