"""The folder that `data prepare task=pixmocount` fills: the data set's rows and its pictures, by their hash."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm_forget.errors import DataError

ROWS, REPORT, IMAGES = "rows.jsonl", "report.json", "images"


@dataclass(frozen=True)
class Prepared:
    """One row of the data set whose picture is in the folder; `number` is its row in the published split."""

    split: str
    number: int
    label: str
    count: int
    sha256: str
    image: Path


def image_path(folder: Path, sha256: str) -> Path:
    """Where the picture with this hash lies."""
    return folder / IMAGES / sha256[:2] / sha256


def write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the published rows (split, number, label, count, image_sha256, image_url)."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / ROWS).write_text(text, encoding="utf-8")


def read_prepared(task: str, path: str) -> Iterator[Prepared]:
    """Every row whose picture was there to be downloaded. DataError for a folder that is not finished."""
    folder = Path(path).expanduser()
    again = f"`lmm-forget data prepare task={task} out={path}`"
    if not (folder / ROWS).is_file():
        raise DataError(f"task {task}: {path} was not prepared; {again} does it")
    report = _report(folder)
    if report is None or not report.get("complete"):
        have = sum(1 for _ in (folder / IMAGES).glob("*/*")) if (folder / IMAGES).is_dir() else 0
        total = f" of {report['images']}" if report else ""
        raise DataError(
            f"task {task}: {path} is half downloaded ({have}{total} images); {again} goes on with it"
        )
    gone = {item["sha256"] for item in report["gone"]}
    for line in (folder / ROWS).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["image_sha256"] not in gone:
            sha = row["image_sha256"]
            yield Prepared(
                row["split"], row["number"], row["label"], int(row["count"]), sha, image_path(folder, sha)
            )


def _report(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
