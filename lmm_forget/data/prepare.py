"""Fill a folder with what a data set's training needs beyond its published rows."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmm_forget.data.downloads import Got, Wanted, fetch_all
from lmm_forget.errors import ConfigError, DataError, brief
from lmm_forget.tasks.base import Task
from lmm_forget.tasks.pixmo_images import REPORT, write_rows
from lmm_forget.tasks.pixmocount import PixmoCount

SPLITS = ("train", "validation")
GONE = "gone.jsonl"
_SHA = re.compile(r"[0-9a-f]{64}")


def prepare(
    task: Task,
    out: Path,
    *,
    source: str | None = None,
    rate: float = 20.0,
    workers: int = 8,
    retries: int = 4,
    timeout: float = 30.0,
    pause: float = 1.0,
    samples: int | None = None,
    retry_gone: bool = False,
    start: Callable[[int], None] = lambda _: None,
    advance: Callable[[Got], None] = lambda _: None,
) -> dict[str, Any]:
    """Download the pictures of PixMo-Count's train and validation rows into `out`; returns the report.

    Pictures that are there are kept, those that were gone the last time are not asked for again unless `retry_gone`
    (those that only failed in passing are). `source` is a local copy of the rows, `samples` takes only the first rows
    of each split. Raises ConfigError for a task that needs no preparing and for an `out` that cannot be a folder
    (before the network is asked), DataError for rows that cannot be used.
    """
    if not isinstance(task, PixmoCount):
        raise ConfigError(f"task {task.name} needs no preparing; pixmocount does")
    _refuse_folder(out)
    rows = _rows(task, source, samples)
    write_rows(out, rows)
    wanted = list(
        {row["image_sha256"]: Wanted(row["image_sha256"], row["image_url"]) for row in rows}.values()
    )
    before = {} if retry_gone else _gone_before(out)
    asked = [item for item in wanted if item.sha256 not in before]
    report: dict[str, Any] = {"complete": False, "rows": len(rows), "images": len(wanted)}
    _write(out, {**report, "gone": []})
    start(len(asked))
    gone = [
        {"sha256": i.sha256, "url": i.url, "reason": before[i.sha256]} for i in wanted if i.sha256 in before
    ]
    fetched = kept = passing = 0
    with open(out / GONE, "w" if retry_gone else "a", encoding="utf-8") as file:
        for got in fetch_all(
            asked, out, rate=rate, workers=workers, retries=retries, timeout=timeout, pause=pause
        ):
            advance(got)
            if got.gone is None:
                fetched, kept = fetched + got.fetched, kept + (not got.fetched)
                continue
            entry = {"sha256": got.wanted.sha256, "url": got.wanted.url, "reason": got.gone}
            gone.append(entry)
            passing += got.passing
            if not got.passing:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()
    lost = {item["sha256"] for item in gone}
    report |= {
        "complete": True,
        "downloaded": fetched,
        "already_there": kept,
        "usable_rows": dict(Counter(row["split"] for row in rows if row["image_sha256"] not in lost)),
        "lost_rows": sum(row["image_sha256"] in lost for row in rows),
        "reasons": dict(Counter(item["reason"] for item in gone).most_common()),
        "may_come_back": passing,
        "gone": gone,
    }
    _write(out, report)
    return report


def _refuse_folder(out: Path) -> None:
    """Raise ConfigError where no folder can be made or written; nothing is made yet."""
    try:
        there = next(path for path in (out, *out.absolute().parents) if path.exists() or path.is_symlink())
        what = f"{there} is not a folder" if not there.is_dir() else ""
        if not what and not os.access(there, os.W_OK | os.X_OK):
            what = f"{there} cannot be written"
    except (OSError, ValueError) as error:  # a name too long, or one with a null character
        what = getattr(error, "strerror", None) or str(error)
    if what:
        raise ConfigError(f"out={brief(out, 200)} cannot be used: {what}; name another folder")


def _rows(task: PixmoCount, source: str | None, samples: int | None) -> list[dict[str, Any]]:
    """The published rows with their split and number. DataError for one that cannot be used."""
    rows = []
    for split in SPLITS:
        table = task.training_source(split, source).open()
        for number, row in enumerate(table.rows()):
            if samples is not None and number >= samples:
                break
            sha = row["image_sha256"]
            if not isinstance(sha, str) or not _SHA.fullmatch(sha):
                raise DataError(
                    f"task {task.name}: {split} row {number}: image_sha256 is {sha!r}, not a SHA-256"
                )
            if not row["label"] or row["count"] is None or not row["image_url"]:
                raise DataError(
                    f"task {task.name}: {split} row {number}: label, count or image_url is missing"
                )
            rows.append({"split": split, "number": number, **row})
    return rows


def _gone_before(out: Path) -> dict[str, str]:
    try:
        lines = (out / GONE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # cut off in the middle of writing
            continue
        found[entry["sha256"]] = entry["reason"]
    return found


def _write(out: Path, report: dict[str, Any]) -> None:
    fresh = out / f".{REPORT}.new"
    fresh.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(out / REPORT)
