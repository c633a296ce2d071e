"""What is requested from Slurm for a job: the launcher's YAML, checked, and as parameters of submitit's executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lmm_forget.config.schema.hardware_settings import SlurmLauncherSettings
from lmm_forget.config.schema.node_reading import read_settings

TEXT_FIELDS = ("partition", "account", "qos", "constraint", "gres", "mem", "python")


@dataclass(frozen=True, kw_only=True)
class SlurmSettings(SlurmLauncherSettings):
    """The fields of conf/hydra/launcher/slurm.yaml; None leaves a choice to the cluster."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SlurmSettings:
        """From plain data. Raises ConfigError naming the field that cannot be used, and what would be right."""
        settings = read_settings(cls, config, "hydra.launcher", "slurm")
        values = {key: getattr(settings, key) for key in TEXT_FIELDS}
        texts: dict[str, Any] = {key: str(value) for key, value in values.items() if value is not None}
        return replace(settings, setup=tuple(settings.setup or ()), extra=dict(settings.extra or {}), **texts)

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
