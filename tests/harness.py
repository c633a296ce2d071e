"""Running the real command line, killing it without mercy, and comparing what is left; tests and benchmarks use it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
APART = ("timings", "versions", "job")
"""Entries of results.json that may differ between equal runs."""


def start(cwd: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `python -m lmm_forget.run ARGUMENTS` in `cwd`, in its own process group, with its output in run.log."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (cwd / "run.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lmm_forget.run", *arguments],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def family(pid: int) -> list[int]:
    """A process and all its living descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found.extend(parents.get(one, []))
    return found


def kill(process: subprocess.Popen[bytes], everyone: bool) -> None:
    """SIGKILL the command's group (with `everyone`: all descendants at the same moment); see that nothing survives.

    Without `everyone` its jobs have to notice that their parent is gone. AssertionError if one outlives it by 60 s.
    """
    members = family(process.pid)
    if everyone:
        for pid in reversed(members):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    limit = time.monotonic() + 60
    while left := [pid for pid in members if _lives(pid)]:
        assert time.monotonic() < limit, f"processes {left} outlived their parent"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def kill_and_repeat(
    cwd: Path, arguments: Iterable[str], rng: random.Random, *, kills: int, longest: float
) -> list[float]:
    """Give the same command until it ends, killing it up to `kills` times after a random time of at most `longest` s.

    Returns after how many seconds each kill came. AssertionError if the command itself fails.
    """
    moments: list[float] = []
    while True:
        process = start(cwd, *arguments)
        moment = rng.uniform(0.2, longest)
        try:
            process.wait(moment if len(moments) < kills else 900)
        except subprocess.TimeoutExpired:
            kill(process, everyone=rng.random() < 0.7)
            assert len(moments) < kills, f"the command did not end in 900 s: {(cwd / 'run.log').read_text()[-2000:]}"
            moments.append(moment)
            continue
        assert process.returncode == 0, (cwd / "run.log").read_text()[-2000:]
        return moments


def run(cwd: Path, *arguments: str, timeout: float = 900) -> str:
    """Run the command to its end and return its output. AssertionError if it fails."""
    process = start(cwd, *arguments)
    try:
        code = process.wait(timeout)
    finally:
        kill(process, everyone=True)
    text = (cwd / "run.log").read_text()
    assert code == 0, text[-3000:]
    return text


def jobs(cwd: Path) -> dict[str, dict[str, Any]]:
    """results.json of every finished job below `cwd`, by `<sweep>/<job>`."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": json.loads(path.read_text())
        for path in sorted((cwd / "multirun").glob("*/*/results.json"))
    }


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """What two equal runs agree on to the byte."""
    return {key: value for key, value in results.items() if key not in APART}


def difference(one: Path, other: Path) -> str | None:
    """The first difference between two job folders that must not be there; None if they are equal to the byte.

    Compared are results.json (without times, versions and job), every answer, and every stage's weights in its store.
    """
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (one, other))
    if comparable(first) != comparable(second):
        odd = [key for key in first if key not in APART and first[key] != second.get(key)]
        return f"results.json: {', '.join(odd)}"
    if (one / "answers.parquet").read_bytes() != (other / "answers.parquet").read_bytes():
        return "answers.parquet"
    stores = [Path(json.loads((folder / "store.json").read_text())["store"]) for folder in (one, other)]
    for stage in first["stages"]:
        deltas = [store / "stages" / stage["key"] / "delta.safetensors" for store in stores]
        if deltas[0].read_bytes() != deltas[1].read_bytes():
            return f"the weights of stage {stage['index']}"
    return None


def trained(results: Iterable[dict[str, Any]]) -> int:
    """How many stages these jobs trained themselves."""
    return sum(stage["trained"] for each in results for stage in each["timings"]["stages"])


def asked(results: Iterable[dict[str, Any]]) -> int:
    """How many questions these jobs asked themselves."""
    return sum(
        each["timings"]["base_evaluated"] + sum(stage["evaluated"] for stage in each["timings"]["stages"])
        for each in results
    )
