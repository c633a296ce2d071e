"""What is requested from Slurm for a job: the launcher's YAML, checked, and as parameters of submitit's executor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lmm_forget.config.error_messages import suggest_closest
from lmm_forget.errors import ConfigError

TIME_PATTERN = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
"""Slurm's own forms of a duration: minutes, hours:minutes:seconds, days-hours, …"""
TEXT_FIELDS = ("partition", "account", "qos", "constraint", "gres", "mem", "python")


@dataclass(frozen=True)
class SlurmSettings:
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
    def from_config(cls, config: Mapping[str, Any]) -> SlurmSettings:
        """From plain data. Raises ConfigError naming the field that cannot be used, and what would be right."""
        field_names = [known_field.name for known_field in fields(cls)]
        for key, value in config.items():
            if key not in field_names:
                raise ConfigError(
                    f"there is no hydra.launcher.{key}; slurm has: "
                    f"{', '.join(field_names)}{suggest_closest(str(key), field_names)}"
                )
            expected = _describe_expected_value(key, value)
            if expected:
                raise ConfigError(f"hydra.launcher.{key}={value} cannot be used; it must be {expected}")
        field_values = dict(config)
        field_values["setup"] = tuple(config.get("setup") or ())
        field_values["extra"] = dict(config.get("extra") or {})
        for key in TEXT_FIELDS:
            field_values[key] = None if config.get(key) is None else str(config[key])
        return cls(**field_values)

    def build_submitit_parameters(self, hardware: Mapping[str, Any], job_name: str) -> dict[str, Any]:
        """submitit's parameters for jobs called `job_name` with this `hardware`: one task per device."""
        cpus, gpus = self.cpus_per_task, self.gpus_per_node
        if cpus == "auto":
            cpus = max(1, int(hardware["threads"]) + int(hardware["num_workers"]))
        if gpus == "auto":
            gpus = hardware["devices"] if hardware["accelerator"] == "gpu" and self.gres is None else None
        memory = {"mem": self.mem} if self.mem is not None else {}
        return {
            "job_name": job_name,
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
                **memory,
                **self.extra,
            },
        }


def _describe_expected_value(key: str, value: Any) -> str | None:
    """What `key` must hold, if `value` is not it."""
    if key == "time":
        is_valid = _is_whole_number(value, 1) or (isinstance(value, str) and TIME_PATTERN.fullmatch(value) is not None)
        return None if is_valid else "minutes, or a time as Slurm writes it, e.g. 12:00:00 or 1-06"
    if key in ("cpus_per_task", "gpus_per_node"):
        is_valid = value == "auto" or _is_whole_number(value, 1) or (value is None and key == "gpus_per_node")
        return None if is_valid else "a whole number of at least 1, or auto"
    if key in ("signal", "array_parallelism"):
        return None if _is_whole_number(value, 1) else "a whole number of at least 1"
    if key == "max_requeues":
        return None if _is_whole_number(value, 0) else "a whole number of at least 0"
    if key == "poll":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if number and value > 0 else "a number of seconds above 0"
    if key == "setup":
        is_valid = value is None or (isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value))
        return None if is_valid else "a list of shell lines"
    if key == "extra":
        return None if value is None or isinstance(value, Mapping) else "sbatch options, e.g. {reservation: night}"
    return None if value is None or (isinstance(value, (str, int)) and str(value)) else "a text, or null"


def _is_whole_number(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum
