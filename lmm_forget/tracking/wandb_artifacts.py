"""W&B tables and artifacts, built from what was measured after a stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmm_forget.tracking.redaction import redact_secrets
from lmm_forget.tracking.tracker import ScoredAnswer, StageMetrics

if TYPE_CHECKING:
    from PIL.Image import Image

ANSWER_COLUMNS = (
    *("stage", "trained", "task", "sample", "image", "question", "reference"),
    *("base answer", "answer", "base score", "score", "change"),
)
MAX_THUMBNAIL_PIXELS = 320
"""Longer side, in pixels, of an image in a table."""


def make_thumbnail(images: Sequence[Image]) -> Image | None:
    """A copy of the first image, its longer side at most `MAX_THUMBNAIL_PIXELS`; None without images."""
    if not images:
        return None
    picture = images[0].convert("RGB")
    picture.thumbnail((MAX_THUMBNAIL_PIXELS, MAX_THUMBNAIL_PIXELS))
    return picture


def build_answer_rows(stage_metrics: StageMetrics, base_metrics: StageMetrics) -> list[list[Any]]:
    """One row per sample in the base's `pictures`, in their order (columns `ANSWER_COLUMNS`; scores in points)."""
    rows = []
    for task, shown_samples in base_metrics.pictures.items():
        answers, base_answers = (
            _index_answers_by_sample(stage_metrics, task),
            _index_answers_by_sample(base_metrics, task),
        )
        for sample, picture in shown_samples.items():
            if sample not in answers or sample not in base_answers:
                continue
            answer, base_answer = answers[sample], base_answers[sample]
            change = 100 * (answer.value - base_answer.value)
            change_label = "turned right" if change > 0 else "turned wrong" if change < 0 else "same"
            rows.append(
                [stage_metrics.index, stage_metrics.task or "", task, sample, picture, answer.question]
                + [" | ".join(answer.references), base_answer.text, answer.text]
                + [100 * base_answer.value, 100 * answer.value, change_label]
            )
    return rows


def build_wandb_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A W&B table; its column "image", if it has one, holds images."""
    import wandb  # optional dependency; imported only with logger=wandb

    image_column = columns.index("image") if "image" in columns else None
    cells = [
        [
            wandb.Image(cell, file_type="jpg") if i == image_column and cell is not None else cell
            for i, cell in enumerate(row)
        ]
        for row in rows
    ]
    return wandb.Table(columns=list(columns), data=cells)


def build_base_artifact(base_metrics: StageMetrics, model_config: Mapping[str, Any]) -> Any:
    """The artifact of the base model: its configuration, its hash and its scores, but no weights."""
    import wandb  # optional dependency; imported only with logger=wandb

    artifact = wandb.Artifact(
        format_base_artifact_name(base_metrics),
        type="base",
        metadata={"weights_hash": base_metrics.weights_hash, "stage": 0},
    )
    _add_json_file(
        artifact,
        "base.json",
        {"model": model_config, "weights_hash": base_metrics.weights_hash, "scores": base_metrics.scores},
    )
    return artifact


def format_base_artifact_name(base_metrics: StageMetrics) -> str:
    """Name of the base's artifact; equal weights have equal names."""
    return f"base-{base_metrics.weights_hash[:16]}"


def format_stage_artifact_name(stage_metrics: StageMetrics) -> str:
    """Name of a stage's artifact; equal stage keys have equal names, whichever job trained the stage."""
    return f"stage-{(stage_metrics.record or {})['key'][:16]}"


def build_stage_artifact(stage_metrics: StageMetrics, ancestors: Sequence[str], *, with_delta: bool) -> Any:
    """The artifact of a stage: its record, and its delta if `with_delta`.

    `ancestors` are the names of the artifacts that it was trained from, the base first.
    """
    import wandb  # optional dependency; imported only with logger=wandb

    record = dict(stage_metrics.record or {})
    artifact = wandb.Artifact(
        format_stage_artifact_name(stage_metrics),
        type="stage",
        metadata={
            "stage": stage_metrics.index,
            "task": stage_metrics.task,
            "key": record["key"],
            "weights_hash": stage_metrics.weights_hash,
            "parent": ancestors[-1] if ancestors else None,
            "lineage": list(ancestors),
        },
    )
    _add_json_file(artifact, "record.json", record)
    if with_delta and stage_metrics.delta_path is not None:
        # The store never changes a file, so W&B need not copy it.
        artifact.add_file(
            str(stage_metrics.delta_path),
            name=stage_metrics.delta_path.name,
            policy="immutable",
            skip_cache=True,
        )
    return artifact


def mark_artifact_as_input(run: Any, artifact: Any) -> None:
    """Log a new artifact as an input of the run, without waiting for the server; works offline too.

    `run.use_artifact` would do the same, but it refuses to work offline and waits for the server online.
    """
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def _add_json_file(artifact: Any, name: str, content: Mapping[str, Any]) -> None:
    with artifact.new_file(name, mode="w", encoding="utf-8") as file:
        json.dump(redact_secrets(content), file, sort_keys=True, indent=1)


def _index_answers_by_sample(stage_metrics: StageMetrics, task: str) -> dict[str, ScoredAnswer]:
    return {answer.sample_id: answer for answer in stage_metrics.answers.get(task, ())}
