"""Methods with states of their own, stopped in the middle of a stage and taken up in a fresh model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.store import StageCheckpoints, Store
from lmm_forget.training.train_state import ResumeConfig
from tests.training.lesson import TRAINING, teach
from tests.training.test_resume import Dying, Killed

LONGER = {**TRAINING, "learning_rate": 1e-2, "epochs": 3}


@pytest.mark.parametrize("recipe", ["lora", "lwf", "wise_ft"])
def test_a_resumed_stage_is_the_uninterrupted_one_to_the_bit(recipe: str, tmp_path: Path) -> None:
    once, plan, straight, _ = teach(recipe, dtype=torch.bfloat16, training=LONGER)
    wanted = hash_parameters(once.model)
    store = Store(tmp_path)
    with pytest.raises(Killed):
        teach(recipe, dtype=torch.bfloat16, training=LONGER, resume_config=ResumeConfig(Dying(store, "k"), 2))
    torch.manual_seed(99)
    again, _, fitted, delta = teach(
        recipe, dtype=torch.bfloat16, training=LONGER, resume_config=ResumeConfig(StageCheckpoints(store, "k"), 2)
    )
    assert fitted.resumed_from_step == 4 and fitted.step_losses == straight.step_losses
    assert hash_parameters(again.model) == wanted
    assert set(delta) == set(plan.trainable)


def test_dropout_and_start_of_an_adapter_follow_the_stages_seed() -> None:
    hashes = [
        hash_parameters(teach("lora", seed=seed, task=task)[0].model) for seed, task in ((0, "a"), (0, "a"), (0, "b"))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
