"""The typed form of a `probe` configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROBE_VERSION = 2
"""Part of every key; raised when the same model and prompts give other readings than before."""


@dataclass(frozen=True)
class DriftAlarm:
    """Bounds on the drift from the base, checked every `every_n_steps` optimizer steps on `num_prompts` prompts.

    `bounds` maps a metric of `Prober.measure_drift` to its largest allowed value; `action` is "stop" or "warn".
    """

    bounds: Mapping[str, float]
    action: str
    every_n_steps: int
    num_prompts: int


@dataclass(frozen=True)
class ProbeConfig:
    """A resolved `probe` configuration; conf/probe/output_shift.yaml explains its fields."""

    output_shift: bool
    residual_to_logit: bool
    n: int
    residual_n: int
    modes: tuple[str, ...]
    forced_on: str
    token_sets: tuple[str, ...]
    at_steps: tuple[int, ...]
    at_tasks: tuple[str, ...] | None
    evaluate_at_steps: bool
    retrain: bool
    alarm: DriftAlarm | None

    @classmethod
    def from_config(cls, probe_config: Mapping[str, Any]) -> ProbeConfig | None:
        """From a resolved configuration, whose values were checked when it was composed; None for `probe=none`."""
        if not (probe_config.get("output_shift") or probe_config.get("residual_to_logit")):
            return None
        bounds = {name: float(bound) for name, bound in probe_config["stop_when"].items() if bound is not None}
        return cls(
            output_shift=probe_config["output_shift"],
            residual_to_logit=probe_config["residual_to_logit"],
            n=probe_config["n"],
            residual_n=probe_config["residual_n"],
            modes=tuple(probe_config["modes"]),
            forced_on=probe_config["forced_on"],
            token_sets=tuple(probe_config["token_sets"]),
            at_steps=tuple(sorted(set(probe_config["at_steps"]))),
            at_tasks=None if probe_config["at_tasks"] is None else tuple(probe_config["at_tasks"]),
            evaluate_at_steps=probe_config["evaluate_at_steps"],
            retrain=probe_config["retrain"],
            alarm=DriftAlarm(bounds, probe_config["on_alarm"], probe_config["alarm_every"], probe_config["alarm_n"])
            if bounds
            else None,
        )

    def get_milestone_steps(self, task: str) -> tuple[int, ...]:
        """The optimizer steps after which the model is probed in a stage that trains `task`."""
        return self.at_steps if self.at_tasks is None or task in self.at_tasks else ()

    def describe_result_settings(self) -> dict[str, Any]:
        """The fields that decide the readings of one model; part of the key that they are saved under."""
        return {
            "output_shift": self.output_shift,
            "residual_n": self.residual_n if self.residual_to_logit else None,
            "modes": sorted(self.modes) if self.output_shift else ["forced"],
            "forced_on": self.forced_on,
            "semantics": PROBE_VERSION,
        }
