"""A real Slurm, where tests/slurm/start.sh has started one, and the command line in a folder of its own."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).resolve().parent / "stand_in"


def slurm() -> tuple[Path, str | None]:
    """The configuration of the Slurm that start.sh started, and why it cannot be used if it cannot."""
    folder = os.environ.get("SLURM_TEST_DIR") or f"{tempfile.gettempdir()}/lmm-forget-slurm-{getpass.getuser()}"
    conf, reason = Path(folder) / "slurm.conf", Path(folder) / "reason"
    if not conf.exists():
        told = reason.read_text().strip() if reason.exists() else "tests/slurm/start.sh has not been run"
        return conf, f"no Slurm here: {told}"
    try:
        asked = subprocess.run(
            ["sinfo", "--noheader"],
            env={**os.environ, "SLURM_CONF": str(conf)},
            capture_output=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return conf, "no Slurm here: it does not answer"
    return conf, None if asked.returncode == 0 else "no Slurm here: it does not answer"


class Cluster:
    """The real command line against the real scheduler; with `stand_in`, jobs train nothing."""

    def __init__(self, folder: Path, conf: Path, stand_in: bool) -> None:
        self.folder = folder
        path = [str(ROOT), *([str(STAND_IN)] if stand_in else [])]
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "SLURM_CONF": str(conf),
            "COLUMNS": "120",
        }

    def start(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "lmm_forget", module, *arguments],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, module: str, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        process = self.start(module, *arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ask(self, *command: str) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=True).stdout
