"""Drawing primitives of the tiny world: colours, shapes, letters and where things stand on a 64 x 64 picture."""

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
PLACES = ("top left", "top right", "bottom left", "bottom right")
CELL = 16
LETTERS = "ABCDEFGHKT"
OPTION_LETTERS = "ABCDEFGH"
INK = ((0, 0, 0), (150, 20, 20), (20, 20, 150))

Draw = ImageDraw.ImageDraw


def cell(column: int, row: int) -> tuple[int, int]:
    """Centre of one of the 4 x 4 cells of a picture, in pixels.

    The cells are the tower's patches: a thing that fills one cell is read from one patch, which is what lets a model
    of a few million parameters learn to see within minutes.
    """
    return CELL * column + CELL // 2, CELL * row + CELL // 2


PLACE_CENTERS = (cell(0, 0), cell(3, 0), cell(0, 3), cell(3, 3))
GRID_CENTERS = tuple(cell(i % 3, i // 3) for i in range(9))


def canvas(rng: random.Random) -> tuple[Image.Image, Draw]:
    """A blank picture with a light random background, and the pen to draw on it."""
    image = Image.new("RGB", (SIZE, SIZE), tuple(rng.randint(222, 255) for _ in range(3)))
    return image, ImageDraw.Draw(image)


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in typeface at `size` pixels."""
    return ImageFont.load_default(size=size)


def glyph(
    pen: Draw,
    letter: str,
    center: tuple[float, float],
    size: int = 15,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Print one letter or digit in the middle of a cell."""
    pen.text(center, letter, font=font(size), fill=fill, anchor="mm")


def shape(pen: Draw, kind: str, x: float, y: float, r: float, fill: tuple[int, int, int]) -> None:
    """Draw one of SHAPES centred at (x, y) with radius `r` pixels."""
    if kind == "circle":
        pen.ellipse([x - r, y - r, x + r, y + r], fill=fill)
    elif kind == "square":
        pen.rectangle([x - r * 0.85, y - r * 0.85, x + r * 0.85, y + r * 0.85], fill=fill)
    elif kind == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r * 0.8), (x + r, y + r * 0.8)], fill=fill)
    elif kind == "diamond":
        pen.polygon([(x, y - r), (x - r * 0.7, y), (x, y + r), (x + r * 0.7, y)], fill=fill)
    elif kind == "cross":
        w = r * 0.35
        pen.rectangle([x - w, y - r, x + w, y + r], fill=fill)
        pen.rectangle([x - r, y - w, x + r, y + w], fill=fill)
    else:
        corners = []
        for i in range(10):
            angle, reach = -math.pi / 2 + i * math.pi / 5, r if i % 2 == 0 else r * 0.42
            corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        pen.polygon(corners, fill=fill)


def lettered(question: str, choices: Sequence[str]) -> str:
    """The paper's multiple-choice layout: the question, then one `A. choice` line per option."""
    return question + "".join(
        f"\n{letter}. {text}" for letter, text in zip(OPTION_LETTERS, choices, strict=False)
    )


def letter_of(right: str, choices: Sequence[str]) -> str:
    """The letter in front of the choice `right`."""
    return OPTION_LETTERS[choices.index(right)]
