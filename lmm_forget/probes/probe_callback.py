"""Probes a model while a stage trains: at milestones, and for the alarm that ends a stage which drifts too far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmm_forget.probes.prober import Prober, ProbeResult
from lmm_forget.store.keys import hash_json


@dataclass
class StageProbeResults:
    """Probe results of one stage: of its final model, of its milestones by optimizer step, and the alarm.

    A stage from the store may have been trained without these milestones (`missing_steps`) or without this alarm
    (`is_alarm_unknown`). `alarm` is None if it did not go off.
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
                {"step": step, "readings": result.readings, **({"scores": result.scores} if result.scores else {})}
                for step, result in sorted(self.milestones.items())
            ],
            "missing_steps": list(self.missing_steps),
            "alarm": None if self.alarm is None else dict(self.alarm),
            "alarm_unknown": self.is_alarm_unknown,
        }


class ProbeCallback:
    """Called after every optimizer step of one stage; saves milestones and the alarm in the store.

    `compute_scores` evaluates the model at a milestone (only with `probe.evaluate_at_steps`); `eval_identity` is a hash
    of the questions that it evaluates, which becomes part of the key that a milestone is saved under.
    """

    def __init__(
        self,
        prober: Prober,
        stage_key: str,
        task: str,
        compute_scores: Callable[[], dict[str, Any]],
        eval_identity: str,
    ) -> None:
        self._prober, self._stage_key, self._task = prober, stage_key, task
        self._compute_scores = compute_scores
        self._eval_identity = eval_identity if prober.config.evaluate_at_steps else None
        self.retrain = prober.config.retrain
        self._milestone_steps = prober.config.get_milestone_steps(task)
        self.alarm: dict[str, Any] | None = None
        if prober.config.alarm is not None and prober.config.alarm.action == "warn":
            # A stage that resumes from a checkpoint may have raised its warning before.
            self.alarm = (prober.load_json(self._make_alarm_key()) or {}).get("alarm")

    def is_due(self, step: int) -> bool:
        """Whether the model may have to be probed after this step, whatever the store already holds."""
        config = self._prober.config
        return step in config.at_steps or (config.alarm is not None and step % config.alarm.every_n_steps == 0)

    def __call__(self, step: int) -> bool:
        """Probe the model if this step is a milestone or the alarm is due; returns True if the stage must end."""
        config = self._prober.config
        if step in self._milestone_steps and self._prober.load_result(self._make_milestone_key(step)) is None:
            self._prober.probe_during_training(
                self._make_milestone_key(step), self._compute_scores if config.evaluate_at_steps else None
            )
        if config.alarm is None or self.alarm is not None or step % config.alarm.every_n_steps:
            return False
        self.alarm = self._find_exceeded_bound(step)
        if self.alarm is None:
            return False
        self.save_alarm()
        return config.alarm.action == "stop"

    def save_alarm(self) -> None:
        """Save the alarm, or that it did not go off, once the stage is over."""
        if self._prober.config.alarm is not None:
            self._prober.save_json(self._make_alarm_key(), {"alarm": self.alarm})

    def find_missing_milestones(self, num_steps: int) -> tuple[int, ...]:
        """Configured milestones of a stage of `num_steps` steps that the store does not hold."""
        due_steps = [step for step in self._milestone_steps if step <= num_steps]
        return tuple(step for step in due_steps if self._prober.load_result(self._make_milestone_key(step)) is None)

    def collect_results(self, stage_result: ProbeResult, num_steps: int) -> StageProbeResults:
        """The results of a stage of `num_steps` steps: milestones and alarm from the store, and its final model's."""
        missing_steps = self.find_missing_milestones(num_steps)
        recorded_steps = [step for step in self._milestone_steps if step <= num_steps and step not in missing_steps]
        loaded_results = {step: self._prober.load_result(self._make_milestone_key(step)) for step in recorded_steps}
        milestones = {step: result for step, result in loaded_results.items() if result}
        if self._prober.config.alarm is None:
            return StageProbeResults(stage_result, milestones, missing_steps)
        alarm_entry = self._prober.load_json(self._make_alarm_key())
        alarm = (alarm_entry or {}).get("alarm")
        return StageProbeResults(stage_result, milestones, missing_steps, alarm, is_alarm_unknown=alarm_entry is None)

    def _find_exceeded_bound(self, step: int) -> dict[str, Any] | None:
        alarm = self._prober.config.alarm
        assert alarm is not None
        for prompt_set in self._prober.prompt_sets:
            drift = self._prober.measure_drift(prompt_set, alarm.num_prompts, self._task)
            for metric, bound in alarm.bounds.items():
                if drift[metric] > bound:
                    return {
                        "step": step,
                        "figure": metric,
                        "prompts": prompt_set.task.name,
                        "bound": bound,
                        "value": drift[metric],
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
        alarm = self._prober.config.alarm
        assert alarm is not None
        rule = {
            "bounds": dict(alarm.bounds),
            "action": alarm.action,
            "every": alarm.every_n_steps,
            "n": alarm.num_prompts,
        }
        return hash_json({"stage": self._stage_key, "alarm": rule, **self._prober.describe_identity()})
