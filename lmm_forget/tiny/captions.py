"""What the tiny LMM is shown before it is asked anything: dense captions, and plain questions about single things.

A real model's tower already sees what a new skill needs; so the captions name every part that the five skills
rest on (cells of a grid, hands of a clock, parts of a bird, size and density of nuclei, letters) without ever
using a skill's question or answer format.
"""

from __future__ import annotations

import random

from lmm_forget.tiny import scenes
from lmm_forget.tiny.benchmarks import ORDINALS
from lmm_forget.tiny.canvas import COLORS, QUADRANT_CENTERS, QUADRANTS, SHAPES, create_canvas
from lmm_forget.tiny.rendered_image import Question, RenderedImage
from lmm_forget.tiny.skills import FINDINGS, SPECIES

HOUR_WORDS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


def _make_rendered_image(image: scenes.Image.Image, question: str, answer: str) -> RenderedImage:
    return RenderedImage(image, (Question(question, (answer,)),))


def render_plain_caption(rng: random.Random) -> RenderedImage:
    """A plain caption, as a caption corpus has it: every fifth one holds a number word, most do not."""
    if rng.random() < 0.2:
        image, pen = create_canvas(rng)
        count, kind, color = rng.choice((2, 3)), rng.choice(SHAPES), rng.choice(list(COLORS))
        for x, y in rng.sample(QUADRANT_CENTERS, count):
            scenes.draw_jittered_shape(rng, pen, kind, color, (x, y))
        plural = kind + "es" if kind == "cross" else kind + "s"
        return _make_rendered_image(image, "Describe the image.", f"{('two', 'three')[count - 2]} {color} {plural}")
    image, things = scenes.draw_scene(rng, rng.choice((1, 2)))
    things = sorted(things, key=lambda t: t.quadrant)
    return _make_rendered_image(
        image,
        "Describe the image.",
        " and ".join(f"a {t.color} {t.shape} in the {QUADRANTS[t.quadrant]}" for t in things),
    )


def render_scene_by_place(rng: random.Random) -> RenderedImage:
    """Every quadrant of a scene in reading order."""
    image, things = scenes.draw_scene(rng, rng.choice((2, 3, 4)))
    seen = {t.quadrant: f"{t.color} {t.shape}" for t in things}
    return _make_rendered_image(image, "Describe the corners.", " . ".join(seen.get(p, "none") for p in range(4)))


def render_scene_by_thing(rng: random.Random) -> RenderedImage:
    """Where the things of a scene are, in the order of the shapes' names."""
    image, things = scenes.draw_scene(rng, 3)
    listed = sorted(things, key=lambda t: SHAPES.index(t.shape))
    return _make_rendered_image(
        image, "Describe the places.", " . ".join(f"{t.shape} {QUADRANTS[t.quadrant]}" for t in listed)
    )


def render_grid_caption(rng: random.Random) -> RenderedImage:
    """Every cell of a grid in reading order."""
    n = rng.randint(1, 9)
    image, seen = scenes.draw_grid(rng, rng.choice(SHAPES), n, rng.randint(0, 9 - n))
    return _make_rendered_image(image, "Describe the grid.", " ".join(seen))


def render_bird_caption(rng: random.Random) -> RenderedImage:
    """Body, belly and head of a bird, never its species."""
    species = rng.randrange(8)
    parts = [names[species >> i & 1] for i, names in enumerate(scenes.BIRD_PARTS)]
    return _make_rendered_image(scenes.draw_bird(rng, species), "Describe the bird.", " ".join(parts))


def render_clock_hands_caption(rng: random.Random) -> RenderedImage:
    """Where the two hands of a clock point, as number words of the dial, never as a time."""
    hour, five = rng.randrange(12), rng.randrange(12)
    return _make_rendered_image(
        scenes.draw_clock(rng, hour, five),
        "Describe the hands.",
        f"red {HOUR_WORDS[hour - 1]} blue {HOUR_WORDS[five - 1]}",
    )


