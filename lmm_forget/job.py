"""One job from its resolved job.yaml: run it, say how it goes in status.json, leave results.json.

    python -m lmm_forget.job multirun/demo/sa_proj/job.yaml

Exit codes: 0 done, 2 a mistake in what was asked for (one line on stderr), 1 any other failure (traceback on stderr),
143 stopped by SIGTERM or SIGUSR2. In every case status.json says the same, and the same command goes on where it ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from lmm_forget.errors import ConfigError, LmmForgetError
from lmm_forget.files import write_atomic
from lmm_forget.stopping import Interrupted, listen
from lmm_forget.store.claims import Holder

HEARTBEAT = 1.0
"""Seconds between two writes of status.json."""


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that must be set before torch is imported, for `threads` CPU threads that do not spin when idle."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "0",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic only with a fixed workspace
    }


def read_status(folder: Path) -> dict[str, Any]:
    """The content of a job folder's status.json; empty if there is none or it cannot be read."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def close_status(folder: Path, state: str, error: str | None = None) -> None:
    """Correct the status.json of a job whose process is gone without having said how it ended."""
    status = read_status(folder)
    if status.get("state") == "running":
        status.update(state=state, error=error, updated=_now())
        write_atomic(folder / "status.json", json.dumps(status, sort_keys=True) + "\n")


class StatusFile:
    """A job's heartbeat, and the Progress that feeds it.

    status.json holds state (running, done, failed, interrupted), phase, done, total, unit, rate (units per second in
    this phase), info, error (one line, of a failure), beat (counts the
    writes), started and updated (UTC), and which process it is (host, boot, namespace, pid, start). Use it as a context
    manager: a thread writes the file every second until the end.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "status.json"
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="status", daemon=True)
        self._phase_started = time.monotonic()
        self._fields: dict[str, Any] = {
            "state": "running",
            "phase": "starting",
            "done": 0,
            "total": 0,
            "unit": "",
            "rate": None,
            "info": {},
            "error": None,
            "beat": 0,
            **asdict(Holder.me()),
            "started": _now(),
        }

    def phase(self, name: str, total: int, unit: str) -> None:
        """A new piece of work begins; see Progress."""
        print(f"{datetime.now():%H:%M:%S} {name}" + (f" ({total} {unit}s)" if total > 1 else ""), flush=True)
        with self._lock:
            self._phase_started = time.monotonic()
            self._fields.update(phase=name, done=0, total=int(total), unit=unit, rate=None, info={})

    def advance(self, done: int, **info: float | int | str) -> None:
        """`done` more units are finished; see Progress."""
        with self._lock:
            self._fields["done"] += int(done)
            seconds = time.monotonic() - self._phase_started
            self._fields["rate"] = round(self._fields["done"] / seconds, 4) if seconds > 0 else None
            self._fields["info"] = {
                **self._fields["info"],
                **{key: _plain(value) for key, value in info.items()},
            }

    def end(self, state: str, error: str | None = None) -> None:
        """The last word: done, failed (with one line why) or interrupted."""
        with self._lock:
            self._fields.update(state=state, error=error)
        self._stop.set()
        self._write(durable=True)

    def __enter__(self) -> StatusFile:
        """Write the first status and start the heartbeat."""
        self._write(durable=False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop the heartbeat."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                self._write(durable=False)
            except OSError:  # a full disk must not end the work; whoever reads sees a stale `updated`
                continue

    def _write(self, *, durable: bool) -> None:
        with self._lock:
            self._fields["beat"] += 1
            text = json.dumps({**self._fields, "updated": _now()}, sort_keys=True)
            write_atomic(self._path, text + "\n", durable=durable)


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
    os.environ.update(thread_environment(config["hardware"]["threads"]))
    listen()
    with StatusFile(path.parent) as status:
        try:
            results = _run(config, path.parent, status)
            write_atomic(
                path.parent / "results.json",
                json.dumps(results, sort_keys=True, indent=1, allow_nan=False) + "\n",
            )
        except LmmForgetError as error:
            status.end("failed", " ".join(str(error).split()))
            return _complain(error)
        except (Interrupted, KeyboardInterrupt):
            status.end("interrupted")
            return 143
        except Exception as error:
            status.end("failed", f"{type(error).__name__}: {_first_line(error)}")
            traceback.print_exc()
            return 1
        status.end("done")
    return 0


def _run(config: dict[str, Any], folder: Path, status: StatusFile) -> Mapping[str, Any]:
    """Import the heavy floors below, fix what decides the last bits, and do the work."""
    import torch

    from lmm_forget import experiment

    torch.set_num_threads(config["hardware"]["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)  # some operations have no deterministic form
    return experiment.run(config, folder, status)


def _complain(error: LmmForgetError) -> int:
    print(f"lmm-forget: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return 2


def _first_line(error: BaseException) -> str:
    return " ".join((str(error).strip().splitlines() or ["no message"])[0].split())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _plain(value: Any) -> float | int | str:
    """A figure as JSON can hold it (numpy and torch scalars become floats)."""
    return value if isinstance(value, (bool, int, float, str)) else float(value)


if __name__ == "__main__":
    sys.exit(main())
