"""Callbacks: the package's own, and a user's, by a line of YAML or on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from omegaconf import OmegaConf
from torch import Tensor

from lmm_forget.config.composing import compose_config
from lmm_forget.config.conf_dirs import find_conf_dir
from lmm_forget.config.resolving import resolve_config
from lmm_forget.errors import ConfigError
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes.plain import Plain
from lmm_forget.store import StageCheckpoints, Store
from lmm_forget.store.keys import select_training_config
from lmm_forget.tracking import NullTracker
from lmm_forget.training.callbacks.memory import StateMemory
from lmm_forget.training.callbacks.probes import StepProbes
from lmm_forget.training.callbacks.stage_callback import StageCallback, build_callbacks
from lmm_forget.training.stage_module import StageModule
from lmm_forget.training.train_state import ResumeConfig
from tests.training.lesson import HARDWARE, TRAINING, teach

ROOT = Path(__file__).resolve().parents[2]
SMALL = {**HARDWARE, "micro_batch_size": 2}
DEFAULT: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(find_conf_dir() / "callbacks" / "default.yaml"))  # type: ignore[assignment]


class Recorder(pl.Callback):
    """Records what Lightning's users read: global_step, outputs, callback_metrics."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append(("start", trainer.global_step))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.seen.append(("before", trainer.global_step))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append(("step" if outputs else "micro-batch", trainer.global_step))
        if outputs:
            assert float(trainer.callback_metrics["loss"]) == pytest.approx(outputs["metrics"]["loss"])
            self.losses.append(outputs["metrics"]["loss"])


class EndAt(pl.Callback):
    """Wants the stage to end at a micro-batch, as Lightning's Timer and EarlyStopping do."""

    def __init__(self, batch_idx: int) -> None:
        self.batch_idx = batch_idx

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = trainer.should_stop or batch_idx == self.batch_idx


def test_a_lightning_callback_sees_optimizer_steps() -> None:
    recorder = Recorder()
    fitted = teach(hardware=SMALL, extra_callbacks=[recorder])[2]
    steps = [event for k in range(3) for event in (("micro-batch", k), ("before", k), ("step", k + 1))]
    assert recorder.seen == [("start", 0), *steps]
    assert recorder.losses == fitted.step_losses


def test_global_step_goes_on_where_a_stage_is_resumed(tmp_path: Path) -> None:
    class Dying(StageCheckpoints):
        def save(self, step: int, tensors: Any, state: Any) -> None:
            super().save(step, tensors, state)
            raise KeyboardInterrupt

    store, recorder = Store(tmp_path), Recorder()
    with pytest.raises(KeyboardInterrupt):
        teach(resume_config=ResumeConfig(Dying(store, "k"), 2))
    teach(resume_config=ResumeConfig(StageCheckpoints(store, "k"), 2), extra_callbacks=[recorder])
    assert recorder.seen == [("start", 2), ("before", 2), ("step", 3)]


@pytest.mark.parametrize("batch_idx", [2, 3])
def test_a_callback_can_end_a_stage_and_its_step_is_whole(tmp_path: Path, batch_idx: int) -> None:
    """Two micro-batches a step: asked for within step 2, or at its end, the stage has two whole steps."""
    partial = StageCheckpoints(Store(tmp_path), "k")
    lmm, _, fitted, _ = teach(
        hardware=SMALL, extra_callbacks=[EndAt(batch_idx)], resume_config=ResumeConfig(partial, 1)
    )
    assert (fitted.num_steps, fitted.stopped_after_step) == (2, 2)
    at_the_end = teach(hardware=SMALL, extra_callbacks=[EndAt(3)])[0]
    assert hash_parameters(lmm.model) == hash_parameters(at_the_end.model)
    found = partial.load_latest()
    assert found is not None and found[1]["step"] == 1, "a stage that is resumed must end again"


def test_what_a_callback_logs_is_in_the_next_row_of_the_curve() -> None:
    class Noise(StageCallback):
        def on_optimizer_step_end(self, trainer: pl.Trainer, module: StageModule, metrics: Mapping[str, float]) -> None:
            module.log("twice_the_loss", 2 * metrics["loss"])
            assert trainer.logger is not None
            trainer.logger.log_metrics({"steps": float(module.steps_done)})

    class Tracker(NullTracker):
        def __init__(self) -> None:
            self.rows: dict[int, dict[str, float]] = {}

        def log_step(self, task: str, step: int, metrics: Mapping[str, float]) -> None:
            self.rows[step] = dict(metrics)

    tracker = Tracker()
    config = {"noise": None, **DEFAULT, "step_logging": {**DEFAULT["step_logging"], "every_n_steps": 2}}
    teach(training={"epochs": 2}, tracker=tracker, extra_callbacks=[Noise()], callbacks_config=config)
    assert list(tracker.rows) == [1, 3, 5, 6]
    assert tracker.rows[3]["steps"] == 2.0, "what was logged after the row before"
    assert tracker.rows[6]["twice_the_loss"] > 0 and {"loss", "grad_norm"} <= tracker.rows[6].keys()


def test_memory_is_measured_in_every_step() -> None:
    memory = StateMemory()
    _, plan, fitted, _ = teach(extra_callbacks=[memory])
    assert len(memory.measurements) == fitted.num_steps
    assert all(m.total == pytest.approx(plan.state_bytes, rel=0.05) for m in memory.measurements)


