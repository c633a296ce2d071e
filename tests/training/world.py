"""What a world of two processes makes of a stage: `python -m tests.training.world RANK PORT OUT [BEGINNING]`.

test_ranks starts it. Each rank writes what it found, by case, as JSON; BEGINNING leaves only cases that begin so.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from lmm_forget.distributed import stop_signals
from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup, RankInfo, init_process_group
from lmm_forget.evaluation.engines.hf import HuggingFaceEngine
from lmm_forget.evaluation.eval_set import EvalSet
from lmm_forget.evaluation.evaluate import evaluate
from lmm_forget.experiment.stage_training import make_compute_precision
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes.ewc import EWC
from lmm_forget.recipes.method import StageContext, build_method, get_parameter_dtypes
from lmm_forget.recipes.plain import Plain
from lmm_forget.recipes.selection import load_recipe
from lmm_forget.store import ResponseCache, StageCheckpoints, Store
from lmm_forget.training import micro_batches
from lmm_forget.training.determinism import derive_seed
from lmm_forget.training.micro_batches import TrainItem
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.strategies.sharded_model import ShardedModel
from lmm_forget.training.train_stage import train_stage
from lmm_forget.training.train_state import ResumeConfig
from tests.evaluation.questions import Questions, sample
from tests.models.subjects import subject
from tests.models.tiny import FAMILIES, picture
from tests.training.lesson import HARDWARE, TRAINING, plan_for, samples

RECIPES = ("sa_proj", "mlp_gateup", "llm")
TASKS = ("first", "second")
GLOBAL_BATCH = 16


class Seen:
    """Which samples this rank encoded, and what the trained tensors looked like on it."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.shapes: dict[str, list[list[int]]] = {}

    def listen(self) -> None:
        """Hear of everything from here on."""
        before, made = micro_batches.MicroBatchDataset._encode_items, ShardedModel.__init__

        def encoded(slots: Any, items: Any) -> Any:
            self.ids += [item.id for item in items]
            return before(slots, items)

        def sharded(one: Any, *given: Any) -> None:
            made(one, *given)
            for name, p in one.model.named_parameters():
                if p.requires_grad:
                    assert isinstance(p, DTensor), name
                    self.shapes[name] = [list(p.shape), list(p.to_local().shape)]

        micro_batches.MicroBatchDataset._encode_items = encoded  # type: ignore[method-assign]
        ShardedModel.__init__ = sharded  # type: ignore[method-assign]


def stages(
    seen: Seen, ranks: ProcessGroup, family: str, recipe: str, strategy: str, micro_batch: int, **more: Any
) -> dict[str, Any]:
    """Two consecutive stages of three steps each, in the process group that is there."""
    lmm = subject(family, more.get("dtype", torch.float32))
    method, dtypes = more.get("method") or build_method(load_recipe(recipe)), get_parameter_dtypes(lmm.model)
    plan = method.adapt_plan(lmm.model, plan_for(lmm, recipe))
    items, state = more.get("items") or samples(GLOBAL_BATCH * 2), None
    found: dict[str, Any] = {"loss": [], "ids": [], "micro_batch_size": []}
    for task in more.get("tasks", TASKS):
        seen.ids, seen.shapes = [], {}
        context = StageContext(
            plan,
            dtypes,
            seed=derive_seed(0, task),
            process_group=ranks,
            use_compute_precision=make_compute_precision(lmm, "fp32"),
        )
        method.start_stage(context, lmm, items, state)
        result = train_stage(
            lmm,
            plan,
            method,
            items,
            TrainStageConfig(
                training_config={
                    **TRAINING,
                    "global_batch_size": GLOBAL_BATCH,
                    "max_steps": 3,
                    **more.get("training", {}),
                },
                hardware_config={
                    **HARDWARE,
                    "precision": "fp32",
                    "micro_batch_size": micro_batch,
                    "strategy": strategy,
                    **more.get("hardware", {}),
                },
                seed=0,
                task=task,
                process_group=ranks,
                resume_config=more.get("resume"),
            ),
        )
        output = method.end_stage(context, lmm)
        delta, state = output.delta, output.state
        found["loss"].append(result.step_losses)
        found["ids"].append(list(seen.ids))
        found["micro_batch_size"].append(result.micro_batch_size)
    found["state"] = {n: t.flatten()[:64].tolist() for n, t in state.tensors.items()} if state else {}
    found["shapes"] = seen.shapes
    found["delta"] = {name: tensor.float().flatten()[:64].tolist() for name, tensor in delta.items()}
    found["hashes"] = hash_parameters(lmm.model)
    found["lmm"] = lmm
    return found


