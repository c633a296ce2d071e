"""What probes leave behind: their entries in results.json, the tables and the pictures of a job's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from lmm_forget.files import draft_of
from lmm_forget.metrics.turned import turned_rows, turned_wrong
from lmm_forget.probes.prober import Look, Prober
from lmm_forget.probes.watch import StageProbes

_ANSWER = ("sample_id", "image_id", "question", "references", "text", "value")
Answers = Mapping[str, Sequence[Any]]
"""Answers by task (objects with the fields of evaluation.answers.Answer)."""
TURNED = pa.schema(
    [
        ("stage", pa.int32()),
        *((name, pa.string()) for name in ("task", "sample_id", "image_id", "question", "reference")),
        *((name, pa.string()) for name in ("before", "after", "said", "kind_before")),
    ]
)


class Probed(Protocol):
    """A finished stage as the records need it."""

    @property
    def index(self) -> int:
        """Number of the stage, from 1."""

    @property
    def answers(self) -> Answers:
        """Its answers by task."""

    @property
    def probes(self) -> StageProbes | None:
        """What was seen of it."""


def add_probes(
    results: dict[str, Any], prober: Prober, base_look: Look, base: Answers, stages: Sequence[Probed]
) -> None:
    """Put the `probes` entries into the content of results.json: of the job, the base and every stage."""
    results["probes"] = {
        "forced_on": prober.spec.forced_on,
        "layers": prober.blocks.layers,
        "token_sets": {name: found.to_json() for name, found in prober.sets.items()},
    }
    results["base"]["probes"] = {"readings": base_look.readings}
    for stage, entry in zip(stages, results["stages"], strict=True):
        found = stage_probes(base, stage)
        if found is not None:
            entry["probes"] = found


def stage_probes(base: Answers, stage: Probed) -> dict[str, Any] | None:
    """The `probes` entry of a stage in results.json; None if nothing was looked at."""
    if stage.probes is None:
        return None
    turned = {
        task: turned_wrong(task, _plain(base[task]), _plain(said)) for task, said in stage.answers.items()
    }
    return {**stage.probes.to_json(), "turned_wrong": turned}


def write_probes(job_dir: Path, base_look: Look, base: Answers, stages: Sequence[Probed]) -> None:
    """Write probes.parquet and turned_wrong.parquet into a job's folder (see docs/probes.md)."""
    tables = [_placed(base_look.table, 0, None)]
    turned: list[dict[str, Any]] = []
    for stage in stages:
        if stage.probes is None:
            continue
        tables += [
            _placed(look.table, stage.index, step) for step, look in sorted(stage.probes.milestones.items())
        ]
        tables.append(_placed(stage.probes.after.table, stage.index, None))
        for task, said in stage.answers.items():
            rows = turned_rows(task, _plain(base[task]), _plain(said))
            turned += [{"stage": stage.index, **row} for row in rows]
    _write(pa.concat_tables(tables, promote_options="default"), job_dir / "probes.parquet")
    _write(pa.Table.from_pylist(turned, schema=TURNED), job_dir / "turned_wrong.parquet")


def _plain(answers: Sequence[Any]) -> list[dict[str, Any]]:
    return [{name: getattr(answer, name) for name in _ANSWER} for answer in answers]


def _placed(table: pa.Table, stage: int, step: int | None) -> pa.Table:
    """The table with the columns `stage` (0: base) and `step` (null: after the stage) in front."""
    n = table.num_rows
    table = table.add_column(0, "step", pa.array([step] * n, pa.int32()))
    return table.add_column(0, "stage", pa.array([stage] * n, pa.int32()))


def _write(table: pa.Table, path: Path) -> None:
    with draft_of(path) as draft:
        pq.write_table(table, draft, compression="zstd")
