"""What a `probe` configuration asks for, as the prober needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROBE_SEMANTICS = 1
"""Raised on purpose when probing changes what the same model and prompts give."""


@dataclass(frozen=True)
class Alarm:
    """Bounds on the drift from the base, looked at every `every` steps on `n` prompts; `action` is stop or warn."""

    bounds: Mapping[str, float]
    action: str
    every: int
    n: int


@dataclass(frozen=True)
class Spec:
    """A resolved `probe` node; fields as in conf/probe/output_shift.yaml."""

    output_shift: bool
    residual_to_logit: bool
    n: int
    residual_n: int
    modes: tuple[str, ...]
    forced_on: str
    token_sets: tuple[str, ...]
    at_steps: tuple[int, ...]
    at_tasks: tuple[str, ...] | None
    ask_at_steps: bool
    retrain: bool
    alarm: Alarm | None

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Spec | None:
        """The spec of a resolved node, None for `probe=none`; its values were checked when it was composed."""
        if not (node.get("output_shift") or node.get("residual_to_logit")):
            return None
        bounds = {name: float(bound) for name, bound in node["stop_when"].items() if bound is not None}
        return cls(
            output_shift=node["output_shift"],
            residual_to_logit=node["residual_to_logit"],
            n=node["n"],
            residual_n=node["residual_n"],
            modes=tuple(node["modes"]),
            forced_on=node["forced_on"],
            token_sets=tuple(node["token_sets"]),
            at_steps=tuple(sorted(set(node["at_steps"]))),
            at_tasks=None if node["at_tasks"] is None else tuple(node["at_tasks"]),
            ask_at_steps=node["ask_at_steps"],
            retrain=node["retrain"],
            alarm=Alarm(bounds, node["on_alarm"], node["alarm_every"], node["alarm_n"]) if bounds else None,
        )

    def milestones(self, task: str) -> tuple[int, ...]:
        """The steps after which the model is looked at in a stage that teaches `task`."""
        return self.at_steps if self.at_tasks is None or task in self.at_tasks else ()

    def look(self) -> dict[str, Any]:
        """The part that decides what a look at one model gives."""
        return {
            "output_shift": self.output_shift,
            "residual_n": self.residual_n if self.residual_to_logit else None,
            "modes": sorted(self.modes) if self.output_shift else ["forced"],
            "forced_on": self.forced_on,
            "semantics": PROBE_SEMANTICS,
        }