def render_nuclei_caption(rng: random.Random) -> RenderedImage:
    """Size and density of nuclei, never a finding."""
    large, dense = rng.random() < 0.5, rng.random() < 0.5
    words = f"{'large' if large else 'small'} {'dense' if dense else 'sparse'}"
    return _make_rendered_image(scenes.draw_tissue(rng, large, dense), "Describe the tissue.", words)


def render_bars_caption(rng: random.Random) -> RenderedImage:
    """Colour and value of every bar."""
    image, colors, values = scenes.draw_bar_chart(rng)
    return _make_rendered_image(
        image, "Describe the chart.", " . ".join(f"{c} {v}" for c, v in zip(colors, values, strict=True))
    )


def render_letters_caption(rng: random.Random) -> RenderedImage:
    """The letters of a sign one by one."""
    image, text = scenes.draw_word(rng)
    return _make_rendered_image(image, "Describe the letters.", " . ".join(text))


def render_icon_rows_caption(rng: random.Random) -> RenderedImage:
    """Icon and number of every row."""
    image, icons, numbers = scenes.draw_icon_rows(rng)
    return _make_rendered_image(
        image, "Describe the rows.", " . ".join(f"{i} {n}" for i, n in zip(icons, numbers, strict=True))
    )


def render_arrow_caption(rng: random.Random) -> RenderedImage:
    """From which label an arrow goes to which."""
    image, start, end = scenes.draw_labelled_arrow(rng)
    return _make_rendered_image(image, "Describe the arrow.", f"from {start} to {end}")


def render_two_things_caption(rng: random.Random) -> RenderedImage:
    """Left and right thing with colour, or street and thermometer in words."""
    kind = rng.randrange(3)
    if kind == 0:
        image, (a, b) = scenes.draw_object_pair(rng)
        return _make_rendered_image(
            image, "Describe the sides.", f"left {a.color} {a.shape} . right {b.color} {b.shape}"
        )
    if kind == 1:
        image, light, car, left = scenes.draw_street(rng)
        return _make_rendered_image(
            image, "Describe the street.", f"light {light} . {car} car {'left' if left else 'right'}"
        )
    image, level = scenes.draw_thermometer(rng)
    return _make_rendered_image(image, "Describe the weather.", level)


def render_single_thing_question(rng: random.Random) -> RenderedImage:
    """One quadrant, one bar or one shape in plain words: the step between captions and lettered questions."""
    kind = rng.randrange(4)
    if kind == 0:
        image, things = scenes.draw_scene(rng, 3)
        return _make_rendered_image(image, f"What shape is in the {QUADRANTS[things[0].quadrant]}?", things[0].shape)
    if kind == 1:
        image, things = scenes.draw_scene(rng, 3)
        return _make_rendered_image(image, f"What color is in the {QUADRANTS[things[0].quadrant]}?", things[0].color)
    if kind == 2:
        image, things = scenes.draw_scene(rng, 3)
        return _make_rendered_image(image, f"Where is the {things[0].shape}?", QUADRANTS[things[0].quadrant])
    image, colors, _ = scenes.draw_bar_chart(rng)
    i = rng.randrange(4)
    return _make_rendered_image(image, f"What color is the {ORDINALS[i]} bar?", colors[i])


LITTLE_WORDS = "There is are in this image yes no a the of an and with for it not has on at two three four five"
DRILL_WORDS = (
    *LITTLE_WORDS.split(),
    *FINDINGS,
    *SPECIES,
    *SHAPES,
    *COLORS,
    *(f"{shape}s" for shape in SHAPES if shape != "cross"),
    "crosses",
    *"0123456789",
)


def render_repeat_drill(rng: random.Random) -> RenderedImage:
    """A drill on text alone: say random words again, whatever the picture shows.

    Without it no word outside the captions is ever an answer, and its row of the output head is trained to silence;
    a real model's language pretraining leaves every word within reach.
    """
    image, _ = scenes.draw_scene(rng, 1)
    words = rng.sample(DRILL_WORDS, rng.randint(2, 5))
    text = words[0] + "".join(rng.choice((" ", " ", " ", ":")) + word for word in words[1:]) + rng.choice(("", "."))
    return _make_rendered_image(image, f"Repeat: {text}", text)
