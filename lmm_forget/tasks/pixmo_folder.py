"""Read and write the folder of `data prepare task=pixmocount`: the data set's rows, and its images by hash."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm_forget.errors import DataError

ROWS_FILE, REPORT_FILE, IMAGES_DIR = "rows.jsonl", "report.json", "images"


@dataclass(frozen=True)
class PreparedRow:
    """A row of the data set whose image is in the folder; `row_number` counts within the published split."""

    split: str
    row_number: int
    label: str
    count: int
    sha256: str
    image: Path


def get_image_path(folder: Path, sha256: str) -> Path:
    """The path of the image with this hash."""
    return folder / IMAGES_DIR / sha256[:2] / sha256


def write_prepared_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the published rows (keys: split, number, label, count, image_sha256, image_url)."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / ROWS_FILE).write_text(text, encoding="utf-8")


def read_prepared_rows(task_name: str, path: str) -> Iterator[PreparedRow]:
    """Every row whose image could be downloaded. Raises DataError for an unfinished folder."""
    folder = Path(path).expanduser()
    prepare_command = f"`lmm-forget data prepare task={task_name} out={path}`"
    if not (folder / ROWS_FILE).is_file():
        raise DataError(f"task {task_name}: {path} was not prepared; {prepare_command} does it")
    report = _read_report(folder)
    if report is None or not report.get("complete"):
        image_count = sum(1 for _ in (folder / IMAGES_DIR).glob("*/*")) if (folder / IMAGES_DIR).is_dir() else 0
        total = f" of {report['images']}" if report else ""
        raise DataError(
            f"task {task_name}: {path} is half downloaded ({image_count}{total} images); {prepare_command} "
            "goes on with it"
        )
    missing_hashes = {item["sha256"] for item in report["gone"]}
    for line in (folder / ROWS_FILE).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["image_sha256"] not in missing_hashes:
            sha = row["image_sha256"]
            yield PreparedRow(
                row["split"], row["number"], row["label"], int(row["count"]), sha, get_image_path(folder, sha)
            )


def _read_report(folder: Path) -> dict[str, Any] | None:
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return report if isinstance(report, dict) else None
