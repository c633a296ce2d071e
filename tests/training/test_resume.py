"""A stage that is stopped and taken up again leaves the same bytes as one that never stopped, also with dropout."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lmm_forget.distributed import stop_signals
from lmm_forget.distributed.stop_signals import StopRequested
from lmm_forget.errors import StoreError
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.store import StageCheckpoints, Store
from lmm_forget.training import train_state as states
from lmm_forget.training.train_state import ResumeConfig
from tests.training.lesson import HARDWARE, TRAINING, teach

DROPOUT = {**TRAINING, "attention_dropout": 0.3, "epochs": 3}
SMALL = {**HARDWARE, "micro_batch_size": 2}


class Killed(BaseException):
    """The process ends here, without a word."""


class Dying(StageCheckpoints):
    """Keeps states, and dies after the one of step `last` is whole."""

    last = 4

    def save(self, step: int, tensors: Any, state: Any) -> None:
        super().save(step, tensors, state)
        if step == self.last:
            raise Killed


def run(safe: StageCheckpoints, every: int = 2, **more: Any) -> tuple[dict[str, str], Any]:
    lmm, _, fitted, _ = teach(
        "llm", resume_config=ResumeConfig(safe, every), **{"training": DROPOUT, "hardware": SMALL, **more}
    )
    return hash_parameters(lmm.model), fitted


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[dict[str, str], Any]:
    lmm, _, fitted, _ = teach("llm", training=DROPOUT, hardware=SMALL)
    return hash_parameters(lmm.model), fitted


def interrupted(folder: Path, **more: Any) -> tuple[dict[str, str], Any]:
    store = Store(folder)
    with pytest.raises(Killed):
        run(Dying(store, "k"), **more)
    torch.manual_seed(99)
    torch.rand(7)
    return run(StageCheckpoints(store, "k"), **more)


def test_dropout_is_at_work(uninterrupted: tuple[dict[str, str], Any]) -> None:
    lmm, _, _, _ = teach("llm", training={**DROPOUT, "attention_dropout": None}, hardware=SMALL)
    assert hash_parameters(lmm.model) != uninterrupted[0]
    assert all(getattr(m, "attention_dropout", 0) == 0 for m in lmm.model.modules())


def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path, uninterrupted: tuple[dict[str, str], Any]) -> None:
    hashes, fitted = interrupted(tmp_path)
    assert hashes == uninterrupted[0]
    assert fitted.step_losses == uninterrupted[1].step_losses and fitted.num_steps == uninterrupted[1].num_steps == 9
    assert (fitted.resumed_from_step, fitted.is_exact) == (4, True)
    assert (uninterrupted[1].resumed_from_step, uninterrupted[1].is_exact) == (None, True)


def test_a_resume_says_where_it_goes_on(tmp_path: Path) -> None:
    from lmm_forget.progress import NullProgress

    class Hearing(NullProgress):
        def start_phase(self, name: str, total: int, unit: str) -> None:
            said.append(name)

    said: list[str] = []
    interrupted(tmp_path, progress=Hearing())
    assert said == ["train lesson", "train lesson from step 4"]


def test_without_the_random_states_it_is_not(
    tmp_path: Path, uninterrupted: tuple[dict[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmm_forget.training.stage_module.StageModule._restore_rng", lambda module: None)
    hashes, _ = interrupted(tmp_path)
    assert hashes != uninterrupted[0]


def test_without_the_moments_it_is_not(
    tmp_path: Path, uninterrupted: tuple[dict[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmm_forget.training.stage_module.restore_moments", lambda *_: None)
    hashes, _ = interrupted(tmp_path)
    assert hashes != uninterrupted[0]


def test_a_resume_keeps_the_micro_batch_it_began_with(
    tmp_path: Path, uninterrupted: tuple[dict[str, str], Any]
) -> None:
    store = Store(tmp_path)
    with pytest.raises(Killed):
        run(Dying(store, "k"))
    hashes, fitted = run(StageCheckpoints(store, "k"), hardware={**SMALL, "micro_batch_size": 4})
    assert fitted.micro_batch_size == 2 and fitted.is_exact and hashes == uninterrupted[0]


def test_another_layout_resumes_and_says_that_bytes_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = states.describe_topology
    monkeypatch.setattr(
        "lmm_forget.training.callbacks.resume.describe_topology", lambda *given: {**layout(*given), "world_size": 2}
    )
    _, fitted = interrupted(tmp_path)
    assert fitted.resumed_from_step == 4 and not fitted.is_exact


def test_a_kill_after_the_last_save_needs_no_step(tmp_path: Path, uninterrupted: tuple[dict[str, str], Any]) -> None:
    store = Store(tmp_path)
    partial = StageCheckpoints(store, "k")
    with asking_after(9), pytest.raises(StopRequested):
        run(partial, every=1000)
    hashes, fitted = run(partial)
    assert (
        fitted.resumed_from_step == 9
        and hashes == uninterrupted[0]
        and fitted.step_losses == uninterrupted[1].step_losses
    )


class asking_after:
    """Sends this process SIGTERM from within optimizer step `step`, between two of its micro-batches' gradients."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def __enter__(self) -> None:
        self.before = {n: signal.getsignal(n) for n in stop_signals.STOP_SIGNALS}
        stop_signals.install_stop_handlers()
        from lmm_forget.recipes.plain import Plain

        self.loss, calls = Plain.loss, 0

        def loss(method: Any, *args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2 * self.step - 1:  # the first of the two micro-batches of that step
                os.kill(os.getpid(), self.number)
            return self.loss(method, *args)

        Plain.loss = loss  # type: ignore[method-assign]

    def __exit__(self, *_: Any) -> None:
        from lmm_forget.recipes.plain import Plain

        Plain.loss = self.loss  # type: ignore[method-assign]
        for number, handler in self.before.items():
            signal.signal(number, handler)
        stop_signals._stop_requested.clear()
        stop_signals._handlers_installed = False


@pytest.fixture(autouse=True)
def no_sudden_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The timer that ends a process which does not stop must not end the tests."""
    monkeypatch.setattr(stop_signals, "_stop_limit", 10**6)
    yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_request_to_stop_is_honoured_after_the_whole_step(
    tmp_path: Path, uninterrupted: tuple[dict[str, str], Any], number: int
) -> None:
    partial = StageCheckpoints(Store(tmp_path), "k")
    with asking_after(5, number), pytest.raises(StopRequested):
        run(partial, every=1000)
    found = partial.load_latest()
    assert found is not None and found[1]["step"] == 5
    hashes, fitted = run(partial)
    assert fitted.resumed_from_step == 5 and hashes == uninterrupted[0]


class Looking:
    """Wants to look after step 2 and notes when it did; is asked to stop while it looks, the first time, if `late`."""

    def __init__(self, seen: list[int], late: bool = False) -> None:
        self.seen, self.late = seen, late

    def is_due(self, step: int) -> bool:
        return step == 2

    def __call__(self, step: int) -> bool:
        if self.late:
            os.kill(os.getpid(), signal.SIGTERM)
            raise StopRequested  # what a question does that notices
        self.seen.append(step)
        return False


@pytest.mark.parametrize("late", [True, False])
def test_a_look_that_had_no_time_is_made_up_for(
    tmp_path: Path, uninterrupted: tuple[dict[str, str], Any], late: bool
) -> None:
    """Asked to stop in the step before a look, or while it looks: the step is kept, and whoever goes on looks first."""
    partial, seen = StageCheckpoints(Store(tmp_path), "k"), []
    with asking_after(1000 if late else 2), pytest.raises(StopRequested):
        run(partial, every=1000, step_probe=Looking(seen, late))
    found = partial.load_latest()
    assert found is not None and found[1]["step"] == 2 and not seen
    hashes, fitted = run(partial, step_probe=Looking(seen))
    assert seen == [2] and fitted.resumed_from_step == 2
    assert hashes == uninterrupted[0]


def test_a_look_can_end_a_stage_that_was_stopped_before_it(tmp_path: Path) -> None:
    class Ending(Looking):
        def __call__(self, step: int) -> bool:
            super().__call__(step)
            return True

    partial = StageCheckpoints(Store(tmp_path), "k")
    with asking_after(2), pytest.raises(StopRequested):
        run(partial, every=1000, step_probe=Ending([]))
    hashes, fitted = run(partial, step_probe=Ending([]))
    assert (fitted.stopped_after_step, fitted.num_steps) == (2, 2)
    straight, once = run(StageCheckpoints(Store(tmp_path), "other"), every=1000, step_probe=Ending([]))
    assert once.stopped_after_step == 2 and straight == hashes


def test_a_step_that_was_taken_again_in_less_memory_costs_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Micro-batches add up in another order: the record says so, as a saved state does."""
    from lmm_forget.recipes.plain import Plain

    loss, failed = Plain.loss, []

    def cramped(method: Any, lmm: Any, batch: Any, labels: Any) -> Any:
        if len(labels) > 2 and not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("injected")
        return loss(method, lmm, batch, labels)

    monkeypatch.setattr(Plain, "loss", cramped)
    fitted = teach("sa_proj", training=TRAINING, hardware={**HARDWARE, "micro_batch_size": 4})[2]
    assert failed and fitted.micro_batch_size == 2 and not fitted.is_exact
    assert teach("sa_proj", training=TRAINING, hardware={**HARDWARE, "micro_batch_size": 4})[2].is_exact


def test_a_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Killed):
        run(Dying(store, "k"))
    with pytest.raises(StoreError, match=r"a saved training state does not fit: .* delete the store's partial"):
        teach("sa_proj", resume_config=ResumeConfig(StageCheckpoints(store, "k"), 2), training=DROPOUT, hardware=SMALL)
