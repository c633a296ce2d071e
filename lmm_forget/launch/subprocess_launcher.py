"""The launcher behind `-m`: every grid point composed and checked first, then each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lmm_forget.config import (
    build_job_name,
    build_single_job_name,
    find_swept_choices,
    format_config_error,
    list_config_dirs,
    resolve_config,
)
from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.launch import hydra_output
from lmm_forget.launch.job_folders import MULTIRUN_DIR, Job, make_job
from lmm_forget.launch.local import print_job_failures, run_jobs, write_and_print_summary
from lmm_forget.launch.outcomes import HydraRunEnded, JobOutcome, LaunchResult


class SweepJobReturn(JobReturn):
    """What a sweeper gets for one job; reading a failed one's value raises its cause and prints nothing."""

    @property
    def return_value(self) -> Any:
        """The objective of a finished job. Raises LaunchError for a failed one."""
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


class SubprocessLauncher(Launcher):
    """Runs grid points as processes (`lmm-forget job`), side by side as `hardware.max_parallel_jobs` allows.

    The plugin class that Hydra sees derives from this one; Hydra insists that it lies in `hydra_plugins`.
    `grace` is how many seconds a stopped job gets before it is killed.
    """

    def __init__(self, grace: float = 80.0) -> None:
        self.grace = float(grace)
        self._config: DictConfig | None = None
        self._context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `launch` needs; the task function is not called, a job's process does its work."""
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one batch of grid points to its end; a return value is the job's objective.

        Raises ConfigError before anything is started if any grid point cannot be used, HydraRunEnded where the launch
        ends early (a plan alone, Ctrl-C), and after a sweep in one batch LaunchError naming the jobs that failed.
        """
        setup_globals()
        assert self._config is not None and self._context is not None
        if not job_overrides:
            raise ConfigError("the sweep has no grid point: one of its choices is empty")
        if len(job_overrides) > 20:
            print(
                f"checking {len(job_overrides)} grid points before the first one starts",
                file=sys.stderr,
                flush=True,
            )
        jobs = [self._build_job([*overrides]) for overrides in job_overrides]
        result = self.run_all_jobs(jobs)
        if result.early_exit_code is not None:
            raise HydraRunEnded(result)
        outcomes = result.outcomes
        write_and_print_summary(jobs[0].folder.parent, [outcome for outcome in outcomes if not outcome.is_finished])
        error = print_job_failures(outcomes)
        if error is not None and self.is_single_batch:
            raise error
        return [
            _build_job_return(outcome, overrides) for outcome, overrides in zip(outcomes, job_overrides, strict=True)
        ]

    def run_all_jobs(self, jobs: Sequence[Job]) -> LaunchResult:
        """Run these jobs to their end, wherever this launcher runs them; failures do not raise."""
        return run_jobs(jobs, self.grace, self.accept_sweep_folder)

    def accept_sweep_folder(self) -> None:
        """The jobs have been checked and will run: what Hydra wrote about the sweep goes to the sweep's folder."""
        assert self._config is not None
        hydra_output.accept_sweep(Path(self._config.hydra.sweep.dir), MULTIRUN_DIR / str(self._config.name))

    @property
    def is_single_batch(self) -> bool:
        """Whether the sweeper asks once and for all, and does nothing with what comes back."""
        assert self._config is not None
        return self._config.hydra.sweeper.get("max_batch_size") is None and _is_grid_sweep(self._config)

    def _build_job(self, overrides: list[str]) -> Job:
        """Compose one grid point, make it concrete, and name it after what the sweep varies."""
        assert self._config is not None and self._context is not None
        try:
            composed = self._context.config_loader.load_sweep_config(self._config, overrides)
            name = str(self._config.name)
        except Exception as error:  # whatever Hydra makes of these words
            raise ConfigError(f"{' '.join(overrides)}: {format_config_error(error, overrides)}") from error
        choices = find_swept_choices(overrides, list_sweep_overrides(self._config))
        grid = composed.hydra.sweeper.get("params")
        if "experiment" in choices and grid:
            swept_keys = ", ".join(map(str, grid))
            raise ConfigError(
                f"experiment={choices['experiment']} is a sweep itself, over {swept_keys}; start each such "
                "experiment with a "
                "command of its own"
            )
        if "name" in choices:
            raise ConfigError("name cannot be varied by a sweep; it is the folder that holds all of the sweep's jobs")
        try:
            config = resolve_config(composed, list_config_dirs(self._config), name)
        except ConfigError as error:
            grid_point_text = (
                f" (grid point {', '.join(f'{key}={value}' for key, value in choices.items())})" if choices else ""
            )
            raise ConfigError(f"{error}{grid_point_text}") from error
        groups = [str(key) for key in composed.hydra.runtime.choices]
        return make_job(config, build_job_name(choices, groups) if choices else build_single_job_name(config))


def list_sweep_overrides(config: DictConfig) -> list[str]:
    """The overrides of a sweep before it is expanded: the sweeper's own parameters, then the command line's."""
    params = OmegaConf.select(config, "hydra.sweeper.params")
    sweeper_overrides = [f"{key}={value}" for key, value in (params or {}).items()]
    return [*sweeper_overrides, *(str(item) for item in config.hydra.overrides.task)]


def _is_grid_sweep(cfg: DictConfig) -> bool:
    """Whether Hydra's plain grid sweeper is at work, which asks for one batch and stops at the first failure."""
    return str(cfg.hydra.sweeper._target_).endswith("BasicSweeper")


def _build_job_return(job_outcome: JobOutcome, overrides: Sequence[str]) -> JobReturn:
    job = job_outcome.job
    job_return = SweepJobReturn(overrides=list(overrides), working_dir=str(Path.cwd()), task_name=job.name)
    job_return.cfg = OmegaConf.create(dict(job.config))
    if job_outcome.is_finished:
        job_return.status = JobStatus.COMPLETED
        job_return.return_value = job.read_objective()
    else:
        job_return.status = JobStatus.FAILED
        job_return.return_value = LaunchError(f"{job.name}: {job_outcome.cause}")
    return job_return
