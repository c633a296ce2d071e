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

from lmm_forget.config import one_line, resolve, search_path, single_name, slug, swept
from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.launch import scratch
from lmm_forget.launch.jobs import ROOT, Job, make_job
from lmm_forget.launch.processes import Outcome
from lmm_forget.launch.session import complain, run_jobs, show_summary


class Returned(JobReturn):
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


class Isolated(Launcher):
    """Runs grid points as processes (`lmm-forget job`), side by side as `hardware.jobs` allows.

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

        Raises ConfigError before anything is started if any grid point cannot be used, and after a sweep in one
        batch LaunchError naming the jobs that failed.
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
        jobs = [self._job([*overrides]) for overrides in job_overrides]
        outcomes = self.work(jobs)
        show_summary(jobs[0].folder.parent, [outcome for outcome in outcomes if not outcome.finished])
        error = complain(outcomes)
        if error is not None and self.one_batch:
            raise error
        return [
            _returned(outcome, overrides) for outcome, overrides in zip(outcomes, job_overrides, strict=True)
        ]

    def work(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Bring these jobs to their end, wherever this launcher runs them; failures do not raise."""
        return run_jobs(jobs, self.grace, self.accept)

    def accept(self) -> None:
        """The jobs have been checked and will run: what Hydra wrote about the sweep goes to the sweep's folder."""
        assert self._config is not None
        scratch.accept(Path(self._config.hydra.sweep.dir), ROOT / str(self._config.name))

    @property
    def one_batch(self) -> bool:
        """Whether the sweeper asks once and for all, and does nothing with what comes back."""
        assert self._config is not None
        return self._config.hydra.sweeper.get("max_batch_size") is None and _is_grid(self._config)

    def _job(self, overrides: list[str]) -> Job:
        """Compose one grid point, make it concrete, and name it after what the sweep varies."""
        assert self._config is not None and self._context is not None
        try:
            composed = self._context.config_loader.load_sweep_config(self._config, overrides)
            name = str(self._config.name)
        except Exception as error:  # whatever Hydra makes of these words
            raise ConfigError(f"{' '.join(overrides)}: {one_line(error, overrides)}") from error
        choices = swept(overrides, given_overrides(self._config))
        grid = composed.hydra.sweeper.get("params")
        if "experiment" in choices and grid:
            over = ", ".join(map(str, grid))
            raise ConfigError(
                f"experiment={choices['experiment']} is a sweep itself, over {over}; start each such experiment with a "
                "command of its own"
            )
        if "name" in choices:
            raise ConfigError(
                "name cannot be varied by a sweep; it is the folder that holds all of the sweep's jobs"
            )
        try:
            config = resolve(composed, search_path(self._config), name)
        except ConfigError as error:
            at = (
                f" (grid point {', '.join(f'{key}={value}' for key, value in choices.items())})"
                if choices
                else ""
            )
            raise ConfigError(f"{error}{at}") from error
        groups = [str(key) for key in composed.hydra.runtime.choices]
        return make_job(config, slug(choices, groups) if choices else single_name(config))


def given_overrides(cfg: DictConfig) -> list[str]:
    """The overrides of a sweep before it is expanded: the sweeper's own parameters, then the command line's."""
    params = OmegaConf.select(cfg, "hydra.sweeper.params")
    own = [f"{key}={value}" for key, value in (params or {}).items()]
    return [*own, *(str(item) for item in cfg.hydra.overrides.task)]


def _is_grid(cfg: DictConfig) -> bool:
    """Whether Hydra's plain grid sweeper is at work, which asks for one batch and stops at the first failure."""
    return str(cfg.hydra.sweeper._target_).endswith("BasicSweeper")


def _returned(outcome: Outcome, overrides: Sequence[str]) -> JobReturn:
    job = outcome.job
    returned = Returned(overrides=list(overrides), working_dir=str(Path.cwd()), task_name=job.name)
    returned.cfg = OmegaConf.create(dict(job.config))
    if outcome.finished:
        returned.status = JobStatus.COMPLETED
        returned.return_value = job.objective()
    else:
        returned.status = JobStatus.FAILED
        returned.return_value = LaunchError(f"{job.name}: {outcome.cause}")
    return returned
