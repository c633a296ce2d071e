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

from lmm_forget.distributed.heartbeat import Bystander, StatusFile, correct_status
from lmm_forget.distributed.process_group import Place
from lmm_forget.distributed.stop_signals import Interrupted, listen
from lmm_forget.errors import ConfigError, LaunchError, LmmForgetError, format_os_error, print_error
from lmm_forget.files import write_atomic
from lmm_forget.progress import Progress

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""What the operating system says of a disk or a folder that takes no (more) files: nobody's programming mistake."""


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that must be set before torch is imported, for `threads` CPU threads that do not spin when idle."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "0",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic only with a fixed workspace
    }


def read_config(path: Path) -> dict[str, Any]:
    """The resolved configuration in a job.yaml. Raises ConfigError if it is missing or not one."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; python -m lmm_forget.run writes it"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or not isinstance(config.get("hardware"), dict) or "tasks" not in config:
        raise ConfigError(f"{path} is not a resolved job configuration; python -m lmm_forget.run writes one")
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job whose job.yaml is the only argument; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["--help"], ["-h"]):
        print(__doc__.strip())
        return 0
    try:
        if len(given) != 1:
            raise ConfigError("a job needs one argument, the path of its job.yaml")
        path = Path(given[0])
        config = read_config(path)
    except LmmForgetError as error:
        return _complain(error)
    return run(path, config)


def run(path: Path, config: dict[str, Any]) -> int:
    """Run a job, or be one of its workers; `config` is what job.yaml at `path` holds. Returns the exit code."""
    from lmm_forget.distributed.workers import follow_agent, run_workers

    follow_agent(os.environ)
    os.environ.update(thread_environment(config["hardware"]["threads"]))
    place: Place | None = None
    listen()
    try:
        place = Place.read(os.environ)
        _right_size(config, place)
        if place is None and world_size(config) > 1:
            return run_workers(path, config)
    except LmmForgetError as error:
        if place is None or place.rank == 0:
            correct_status(path.parent, "failed", " ".join(str(error).split()))
        return _complain(error, place)
    except (Interrupted, KeyboardInterrupt):  # before anything was begun
        correct_status(path.parent, "interrupted")
        return 143
    return _work(path, config, place)


def world_size(config: Mapping[str, Any]) -> int:
    """How many processes a job consists of: one per device."""
    return int(config["hardware"]["devices"]) * int(config["hardware"]["nodes"])


def _right_size(config: Mapping[str, Any], place: Place | None) -> None:
    """Raise LaunchError where somebody started another number of workers than the job has devices."""
    wanted = world_size(config)
    if place is not None and place.size != wanted:
        hardware = config["hardware"]
        raise LaunchError(
            f"{place.size} processes were started, but hardware.devices={hardware['devices']} and "
            f"hardware.nodes={hardware['nodes']} make {wanted}; start one per device"
        )


def _work(path: Path, config: dict[str, Any], place: Place | None) -> int:
    """Do a job's work in this process, as the only one or as one of its workers."""
    report = (
        StatusFile(path.parent) if place is None or place.rank == 0 else Bystander(path.parent, place.rank)
    )
    try:
        return _report_work(path, config, place, report)
    except OSError as error:  # status.json itself cannot be written
        return _complain(LmmForgetError(_cannot_write(error, path.parent)), place)


def _report_work(
    path: Path, config: dict[str, Any], place: Place | None, report: StatusFile | Bystander
) -> int:
    """Do a job's work and let `report` say how it ended; returns the exit code."""
    with report as status:
        try:
            results = _run(config, path.parent, status, place)
            if results is not None:
                write_atomic(
                    path.parent / "results.json",
                    json.dumps(results, sort_keys=True, indent=1, allow_nan=False) + "\n",
                )
        except LmmForgetError as error:
            status.end("failed", " ".join(str(error).split()))
            return _complain(error, place)
        except (Interrupted, KeyboardInterrupt):
            status.end("interrupted")
            return 143
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                line = _cannot_write(error, path.parent)
                status.end("failed", line)
                return _complain(LmmForgetError(line), place)
            if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
                line = (
                    "out of memory outside of a step's forward and backward pass: what is trained does not fit this "
                    f"device with its optimizer state ({_first_line(error)}); use hardware=fsdp with more devices, or "
                    "a recipe that moves less (lmm-forget plan)"
                )
                status.end("failed", line)
                return _complain(LmmForgetError(line))
            status.end("failed", f"{type(error).__name__}: {_first_line(error)}")
            who = f"rank {place.rank} of {place.size}: " if place else ""
            if place and _peer_gone(error):  # the cause, and its traceback if it has one, is another rank's
                print(f"{who}lost its connection ({_first_line(error)[:80]})", file=sys.stderr, flush=True)
            else:
                print(f"{who}{traceback.format_exc()}", file=sys.stderr, end="", flush=True)
            return 1
        status.end("done")
    return 0


def _cannot_write(error: OSError, folder: Path) -> str:
    """The line for a disk that takes no more."""
    line = format_os_error(error) if error.filename else f"{folder}: {error.strerror or error}"
    return f"{line}; nothing finished is lost: make room and give the same command again"


def _run(
    config: dict[str, Any], folder: Path, status: Progress, place: Place | None
) -> Mapping[str, Any] | None:
    """Import the heavy floors below, fix what decides the last bits, and do the work; None on ranks but the first."""
    import torch

    from lmm_forget.distributed.process_group import join
    from lmm_forget.experiment import pipeline
    from lmm_forget.store.keys import digest

    _refuse_without_gpu(config["hardware"], place)
    torch.set_num_threads(config["hardware"]["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)  # some operations have no deterministic form
    ranks = join(place, config["hardware"]["accelerator"])
    ranks.same(digest(config), "configuration")
    results = pipeline.run(config, folder, status, ranks)
    ranks.leave()
    return results


def _refuse_without_gpu(hardware: Mapping[str, Any], place: Place | None) -> None:
    """Raise LaunchError, before data and models are read, where torch cannot use the GPU this process is to have."""
    import torch

    if hardware["accelerator"] != "gpu":
        return
    wanted = place.local_rank + 1 if place else 1
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < wanted:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise LaunchError(
            f"hardware.accelerator=gpu, but torch can use {found} GPUs here and needs {wanted} (torch "
            f"{torch.__version__} is built {built}; is the driver too old, or CUDA_VISIBLE_DEVICES wrong?); "
            "use hardware=cpu"
        )


def _complain(error: LmmForgetError, place: Place | None = None) -> int:
    print_error(error, f"rank {place.rank}" if place and place.rank else "error")
    return 2


def _peer_gone(error: BaseException) -> bool:
    """Whether a collective call failed because the process at its other end is gone."""
    words = ("connection closed by peer", "connection reset by peer", "socket closed", "remote process exit")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _first_line(error: BaseException) -> str:
    return " ".join((str(error).strip().splitlines() or ["no message"])[0].split())


if __name__ == "__main__":
    sys.exit(main())
