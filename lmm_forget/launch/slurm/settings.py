"""What is asked of Slurm for a job: the launcher's YAML, checked, and as parameters of submitit's executor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lmm_forget.config.messages import closest
from lmm_forget.errors import ConfigError

TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
"""Slurm's own forms of a duration: minutes, hours:minutes:seconds, days-hours, …"""
TEXTS = ("partition", "account", "qos", "constraint", "gres", "mem", "python")


@dataclass(frozen=True)
class Settings:
    """The fields of conf/hydra/launcher/slurm.yaml, each explained there; None leaves a choice to the cluster."""

    time: int | str = 60
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    gpus_per_node: int | str | None = "auto"
    cpus_per_task: int | str = "auto"
    mem: str | None = None
    signal: int = 120
    max_requeues: int = 30
    array_parallelism: int = 256
    setup: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = None
    poll: float = 5.0

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Settings:
        """From plain data. Raises ConfigError naming the field that cannot be used, and what would be right."""
        known = [one.name for one in fields(cls)]
        for key, value in given.items():
            if key not in known:
                raise ConfigError(
                    f"there is no hydra.launcher.{key}; slurm has: {', '.join(known)}{closest(str(key), known)}"
                )
            right = _right(key, value)
            if right:
                raise ConfigError(f"hydra.launcher.{key}={value} cannot be used; it must be {right}")
        whole = dict(given)
        whole["setup"] = tuple(given.get("setup") or ())
        whole["extra"] = dict(given.get("extra") or {})
        for key in TEXTS:
            whole[key] = None if given.get(key) is None else str(given[key])
        return cls(**whole)

    def parameters(self, hardware: Mapping[str, Any], name: str) -> dict[str, Any]:
        """submitit's parameters for jobs called `name` with this `hardware`: one task per device."""
        cpus, gpus = self.cpus_per_task, self.gpus_per_node
        if cpus == "auto":
            cpus = max(1, int(hardware["threads"]) + int(hardware["workers"]))
        if gpus == "auto":
            gpus = hardware["devices"] if hardware["accelerator"] == "gpu" and self.gres is None else None
        several = {"mem": self.mem} if self.mem is not None else {}
        return {
            "job_name": name,
            "time": self.time,
            "nodes": int(hardware["nodes"]),
            "ntasks_per_node": int(hardware["devices"]),
            "cpus_per_task": cpus,
            "gpus_per_node": gpus,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": self.gres,
            "array_parallelism": self.array_parallelism,
            "wckey": None,  # submitit's own default means something only to clusters that know it
            "stderr_to_stdout": True,
            # One rank that fails ends the others; ranks may end at very different times. srun does not take
            # cpus-per-task over from sbatch since Slurm 22.05.
            "srun_args": ["--kill-on-bad-exit=1", "--wait=0", f"--cpus-per-task={cpus}"],
            "additional_parameters": {
                "signal": f"USR2@{self.signal}",
                "requeue": True,
                **several,
                **self.extra,
            },
        }


def _right(key: str, value: Any) -> str | None:
    """What `key` must hold, if `value` is not it."""
    if key == "time":
        fine = _whole(value, 1) or (isinstance(value, str) and TIME.fullmatch(value) is not None)
        return None if fine else "minutes, or a time as Slurm writes it, e.g. 12:00:00 or 1-06"
    if key in ("cpus_per_task", "gpus_per_node"):
        fine = value == "auto" or _whole(value, 1) or (value is None and key == "gpus_per_node")
        return None if fine else "a whole number of at least 1, or auto"
    if key in ("signal", "array_parallelism"):
        return None if _whole(value, 1) else "a whole number of at least 1"
    if key == "max_requeues":
        return None if _whole(value, 0) else "a whole number of at least 0"
    if key == "poll":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if number and value > 0 else "a number of seconds above 0"
    if key == "setup":
        fine = value is None or (isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value))
        return None if fine else "a list of shell lines"
    if key == "extra":
        return (
            None
            if value is None or isinstance(value, Mapping)
            else "sbatch options, e.g. {reservation: night}"
        )
    return None if value is None or (isinstance(value, (str, int)) and str(value)) else "a text, or null"


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
