"""Draw the synthetic images; the modules benchmarks, captions and skills add the questions."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image

from lmm_forget.tiny.canvas import (
    CELL_SIZE,
    COLORS,
    GRID_CENTERS,
    INK_COLORS,
    QUADRANT_CENTERS,
    SHAPES,
    SIGN_LETTERS,
    SIZE,
    Pen,
    create_canvas,
    draw_glyph,
    draw_shape,
    get_cell_center,
)


def draw_jittered_shape(rng: random.Random, pen: Pen, shape: str, color: str, center: tuple[int, int]) -> None:
    """Draw a shape that fills a cell, up to one pixel off its centre and of slightly random size."""
    x, y = center
    draw_shape(pen, shape, x + rng.randint(-1, 1), y + rng.randint(-1, 1), rng.choice((6, 6.5, 7)), COLORS[color])


def _draw_jittered_letter(
    rng: random.Random, pen: Pen, letter: str, center: tuple[int, int], ink: tuple[int, int, int] = (0, 0, 0)
) -> None:
    x, y = center
    draw_glyph(pen, letter, (x + rng.randint(-1, 1), y + rng.randint(-1, 1)), fill=ink)


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene: its shape, colour and quadrant (0..3)."""

    shape: str
    color: str
    quadrant: int


def draw_scene(rng: random.Random, num_objects: int) -> tuple[Image.Image, list[SceneObject]]:
    """`num_objects` objects of different shapes and colours in different quadrants: (image, objects)."""
    image, pen = create_canvas(rng)
    objects = [
        SceneObject(shape, color, quadrant)
        for shape, color, quadrant in zip(
            rng.sample(SHAPES, num_objects),
            rng.sample(list(COLORS), num_objects),
            rng.sample(range(4), num_objects),
            strict=True,
        )
    ]
    for each in objects:
        draw_jittered_shape(rng, pen, each.shape, each.color, QUADRANT_CENTERS[each.quadrant])
    return image, objects


def draw_grid(rng: random.Random, shape_name: str, num_target: int, num_other: int) -> tuple[Image.Image, list[str]]:
    """A 3 x 3 grid with `num_target` objects of one shape and `num_other` of another.

    Returns the image and the shape in each of the nine cells ("none" for an empty one).
    """
    image, pen = create_canvas(rng)
    other_shape = rng.choice([s for s in SHAPES if s != shape_name])
    target_color, other_color = rng.choice(list(COLORS)), rng.choice(list(COLORS))
    cells = ["none"] * 9
    for i, cell in enumerate(rng.sample(range(9), num_target + num_other)):
        shape, color = (shape_name, target_color) if i < num_target else (other_shape, other_color)
        draw_jittered_shape(rng, pen, shape, color, GRID_CENTERS[cell])
        cells[cell] = shape
    return image, cells


BIRD_PARTS = (("brown", "grey"), ("white", "orange"), ("plain", "capped"))


def draw_bird(rng: random.Random, species: int) -> Image.Image:
    """A bird of one of eight species: body (bit 0), belly (bit 1) and head (bit 2) differ."""
    image, pen = create_canvas(rng)
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


def draw_clock(rng: random.Random, hour: int, five_minutes: int) -> Image.Image:
    """A clock at `hour` (0..11) and `five_minutes` (0..11) times 5 minutes; the short hand is red, the long blue."""
    image, pen = create_canvas(rng)
    cx, cy = 32 + rng.randint(-1, 1), 32 + rng.randint(-1, 1)
    pen.ellipse([cx - 28, cy - 28, cx + 28, cy + 28], outline=(0, 0, 0), width=2, fill=(255, 255, 255))
    for i in range(12):
        s, c = math.sin(i * math.pi / 6), math.cos(i * math.pi / 6)
        pen.line([(cx + 24 * s, cy - 24 * c), (cx + 27 * s, cy - 27 * c)], fill=(0, 0, 0), width=1)
    minute, short = five_minutes * math.pi / 6, (hour + five_minutes / 12) * math.pi / 6
    pen.line([(cx, cy), (cx + 23 * math.sin(minute), cy - 23 * math.cos(minute))], fill=(40, 80, 220), width=3)
    pen.line([(cx, cy), (cx + 14 * math.sin(short), cy - 14 * math.cos(short))], fill=(200, 30, 30), width=4)
    return image


