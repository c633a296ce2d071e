"""One job from its resolved job.yaml: run it, say how it goes in status.json, leave results.json.

    lmm-forget job multirun/demo/sa_proj/job.yaml

A job on several devices starts one worker for each (lmm_forget.distributed.workers), and every worker runs this file
again. Where Slurm or torchrun started the workers, this process is one of them at once. Rank 0 alone writes.

Exit codes: 0 done, 2 a mistake in what was asked for (one line on stderr), 1 any other failure (traceback on stderr),
143 stopped by SIGTERM or SIGUSR2. In every case status.json says the same, and the same command goes on where it ended.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmm_forget.distributed.heartbeat import StatusFile, WorkerStatus, overwrite_status
from lmm_forget.distributed.process_group import RankInfo, init_process_group
from lmm_forget.distributed.stop_signals import StopRequested, install_stop_handlers
from lmm_forget.distributed.workers import die_with_agent, run_workers
from lmm_forget.errors import ConfigError, LaunchError, LmmForgetError, format_os_error, print_error
from lmm_forget.files import write_atomic
from lmm_forget.progress import Progress
from lmm_forget.store.keys import hash_json

UNWRITABLE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""What the operating system says of a disk or a folder that takes no (more) files: nobody's programming mistake."""


def build_thread_environment(num_threads: int) -> dict[str, str]:
    """Variables that must be set before torch is imported, for `threads` CPU threads that do not spin when idle."""
    return {
        "OMP_NUM_THREADS": str(num_threads),
        "GOMP_SPINCOUNT": "0",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic only with a fixed workspace
    }


