"""Command lines by chance, over all commands: an exit code that is right, one line, and not a byte changed.

The seed is fixed, so that a failure repeats; LMM_FORGET_FUZZ_SEED and LMM_FORGET_FUZZ_LINES choose others.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command_lines import Line, lines, world
from tests.cli.fork_server import STARTS

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("LMM_FORGET_FUZZ_SEED", "14"))
COUNT = int(os.environ.get("LMM_FORGET_FUZZ_LINES", "240"))
LONGEST = 700
"""Characters that an error line may have: lists of what exists are long."""


class Server:
    """A process that runs command lines in a folder of its own; see tests/cli/fork_server.py."""

    def __init__(self, folder: Path) -> None:
        """`folder` was made by `world`."""
        self.folder = folder
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
            "PATH": str(Path(sys.executable).parent),  # neither squeue nor nvidia-smi
            "PYTHONUTF8": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.fork_server"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: Line) -> dict[str, Any]:
        """What the line does."""
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {"module": line.module, "words": line.words, "cwd": str(self.folder)}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def state(folder: Path) -> dict[str, Any]:
    """Every file below a folder with its bytes and its time, every link with its target, and every folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = (path.stat().st_mtime_ns, path.read_bytes())
        else:
            found[name] = None
    return found


def fault(line: Line, found: dict[str, Any]) -> str | None:
    """What is wrong with how a line ended; None if it ended well."""
    code, err = found["code"], found["err"]
    if code == STARTS:
        return "it would have started a job"
    if code not in line.codes:
        return f"exit code {code}, expected {line.codes}"
    if code == 0:
        return "a traceback" if "Traceback" in err else None
    if found["out"] and line.words:
        return "a refused line prints on stdout"
    if not err.startswith("lmm-forget: error: ") or err.count("\n") != 1 or not err.endswith("\n"):
        return "not one line that begins with lmm-forget: error:"
    if len(err) > LONGEST:
        return f"a line of {len(err)} characters"
    return None


def run(folder: Path, chosen: list[Line]) -> list[str]:
    """Ask all lines, one after another; returns what went wrong."""
    server = Server(folder)
    wrong = []
    try:
        before = state(folder)
        for line in chosen:
            found = server.ask(line)
            what = fault(line, found)
            after = state(folder)
            if after != before:
                changed = sorted(k for k in {*before, *after} if before.get(k, "") != after.get(k, ""))
                what = f"{what or 'it'} and changed {changed[:5]}"
                before = after
            if what is not None:
                said = (found["err"] or found["out"])[-1500:]
                words = shlex.join((line.module, *line.words)).encode("utf-8", "backslashreplace").decode()
                wrong.append(f"lmm-forget {words[:400]}\n  {what}\n  {said}")
    finally:
        server.close()
    return wrong


@pytest.mark.timeout(1500)
def test_refused_command_lines_say_why_in_one_line_and_change_nothing(tmp_path: Path) -> None:
    chosen = list(lines(SEED, COUNT))
    assert len(chosen) >= 200 and len({line.module for line in chosen}) >= 10
    workers = min(2, len(os.sched_getaffinity(0)))
    for number in range(workers):
        world(tmp_path / str(number))
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda n: run(tmp_path / str(n), chosen[n::workers]), range(workers))
        wrong = [each for part in parts for each in part]
    assert not wrong, f"seed {SEED}: {len(wrong)} of {len(chosen)} lines\n" + "\n".join(wrong)


def test_the_lines_of_a_seed_are_always_the_same() -> None:
    assert list(lines(3, 50)) == list(lines(3, 50)) != list(lines(4, 50))
