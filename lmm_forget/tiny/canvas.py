"""Drawing primitives of the synthetic images: colours, shapes, letters and positions on 64 x 64 pixels."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SIZE = 64
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 210, 40),
    "purple": (150, 60, 190),
    "orange": (240, 140, 30),
    "black": (20, 20, 20),
    "pink": (245, 130, 180),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
CELL_SIZE = 16
SIGN_LETTERS = "ABCDEFGHKT"
OPTION_LETTERS = "ABCDEFGH"
INK_COLORS = ((0, 0, 0), (150, 20, 20), (20, 20, 150))

Pen = ImageDraw.ImageDraw


def get_cell_center(column: int, row: int) -> tuple[int, int]:
    """Centre (x, y) in pixels of one of the 4 x 4 cells of an image.

    The cells are the vision tower's patches. An object in one cell is encoded by one patch, which lets a model of a few
    million parameters learn to recognise objects within minutes.
    """
    return CELL_SIZE * column + CELL_SIZE // 2, CELL_SIZE * row + CELL_SIZE // 2


QUADRANT_CENTERS = (
    get_cell_center(0, 0),
    get_cell_center(3, 0),
    get_cell_center(0, 3),
    get_cell_center(3, 3),
)
GRID_CENTERS = tuple(get_cell_center(i % 3, i // 3) for i in range(9))


def create_canvas(rng: random.Random) -> tuple[Image.Image, Pen]:
    """A new image with a light random background, and the pen that draws on it."""
    image = Image.new("RGB", (SIZE, SIZE), tuple(rng.randint(222, 255) for _ in range(3)))
    return image, ImageDraw.Draw(image)


@functools.cache
def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in typeface at `size` pixels."""
    return ImageFont.load_default(size=size)


def draw_glyph(
    pen: Pen,
    letter: str,
    center: tuple[float, float],
    size: int = 15,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Draw one letter or digit centred at `center` (x, y), `size` pixels high."""
    pen.text(center, letter, font=load_font(size), fill=fill, anchor="mm")


def draw_shape(pen: Pen, shape_name: str, x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
    """Draw the shape `shape_name` (of `SHAPES`) centred at (x, y), with a radius in pixels."""
    if shape_name == "circle":
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
    elif shape_name == "square":
        pen.rectangle([x - radius * 0.85, y - radius * 0.85, x + radius * 0.85, y + radius * 0.85], fill=fill)
    elif shape_name == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius * 0.8), (x + radius, y + radius * 0.8)], fill=fill)
    elif shape_name == "diamond":
        pen.polygon([(x, y - radius), (x - radius * 0.7, y), (x, y + radius), (x + radius * 0.7, y)], fill=fill)
    elif shape_name == "cross":
        w = radius * 0.35
        pen.rectangle([x - w, y - radius, x + w, y + radius], fill=fill)
        pen.rectangle([x - radius, y - w, x + radius, y + w], fill=fill)
    else:
        corners = []
        for i in range(10):
            angle, reach = -math.pi / 2 + i * math.pi / 5, radius if i % 2 == 0 else radius * 0.42
            corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        pen.polygon(corners, fill=fill)


def format_lettered_question(question: str, choices: Sequence[str]) -> str:
    """The question, then one line `A. choice` per option, as in the paper."""
    return question + "".join(f"\n{letter}. {text}" for letter, text in zip(OPTION_LETTERS, choices, strict=False))


def get_choice_letter(correct_choice: str, choices: Sequence[str]) -> str:
    """The letter of the option `correct_choice`."""
    return OPTION_LETTERS[choices.index(correct_choice)]