def draw_tissue(rng: random.Random, has_large_nuclei: bool, is_dense: bool) -> Image.Image:
    """A stained section: nuclei are large or small, dense or sparse."""
    image, pen = create_canvas(rng)
    stain = (225 + rng.randint(-9, 9), 170 + rng.randint(-9, 9), 200 + rng.randint(-9, 9))
    pen.rectangle([0, 0, SIZE, SIZE], fill=stain)
    for _ in range(rng.randint(28, 36) if is_dense else rng.randint(9, 13)):
        x, y = rng.randint(0, SIZE), rng.randint(0, SIZE)
        r = rng.choice((4, 5, 6)) if has_large_nuclei else rng.choice((1, 1.5, 2))
        pen.ellipse([x - r, y - r, x + r, y + r], fill=(110, 60, 140))
    return image


def draw_bar_chart(rng: random.Random) -> tuple[Image.Image, list[str], list[int]]:
    """A chart of four bars of different colours with values 1..9 on unit grid lines: (image, colours, values)."""
    image, pen = create_canvas(rng)
    colors, values = rng.sample(list(COLORS), 4), [rng.randint(1, 9) for _ in range(4)]
    for g in range(1, 10):
        pen.line([(2, 62 - g * 6), (62, 62 - g * 6)], fill=(190, 190, 190))
    for i, (color, value) in enumerate(zip(colors, values, strict=True)):
        left = CELL_SIZE * i + 3 + rng.randint(-1, 1)
        pen.rectangle([left, 62 - value * 6, left + 10, 62], fill=COLORS[color])
    return image, colors, values


def draw_word(rng: random.Random) -> tuple[Image.Image, str]:
    """A sign with three letters, each slightly off its position: (image, letters)."""
    image, pen = create_canvas(rng)
    text = "".join(rng.choice(SIGN_LETTERS) for _ in range(3))
    ink, row = rng.choice(INK_COLORS), rng.choice((1, 2))
    for i, letter in enumerate(text):
        _draw_jittered_letter(rng, pen, letter, get_cell_center(i, row), ink)
    return image, text


def draw_form(rng: random.Random) -> tuple[Image.Image, str, str]:
    """A form with the fields ID and NO of two letters each: (image, ID, NO)."""
    image, pen = create_canvas(rng)
    first, second = ("".join(rng.choice(SIGN_LETTERS) for _ in range(2)) for _ in range(2))
    for row, line in ((0, "ID" + first), (2, "NO" + second)):
        for column, letter in enumerate(line):
            _draw_jittered_letter(rng, pen, letter, get_cell_center(column, row))
    return image, first, second


def draw_icon_rows(rng: random.Random) -> tuple[Image.Image, list[str], list[int]]:
    """An infographic of three rows with an icon and a number each: (image, icons, numbers)."""
    image, pen = create_canvas(rng)
    icons, numbers = rng.sample(SHAPES, 3), [rng.randint(1, 9) for _ in range(3)]
    for row, (icon, number) in enumerate(zip(icons, numbers, strict=True)):
        draw_jittered_shape(rng, pen, icon, rng.choice(list(COLORS)), get_cell_center(0, row))
        _draw_jittered_letter(rng, pen, str(number), get_cell_center(2, row))
    return image, icons, numbers


TRAFFIC_LIGHT_COLORS = {"red": (230, 30, 30), "yellow": (240, 220, 40), "green": (40, 200, 70)}


