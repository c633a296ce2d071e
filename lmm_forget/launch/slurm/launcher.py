"""The launcher behind `-m hydra/launcher=slurm`: every grid point composed and checked first, then a Slurm job each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lmm_forget.launch.isolated import Isolated
from lmm_forget.launch.jobs import Job
from lmm_forget.launch.processes import Outcome
from lmm_forget.launch.slurm.settings import Settings
from lmm_forget.launch.slurm.watch import refuse_without_waiting, run_in_slurm


class Slurm(Isolated):
    """Hands grid points to Slurm, one job each with a task for every device, and waits for them.

    The plugin class that Hydra sees derives from this one; Hydra insists that it lies in `hydra_plugins`. `given` is
    what conf/hydra/launcher/slurm.yaml holds; it is checked when the jobs are known.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.given = {
            key: OmegaConf.to_container(value) if isinstance(value, (DictConfig, ListConfig)) else value
            for key, value in given.items()
        }

    def work(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Bring these jobs to their end in Slurm; see run_in_slurm. Raises ConfigError for unusable settings."""
        refuse_without_waiting(not self.one_batch, jobs[0].config)
        return run_in_slurm(jobs, Settings.read(self.given), self.accept)