def asked(lmm: Any, ranks: ProcessGroup, folder: Path, size: int) -> dict[str, Any]:
    """Seven questions of very different length, two without a picture, asked anew."""
    task = Questions(7)
    task.made = [sample(i, "What is shown " * words + "here?") for i, words in enumerate((1, 10, 3, 20, 2, 5, 15))]
    for i in (2, 5):
        task.made[i] = replace(task.made[i], images=())
    result = evaluate(
        lmm,
        [EvalSet(task, task.made)],
        HuggingFaceEngine(lmm),
        ResponseCache(Store(folder / f"{ranks.size}-{size}"), "model"),
        batch_size=size,
        process_group=ranks,
    )
    [said] = result.answers.values()
    return {
        "texts": [one.text for one in said],
        "evaluated": result.num_generated,
        "gaps": [one.logit_margin for one in said],
        "scores": result.scores,
    }


class Short(Plain):
    """Runs out of memory in its second forward pass with more than four samples, on one rank only."""

    def __init__(self, here: bool) -> None:
        self.here, self.calls = here, 0

    def loss(self, lmm: Any, batch: Any, labels: Any) -> Any:
        self.calls += 1
        if self.here and self.calls > 1 and len(labels) > 4:
            raise torch.OutOfMemoryError("injected")
        return super().loss(lmm, batch, labels)


class Asked(Plain):
    """Is asked to stop, on one rank only, while it is at its third micro-batch."""

    def __init__(self, here: bool) -> None:
        self.here, self.calls = here, 0

    def loss(self, lmm: Any, batch: Any, labels: Any) -> Any:
        self.calls += 1
        if self.here and self.calls == 3:
            stop_signals._stop_requested.set()
        return super().loss(lmm, batch, labels)


def resumed(seen: Seen, ranks: ProcessGroup, strategy: str, folder: Path) -> dict[str, Any]:
    """A stage with dropout, stopped on the way and taken up again, beside one that was not."""

    def stage(**more: Any) -> dict[str, Any]:
        training = {"attention_dropout": 0.3}
        return stages(seen, ranks, FAMILIES[0], "llm", strategy, 4, tasks=TASKS[:1], training=training, **more)

    resume = ResumeConfig(StageCheckpoints(Store(folder / f"resume-{strategy}"), "k"), 100)
    stopped = False
    try:
        stage(resume=resume, method=Asked(ranks.rank == 1))
    except stop_signals.StopRequested:
        stopped = True
    stop_signals._stop_requested.clear()
    found, whole = stage(resume=resume), stage()
    return {
        "stopped": stopped,
        "hashes": [found["hashes"], whole["hashes"]],
        "ids": [found["ids"], whole["ids"]],
    }


class Drawing(Plain):
    """Notes what every generator would draw in each forward pass."""

    def __init__(self, here: bool) -> None:
        self.here, self.drawn = here, []

    def loss(self, lmm: Any, batch: Any, labels: Any) -> Any:
        self.drawn.append([random.random(), float(np.random.rand()), float(torch.rand(()))])
        if self.here and len(self.drawn) == 2:
            raise torch.OutOfMemoryError("injected")
        return super().loss(lmm, batch, labels)


def without_pictures() -> list[TrainItem]:
    """Samples of which the global batches of one rank have no picture now and then."""
    return [
        TrainItem(f"s{i}", f"Number {i}?", [picture(seed=i)] if i % 8 == 0 else [], "wxyz"[: 1 + i % 4])
        for i in range(GLOBAL_BATCH * 2)
    ]


