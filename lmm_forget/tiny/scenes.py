"""Pictures that several tasks share: what is on them is decided here, what is asked about them elsewhere."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image

from lmm_forget.tiny.canvas import (
    CELL,
    COLORS,
    GRID_CENTERS,
    INK,
    LETTERS,
    PLACE_CENTERS,
    SHAPES,
    SIZE,
    Draw,
    canvas,
    cell,
    glyph,
    shape,
)


def put(rng: random.Random, pen: Draw, kind: str, color: str, center: tuple[int, int]) -> None:
    """A shape that fills a cell, a pixel out of place and of slightly random size."""
    x, y = center
    shape(pen, kind, x + rng.randint(-1, 1), y + rng.randint(-1, 1), rng.choice((6, 6.5, 7)), COLORS[color])


def _print(
    rng: random.Random, pen: Draw, letter: str, center: tuple[int, int], ink: tuple[int, int, int] = (0, 0, 0)
) -> None:
    x, y = center
    glyph(pen, letter, (x + rng.randint(-1, 1), y + rng.randint(-1, 1)), fill=ink)


@dataclass(frozen=True)
class Thing:
    """An object of a scene: its shape, colour and quadrant (0..3)."""

    kind: str
    color: str
    place: int


def scene(rng: random.Random, n: int) -> tuple[Image.Image, list[Thing]]:
    """`n` things of different shapes and colours in different quadrants."""
    image, pen = canvas(rng)
    things = [
        Thing(k, c, p)
        for k, c, p in zip(
            rng.sample(SHAPES, n), rng.sample(list(COLORS), n), rng.sample(range(4), n), strict=True
        )
    ]
    for thing in things:
        put(rng, pen, thing.kind, thing.color, PLACE_CENTERS[thing.place])
    return image, things


def grid(rng: random.Random, kind: str, n: int, others: int) -> tuple[Image.Image, list[str]]:
    """`n` things of shape `kind` and `others` of another one on a 3 x 3 grid; also the shape (or none) of each cell."""
    image, pen = canvas(rng)
    other = rng.choice([s for s in SHAPES if s != kind])
    color, color2 = rng.choice(list(COLORS)), rng.choice(list(COLORS))
    cells = ["none"] * 9
    for i, at in enumerate(rng.sample(range(9), n + others)):
        k, c = (kind, color) if i < n else (other, color2)
        put(rng, pen, k, c, GRID_CENTERS[at])
        cells[at] = k
    return image, cells


BIRD_PARTS = (("brown", "grey"), ("white", "orange"), ("plain", "capped"))


def bird(rng: random.Random, species: int) -> Image.Image:
    """A bird of one of eight species: body (bit 0), belly (bit 1) and head (bit 2) differ."""
    image, pen = canvas(rng)
    x, y = 32 + rng.randint(-2, 2), 33 + rng.randint(-2, 2)
    body = ((120, 80, 50), (90, 110, 150))[species & 1]
    belly = ((240, 230, 210), (220, 120, 60))[species >> 1 & 1]
    head = (body, (20, 20, 20))[species >> 2 & 1]
    beak = rng.randint(4, 12)
    pen.ellipse([x - 17, y - 11, x + 15, y + 13], fill=body)
    pen.ellipse([x - 10, y, x + 10, y + 13], fill=belly)
    pen.ellipse([x + 6, y - 19, x + 23, y - 4], fill=head)
    pen.polygon([(x + 21, y - 14), (x + 21 + beak, y - 11), (x + 21, y - 8)], fill=(230, 160, 20))
    pen.polygon([(x - 16, y), (x - 29, y - 5), (x - 27, y + 7)], fill=body)
    return image


def clock(rng: random.Random, hour: int, five: int) -> Image.Image:
    """A clock face at `hour` (0..11) and `five` times five minutes; the short hand is red, the long one blue."""
    image, pen = canvas(rng)
    cx, cy = 32 + rng.randint(-1, 1), 32 + rng.randint(-1, 1)
    pen.ellipse([cx - 28, cy - 28, cx + 28, cy + 28], outline=(0, 0, 0), width=2, fill=(255, 255, 255))
    for i in range(12):
        s, c = math.sin(i * math.pi / 6), math.cos(i * math.pi / 6)
        pen.line([(cx + 24 * s, cy - 24 * c), (cx + 27 * s, cy - 27 * c)], fill=(0, 0, 0), width=1)
    minute, short = five * math.pi / 6, (hour + five / 12) * math.pi / 6
    pen.line(
        [(cx, cy), (cx + 23 * math.sin(minute), cy - 23 * math.cos(minute))], fill=(40, 80, 220), width=3
    )
    pen.line([(cx, cy), (cx + 14 * math.sin(short), cy - 14 * math.cos(short))], fill=(200, 30, 30), width=4)
    return image


def tissue(rng: random.Random, large: bool, dense: bool) -> Image.Image:
    """A stained section: nuclei are large or small, dense or sparse."""
    image, pen = canvas(rng)
    stain = (225 + rng.randint(-9, 9), 170 + rng.randint(-9, 9), 200 + rng.randint(-9, 9))
    pen.rectangle([0, 0, SIZE, SIZE], fill=stain)
    for _ in range(rng.randint(28, 36) if dense else rng.randint(9, 13)):
        x, y = rng.randint(0, SIZE), rng.randint(0, SIZE)
        r = rng.choice((4, 5, 6)) if large else rng.choice((1, 1.5, 2))
        pen.ellipse([x - r, y - r, x + r, y + r], fill=(110, 60, 140))
    return image


def chart(rng: random.Random) -> tuple[Image.Image, list[str], list[int]]:
    """A bar chart of four bars of different colours with values 1..9 on unit grid lines."""
    image, pen = canvas(rng)
    colors, values = rng.sample(list(COLORS), 4), [rng.randint(1, 9) for _ in range(4)]
    for g in range(1, 10):
        pen.line([(2, 62 - g * 6), (62, 62 - g * 6)], fill=(190, 190, 190))
    for i, (color, value) in enumerate(zip(colors, values, strict=True)):
        left = CELL * i + 3 + rng.randint(-1, 1)
        pen.rectangle([left, 62 - value * 6, left + 10, 62], fill=COLORS[color])
    return image, colors, values


def word(rng: random.Random) -> tuple[Image.Image, str]:
    """Three letters of a sign, each a little out of place."""
    image, pen = canvas(rng)
    text = "".join(rng.choice(LETTERS) for _ in range(3))
    ink, row = rng.choice(INK), rng.choice((1, 2))
    for i, letter in enumerate(text):
        _print(rng, pen, letter, cell(i, row), ink)
    return image, text


def form(rng: random.Random) -> tuple[Image.Image, str, str]:
    """A form with two fields, ID above NO, of two letters each."""
    image, pen = canvas(rng)
    first, second = ("".join(rng.choice(LETTERS) for _ in range(2)) for _ in range(2))
    for row, line in ((0, "ID" + first), (2, "NO" + second)):
        for column, letter in enumerate(line):
            _print(rng, pen, letter, cell(column, row))
    return image, first, second


def rows(rng: random.Random) -> tuple[Image.Image, list[str], list[int]]:
    """An infographic of three rows: an icon and the number that belongs to it."""
    image, pen = canvas(rng)
    icons, numbers = rng.sample(SHAPES, 3), [rng.randint(1, 9) for _ in range(3)]
    for row, (icon, number) in enumerate(zip(icons, numbers, strict=True)):
        put(rng, pen, icon, rng.choice(list(COLORS)), cell(0, row))
        _print(rng, pen, str(number), cell(2, row))
    return image, icons, numbers


LIGHTS = {"red": (230, 30, 30), "yellow": (240, 220, 40), "green": (40, 200, 70)}


def street(rng: random.Random) -> tuple[Image.Image, str, str, bool]:
    """A street with a traffic light and a car: (picture, colour of the light, of the car, is the car on the left)."""
    image, pen = canvas(rng)
    pen.rectangle([0, 36, SIZE, SIZE], fill=(120 + rng.randint(-12, 12),) * 3)
    pen.line([(0, 50), (SIZE, 50)], fill=(240, 240, 240), width=1)
    left, light, car = rng.random() < 0.5, rng.choice(list(LIGHTS)), rng.choice(list(COLORS))
    x = (4 if left else 34) + rng.randint(-2, 2)
    pen.rectangle([x, 42, x + 24, 52], fill=COLORS[car])
    pen.rectangle([x + 5, 36, x + 18, 42], fill=COLORS[car])
    for wheel in (x + 5, x + 19):
        pen.ellipse([wheel - 3, 50, wheel + 3, 56], fill=(10, 10, 10))
    p = 48 if left else 12
    pen.rectangle([p - 6, 2, p + 6, 32], fill=(40, 40, 40))
    for i, color in enumerate(LIGHTS):
        lamp = LIGHTS[color] if color == light else (90, 90, 90)
        pen.ellipse([p - 4, 4 + 9 * i, p + 4, 12 + 9 * i], fill=lamp)
    return image, light, car, left


LEVELS = ("cold", "warm", "hot")


def thermometer(rng: random.Random) -> tuple[Image.Image, str]:
    """A thermometer whose column is low, middle or high."""
    image, pen = canvas(rng)
    level = rng.randrange(3)
    x, top = 24 + rng.randint(-1, 1), 50 - (level * 16 + rng.randint(2, 9))
    pen.rectangle([x - 4, 4, x + 4, 50], outline=(60, 60, 60), fill=(250, 250, 250))
    pen.rectangle([x - 3, top, x + 3, 50], fill=(210, 40, 40))
    pen.ellipse([x - 7, 47, x + 7, 61], fill=(210, 40, 40))
    for i in range(4):
        pen.line([(x + 6, 50 - 16 * i), (x + 11, 50 - 16 * i)], fill=(60, 60, 60))
    return image, LEVELS[level]


def pointer(rng: random.Random) -> tuple[Image.Image, str, str]:
    """A diagram of four labelled corners with an arrow from one to another: (picture, from, to)."""
    image, pen = canvas(rng)
    labels = rng.sample("ABCD", 4)
    for label, (x, y) in zip(labels, PLACE_CENTERS, strict=True):
        glyph(pen, label, (x, y))
    i, j = rng.sample(range(4), 2)
    (x0, y0), (x1, y1) = PLACE_CENTERS[i], PLACE_CENTERS[j]
    ax, ay, bx, by = x0 + (x1 - x0) * 0.3, y0 + (y1 - y0) * 0.3, x0 + (x1 - x0) * 0.68, y0 + (y1 - y0) * 0.68
    pen.line([(ax, ay), (bx, by)], fill=(200, 0, 0), width=2)
    pen.ellipse([bx - 4, by - 4, bx + 4, by + 4], fill=(200, 0, 0))
    return image, labels[i], labels[j]


def pair(rng: random.Random) -> tuple[Image.Image, list[Thing]]:
    """Two large things side by side; `place` is 0 for left and 1 for right."""
    image, pen = canvas(rng)
    kinds, colors = rng.sample(SHAPES, 2), rng.sample(list(COLORS), 2)
    things = [Thing(k, c, i) for i, (k, c) in enumerate(zip(kinds, colors, strict=True))]
    for thing in things:
        put(rng, pen, thing.kind, thing.color, cell(3 * thing.place, rng.choice((1, 2))))
    return image, things