def test_a_probe_needs_its_callback() -> None:
    class Never:
        def is_due(self, step: int) -> bool:
            return False

        def __call__(self, step: int) -> bool:
            return False

    without = {name: node for name, node in DEFAULT.items() if name != "probes"}
    with pytest.raises(ConfigError, match="the chosen probe needs callbacks.probes"):
        teach(callbacks_config=without, step_probe=Never())
    assert teach(callbacks_config=without)[2].num_steps == 3


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "nowhere.Nothing"}, r"^callbacks.mine: there is no _target_ nowhere.Nothing$"),
        ({"_target_": "collections.OrderedDict"}, r"^callbacks.mine: .* is not a Callback$"),
        ({"every": 3}, r"^callbacks.mine: .* is not a Callback$"),
        (3, r"^callbacks.mine: 3 is not of the form"),
    ],
)
def test_a_node_that_is_no_callback_is_refused(node: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_callbacks({"mine": node})


def test_the_default_callbacks_are_the_packaged_ones() -> None:
    names = [type(callback).__name__ for callback in build_callbacks()]
    assert names == ["StepProgress", "StepLogging", "StopSignal", "StepProbes", "ResumeCheckpoint"]
    assert [type(c) for c in build_callbacks({"probes": DEFAULT["probes"], "resume": None})] == [StepProbes]


def test_only_a_users_callback_is_in_the_stage_key() -> None:
    def view(*words: str) -> Any:
        return select_training_config(resolve_config(compose_config(["experiment=smoke", *words])), "tiny_cub200")

    plain, memory = view(), "callbacks.memory._target_=lmm_forget.training.callbacks.memory.StateMemory"
    assert view("callbacks.step_logging.every_n_steps=1", memory) == plain and "callbacks" not in plain
    mine = view("callbacks.mine._target_=my.Own", "callbacks.mine.size=3")
    assert mine == {**plain, "callbacks": {"mine": {"_target_": "my.Own", "size": 3}}}
    assert view("+callbacks.mine._target_=my.Own", "+callbacks.mine.size=3") == mine


class Hooked(Plain):
    """Keeps a running sum of gradient norms, which a resumed stage needs."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.total: Tensor | None = None

    def start_stage(self, context: Any, lmm: Any, *given: Any) -> None:
        super().start_stage(context, lmm, *given)
        self.parameters = [p for p in lmm.model.parameters() if p.requires_grad]

    def on_gradients(self, step: int) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = sum(g.double().pow(2).sum() for g in gradients)
        self.total = norm if self.total is None else self.total + norm
        self.before = [p.detach().clone() for p in self.parameters]
        self.calls.append(("gradients", step))

    def on_step_end(self, step: int) -> None:
        assert any(not (p == b).all() for p, b in zip(self.parameters, self.before, strict=True))
        self.calls.append(("step", step))

    def resume_state(self) -> dict[str, Tensor]:
        return {} if self.total is None else {"total": self.total}

    def load_resume_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.total = tensors["total"]


def test_a_method_hears_of_gradients_and_steps_and_its_tensors_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(**more: Any) -> Hooked:
        method = Hooked()
        monkeypatch.setattr("tests.training.lesson.build_method", lambda recipe: method)
        teach(training={**TRAINING, "max_grad_norm": 1e-3, "epochs": 2}, **more)
        return method

    class Dying(StageCheckpoints):
        def save(self, step: int, tensors: Any, state: Any) -> None:
            super().save(step, tensors, state)
            raise KeyboardInterrupt

    whole = train()
    assert whole.calls == [event for k in range(6) for event in (("gradients", k), ("step", k))]
    assert whole.total is not None and float(whole.total) > 6 * 1e-6, "gradients come before they are clipped"
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(resume_config=ResumeConfig(Dying(store, "k"), 4))
    resumed = train(resume_config=ResumeConfig(StageCheckpoints(store, "k"), 4))
    assert resumed.calls[0] == ("gradients", 4) and resumed.total is not None
    assert float(resumed.total) == float(whole.total)


USER_MODULE = '''
import json
from pathlib import Path

import lightning.pytorch as pl


class StepCounter(pl.Callback):
    """A class of the user's own, in a file on PYTHONPATH."""

    def __init__(self, path: str) -> None:
        self.path, self.steps = Path(path), []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if outputs:
            self.steps.append(trainer.global_step)

    def on_train_end(self, trainer, pl_module) -> None:
        self.path.write_text(json.dumps([pl_module.config.task, *self.steps]))
'''


@pytest.mark.timeout(900)
def test_callbacks_on_the_command_line(tmp_path: Path) -> None:
    """Lightning's DeviceStatsMonitor, and a class of the user's, by the words that docs/training.md gives."""
    (tmp_path / "my_callbacks.py").write_text(USER_MODULE)
    words = ["experiment=smoke", "sequence=single", "sequence.task=cub200", "suite.tasks=[ai2d]", "data.eval_samples=2"]
    words += ["callbacks.stats._target_=lightning.pytorch.callbacks.DeviceStatsMonitor", "hardware.micro_batch_size=4"]
    words += ["callbacks.mine._target_=my_callbacks.StepCounter", "callbacks.mine.path=steps.json"]
    done = subprocess.run(
        [sys.executable, "-m", "lmm_forget.run", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "steps.json").read_text()) == ["tiny_cub200", 1, 2]
    (job,) = (tmp_path / "multirun" / "smoke").glob("*/results.json")
    assert json.loads(job.read_text())["config"]["callbacks"]["mine"]["_target_"] == "my_callbacks.StepCounter"