def cases(ranks: ProcessGroup, seen: Seen, folder: Path) -> dict[str, Callable[[], Any]]:
    """Everything that is tried, by name; all ranks go through it in this order."""
    found: dict[str, Callable[[], Any]] = {}
    for family in FAMILIES:
        for recipe in RECIPES:
            layouts = [
                ("alone", SINGLE_PROCESS, "auto", 16),
                ("ddp-1", ranks, "ddp", 1),
                ("fsdp-4", ranks, "fsdp", 4),
            ]
            if family == FAMILIES[0]:
                layouts += [
                    ("ddp-4", ranks, "ddp", 4),
                    ("ddp-16", ranks, "ddp", 16),
                    ("alone-4", SINGLE_PROCESS, "auto", 4),
                ]
            for name, who, strategy, micro in layouts:
                found[f"{family}/{recipe}/{name}"] = lambda f=family, r=recipe, w=who, s=strategy, m=micro: stages(
                    seen, w, f, r, s, m
                )
    first = FAMILIES[0]
    for name, who, strategy in (
        ("alone", SINGLE_PROCESS, "auto"),
        ("ddp", ranks, "ddp"),
        ("fsdp", ranks, "fsdp"),
    ):
        found[f"pictures/{name}"] = lambda w=who, s=strategy: stages(
            seen, w, first, "full", s, 4, items=without_pictures()
        )
        found[f"tokens/{name}"] = lambda w=who, s=strategy: stages(
            seen, w, first, "sa_proj", s, 4, training={"loss": "token_mean"}
        )
        found[f"lora/{name}"] = lambda w=who, s=strategy: stages(seen, w, first, "lora", s, 4, dtype=torch.bfloat16)
        found[f"lwf/{name}"] = lambda w=who, s=strategy: stages(
            seen, w, first, "lwf", s, 4, training={"learning_rate": 1e-2}
        )
        found[f"ewc/{name}"] = lambda w=who, s=strategy: stages(
            seen, w, first, "ewc", s, 4, training={"learning_rate": 1e-2}, method=EWC(weight=100.0, fisher_samples=5)
        )
        found[f"checkpointing/{name}"] = lambda w=who, s=strategy: stages(
            seen, w, first, "llm", s, 4, hardware={"activation_checkpointing": True}
        )
        if who is ranks:
            found[f"resumed/{name}"] = lambda s=strategy: resumed(seen, ranks, s, folder)
    found["lwf/without"] = lambda: stages(
        seen, SINGLE_PROCESS, first, "mlp", "auto", 4, training={"learning_rate": 1e-2}
    )
    for name, who in (("alone", SINGLE_PROCESS), ("two", ranks)):
        found[f"asked/{name}"] = lambda w=who: {
            size: asked(subject(first), w, folder, int(size)) for size in ("1", "2", "64")
        }
    found["memory"] = lambda: stages(seen, ranks, first, "sa_proj", "ddp", 8, method=Short(ranks.rank == 1))
    found["memory/drawn"] = lambda: drawn(seen, ranks)
    return found


def drawn(seen: Seen, ranks: ProcessGroup) -> dict[str, Any]:
    """What was drawn on this rank before and after a step was taken again."""
    method = Drawing(ranks.rank == 1)
    stages(seen, ranks, FAMILIES[0], "sa_proj", "ddp", 4, method=method)
    return {"drawn": method.drawn}


def main(rank: int, port: int, out: Path, beginning: str = "") -> None:
    """Be one of the two."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    ranks, seen = init_process_group(RankInfo.from_environment(os.environ), "cpu"), Seen()
    seen.listen()
    found: dict[str, Any] = {}
    for name, case in cases(ranks, seen, out.parent / "stores").items():
        if not name.startswith(beginning) or ("alone" in name and rank != 0):
            continue
        result = case()
        result.pop("lmm", None)
        found[name] = result
        out.write_text(json.dumps(found))
    ranks.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
