"""One stage: teach one skill, then ask every question; what it gave is one record in the store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import StoreError
from lmm_forget.evaluation.answers import Answer
from lmm_forget.evaluation.shared import Exam, examine
from lmm_forget.progress import Progress
from lmm_forget.recipes.method import Method, parameter_dtypes
from lmm_forget.store import Store, stage_key
from lmm_forget.training.lessons import Lessons

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from torch import Tensor

    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.selection import TunePlan


@dataclass
class Ground:
    """What every stage of a job stands on. `hashes` (tensor name -> hash) follow the model as stages change it."""

    config: Mapping[str, Any]
    lmm: LMM
    plan: TunePlan
    method: Method
    lessons: Mapping[str, Lessons]
    exams: list[Exam]
    store: Store
    progress: Progress
    logger: Logger | None
    processor: str
    versions: Mapping[str, str]
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> str:
        """The `weights_hash` of the model as it stands."""
        from lmm_forget.models.weights import weights_hash

        return weights_hash(self.hashes)


@dataclass(frozen=True)
class Taught:
    """A finished stage: its record, the answers after it, and how long each part took in this job (seconds)."""

    index: int
    task: str
    record: Mapping[str, Any]
    answers: Mapping[str, list[Answer]]
    seconds: Mapping[str, float]


def run_stage(ground: Ground, index: int, task: str) -> Taught:
    """Bring the model from stage `index - 1` to stage `index` (from the store if it was done before) and ask it."""
    started = time.monotonic()
    label = f"stage {index} of {len(ground.config['sequence']['tasks'])}"
    record = _teach(ground, task, f"{label}: teach {task}")
    taught = time.monotonic()
    answers = ask_all(ground, f"{label}: ask everything")
    seconds = {"teach": taught - started, "ask": time.monotonic() - taught}
    return Taught(index, task, record, answers, seconds)


def ask_all(ground: Ground, phase: str) -> dict[str, list[Answer]]:
    """The model's answers to every target and every benchmark, by task."""
    return examine(
        ground.lmm,
        ground.weights,
        ground.exams,
        ground.store,
        processor=ground.processor,
        versions=ground.versions,
        hardware=ground.config["hardware"],
        progress=ground.progress,
        phase=phase,
    )


def _teach(ground: Ground, task: str, phase: str) -> dict[str, Any]:
    """Train the stage, or take it from the store; the model is the stage model afterwards."""
    key, ingredients = stage_key(
        ground.config,
        task,
        parent=ground.weights,
        data=ground.lessons[task].task.fingerprint("train"),
        processor=ground.processor,
        versions=ground.versions,
    )
    with ground.store.claim(f"stage-{key}"):
        record = ground.store.record(key)
        if record is None:
            record, delta = _train(ground, task, phase)
            ground.store.commit(key, {**record, "task": task, "ingredients": ingredients}, delta)
            return {**record, "key": key}
    _replay(ground, record)
    return record


def _train(ground: Ground, task: str, phase: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from lmm_forget.models.weights import tensor_hash
    from lmm_forget.training.fit import fit

    config, lmm = ground.config, ground.lmm
    dtypes = parameter_dtypes(lmm.model)
    ground.method.prepare(lmm, ground.plan)
    fitted = fit(
        lmm,
        ground.plan,
        ground.method,
        ground.lessons[task],
        training=config["training"],
        hardware=config["hardware"],
        seed=config["seed"],
        task=task,
        logger=ground.logger,
        progress=ground.progress,
        phase=phase,
    )
    delta = ground.method.finish(lmm, ground.plan, dtypes)
    moved = {name: tensor_hash(tensor) for name, tensor in delta.items()}
    ground.hashes.update(moved)
    record = {
        "weights_hash": ground.weights,
        "tensors": moved,
        "steps": fitted.steps,
        "loss": fitted.loss,
        "samples": fitted.samples,
        "dropped": fitted.dropped,
        "micro_batch": fitted.micro_batch,
        "seconds": fitted.seconds,
    }
    return record, delta


def _replay(ground: Ground, record: Mapping[str, Any]) -> None:
    """Put a recorded delta into the model. StoreError if a tensor's bytes are not those that were recorded."""
    import torch

    from lmm_forget.models.weights import tensor_hash

    delta = ground.store.delta(record["key"])
    parameters = dict(ground.lmm.model.named_parameters())
    if delta.keys() != record["tensors"].keys() or delta.keys() - parameters.keys():
        raise StoreError(
            f"stage {record['key']}: its delta holds other tensors than its record; delete its folder"
        )
    with torch.no_grad():
        for name, tensor in delta.items():
            if tensor_hash(tensor) != record["tensors"][name]:
                raise StoreError(
                    f"stage {record['key']}: {name} is damaged; delete its folder to compute it again"
                )
            parameters[name].copy_(tensor)
    ground.hashes.update(record["tensors"])
    if ground.weights != record["weights_hash"]:
        raise StoreError(
            f"stage {record['key']}: it was computed on another base than this one; delete its folder"
        )
