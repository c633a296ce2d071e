"""How long the report of a large sweep takes, how big its page is, and how long it takes to open.

    python benchmarks/report_of_many_jobs.py SWEEP [--jobs 200]

Copies the jobs of a real sweep (folders with results.json, answers.parquet and pictures.parquet) into a temporary
folder until there are so many, as other seeds of the same settings, each with a little noise in its figures; three
of them are left without results. Then it draws the report, and opens it in Chromium where there is one.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--jobs", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "many"
        multiply(given.sweep, root, given.jobs)
        started, cpu = time.monotonic(), time.process_time()
        from lmm_forget.report.sweep_report import load_sweep_report
        from lmm_forget.report.sweep_summary import write_sweep_summary

        summary = write_sweep_summary(load_sweep_report(root))
        print(
            f"{len(summary['jobs'])} jobs and {len(summary['unfinished'])} without results: "
            f"{time.monotonic() - started:.1f} s, of which {time.process_time() - cpu:.1f} s of one core"
        )
        page = root / "summary.html"
        print(f"page {page.stat().st_size / 1e6:.2f} MB")
        sys.path.insert(0, str(ROOT))
        from tests.report.browser import Browser, chromium

        if chromium():
            with Browser() as browser:
                print(f"opens in {browser.open(page):.0f} ms; complaints: {browser.messages or 'none'}")


def multiply(sweep: Path, root: Path, jobs: int) -> None:
    """Fill `root` with `jobs` copies of a sweep's jobs."""
    sources = sorted(path.parent for path in sweep.glob("*/results.json"))
    rng = random.Random(0)
    for number in range(jobs):
        source = sources[number % len(sources)]
        folder = root / f"{source.name}-copy{number}"
        folder.mkdir(parents=True)
        shutil.copy(source / "job.yaml", folder)
        if number % (jobs // 3) == 5:
            (folder / "status.json").write_text(json.dumps({"state": "failed", "error": "out of memory"}))
            continue
        for name in ("answers.parquet", "pictures.parquet"):
            if (source / name).exists():
                shutil.copy(source / name, folder)
        results = copy.deepcopy(json.loads((source / "results.json").read_text()))
        results["config"]["seed"] = number
        shake(results["figures"], rng.gauss(0, 2))
        (folder / "results.json").write_text(json.dumps(results))


def shake(node: Any, by: float) -> None:
    """Move every estimate below `node` by `by` points."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        shake(value, by)
    if isinstance(node, dict) and isinstance(node.get("value"), float):
        for name in ("value", "low", "high"):
            if node[name] is not None:
                node[name] += by


if __name__ == "__main__":
    main()
