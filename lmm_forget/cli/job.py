"""`lmm-forget job multirun/<name>/<job>/job.yaml`: run one resolved job in this process."""

from __future__ import annotations

from pathlib import Path

from lmm_forget.cli.command import Arguments, Command
from lmm_forget.errors import ConfigError


def _run_job(arguments: Arguments) -> int:
    if len(arguments.words) != 1:
        raise ConfigError("a job needs one argument, the path of its job.yaml")
    from lmm_forget.experiment.job import read_job_config, run_job

    job_file = Path(arguments.words[0])
    return run_job(job_file, read_job_config(job_file))


COMMAND = Command(
    name="job",
    summary="run one resolved job.yaml, as a sweep does with each of its jobs",
    run=_run_job,
    usage="FILE",
    words="FILE",
    description="""
FILE is multirun/<name>/<job>/job.yaml, which `run` writes; results and status are written beside it. A job on several
devices starts one worker for each. Where Slurm or torchrun started the workers, this process is one of them.""",
    examples=("lmm-forget job multirun/demo/sa_proj/job.yaml",),
    exit_codes={
        0: "done",
        1: "it failed (traceback on stderr)",
        2: "a mistake in what was asked for",
        143: "stopped by SIGTERM or SIGUSR2; the same command resumes it",
    },
)
main = COMMAND.main
