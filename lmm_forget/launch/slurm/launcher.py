"""The launcher behind `-m hydra/launcher=slurm`: every grid point composed and checked first, then a Slurm job each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lmm_forget.launch.job_folders import Job
from lmm_forget.launch.outcomes import LaunchResult
from lmm_forget.launch.slurm.monitor import check_submit_only_allowed, run_jobs_in_slurm
from lmm_forget.launch.slurm.settings import SlurmSettings
from lmm_forget.launch.subprocess_launcher import SubprocessLauncher


class SlurmQueueLauncher(SubprocessLauncher):
    """Hands grid points to Slurm, one job each with a task for every device, and waits for them.

    The plugin class that Hydra sees derives from this one; Hydra insists that it lies in `hydra_plugins`.
    `settings` is what conf/hydra/launcher/slurm.yaml holds; it is checked when the jobs are known.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = {
            key: OmegaConf.to_container(value) if isinstance(value, (DictConfig, ListConfig)) else value
            for key, value in settings.items()
        }

    def run_all_jobs(self, jobs: Sequence[Job]) -> LaunchResult:
        """Run these jobs to their end in Slurm; see run_jobs_in_slurm. Raises ConfigError for unusable settings."""
        check_submit_only_allowed(not self.is_single_batch, jobs[0].config)
        return run_jobs_in_slurm(jobs, SlurmSettings.from_config(self.settings), self.accept_sweep_folder)
