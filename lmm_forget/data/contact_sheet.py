"""A contact sheet: one image that shows a few samples of every split."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from lmm_forget.tasks.task import Sample, Task

CELL_WIDTH, IMAGE_HEIGHT, GAP, COLUMNS = 260, 170, 10, 4
LINE_HEIGHT, LINES_PER_CELL = 13, 8


def draw_contact_sheet(task: Task, samples_by_split: Mapping[str, Sequence[Sample]], path: Path) -> Path:
    """Draw the samples of each split with prompt and target answer; returns the path of the PNG file."""
    rows = sum(1 + -(-len(samples) // COLUMNS) for samples in samples_by_split.values())
    height = rows * (IMAGE_HEIGHT + LINES_PER_CELL * LINE_HEIGHT + 2 * GAP)
    sheet = Image.new("RGB", (COLUMNS * (CELL_WIDTH + GAP) + GAP, max(height, 40)), "white")
    draw, font = ImageDraw.Draw(sheet), _load_font(11)
    top = GAP
    for split, samples in samples_by_split.items():
        draw.text((GAP, top), f"{task.name}: {split}", fill="black", font=_load_font(15))
        top += 2 * LINE_HEIGHT
        for start in range(0, len(samples), COLUMNS):
            for column, sample in enumerate(samples[start : start + COLUMNS]):
                _draw_cell(sheet, draw, font, task, sample, split, GAP + column * (CELL_WIDTH + GAP), top)
            top += IMAGE_HEIGHT + LINES_PER_CELL * LINE_HEIGHT + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.crop((0, 0, sheet.width, top + GAP)).save(path, "PNG")
    return path


def _load_font(size: int) -> ImageFont.FreeTypeFont:
    """The font of matplotlib, which has more than Latin letters; `size` in pixels."""
    import matplotlib  # half a second to import, needed only here

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    task: Task,
    sample: Sample,
    split: str,
    left: int,
    top: int,
) -> None:
    width = CELL_WIDTH // max(len(sample.images), 1)
    for number, image in enumerate(sample.images):
        small = ImageOps.contain(image, (width - 2, IMAGE_HEIGHT))
        sheet.paste(small, (left + number * width, top))
    question = task.format_display_prompt(sample, for_training=split == "train").replace("\n", " / ")
    lines = textwrap.wrap(question, 40)
    if len(lines) > LINES_PER_CELL - 2:
        lines = [*lines[: LINES_PER_CELL - 3], "…"]
    lines += textwrap.wrap(f"= {task.get_target_answer(sample)}", 40)[:1] + [f"[{sample.id}]"]
    for number, line in enumerate(lines):
        draw.text((left, top + IMAGE_HEIGHT + 2 + number * LINE_HEIGHT), line, fill="black", font=font)
