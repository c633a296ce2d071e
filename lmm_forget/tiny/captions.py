"""What the tiny LMM is shown before it is asked anything: dense captions, and plain questions about single things.

A real model's tower already sees what a new skill needs; so the captions name every part that the five skills
rest on (cells of a grid, hands of a clock, parts of a bird, size and density of nuclei, letters) without ever
using a skill's question or answer format.
"""

from __future__ import annotations

import random

from lmm_forget.tiny import scenes
from lmm_forget.tiny.benchmarks import ORDINALS
from lmm_forget.tiny.canvas import COLORS, PLACE_CENTERS, PLACES, SHAPES, canvas
from lmm_forget.tiny.drawn import Drawn, Question
from lmm_forget.tiny.skills import FINDINGS, SPECIES

HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def _one(image: scenes.Image.Image, question: str, answer: str) -> Drawn:
    return Drawn(image, (Question(question, (answer,)),))


def caption(rng: random.Random) -> Drawn:
    """A plain caption, as a caption corpus has it: every fifth one holds a number word, most do not."""
    if rng.random() < 0.2:
        image, pen = canvas(rng)
        n, kind, color = rng.choice((2, 3)), rng.choice(SHAPES), rng.choice(list(COLORS))
        for x, y in rng.sample(PLACE_CENTERS, n):
            scenes.put(rng, pen, kind, color, (x, y))
        plural = kind + "es" if kind == "cross" else kind + "s"
        return _one(image, "Describe the image.", f"{('two', 'three')[n - 2]} {color} {plural}")
    image, things = scenes.scene(rng, rng.choice((1, 2)))
    things = sorted(things, key=lambda t: t.place)
    return _one(
        image,
        "Describe the image.",
        " and ".join(f"a {t.color} {t.kind} in the {PLACES[t.place]}" for t in things),
    )


def scene_by_place(rng: random.Random) -> Drawn:
    """Every quadrant of a scene in reading order."""
    image, things = scenes.scene(rng, rng.choice((2, 3, 4)))
    seen = {t.place: f"{t.color} {t.kind}" for t in things}
    return _one(image, "Describe the corners.", " . ".join(seen.get(p, "none") for p in range(4)))


def scene_by_thing(rng: random.Random) -> Drawn:
    """Where the things of a scene are, in the order of the shapes' names."""
    image, things = scenes.scene(rng, 3)
    listed = sorted(things, key=lambda t: SHAPES.index(t.kind))
    return _one(image, "Describe the places.", " . ".join(f"{t.kind} {PLACES[t.place]}" for t in listed))


def cells(rng: random.Random) -> Drawn:
    """Every cell of a grid in reading order."""
    n = rng.randint(1, 9)
    image, seen = scenes.grid(rng, rng.choice(SHAPES), n, rng.randint(0, 9 - n))
    return _one(image, "Describe the grid.", " ".join(seen))


def bird_parts(rng: random.Random) -> Drawn:
    """Body, belly and head of a bird, never its species."""
    species = rng.randrange(8)
    parts = [names[species >> i & 1] for i, names in enumerate(scenes.BIRD_PARTS)]
    return _one(scenes.bird(rng, species), "Describe the bird.", " ".join(parts))


def hands(rng: random.Random) -> Drawn:
    """Where the two hands of a clock point, as number words of the dial, never as a time."""
    hour, five = rng.randrange(12), rng.randrange(12)
    return _one(
        scenes.clock(rng, hour, five), "Describe the hands.", f"red {HOURS[hour - 1]} blue {HOURS[five - 1]}"
    )


def nuclei(rng: random.Random) -> Drawn:
    """Size and density of nuclei, never a finding."""
    large, dense = rng.random() < 0.5, rng.random() < 0.5
    words = f"{'large' if large else 'small'} {'dense' if dense else 'sparse'}"
    return _one(scenes.tissue(rng, large, dense), "Describe the tissue.", words)


def bars(rng: random.Random) -> Drawn:
    """Colour and value of every bar."""
    image, colors, values = scenes.chart(rng)
    return _one(
        image, "Describe the chart.", " . ".join(f"{c} {v}" for c, v in zip(colors, values, strict=True))
    )


def letters(rng: random.Random) -> Drawn:
    """The letters of a sign one by one."""
    image, text = scenes.word(rng)
    return _one(image, "Describe the letters.", " . ".join(text))


def icon_rows(rng: random.Random) -> Drawn:
    """Icon and number of every row."""
    image, icons, numbers = scenes.rows(rng)
    return _one(
        image, "Describe the rows.", " . ".join(f"{i} {n}" for i, n in zip(icons, numbers, strict=True))
    )


def arrow(rng: random.Random) -> Drawn:
    """From which label an arrow goes to which."""
    image, start, end = scenes.pointer(rng)
    return _one(image, "Describe the arrow.", f"from {start} to {end}")


def two_things(rng: random.Random) -> Drawn:
    """Left and right thing with colour, or street and thermometer in words."""
    kind = rng.randrange(3)
    if kind == 0:
        image, (a, b) = scenes.pair(rng)
        return _one(image, "Describe the sides.", f"left {a.color} {a.kind} . right {b.color} {b.kind}")
    if kind == 1:
        image, light, car, left = scenes.street(rng)
        return _one(image, "Describe the street.", f"light {light} . {car} car {'left' if left else 'right'}")
    image, level = scenes.thermometer(rng)
    return _one(image, "Describe the weather.", level)


def single_thing(rng: random.Random) -> Drawn:
    """One quadrant, one bar or one shape in plain words: the step between captions and lettered questions."""
    kind = rng.randrange(4)
    if kind == 0:
        image, things = scenes.scene(rng, 3)
        return _one(image, f"What shape is in the {PLACES[things[0].place]}?", things[0].kind)
    if kind == 1:
        image, things = scenes.scene(rng, 3)
        return _one(image, f"What color is in the {PLACES[things[0].place]}?", things[0].color)
    if kind == 2:
        image, things = scenes.scene(rng, 3)
        return _one(image, f"Where is the {things[0].kind}?", PLACES[things[0].place])
    image, colors, _ = scenes.chart(rng)
    i = rng.randrange(4)
    return _one(image, f"What color is the {ORDINALS[i]} bar?", colors[i])


LITTLE_WORDS = (
    "There is are in this image yes no a the of an and with for it not has on at two three four five"
)
WORDS = (
    *LITTLE_WORDS.split(),
    *FINDINGS,
    *SPECIES,
    *SHAPES,
    *COLORS,
    *(f"{shape}s" for shape in SHAPES if shape != "cross"),
    "crosses",
    *"0123456789",
)


def salad(rng: random.Random) -> Drawn:
    """A drill on text alone: say random words again, whatever the picture shows.

    Without it no word outside the captions is ever an answer, and its row of the output head is trained to silence;
    a real model's language pretraining leaves every word within reach.
    """
    image, _ = scenes.scene(rng, 1)
    words = rng.sample(WORDS, rng.randint(2, 5))
    text = (
        words[0]
        + "".join(rng.choice((" ", " ", " ", ":")) + word for word in words[1:])
        + rng.choice(("", "."))
    )
    return _one(image, f"Repeat: {text}", text)
