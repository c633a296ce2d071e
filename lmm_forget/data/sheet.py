"""A contact sheet: a few samples of every split on one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from lmm_forget.tasks.base import Sample, Task

CELL, PICTURE, GAP, COLUMNS = 260, 170, 10, 4
LINE, LINES = 13, 8


def contact_sheet(task: Task, parts: Mapping[str, Sequence[Sample]], path: Path) -> Path:
    """Draw the samples of each split with their question (as it is evaluated) and answer; returns the PNG written."""
    rows = sum(1 + -(-len(samples) // COLUMNS) for samples in parts.values())
    height = rows * (PICTURE + LINES * LINE + 2 * GAP)
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, max(height, 40)), "white")
    draw, font = ImageDraw.Draw(sheet), _font(11)
    top = GAP
    for split, samples in parts.items():
        draw.text((GAP, top), f"{task.name}: {split}", fill="black", font=_font(15))
        top += 2 * LINE
        for start in range(0, len(samples), COLUMNS):
            for column, sample in enumerate(samples[start : start + COLUMNS]):
                _cell(sheet, draw, font, task, sample, split, GAP + column * (CELL + GAP), top)
            top += PICTURE + LINES * LINE + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.crop((0, 0, sheet.width, top + GAP)).save(path, "PNG")
    return path


def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font with more than Latin letters, which comes with matplotlib."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )


def _cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    task: Task,
    sample: Sample,
    split: str,
    left: int,
    top: int,
) -> None:
    width = CELL // max(len(sample.images), 1)
    for number, image in enumerate(sample.images):
        small = ImageOps.contain(image, (width - 2, PICTURE))
        sheet.paste(small, (left + number * width, top))
    question = task.prompt_text(sample, training=split == "train").replace("\n", " / ")
    lines = textwrap.wrap(question, 40)
    if len(lines) > LINES - 2:
        lines = [*lines[: LINES - 3], "…"]
    lines += textwrap.wrap(f"= {task.target(sample)}", 40)[:1] + [f"[{sample.id}]"]
    for number, line in enumerate(lines):
        draw.text((left, top + PICTURE + 2 + number * LINE), line, fill="black", font=font)
