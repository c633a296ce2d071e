"""Pretraining data of the tiny LMMs: dense captions, and plain questions about single objects.

A real model's vision tower already recognises what a new skill needs. Therefore the captions name every part that the
five skills need (cells of a grid, hands of a clock, parts of a bird, size and density of nuclei, letters), but never in
the question or answer format of a skill.
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
    """A short caption as in a caption corpus; one in five has a number word."""
    if rng.random() < 0.2:
        image, pen = create_canvas(rng)
        count, shape, color = rng.choice((2, 3)), rng.choice(SHAPES), rng.choice(list(COLORS))
        for x, y in rng.sample(QUADRANT_CENTERS, count):
            scenes.draw_jittered_shape(rng, pen, shape, color, (x, y))
        plural = shape + "es" if shape == "cross" else shape + "s"
        return _make_rendered_image(image, "Describe the image.", f"{('two', 'three')[count - 2]} {color} {plural}")
    image, objects = scenes.draw_scene(rng, rng.choice((1, 2)))
    objects = sorted(objects, key=lambda o: o.quadrant)
    return _make_rendered_image(
        image,
        "Describe the image.",
        " and ".join(f"a {o.color} {o.shape} in the {QUADRANTS[o.quadrant]}" for o in objects),
    )


def render_caption_by_quadrant(rng: random.Random) -> RenderedImage:
    """A caption with the object in every quadrant of a scene, in reading order."""
    image, objects = scenes.draw_scene(rng, rng.choice((2, 3, 4)))
    names = {o.quadrant: f"{o.color} {o.shape}" for o in objects}
    return _make_rendered_image(image, "Describe the corners.", " . ".join(names.get(q, "none") for q in range(4)))


def render_caption_by_shape(rng: random.Random) -> RenderedImage:
    """A caption with the quadrant of every object of a scene, in the order of `SHAPES`."""
    image, objects = scenes.draw_scene(rng, 3)
    ordered = sorted(objects, key=lambda o: SHAPES.index(o.shape))
    return _make_rendered_image(
        image, "Describe the places.", " . ".join(f"{o.shape} {QUADRANTS[o.quadrant]}" for o in ordered)
    )


def render_grid_caption(rng: random.Random) -> RenderedImage:
    """A caption with every cell of a grid in reading order."""
    count = rng.randint(1, 9)
    image, cells = scenes.draw_grid(rng, rng.choice(SHAPES), count, rng.randint(0, 9 - count))
    return _make_rendered_image(image, "Describe the grid.", " ".join(cells))


def render_bird_caption(rng: random.Random) -> RenderedImage:
    """A caption with body, belly and head of a bird, never with its species."""
    species = rng.randrange(8)
    parts = [names[species >> i & 1] for i, names in enumerate(scenes.BIRD_PARTS)]
    return _make_rendered_image(scenes.draw_bird(rng, species), "Describe the bird.", " ".join(parts))


def render_clock_hands_caption(rng: random.Random) -> RenderedImage:
    """A caption with the number words to which the hands of a clock point, never with a time."""
    hour, five_minutes = rng.randrange(12), rng.randrange(12)
    return _make_rendered_image(
        scenes.draw_clock(rng, hour, five_minutes),
        "Describe the hands.",
        f"red {HOUR_WORDS[hour - 1]} blue {HOUR_WORDS[five_minutes - 1]}",
    )


def render_nuclei_caption(rng: random.Random) -> RenderedImage:
    """A caption with size and density of nuclei, never with a finding."""
    large, dense = rng.random() < 0.5, rng.random() < 0.5
    words = f"{'large' if large else 'small'} {'dense' if dense else 'sparse'}"
    return _make_rendered_image(scenes.draw_tissue(rng, large, dense), "Describe the tissue.", words)


def render_bars_caption(rng: random.Random) -> RenderedImage:
    """A caption with colour and value of every bar of a chart."""
    image, colors, values = scenes.draw_bar_chart(rng)
    return _make_rendered_image(
        image, "Describe the chart.", " . ".join(f"{c} {v}" for c, v in zip(colors, values, strict=True))
    )


def render_letters_caption(rng: random.Random) -> RenderedImage:
    """A caption with the letters of a sign, one by one."""
    image, text = scenes.draw_word(rng)
    return _make_rendered_image(image, "Describe the letters.", " . ".join(text))


def render_icon_rows_caption(rng: random.Random) -> RenderedImage:
    """A caption with icon and number of every row of an infographic."""
    image, icons, numbers = scenes.draw_icon_rows(rng)
    return _make_rendered_image(
        image, "Describe the rows.", " . ".join(f"{i} {n}" for i, n in zip(icons, numbers, strict=True))
    )


def render_arrow_caption(rng: random.Random) -> RenderedImage:
    """A caption with the labels from which and to which an arrow goes."""
    image, start, end = scenes.draw_labelled_arrow(rng)
    return _make_rendered_image(image, "Describe the arrow.", f"from {start} to {end}")


def render_varied_caption(rng: random.Random) -> RenderedImage:
    """A caption of two objects, of a street, or of a thermometer."""
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


def render_single_object_question(rng: random.Random) -> RenderedImage:
    """A plain question about one quadrant, bar or shape, easier than the lettered questions of the benchmarks."""
    kind = rng.randrange(4)
    if kind < 3:
        image, (target, *_) = scenes.draw_scene(rng, 3)
        quadrant = QUADRANTS[target.quadrant]
        question, answer = (
            (f"What shape is in the {quadrant}?", target.shape),
            (f"What color is in the {quadrant}?", target.color),
            (f"Where is the {target.shape}?", quadrant),
        )[kind]
        return _make_rendered_image(image, question, answer)
    image, colors, _ = scenes.draw_bar_chart(rng)
    i = rng.randrange(4)
    return _make_rendered_image(image, f"What color is the {ORDINALS[i]} bar?", colors[i])


FUNCTION_WORDS = "There is are in this image yes no a the of an and with for it not has on at two three four five"
DRILL_WORDS = (
    *FUNCTION_WORDS.split(),
    *FINDINGS,
    *SPECIES,
    *SHAPES,
    *COLORS,
    *(f"{shape}s" for shape in SHAPES if shape != "cross"),
    "crosses",
    *"0123456789",
)


def render_repeat_drill(rng: random.Random) -> RenderedImage:
    """A text exercise: repeat random words, whatever the image shows.

    Without it, words outside the captions would never be answers, so their rows of the output head would be trained
    towards zero probability. In a real model, language pretraining keeps every word possible.
    """
    image, _ = scenes.draw_scene(rng, 1)
    words = rng.sample(DRILL_WORDS, rng.randint(2, 5))
    text = words[0] + "".join(rng.choice((" ", " ", " ", ":")) + word for word in words[1:]) + rng.choice(("", "."))
    return _make_rendered_image(image, f"Repeat: {text}", text)
