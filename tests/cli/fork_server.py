"""Runs many command lines of this package quickly: imports once, and forks a child for every line.

    python -m tests.cli.fork_server    reads {"module", "words", "cwd"} as JSON lines, answers {"code", "out", "err"}

A line that would start a job ends with the code STARTS instead: nothing is trained here.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from typing import Any, NoReturn

from lmm_forget.cli.main import main as main_of_script

STARTS = 77
"""Exit code of a command that got as far as starting a job's process or submitting it to Slurm."""
WARM = (
    "hydra",
    "lmm_forget.run",
    "lmm_forget.cli.plan",
    "lmm_forget.launch.local",
    "lmm_forget.launch.subprocess_launcher",
    "lmm_forget.launch.slurm.monitor",
    "lmm_forget.launch.torchrun",
    "lmm_forget.report.sweep_summary",
    "lmm_forget.cli.store_actions",
    "lmm_forget.launch.sweep_status",
    "lmm_forget.report.job_comparison",
    "lmm_forget.report.flip_examples",
    "lmm_forget.export.model_writer",
    "lmm_forget.store.maintenance",
    "lmm_forget.tasks.jsonl",
    "lmm_forget.data.inspection",
)


def warm() -> None:
    """Import what the commands need, and compose once; let no job start."""
    for name in WARM:
        importlib.import_module(name)
    from lmm_forget.config import compose_config
    from lmm_forget.launch import process_pool
    from lmm_forget.launch.slurm import monitor

    compose_config([])

    def starts(*given: Any, **named: Any) -> NoReturn:
        os._exit(STARTS)

    process_pool.ProcessPool.run_all = starts  # type: ignore[method-assign]
    monitor.submit_jobs = starts


def answer(module: str, words: list[str], cwd: str) -> dict[str, Any]:
    """What one command line does, in a child of its own."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            code: Any = 1
            try:
                os.chdir(cwd)
                os.environ["TMPDIR"] = tempfile.tempdir = f"{cwd}/tmp"
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                code = call(module, words)
                sys.stdout.flush()
            except SystemExit as end:
                code = end.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code if isinstance(code, int) else 0 if code is None else 1)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}


def call(module: str, words: list[str]) -> Any:
    """`lmm-forget <module> <words>`, in this process."""
    sys.argv = [f"lmm-forget {module}", *words]
    return main_of_script([*([] if module == "cli" else [module]), *words])


def main() -> None:
    """Answer until there is no more."""
    warm()
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(answer(asked["module"], asked["words"], asked["cwd"])), flush=True)


if __name__ == "__main__":
    main()
