"""What a job records of its probes: their entries in results.json, and the tables in the job's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from lmm_forget.files import atomic_temporary_file
from lmm_forget.metrics.answer_flips import collect_wrong_flips, count_answer_flips
from lmm_forget.probes.probe_callback import StageProbeResults
from lmm_forget.probes.prober import Prober, ProbeResult

_ANSWER_FIELDS = ("sample_id", "image_id", "question", "references", "text", "value")
TaskAnswers = Mapping[str, Sequence[Any]]
"""Answers by task: objects with the fields of evaluation.scored_answers.Answer."""
FLIPS_SCHEMA = pa.schema(
    [
        ("stage", pa.int32()),
        *((name, pa.string()) for name in ("task", "sample_id", "image_id", "question", "reference")),
        *((name, pa.string()) for name in ("before", "after", "answer_format", "format_before")),
    ]
)


class ProbedStage(Protocol):
    """A finished stage, with what its probe records are made from."""

    @property
    def index(self) -> int:
        """Number of the stage, from 1."""

    @property
    def answers(self) -> TaskAnswers:
        """The answers of its model, by task."""

    @property
    def probes(self) -> StageProbeResults | None:
        """Its probe results; None if it was not probed."""


def add_probe_entries(
    results: dict[str, Any],
    prober: Prober,
    base_result: ProbeResult,
    base_answers: TaskAnswers,
    stages: Sequence[ProbedStage],
) -> None:
    """Add the `probes` entries of the job, the base and every stage to `results`, the content of results.json."""
    results["probes"] = {
        "forced_on": prober.config.forced_on,
        "layers": prober.blocks.num_layers,
        "token_sets": {name: token_set.to_json() for name, token_set in prober.token_sets.items()},
    }
    results["base"]["probes"] = {"readings": base_result.readings}
    for stage, entry in zip(stages, results["stages"], strict=True):
        probe_entry = make_stage_probe_entry(base_answers, stage)
        if probe_entry is not None:
            entry["probes"] = probe_entry


def make_stage_probe_entry(base_answers: TaskAnswers, stage: ProbedStage) -> dict[str, Any] | None:
    """The `probes` entry of a stage in results.json; None if it was not probed."""
    if stage.probes is None:
        return None
    flips = {
        task: count_answer_flips(task, _to_plain_rows(base_answers[task]), _to_plain_rows(answers))
        for task, answers in stage.answers.items()
    }
    return {**stage.probes.to_json(), "flips": flips}


def write_probe_tables(
    job_dir: Path, base_result: ProbeResult, base_answers: TaskAnswers, stages: Sequence[ProbedStage]
) -> None:
    """Write probes.parquet and flips.parquet (docs/probes.md) into a job's folder."""
    tables = [_add_stage_columns(base_result.table, 0, None)]
    flips: list[dict[str, Any]] = []
    for stage in stages:
        if stage.probes is None:
            continue
        tables += [
            _add_stage_columns(result.table, stage.index, step)
            for step, result in sorted(stage.probes.milestones.items())
        ]
        tables.append(_add_stage_columns(stage.probes.stage_result.table, stage.index, None))
        for task, answers in stage.answers.items():
            rows = collect_wrong_flips(task, _to_plain_rows(base_answers[task]), _to_plain_rows(answers))
            flips += [{"stage": stage.index, **row} for row in rows]
    _write_parquet(pa.concat_tables(tables, promote_options="default"), job_dir / "probes.parquet")
    _write_parquet(pa.Table.from_pylist(flips, schema=FLIPS_SCHEMA), job_dir / "flips.parquet")


def _to_plain_rows(answers: Sequence[Any]) -> list[dict[str, Any]]:
    return [{name: getattr(answer, name) for name in _ANSWER_FIELDS} for answer in answers]


def _add_stage_columns(table: pa.Table, stage: int, step: int | None) -> pa.Table:
    """The table with the columns `stage` (0: base) and `step` (null: after the stage) in front."""
    n = table.num_rows
    table = table.add_column(0, "step", pa.array([step] * n, pa.int32()))
    return table.add_column(0, "stage", pa.array([stage] * n, pa.int32()))


def _write_parquet(table: pa.Table, path: Path) -> None:
    with atomic_temporary_file(path) as draft:
        pq.write_table(table, draft, compression="zstd")
