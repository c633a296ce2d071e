"""A whole fit: it learns, repeats to the byte, says what it does, and refuses what cannot be."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from lmm_forget.errors import ConfigError, DataError, PlanError
from lmm_forget.recipes.plain import Plain
from lmm_forget.training.micro_batches import TrainItem
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.train_stage import count_total_steps, train_stage
from tests.models.tiny import FAMILIES, picture, tiny_lmm
from tests.recipes.stage_calls import start_stage
from tests.training.lesson import HARDWARE, TRAINING, hashes_after, plan_for, samples, teach


@pytest.mark.parametrize("family", FAMILIES)
def test_a_short_fit_learns(family):
    _, _, result, _ = teach("llm", family=family, training={"learning_rate": 1e-2, "max_steps": 25})
    assert result.num_steps == len(result.step_losses) == 25
    assert result.step_losses[-1] < 0.6 * result.step_losses[0]
    assert result.num_samples == 100
    assert result.seconds > 0


def test_two_fits_leave_the_same_bytes_whatever_ran_before():
    first = hashes_after(recipe="llm")
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    torch.rand(1000)
    assert hashes_after(recipe="llm") == first


def test_seed_and_task_each_lead_elsewhere():
    first = hashes_after()
    assert hashes_after(seed=1) != first
    assert hashes_after(task="another") != first


def test_random_numbers_in_a_stage_follow_seed_and_task_alone(monkeypatch):
    class Noisy(Plain):
        def loss(self, lmm, batch, labels):
            return super().loss(lmm, batch, labels) * torch.rand(()) * random.random() * np.random.rand()

    monkeypatch.setattr("tests.training.lesson.build_method", lambda recipe: Noisy())
    first = hashes_after()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert hashes_after() == first
    assert hashes_after(seed=7) != first


def test_activation_checkpointing_and_workers_change_no_byte():
    first = hashes_after(recipe="llm")
    assert hashes_after(recipe="llm", hardware={"activation_checkpointing": True}) == first
    assert hashes_after(recipe="llm", hardware={"num_workers": 1}) == first


def test_checkpointing_recomputes_decoder_layers(monkeypatch):
    """A frozen decoder behind a trained projector too: its activations are what costs memory."""
    calls = []

    class Counting(Plain):
        def start_stage(self, context, lmm, train_set, state):
            super().start_stage(context, lmm, train_set, state)
            lmm.components.text_model.layers[0].mlp.register_forward_pre_hook(lambda *a: calls.append(1))

    monkeypatch.setattr("tests.training.lesson.build_method", lambda recipe: Counting())
    teach("projector", training={"max_steps": 1})
    assert len(calls) == 1
    teach("projector", training={"max_steps": 1}, hardware={"activation_checkpointing": True})
    assert len(calls) == 3


def test_dropped_samples_micro_batch_and_phase_are_reported():
    class Ears:
        phases, steps = [], []

        def start_phase(self, name, total, unit):
            self.phases.append((name, total, unit))

        def advance(self, done, **info):
            self.steps.append((done, sorted(info)))

    _, _, result, _ = teach(
        items=samples(11), hardware={"micro_batch_size": 2}, progress=Ears(), phase_name="stage 1/5 train x"
    )
    assert (result.num_steps, result.num_samples, result.dropped_per_epoch, result.micro_batch_size) == (
        2,
        8,
        3,
        2,
    )
    assert Ears.phases == [("stage 1/5 train x", 2, "step")]
    assert Ears.steps == [(1, ["loss", "samples_per_s"])] * 2


def test_a_micro_batch_above_the_global_batch_is_the_global_batch():
    assert teach(hardware={"micro_batch_size": 64}, training={"max_steps": 1})[2].micro_batch_size == 4


def test_steps_follow_epochs_or_max_steps():
    assert count_total_steps(11, {"global_batch_size": 4}) == 2
    assert count_total_steps(11, {"global_batch_size": 4, "epochs": 3}) == 6
    assert count_total_steps(11, {"global_batch_size": 4, "epochs": 3, "max_steps": 5}) == 5
    for broken in ({"epochs": 0}, {"max_steps": 0}, {"epochs": 0.5}):
        with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
            count_total_steps(11, {"global_batch_size": 4, **broken})


def test_a_wholly_frozen_tower_runs_without_graph_and_in_eval_mode(monkeypatch):
    seen = []

    class Watching(Plain):
        def loss(self, lmm, batch, labels):
            tower, decoder = lmm.components.get_modules("vision")[0], lmm.components.text_model
            handle = tower.register_forward_hook(
                lambda m, i, out: seen.append((m.training, out.last_hidden_state.requires_grad))
            )
            result = super().loss(lmm, batch, labels)
            handle.remove()
            seen.append(decoder.training)
            return result

    monkeypatch.setattr("tests.training.lesson.build_method", lambda recipe: Watching())
    lmm, *_ = teach("sa_proj", training={"max_steps": 1})
    assert seen == [(False, False), True]
    assert not any(m.training for m in lmm.model.modules())
    seen.clear()
    teach("vision", training={"max_steps": 1})
    assert seen[0][0] is True


def test_mistakes_are_one_line():
    with pytest.raises(ConfigError, match="fewer than one global batch"):
        teach(items=samples(3))
    with pytest.raises(ConfigError, match="micro_batch_size=3 does not divide"):
        teach(hardware={"micro_batch_size": 3})
    with pytest.raises(ConfigError, match=r"^hardware.accelerator=abacus cannot be used here: [^\n]+$"):
        teach(hardware={"accelerator": "abacus"})
    with pytest.raises(DataError, match=r"^training sample long: [^\n]*context is 512[^\n]*$"):
        teach(items=[*samples(3), TrainItem("long", "?", [picture()], "a" * 600)])
    lmm = tiny_lmm("llava_onevision")
    lmm.model.requires_grad_(False)
    with pytest.raises(PlanError, match="recipe llm: nothing in the model is trainable"):
        train_stage(
            lmm,
            plan_for(lmm, "llm"),
            Plain(),
            samples(),
            TrainStageConfig(training_config=TRAINING, hardware_config=HARDWARE, seed=0, task="t"),
        )


def test_nothing_is_printed_and_warnings_of_others_are_heard(capfd, monkeypatch, caplog):
    class Warning_(Plain):
        def loss(self, lmm, batch, labels):
            warnings.warn("the user's own", UserWarning, stacklevel=1)
            return super().loss(lmm, batch, labels)

    monkeypatch.setattr("tests.training.lesson.build_method", lambda recipe: Warning_())
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        teach(training={"max_steps": 1})
    assert {str(w.message) for w in heard} == {"the user's own"}
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert caplog.records == []


def test_a_fresh_process_prints_nothing():
    code = "from tests.training.lesson import teach; teach(training={'max_steps': 1})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
        env={**os.environ},
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_interrupts_stay_interrupts(monkeypatch):
    class Interrupted(Plain):
        def loss(self, lmm, batch, labels):
            raise KeyboardInterrupt

    monkeypatch.setattr("tests.training.lesson.build_method", lambda recipe: Interrupted())
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        teach()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_model_comes_back_usable_after_a_failed_fit(monkeypatch):
    lmm = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    plan, method = plan_for(lmm, "sa_proj"), Plain()
    start_stage(method, lmm, plan)
    items = [*samples(3), TrainItem("long", "?", [picture()], "a" * 600)]
    with pytest.raises(DataError):
        train_stage(
            lmm,
            plan,
            method,
            items,
            TrainStageConfig(training_config=TRAINING, hardware_config=HARDWARE, seed=0, task="t"),
        )
    assert not lmm.model.training
    assert not any(m._forward_hooks for m in lmm.model.modules() if isinstance(m, torch.nn.Embedding))
