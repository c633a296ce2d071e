"""What is looked at while a stage trains: milestones, and the alarm that ends a stage which drifts too far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmm_forget.probes.prober import Look, Prober
from lmm_forget.store.keys import digest


@dataclass
class StageProbes:
    """What was seen of one stage: the stage model, its milestones by step, and the alarm.

    Milestones, and how the alarm went, are missing where the stage was trained before anybody wanted to know.
    """

    after: Look
    milestones: dict[int, Look] = field(default_factory=dict)
    missing_steps: tuple[int, ...] = ()
    alarm: Mapping[str, Any] | None = None
    alarm_missing: bool = False

    def to_json(self) -> dict[str, Any]:
        """The stage's `probes` entry in results.json."""
        return {
            "readings": self.after.readings,
            "milestones": [
                {"step": step, "readings": look.readings, **({"scores": look.scores} if look.scores else {})}
                for step, look in sorted(self.milestones.items())
            ],
            "missing_steps": list(self.missing_steps),
            "alarm": None if self.alarm is None else dict(self.alarm),
            "alarm_missing": self.alarm_missing,
        }


class Watch:
    """Called after every optimizer step of one stage; milestones and the alarm are filed under the stage's key.

    `ask` gives the scores of a milestone, if `probe.ask_at_steps` wants them; `asked` identifies what it asks.
    """

    def __init__(
        self, prober: Prober, stage_key: str, task: str, ask: Callable[[], dict[str, Any]], asked: str
    ) -> None:
        self._prober, self._key, self._task, self._ask = prober, stage_key, task, ask
        self._asked = asked if prober.spec.ask_at_steps else None
        self.retrain = prober.spec.retrain
        self._steps = prober.spec.milestones(task)
        self.alarm: dict[str, Any] | None = None
        if prober.spec.alarm is not None and prober.spec.alarm.action == "warn":
            # A stage that goes on from a saved state has been warned before.
            self.alarm = (prober.noted(self._alarm_key()) or {}).get("alarm")

    def wants(self, step: int) -> bool:
        """Whether this step may be one to look at, whatever was filed before."""
        spec = self._prober.spec
        return step in spec.at_steps or (spec.alarm is not None and step % spec.alarm.every == 0)

    def __call__(self, step: int) -> bool:
        """Look, if this step is one to look at; True ends the stage."""
        spec = self._prober.spec
        if step in self._steps and self._prober.filed(self._milestone(step)) is None:
            self._prober.look_within(self._milestone(step), self._ask if spec.ask_at_steps else None)
        if spec.alarm is None or self.alarm is not None or step % spec.alarm.every:
            return False
        self.alarm = self._exceeded(step)
        if self.alarm is None:
            return False
        self.close()
        return spec.alarm.action == "stop"

    def close(self) -> None:
        """File how the alarm went; the stage is over."""
        if self._prober.spec.alarm is not None:
            self._prober.note(self._alarm_key(), {"alarm": self.alarm})

    def missing(self, steps: int) -> tuple[int, ...]:
        """Wanted milestones within a stage of `steps` steps that nobody has filed."""
        wanted = [step for step in self._steps if step <= steps]
        return tuple(step for step in wanted if self._prober.filed(self._milestone(step)) is None)

    def seen(self, after: Look, steps: int) -> StageProbes:
        """Everything filed about this stage of `steps` steps, together with the look at its stage model."""
        missing = self.missing(steps)
        reached = [step for step in self._steps if step <= steps and step not in missing]
        found = {step: self._prober.filed(self._milestone(step)) for step in reached}
        milestones = {step: look for step, look in found.items() if look}
        if self._prober.spec.alarm is None:
            return StageProbes(after, milestones, missing)
        note = self._prober.noted(self._alarm_key())
        return StageProbes(after, milestones, missing, (note or {}).get("alarm"), alarm_missing=note is None)

    def _exceeded(self, step: int) -> dict[str, Any] | None:
        alarm = self._prober.spec.alarm
        assert alarm is not None
        for prompts in self._prober.prompts:
            drift = self._prober.drift(prompts, alarm.n, self._task)
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

    def _milestone(self, step: int) -> str:
        what = {"stage": self._key, "step": step, "asked": self._asked, **self._prober.identity()}
        return digest(what)

    def _alarm_key(self) -> str:
        alarm = self._prober.spec.alarm
        assert alarm is not None
        rule = {"bounds": dict(alarm.bounds), "action": alarm.action, "every": alarm.every, "n": alarm.n}
        return digest({"stage": self._key, "alarm": rule, **self._prober.identity()})
