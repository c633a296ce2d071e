"""A small prober over a tiny model of any family: byte tokens, noise pictures, a few prompts with reference answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmm_forget.evaluation.engines.hf import generate_answers
from lmm_forget.models.loading import LMM
from lmm_forget.models.weight_hashes import hash_parameters, hash_weights
from lmm_forget.probes.forward_passes import PromptSet
from lmm_forget.probes.probe_config import DriftAlarm, ProbeConfig
from lmm_forget.probes.prober import Prober
from lmm_forget.probes.token_sets import find_token_sets
from lmm_forget.store import Store
from lmm_forget.tasks.task import Sample, Task
from tests.models.tiny import picture
from tests.training.lesson import plan_for

ANSWERS = ("a 3 b", "wxyz", "two", "7", "no", "B", "4:30", "hello")


class Pictures(Task):
    """Eight questions about noise pictures of two sizes, two of them about the same picture."""

    def load_samples(self, split: str) -> Sequence[Sample]:
        return [
            Sample(
                f"s{i}",
                f"image{min(i, 6)}",
                (picture(56, 56 if i % 2 else 112, seed=i),),
                f"What is {'x' * i}?",
                (answer,),
            )
            for i, answer in enumerate(ANSWERS)
        ]

    def fingerprint_split(self, split: str) -> str:
        return "eight"


def prompts(name: str = "captions") -> PromptSet:
    task = Pictures(name=name, role="captions", max_new_tokens=5, scorer=lambda answer, sample: {"value": 1.0})
    return PromptSet(task, {"name": name}, task.load_samples("test"), 8, task.fingerprint_split("test"))


def spec(**changes: Any) -> ProbeConfig:
    wanted: dict[str, Any] = {
        "output_shift": True,
        "residual_to_logit": True,
        "n": 8,
        "residual_n": 5,
        "modes": ("free", "forced"),
        "forced_on": "reference",
        "token_sets": ("number",),
        "at_steps": (),
        "at_tasks": None,
        "evaluate_at_steps": False,
        "retrain": False,
        "alarm": None,
    }
    return ProbeConfig(**{**wanted, **changes})


def alarm(**bounds: float) -> DriftAlarm:
    return DriftAlarm(bounds, "stop", 1, 8)


def prober(lmm: LMM, folder: Path, recipe: str = "llm", batch: int = 3, **changes: Any) -> Prober:
    return Prober(
        spec(**changes),
        lmm,
        plan_for(lmm, recipe),
        [prompts()],
        find_token_sets(lmm.processor.tokenizer, ("number",), {}, []),
        generate_greedily=generate_answers,
        store=Store(folder),
        weights_hash=weights(lmm),
        settings_identity={"processor": "tiny"},
        batch_size=batch,
    )


def weights(lmm: LMM) -> str:
    return hash_weights(hash_parameters(lmm.model))
