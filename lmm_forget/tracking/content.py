"""Tables and artifacts for W&B, made from what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmm_forget.tracking.secrets import scrub
from lmm_forget.tracking.tracker import Answered, Measured

if TYPE_CHECKING:
    from PIL.Image import Image

ANSWER_COLUMNS = (
    *("stage", "taught", "task", "sample", "image", "question", "reference"),
    *("base answer", "answer", "base score", "score", "change"),
)
LARGEST = 320
"""Longer side, in pixels, of a picture in a table."""


def small(images: Sequence[Image]) -> Image | None:
    """The first of a sample's images, no larger than `LARGEST`."""
    if not images:
        return None
    picture = images[0].convert("RGB")
    picture.thumbnail((LARGEST, LARGEST))
    return picture


def answer_rows(measured: Measured, base: Measured) -> list[list[Any]]:
    """One row per sample that the base shows (columns `ANSWER_COLUMNS`; scores in points), in its order."""
    rows = []
    for task, shown in base.pictures.items():
        now, before = _by_sample(measured, task), _by_sample(base, task)
        for sample, picture in shown.items():
            if sample not in now or sample not in before:
                continue
            answer, first = now[sample], before[sample]
            change = 100 * (answer.value - first.value)
            turned = "turned right" if change > 0 else "turned wrong" if change < 0 else "same"
            rows.append(
                [measured.index, measured.task or "", task, sample, picture, answer.question]
                + [" | ".join(answer.references), first.text, answer.text]
                + [100 * first.value, 100 * answer.value, turned]
            )
    return rows


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A W&B table; a column called `image` holds pictures."""
    import wandb

    at = columns.index("image") if "image" in columns else None
    cells = [
        [
            wandb.Image(cell, file_type="jpg") if i == at and cell is not None else cell
            for i, cell in enumerate(row)
        ]
        for row in rows
    ]
    return wandb.Table(columns=list(columns), data=cells)


def base_artifact(measured: Measured, model: Mapping[str, Any]) -> Any:
    """What every stage starts from: the model's name and hash and its scores, no weights."""
    import wandb

    artifact = wandb.Artifact(
        base_name(measured), type="base", metadata={"weights_hash": measured.weights_hash, "stage": 0}
    )
    _file(
        artifact,
        "base.json",
        {"model": model, "weights_hash": measured.weights_hash, "scores": measured.scores},
    )
    return artifact


def base_name(measured: Measured) -> str:
    """Name of the base's artifact: equal weights, equal name."""
    return f"base-{measured.weights_hash[:16]}"


def stage_name(measured: Measured) -> str:
    """Name of a stage's artifact: equal stage keys, equal name, whichever job trained it."""
    return f"stage-{(measured.record or {})['key'][:16]}"


def stage_artifact(measured: Measured, ancestors: Sequence[str], *, with_delta: bool) -> Any:
    """A stage's record, and its delta where asked for; `ancestors` are the artifacts before it, the base first."""
    import wandb

    record = dict(measured.record or {})
    artifact = wandb.Artifact(
        stage_name(measured),
        type="stage",
        metadata={
            "stage": measured.index,
            "task": measured.task,
            "key": record["key"],
            "weights_hash": measured.weights_hash,
            "parent": ancestors[-1] if ancestors else None,
            "lineage": list(ancestors),
        },
    )
    _file(artifact, "record.json", record)
    if with_delta and measured.delta is not None:
        # The store never changes a file, so nothing has to be copied aside.
        artifact.add_file(str(measured.delta), name=measured.delta.name, policy="immutable", skip_cache=True)
    return artifact


def use(run: Any, artifact: Any) -> None:
    """Mark a new artifact as an input of the run, without waiting for the server, and offline too.

    `run.use_artifact` does the same for a new artifact, but refuses to offline and waits online.
    """
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def _file(artifact: Any, name: str, content: Mapping[str, Any]) -> None:
    with artifact.new_file(name, mode="w", encoding="utf-8") as file:
        json.dump(scrub(content), file, sort_keys=True, indent=1)


def _by_sample(measured: Measured, task: str) -> dict[str, Answered]:
    return {answer.sample_id: answer for answer in measured.answers.get(task, ())}
