"""micro_batch=auto: the longest samples are tried with everything a stage holds, and nothing is left of the trial."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmm_forget.errors import LmmForgetError
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes.lora import LoRA
from lmm_forget.recipes.plain import Plain
from lmm_forget.training.micro_batch_search import find_largest_micro_batch, select_longest_items
from lmm_forget.training.micro_batches import TrainItem
from tests.models.subjects import subject
from tests.models.tiny import picture
from tests.training.lesson import HARDWARE, TRAINING, plan_for, samples


class Cramped(Plain):
    """Has room for `most` samples at a time."""

    def __init__(self, most: int, later: int | None = None) -> None:
        self.most, self.later, self.tried = most, later, []

    def loss(self, lmm: Any, batch: Any, labels: Any) -> Any:
        self.tried.append(len(labels))
        stepped = sum(self.tried[:-1]) >= 8  # the first step is over: the optimizer's moments exist
        if len(labels) > (self.later if stepped and self.later else self.most):
            raise torch.OutOfMemoryError("injected")
        return super().loss(lmm, batch, labels)


def measure(method: Any, recipe: str = "llm") -> tuple[int, dict[str, str], dict[str, str]]:
    lmm = subject("llava_onevision", torch.bfloat16)
    plan = method.adapt_plan(lmm.model, plan_for(lmm, recipe))
    before = hash_parameters(lmm.model)
    found = find_largest_micro_batch(
        lmm,
        plan,
        method,
        [samples(6)],
        training_config={**TRAINING, "global_batch_size": 8},
        hardware_config=HARDWARE,
    )
    return found, before, hash_parameters(lmm.model)


@pytest.mark.parametrize(("most", "right"), [(100, 8), (5, 4), (1, 1)])
def test_the_largest_that_fits_is_found_and_the_model_is_untouched(most, right):
    method = Cramped(most)
    found, before, after = measure(method)
    assert found == right
    assert method.tried[0] == 8 and set(method.tried[1:]) <= {8, 4, 2, 1}
    assert before == after


def test_the_optimizer_s_moments_count():
    """They come into being in the first step: a micro-batch that fits without them may not fit the second."""
    assert measure(Cramped(100, later=4))[0] == 4


def test_adapters_leave_no_trace_either():
    found, before, after = measure(LoRA(rank=2), "lora")
    assert found == 8 and before == after


def test_a_single_sample_that_does_not_fit_is_said():
    with pytest.raises(LmmForgetError, match=r"^out of memory in step 1 with a single sample; use [^\n]+$"):
        measure(Cramped(0))


def test_the_longest_samples_of_all_tasks_are_tried():
    lmm = subject("llava_onevision")
    long = [TrainItem("long", "word " * 40, [picture()], "a"), TrainItem("text", "short", [], "a")]
    chosen = select_longest_items(lmm, [samples(3), long], 6)
    assert chosen[0].id == "long"
    assert [item.id for item in chosen].count("long") == 2 and len(chosen) == 6
    assert chosen[4].id == "text"
