"""A process as a unique id: across machines, and after its process number was used again."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProcessId:
    """A process as a unique id: host, start of the machine, container, process number and start time."""

    host: str
    boot: str
    namespace: str
    pid: int
    start: str

    @classmethod
    def current(cls) -> ProcessId:
        """This process."""
        return cls(
            socket.gethostname(),
            _read_boot_id(),
            _read_pid_namespace(),
            os.getpid(),
            _read_process_start(os.getpid()),
        )

    @classmethod
    def parse(cls, fields: Any) -> ProcessId | None:
        """From a mapping that `asdict` made; None for anything else."""
        try:
            return cls(**{name: fields[name] for name in cls.__dataclass_fields__})
        except (KeyError, TypeError):
            return None

    def is_alive(self) -> bool | None:
        """Whether the process lives; None if that cannot be seen from here (another machine or container)."""
        here = (socket.gethostname(), _read_boot_id(), _read_pid_namespace())
        if (self.host, self.boot, self.namespace) == here:
            return _read_process_start(self.pid) == self.start != ""
        if self.host == here[0] and self.boot != here[1] and "" not in (self.boot, here[1]):
            return False  # this machine has been restarted since
        return None


def _read_boot_id() -> str:
    """What tells one start of this machine from the next; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _read_pid_namespace() -> str:
    """In which container's process numbers we count."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read_process_start(pid: int) -> str:
    """When a process started, in the system's own count; empty for one that does not live (or is only unburied)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        try:  # a system without /proc: the number alone has to do
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "alive"
    return "" if fields[0] in ("Z", "X") else fields[19]