def draw_street(rng: random.Random) -> tuple[Image.Image, str, str, bool]:
    """A street with a traffic light and a car: (image, colour of the light, of the car, whether the car is left)."""
    image, pen = create_canvas(rng)
    pen.rectangle([0, 36, SIZE, SIZE], fill=(120 + rng.randint(-12, 12),) * 3)
    pen.line([(0, 50), (SIZE, 50)], fill=(240, 240, 240), width=1)
    left, light, car = rng.random() < 0.5, rng.choice(list(TRAFFIC_LIGHT_COLORS)), rng.choice(list(COLORS))
    x = (4 if left else 34) + rng.randint(-2, 2)
    pen.rectangle([x, 42, x + 24, 52], fill=COLORS[car])
    pen.rectangle([x + 5, 36, x + 18, 42], fill=COLORS[car])
    for wheel in (x + 5, x + 19):
        pen.ellipse([wheel - 3, 50, wheel + 3, 56], fill=(10, 10, 10))
    p = 48 if left else 12
    pen.rectangle([p - 6, 2, p + 6, 32], fill=(40, 40, 40))
    for i, color in enumerate(TRAFFIC_LIGHT_COLORS):
        lamp = TRAFFIC_LIGHT_COLORS[color] if color == light else (90, 90, 90)
        pen.ellipse([p - 4, 4 + 9 * i, p + 4, 12 + 9 * i], fill=lamp)
    return image, light, car, left


TEMPERATURE_LEVELS = ("cold", "warm", "hot")


def draw_thermometer(rng: random.Random) -> tuple[Image.Image, str]:
    """A thermometer with a low, middle or high column: (image, name of the level)."""
    image, pen = create_canvas(rng)
    level = rng.randrange(3)
    x, top = 24 + rng.randint(-1, 1), 50 - (level * 16 + rng.randint(2, 9))
    pen.rectangle([x - 4, 4, x + 4, 50], outline=(60, 60, 60), fill=(250, 250, 250))
    pen.rectangle([x - 3, top, x + 3, 50], fill=(210, 40, 40))
    pen.ellipse([x - 7, 47, x + 7, 61], fill=(210, 40, 40))
    for i in range(4):
        pen.line([(x + 6, 50 - 16 * i), (x + 11, 50 - 16 * i)], fill=(60, 60, 60))
    return image, TEMPERATURE_LEVELS[level]


def draw_labelled_arrow(rng: random.Random) -> tuple[Image.Image, str, str]:
    """A diagram of four labelled corners with an arrow from one to another: (image, from, to)."""
    image, pen = create_canvas(rng)
    labels = rng.sample("ABCD", 4)
    for label, (x, y) in zip(labels, QUADRANT_CENTERS, strict=True):
        draw_glyph(pen, label, (x, y))
    i, j = rng.sample(range(4), 2)
    (x0, y0), (x1, y1) = QUADRANT_CENTERS[i], QUADRANT_CENTERS[j]
    ax, ay, bx, by = x0 + (x1 - x0) * 0.3, y0 + (y1 - y0) * 0.3, x0 + (x1 - x0) * 0.68, y0 + (y1 - y0) * 0.68
    pen.line([(ax, ay), (bx, by)], fill=(200, 0, 0), width=2)
    pen.ellipse([bx - 4, by - 4, bx + 4, by + 4], fill=(200, 0, 0))
    return image, labels[i], labels[j]


def draw_object_pair(rng: random.Random) -> tuple[Image.Image, list[SceneObject]]:
    """Two objects side by side: (image, objects); `quadrant` is 0 for the left and 1 for the right object."""
    image, pen = create_canvas(rng)
    shapes, colors = rng.sample(SHAPES, 2), rng.sample(list(COLORS), 2)
    objects = [SceneObject(shape, color, i) for i, (shape, color) in enumerate(zip(shapes, colors, strict=True))]
    for each in objects:
        draw_jittered_shape(rng, pen, each.shape, each.color, get_cell_center(3 * each.quadrant, rng.choice((1, 2))))
    return image, objects
