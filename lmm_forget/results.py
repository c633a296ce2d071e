"""From a job's answers to results.json and the files beside it (schema: docs/results_schema.md)."""

from __future__ import annotations

import platform
import resource
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.evaluation.answers import NEAR_TIE, Answer
from lmm_forget.metrics.answers import task_scores_from_answers
from lmm_forget.metrics.bootstrap import TaskScores
from lmm_forget.metrics.figures import figures
from lmm_forget.metrics.significance import paired_change
from lmm_forget.metrics.summary import results_scores
from lmm_forget.store.keys import NOT_WEIGHTS, digest

if TYPE_CHECKING:
    from lmm_forget.stage import Ground, Taught

SCHEMA = 1
LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "lightning",
    "hydra-core",
    "datasets",
    "safetensors",
    "tokenizers",
)
Answers = Mapping[str, Sequence[Answer]]


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that results depend on."""
    from lmm_forget import __version__

    return {
        "lmm_forget": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what may differ between equal results: paths, devices, logging."""
    kept = {k: v for k, v in config.items() if k not in NOT_WEIGHTS[""] or k in ("suite", "probe")}
    denied = NOT_WEIGHTS["hardware"]
    kept["hardware"] = {k: v for k, v in config["hardware"].items() if k not in denied}
    kept["model"] = {k: v for k, v in config["model"].items() if k not in NOT_WEIGHTS["model"]}
    return kept


def assemble(ground: Ground, base_hash: str, base: Answers, stages: Sequence[Taught]) -> dict[str, Any]:
    """The content of results.json."""
    config = comparable(ground.config)
    taught, suite = ground.config["sequence"]["tasks"], ground.config["suite"]["tasks"]
    scores = {
        task: task_scores_from_answers(
            task, [columns(each[task]) for each in (base, *(s.answers for s in stages))]
        )
        for task in base
    }
    return {
        "schema": SCHEMA,
        "job": {"name": ground.config["name"], "hash": digest(config)},
        "config": config,
        "plan": ground.plan.to_json(),
        "base": {
            "weights_hash": base_hash,
            "scores": {task: score(answers) for task, answers in base.items()},
        },
        "stages": [_stage(stage, scores) for stage in stages],
        "figures": figures(taught, suite, scores, seed=ground.config["seed"]),
        "timings": {
            "stages": [dict(stage.effort) for stage in stages],
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        "versions": dict(ground.versions),
    }


def score(answers: Sequence[Answer]) -> dict[str, Any]:
    """A task's scores at one stage, in points, with the number of answers that rounding alone could have changed."""
    table = columns(answers)
    entry = results_scores(
        table["value"],
        table["image_id"],
        table["group"] if table["group"][0] is not None else None,
        tolerant=[answer.tolerant for answer in answers],
    )
    return {**entry, "near_ties": sum(answer.gap < NEAR_TIE for answer in answers)}


def columns(answers: Sequence[Answer]) -> dict[str, list[Any]]:
    """Answers as the columns that the metrics read."""
    return {
        name: [getattr(answer, name) for answer in answers]
        for name in ("sample_id", "image_id", "value", "group")
    }


def write_tables(job_dir: Path, base: Answers, stages: Sequence[Taught], results: Mapping[str, Any]) -> None:
    """answers.parquet (every answer after every stage; stage 0 is the base) and the job's pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lmm_forget.evaluation.table import answers_to_table
    from lmm_forget.report.figures import job_figures

    tables = []
    for index, answers in enumerate((base, *(stage.answers for stage in stages))):
        table = answers_to_table([answer for each in answers.values() for answer in each])
        tables.append(table.add_column(0, "stage", pa.array([index] * len(table), pa.int32())))
    fresh = job_dir / ".answers.parquet.new"
    pq.write_table(pa.concat_tables(tables), fresh, compression="zstd")
    fresh.replace(job_dir / "answers.parquet")
    job_figures(results, job_dir)


def _stage(stage: Taught, scores: Mapping[str, TaskScores]) -> dict[str, Any]:
    loss = stage.record["loss"]
    return {
        "index": stage.index,
        "task": stage.task,
        "key": stage.record["key"],
        "weights_hash": stage.record["weights_hash"],
        "steps": stage.record["steps"],
        "dropped": stage.record["dropped"],
        "loss": {"first": loss[0], "last": loss[-1], "mean_of_last_10": sum(loss[-10:]) / len(loss[-10:])},
        "scores": {
            task: {**score(answers), "against_base": paired_change(scores[task], 0, stage.index)}
            for task, answers in stage.answers.items()
        },
    }