def read_job_config(job_file: Path) -> dict[str, Any]:
    """The resolved configuration in a job.yaml. Raises ConfigError if it is missing or not one."""
    try:
        config = yaml.safe_load(job_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {job_file}: {error.strerror}; python -m lmm_forget.run writes it") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{job_file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or not isinstance(config.get("hardware"), dict) or "tasks" not in config:
        raise ConfigError(f"{job_file} is not a resolved job configuration; python -m lmm_forget.run writes one")
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job whose job.yaml is the only argument; returns the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv in (["--help"], ["-h"]):
        print(__doc__.strip())
        return 0
    try:
        if len(argv) != 1:
            raise ConfigError("a job needs one argument, the path of its job.yaml")
        job_file = Path(argv[0])
        config = read_job_config(job_file)
    except LmmForgetError as error:
        return _print_error(error)
    return run_job(job_file, config)


def run_job(job_file: Path, config: dict[str, Any]) -> int:
    """Run a job, or be one of its workers; `config` is what job.yaml at `path` holds. Returns the exit code."""
    die_with_agent(os.environ)
    os.environ.update(build_thread_environment(config["hardware"]["threads"]))
    rank_info: RankInfo | None = None
    install_stop_handlers()
    try:
        rank_info = RankInfo.from_environment(os.environ)
        _check_world_size(config, rank_info)
        if rank_info is None and compute_world_size(config) > 1:
            return run_workers(job_file, config)
    except LmmForgetError as error:
        if rank_info is None or rank_info.rank == 0:
            overwrite_status(job_file.parent, "failed", " ".join(str(error).split()))
        return _print_error(error, rank_info)
    except (StopRequested, KeyboardInterrupt):  # before anything was begun
        overwrite_status(job_file.parent, "interrupted")
        return 143
    return _run_in_this_process(job_file, config, rank_info)


def compute_world_size(config: Mapping[str, Any]) -> int:
    """How many processes a job consists of: one per device."""
    return int(config["hardware"]["devices"]) * int(config["hardware"]["nodes"])


def _check_world_size(config: Mapping[str, Any], rank_info: RankInfo | None) -> None:
    """Raise LaunchError where somebody started another number of workers than the job has devices."""
    expected_size = compute_world_size(config)
    if rank_info is not None and rank_info.size != expected_size:
        hardware = config["hardware"]
        raise LaunchError(
            f"{rank_info.size} processes were started, but hardware.devices={hardware['devices']} and "
            f"hardware.nodes={hardware['nodes']} make {expected_size}; start one per device"
        )


def _run_in_this_process(job_file: Path, config: dict[str, Any], rank_info: RankInfo | None) -> int:
    """Do a job's work in this process, as the only one or as one of its workers."""
    status_file = (
        StatusFile(job_file.parent)
        if rank_info is None or rank_info.rank == 0
        else WorkerStatus(job_file.parent, rank_info.rank)
    )
    try:
        return _run_and_record_status(job_file, config, rank_info, status_file)
    except OSError as error:  # status.json itself cannot be written
        return _print_error(LmmForgetError(_format_write_error(error, job_file.parent)), rank_info)


def _run_and_record_status(
    job_file: Path, config: dict[str, Any], rank_info: RankInfo | None, status_file: StatusFile | WorkerStatus
) -> int:
    """Do a job's work and let `report` say how it ended; returns the exit code."""
    with status_file as status:
        try:
            results = _configure_torch_and_run(config, job_file.parent, status, rank_info)
            if results is not None:
                write_atomic(
                    job_file.parent / "results.json",
                    json.dumps(results, sort_keys=True, indent=1, allow_nan=False) + "\n",
                )
        except LmmForgetError as error:
            status.write_final_state("failed", " ".join(str(error).split()))
            return _print_error(error, rank_info)
        except (StopRequested, KeyboardInterrupt):
            status.write_final_state("interrupted")
            return 143
        except Exception as error:
            if isinstance(error, OSError) and error.errno in UNWRITABLE_ERRNOS:
                line = _format_write_error(error, job_file.parent)
                status.write_final_state("failed", line)
                return _print_error(LmmForgetError(line), rank_info)
            if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
                line = (
                    "out of memory outside of a step's forward and backward pass: what is trained does not fit this "
                    f"device with its optimizer state ({_get_first_line(error)}); use hardware=fsdp with more "
                    "devices, or "
                    "a recipe that moves less (lmm-forget plan)"
                )
                status.write_final_state("failed", line)
                return _print_error(LmmForgetError(line))
            status.write_final_state("failed", f"{type(error).__name__}: {_get_first_line(error)}")
            rank_prefix = f"rank {rank_info.rank} of {rank_info.size}: " if rank_info else ""
            if rank_info and _is_lost_connection(
                error
            ):  # the cause, and its traceback if it has one, is another rank's
                print(
                    f"{rank_prefix}lost its connection ({_get_first_line(error)[:80]})",
                    file=sys.stderr,
                    flush=True,
                )
            else:
                print(f"{rank_prefix}{traceback.format_exc()}", file=sys.stderr, end="", flush=True)
            return 1
        status.write_final_state("done")
    return 0


def _format_write_error(error: OSError, job_dir: Path) -> str:
    """The line for a disk that takes no more."""
    line = format_os_error(error) if error.filename else f"{job_dir}: {error.strerror or error}"
    return f"{line}; nothing finished is lost: make room and give the same command again"


def _configure_torch_and_run(
    config: dict[str, Any], job_dir: Path, progress: Progress, rank_info: RankInfo | None
) -> Mapping[str, Any] | None:
    """Import torch, fix what decides the last bits, and do the work; None on ranks but the first."""
    import torch  # here, after the thread variables are set; commands that only read a job's configuration need none

    from lmm_forget.experiment import pipeline  # imports torch

    _check_gpu_available(config["hardware"], rank_info)
    torch.set_num_threads(config["hardware"]["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)  # some operations have no deterministic form
    process_group = init_process_group(rank_info, config["hardware"]["accelerator"])
    process_group.check_same_on_all_ranks(hash_json(config), "configuration")
    results = pipeline.run_experiment(config, job_dir, progress, process_group)
    process_group.destroy_process_group()
    return results


def _check_gpu_available(hardware: Mapping[str, Any], rank_info: RankInfo | None) -> None:
    """Raise LaunchError, before data and models are read, where torch cannot use the GPU this process is to have."""
    if hardware["accelerator"] != "gpu":
        return
    import torch  # for the same reason as above

    required_gpus = rank_info.local_rank + 1 if rank_info else 1
    available_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available_gpus < required_gpus:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise LaunchError(
            f"hardware.accelerator=gpu, but torch can use {available_gpus} GPUs here and needs {required_gpus} (torch "
            f"{torch.__version__} is built {built}; is the driver too old, or CUDA_VISIBLE_DEVICES wrong?); "
            "use hardware=cpu"
        )


def _print_error(error: LmmForgetError, rank_info: RankInfo | None = None) -> int:
    print_error(error, f"rank {rank_info.rank}" if rank_info and rank_info.rank else "error")
    return 2


def _is_lost_connection(error: BaseException) -> bool:
    """Whether a collective call failed because the process at its other end is gone."""
    words = ("connection closed by peer", "connection reset by peer", "socket closed", "remote process exit")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _get_first_line(error: BaseException) -> str:
    return " ".join((str(error).strip().splitlines() or ["no message"])[0].split())


if __name__ == "__main__":
    sys.exit(main())
