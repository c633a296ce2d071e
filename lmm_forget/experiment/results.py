"""From a job's answers to results.json and the files beside it (schema: docs/results_schema.md)."""

from __future__ import annotations

import platform
import resource
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.evaluation.answers import NEAR_TIE, Answer, counted
from lmm_forget.files import draft_of
from lmm_forget.metrics.answers import task_scores_from_answers
from lmm_forget.metrics.figures import figures
from lmm_forget.metrics.significance import changes_from_base
from lmm_forget.metrics.summary import results_scores
from lmm_forget.probes.records import add_probes, write_probes
from lmm_forget.store.keys import NOT_WEIGHTS, digest, task_view

if TYPE_CHECKING:
    from lmm_forget.experiment.stage import Ground, Taught
    from lmm_forget.probes.prober import Look

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


def git_state() -> dict[str, str]:
    """{"git": commit}, with "modified" where files differ from it; empty where this code lies in no checkout."""
    import subprocess

    here = Path(__file__)

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=here.parent, capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", here.name
        )  # a package installed inside somebody else's checkout is not it
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git": f"{commit} modified" if changed else commit}


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what may differ between equal results: paths, devices, logging."""
    kept = {k: v for k, v in config.items() if k not in NOT_WEIGHTS[""] or k in ("suite", "probe")}
    denied = NOT_WEIGHTS["hardware"]
    kept["hardware"] = {k: v for k, v in config["hardware"].items() if k not in denied}
    kept["tasks"] = {name: task_view(node) for name, node in config["tasks"].items()}
    kept["model"] = {k: v for k, v in config["model"].items() if k not in NOT_WEIGHTS["model"]}
    return kept


def assemble(
    ground: Ground, base_hash: str, base: Answers, stages: Sequence[Taught], base_look: Look | None = None
) -> dict[str, Any]:
    """The content of results.json."""
    config = comparable(ground.config)
    taught, suite = ground.config["sequence"]["tasks"], ground.config["suite"]["tasks"]
    scoring = ground.config["data"]["scoring"]
    scores = {
        task: task_scores_from_answers(
            task, [columns(counted(each[task], scoring)) for each in (base, *(s.answers for s in stages))]
        )
        for task in base
    }
    changes = {task: changes_from_base(each) for task, each in scores.items()}
    results = {
        "schema": SCHEMA,
        "job": {"name": ground.config["name"], "hash": digest(config)},
        "config": config,
        "plan": ground.plan.to_json(),
        "base": {
            "weights_hash": base_hash,
            "fingerprints": dict(ground.fingerprints),
            "scores": {task: score(answers, scoring) for task, answers in base.items()},
        },
        "stages": [_stage(stage, changes, scoring) for stage in stages],
        "figures": figures(taught, suite, scores, seed=ground.config["seed"]),
        "timings": {
            "stages": [dict(stage.effort) for stage in stages],
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        "data": _data(ground, stages),
        "inputs": dict(ground.inputs),
        "versions": {**ground.versions, **git_state(), **_data_sources(ground)},
    }
    if base_look is not None and ground.prober is not None:
        add_probes(results, ground.prober, base_look, base, stages)
    return results


def score(answers: Sequence[Answer], scoring: str = "strict") -> dict[str, Any]:
    """A task's scores at one stage, in points, with the number of answers that rounding alone could have changed.

    `scoring` says which score is the `value`, "strict" or "compat".
    """
    table = columns(answers)
    entry = results_scores(
        table["value"],
        table["image_id"],
        table["group"] if table["group"][0] is not None else None,
        tolerant=[answer.tolerant for answer in answers],
        compat=[answer.compat for answer in answers],
        scoring=scoring,
    )
    return {**entry, "near_ties": sum(answer.gap < NEAR_TIE for answer in answers)}


def columns(answers: Sequence[Answer]) -> dict[str, list[Any]]:
    """Answers as the columns that the metrics read."""
    return {
        name: [getattr(answer, name) for answer in answers]
        for name in ("sample_id", "image_id", "value", "group")
    }


def write_tables(
    job_dir: Path,
    ground: Ground,
    base: Answers,
    stages: Sequence[Taught],
    results: Mapping[str, Any],
    base_look: Look | None = None,
) -> None:
    """answers.parquet (every answer after every stage; stage 0: the base), pictures.parquet, probe tables, figures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lmm_forget.evaluation.table import answers_to_table
    from lmm_forget.report.figures import job_figures
    from lmm_forget.report.job_probes import probe_pictures
    from lmm_forget.report.pictures import write_pictures

    tables = []
    for index, answers in enumerate((base, *(stage.answers for stage in stages))):
        table = answers_to_table([answer for each in answers.values() for answer in each])
        tables.append(table.add_column(0, "stage", pa.array([index] * len(table), pa.int32())))
    with draft_of(job_dir / "answers.parquet") as draft:
        pq.write_table(pa.concat_tables(tables), draft, compression="zstd")
    everything = (base, *(stage.answers for stage in stages))
    write_pictures(
        job_dir,
        {task: _courses([answers[task] for answers in everything]) for task in base},
        {exam.task.name: exam.samples for exam in ground.exams},
    )
    job_figures(results, job_dir)
    if base_look is not None:
        write_probes(job_dir, base_look, base, stages)
        probe_pictures(results, job_dir)


def _data(ground: Ground, stages: Sequence[Taught]) -> dict[str, Any]:
    """Which samples were asked and taught, by task: split, number, fingerprints, and what was left out.

    Of what was asked, `fingerprint` covers the questions as the model reads them, `references` the right answers.
    """
    found: dict[str, Any] = {}
    for exam in ground.exams:
        about: dict[str, Any] = {
            "split": exam.split,
            "samples": len(exam.samples),
            "fingerprint": digest(exam.keys),
            "references": digest(
                [[one.id, one.image_id, list(one.answers), one.choices] for one in exam.light]
            ),
        }
        found[exam.task.name] = {"asked": {**about, **ground.sifted.get((exam.task.name, "asked"), {})}}
    for stage in stages:
        about = {"split": "train", "samples": len(ground.lessons[stage.task].samples)}
        about["fingerprint"] = (stage.record.get("ingredients") or {}).get("data")
        about.update(ground.sifted.get((stage.task, "taught"), {}))
        found.setdefault(stage.task, {})["taught"] = about
    return found


def _courses(stages: Sequence[Sequence[Answer]]) -> dict[str, list[float]]:
    """{sample id: its scores at the base and after every stage}, in the order asked."""
    later = [{answer.sample_id: answer.value for answer in answers} for answers in stages[1:]]
    return {
        answer.sample_id: [answer.value, *(values[answer.sample_id] for values in later)]
        for answer in stages[0]
    }


def _data_sources(ground: Ground) -> dict[str, str]:
    """`data.<task>.<split>` -> the hub revision that was read, or "local copy"."""
    tasks = [*(lessons.task for lessons in ground.lessons.values()), *(exam.task for exam in ground.exams)]
    return {
        f"data.{task.name}.{split}": source for task in tasks for split, source in task.provenance().items()
    }


def _stage(stage: Taught, changes: Mapping[str, Sequence[Mapping[str, Any]]], scoring: str) -> dict[str, Any]:
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
            task: {**score(answers, scoring), "against_base": dict(changes[task][stage.index - 1])}
            for task, answers in stage.answers.items()
        },
    }
