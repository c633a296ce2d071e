"""Download the training images of PixMo-Count, whose published rows have only links, into a folder."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmm_forget.data.downloads import DownloadRequest, DownloadResult, download_images
from lmm_forget.errors import ConfigError, DataError, shorten_value
from lmm_forget.tasks.pixmo_folder import REPORT_FILE, write_prepared_rows
from lmm_forget.tasks.pixmocount import PixmoCountTask
from lmm_forget.tasks.task import Task

SPLITS = ("train", "validation")
FAILURES_FILE = "gone.jsonl"
_SHA = re.compile(r"[0-9a-f]{64}")


def prepare_task_images(
    task: Task,
    output_dir: Path,
    *,
    source: str | None = None,
    max_per_second: float = 20.0,
    num_workers: int = 8,
    max_retries: int = 4,
    timeout: float = 30.0,
    retry_delay: float = 1.0,
    max_rows_per_split: int | None = None,
    retry_gone: bool = False,
    on_start: Callable[[int], None] = lambda _: None,
    on_progress: Callable[[DownloadResult], None] = lambda _: None,
) -> dict[str, Any]:
    """Download the images of PixMo-Count's train and validation rows into `output_dir`; returns the report.

    Images that are there already are kept. Images that failed permanently in an earlier call are skipped unless
    `retry_gone`; temporary failures are tried again. `source` is a local copy of the rows, `max_rows_per_split` limits
    them to the first ones; for the other options see `download_images`. Raises ConfigError, before any download, for a
    task that needs no preparation or an unusable `output_dir`, and DataError for rows that cannot be used.
    """
    if not isinstance(task, PixmoCountTask):
        raise ConfigError(f"task {task.name} needs no preparing; pixmocount does")
    _check_output_dir(output_dir)
    rows = _load_rows(task, source, max_rows_per_split)
    write_prepared_rows(output_dir, rows)
    requests = list(
        {row["image_sha256"]: DownloadRequest(row["image_sha256"], row["image_url"]) for row in rows}.values()
    )
    previous_failures = {} if retry_gone else _read_previous_failures(output_dir)
    pending = [item for item in requests if item.sha256 not in previous_failures]
    report: dict[str, Any] = {"complete": False, "rows": len(rows), "images": len(requests)}
    _write_report(output_dir, {**report, "gone": []})
    on_start(len(pending))
    failures = [
        {"sha256": i.sha256, "url": i.url, "reason": previous_failures[i.sha256]}
        for i in requests
        if i.sha256 in previous_failures
    ]
    num_downloaded = num_already_there = num_temporary = 0
    with open(output_dir / FAILURES_FILE, "w" if retry_gone else "a", encoding="utf-8") as file:
        for result in download_images(
            pending,
            output_dir,
            max_per_second=max_per_second,
            num_workers=num_workers,
            max_retries=max_retries,
            timeout=timeout,
            retry_delay=retry_delay,
        ):
            on_progress(result)
            if result.failure_reason is None:
                num_downloaded, num_already_there = (
                    num_downloaded + result.is_downloaded,
                    num_already_there + (not result.is_downloaded),
                )
                continue
            entry = {
                "sha256": result.request.sha256,
                "url": result.request.url,
                "reason": result.failure_reason,
            }
            failures.append(entry)
            num_temporary += result.is_temporary
            if not result.is_temporary:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()
    lost_hashes = {item["sha256"] for item in failures}
    report |= {
        "complete": True,
        "downloaded": num_downloaded,
        "already_there": num_already_there,
        "usable_rows": dict(Counter(row["split"] for row in rows if row["image_sha256"] not in lost_hashes)),
        "lost_rows": sum(row["image_sha256"] in lost_hashes for row in rows),
        "reasons": dict(Counter(item["reason"] for item in failures).most_common()),
        "may_come_back": num_temporary,
        "gone": failures,
    }
    _write_report(output_dir, report)
    return report


def _check_output_dir(output_dir: Path) -> None:
    """Raise ConfigError if the folder cannot be created or written; creates nothing."""
    try:
        existing = next(
            path for path in (output_dir, *output_dir.absolute().parents) if path.exists() or path.is_symlink()
        )
        problem = f"{existing} is not a folder" if not existing.is_dir() else ""
        if not problem and not os.access(existing, os.W_OK | os.X_OK):
            problem = f"{existing} cannot be written"
    except (OSError, ValueError) as error:  # a name too long, or one with a null character
        problem = getattr(error, "strerror", None) or str(error)
    if problem:
        raise ConfigError(f"out={shorten_value(output_dir, 200)} cannot be used: {problem}; name another folder")


def _load_rows(task: PixmoCountTask, source: str | None, max_rows_per_split: int | None) -> list[dict[str, Any]]:
    """The published rows with their split and number. Raises DataError for a row that cannot be used."""
    rows = []
    for split in SPLITS:
        dataset_split = task.build_training_source(split, source).open_split()
        for row_number, row in enumerate(dataset_split.iterate_rows()):
            if max_rows_per_split is not None and row_number >= max_rows_per_split:
                break
            sha = row["image_sha256"]
            if not isinstance(sha, str) or not _SHA.fullmatch(sha):
                raise DataError(f"task {task.name}: {split} row {row_number}: image_sha256 is {sha!r}, not a SHA-256")
            if not row["label"] or row["count"] is None or not row["image_url"]:
                raise DataError(f"task {task.name}: {split} row {row_number}: label, count or image_url is missing")
            rows.append({"split": split, "number": row_number, **row})
    return rows


def _read_previous_failures(output_dir: Path) -> dict[str, str]:
    try:
        lines = (output_dir / FAILURES_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    failures = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # the line was cut off while it was written
            continue
        failures[entry["sha256"]] = entry["reason"]
    return failures


def _write_report(output_dir: Path, report: dict[str, Any]) -> None:
    temporary = output_dir / f".{REPORT_FILE}.new"
    temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(output_dir / REPORT_FILE)
