"""What is looked at while a stage trains: milestones, and the alarm that ends a stage which drifts too far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmm_forget.probes.prober import Prober, ProbeResult
from lmm_forget.store.keys import hash_json


@dataclass
class StageProbeResults:
    """What was seen of one stage: the stage model, its milestones by step, and the alarm.

    Milestones, and how the alarm went, are missing where the stage was trained before anybody wanted to know.
    """

    stage_result: ProbeResult
    milestones: dict[int, ProbeResult] = field(default_factory=dict)
    missing_steps: tuple[int, ...] = ()
    alarm: Mapping[str, Any] | None = None
    is_alarm_unknown: bool = False

    def to_json(self) -> dict[str, Any]:
        """The stage's `probes` entry in results.json."""
        return {
            "readings": self.stage_result.readings,
            "milestones": [
                {"step": step, "readings": look.readings, **({"scores": look.scores} if look.scores else {})}
                for step, look in sorted(self.milestones.items())
            ],
            "missing_steps": list(self.missing_steps),
            "alarm": None if self.alarm is None else dict(self.alarm),
            "alarm_unknown": self.is_alarm_unknown,
        }


class ProbeCallback:
    """Called after every optimizer step of one stage; milestones and the alarm are filed under the stage's key.

    `ask` gives the scores of a milestone, if `probe.evaluate_at_steps` wants them; `asked` identifies what it asks.
    """

    def __init__(
        self,
        prober: Prober,
        stage_key: str,
        task: str,
        compute_scores: Callable[[], dict[str, Any]],
        eval_identity: str,
    ) -> None:
        self._prober, self._stage_key, self._task, self._compute_scores = (
            prober,
            stage_key,
            task,
            compute_scores,
        )
        self._eval_identity = eval_identity if prober.spec.evaluate_at_steps else None
        self.retrain = prober.spec.retrain
        self._milestone_steps = prober.spec.get_milestone_steps(task)
        self.alarm: dict[str, Any] | None = None
        if prober.spec.alarm is not None and prober.spec.alarm.action == "warn":
            # A stage that goes on from a saved state has been warned before.
            self.alarm = (prober.load_json(self._make_alarm_key()) or {}).get("alarm")

    def is_due(self, step: int) -> bool:
        """Whether this step may be one to look at, whatever was filed before."""
        spec = self._prober.spec
        return step in spec.at_steps or (spec.alarm is not None and step % spec.alarm.every_n_steps == 0)

    def __call__(self, step: int) -> bool:
        """Look, if this step is one to look at; True ends the stage."""
        spec = self._prober.spec
        if step in self._milestone_steps and self._prober.load_result(self._make_milestone_key(step)) is None:
            self._prober.probe_during_training(
                self._make_milestone_key(step), self._compute_scores if spec.evaluate_at_steps else None
            )
        if spec.alarm is None or self.alarm is not None or step % spec.alarm.every_n_steps:
            return False
        self.alarm = self._find_exceeded_bound(step)
        if self.alarm is None:
            return False
        self.save_alarm()
        return spec.alarm.action == "stop"

    def save_alarm(self) -> None:
        """File how the alarm went; the stage is over."""
        if self._prober.spec.alarm is not None:
            self._prober.save_json(self._make_alarm_key(), {"alarm": self.alarm})

    def find_missing_milestones(self, num_steps: int) -> tuple[int, ...]:
        """Wanted milestones within a stage of `steps` steps that nobody has filed."""
        due_steps = [step for step in self._milestone_steps if step <= num_steps]
        return tuple(step for step in due_steps if self._prober.load_result(self._make_milestone_key(step)) is None)

    def collect_results(self, stage_result: ProbeResult, num_steps: int) -> StageProbeResults:
        """Everything filed about this stage of `steps` steps, together with the look at its stage model."""
        missing_steps = self.find_missing_milestones(num_steps)
        recorded_steps = [step for step in self._milestone_steps if step <= num_steps and step not in missing_steps]
        loaded_results = {step: self._prober.load_result(self._make_milestone_key(step)) for step in recorded_steps}
        milestones = {step: look for step, look in loaded_results.items() if look}
        if self._prober.spec.alarm is None:
            return StageProbeResults(stage_result, milestones, missing_steps)
        note = self._prober.load_json(self._make_alarm_key())
        return StageProbeResults(
            stage_result, milestones, missing_steps, (note or {}).get("alarm"), is_alarm_unknown=note is None
        )

    def _find_exceeded_bound(self, step: int) -> dict[str, Any] | None:
        alarm = self._prober.spec.alarm
        assert alarm is not None
        for prompts in self._prober.prompts:
            drift = self._prober.measure_drift(prompts, alarm.num_prompts, self._task)
            for figure, bound in alarm.bounds.items():
                if drift[figure] > bound:
                    return {
                        "step": step,
                        "figure": figure,
                        "prompts": prompts.task.name,
                        "bound": bound,
                        "value": drift[figure],
                        "action": alarm.action,
                    }
        return None

    def _make_milestone_key(self, step: int) -> str:
        identity = {
            "stage": self._stage_key,
            "step": step,
            "evaluated": self._eval_identity,
            **self._prober.describe_identity(),
        }
        return hash_json(identity)

    def _make_alarm_key(self) -> str:
        alarm = self._prober.spec.alarm
        assert alarm is not None
        rule = {
            "bounds": dict(alarm.bounds),
            "action": alarm.action,
            "every": alarm.every_n_steps,
            "n": alarm.num_prompts,
        }
        return hash_json({"stage": self._stage_key, "alarm": rule, **self._prober.describe_identity()})
