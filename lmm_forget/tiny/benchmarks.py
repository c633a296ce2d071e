"""The eight held-out benchmarks of the tiny world; each keeps the answer format of the one it stands in for."""

from __future__ import annotations

import random

from lmm_forget.tiny import scenes
from lmm_forget.tiny.canvas import COLORS, PLACES, SHAPES, lettered, options
from lmm_forget.tiny.drawn import Drawn, Question

ORDINALS = ("first", "second", "third", "last")


def _choice(
    rng: random.Random, question: str, right: str, pool: list[str], group: str | None = None, n: int = 4
) -> Question:
    choices, letter = options(rng, right, [p for p in pool if p != right], n)
    meta = {"category": group} if group else {}
    return Question(lettered(question, choices), (letter,), choices, meta)


def diagram(rng: random.Random) -> Drawn:
    """AI2D's stand-in: which label the arrow points to; the answer is the label's letter."""
    image, start, end = scenes.pointer(rng)
    return Drawn(
        image,
        (
            Question("Which label does the arrow point to?", (end,)),
            Question("Which label does the arrow start from?", (start,)),
        ),
    )


def chart(rng: random.Random) -> Drawn:
    """ChartQA's stand-in: the value of two bars."""
    image, _, values = scenes.chart(rng)
    picked = rng.sample(range(4), 2)
    return Drawn(
        image,
        tuple(Question(f"What is the value of the {ORDINALS[i]} bar?", (str(values[i]),)) for i in picked),
    )


def document(rng: random.Random) -> Drawn:
    """DocVQA's stand-in: the two fields of a form."""
    image, first, second = scenes.form(rng)
    return Drawn(image, (Question("What is the id?", (first,)), Question("What is the no?", (second,))))


def infographic(rng: random.Random) -> Drawn:
    """InfographicVQA's stand-in: the number that stands beside an icon, or in a row."""
    image, icons, numbers = scenes.rows(rng)
    i, j = rng.sample(range(3), 2)
    return Drawn(
        image,
        (
            Question(f"What number is next to the {icons[i]}?", (str(numbers[i]),)),
            Question(f"What number is in the {('first', 'second', 'third')[j]} row?", (str(numbers[j]),)),
        ),
    )


def realworld(rng: random.Random) -> Drawn:
    """RealWorldQA's stand-in: short answers about a street."""
    image, light, car, left = scenes.street(rng)
    about_car = (
        Question("What color is the car?", (car,))
        if rng.random() < 0.5
        else Question("On which side is the car?", ("left" if left else "right",))
    )
    return Drawn(image, (Question("What color is the traffic light?", (light,)), about_car))


def seed(rng: random.Random) -> Drawn:
    """SEED-Bench's stand-in: lettered questions about shape and colour of one of two things."""
    image, things = scenes.pair(rng)
    a, b = rng.sample(things, 2)
    side = ("left", "right")
    return Drawn(
        image,
        (
            _choice(rng, f"What shape is on the {side[a.place]}?", a.kind, list(SHAPES)),
            _choice(rng, f"What color is on the {side[b.place]}?", b.color, list(COLORS)),
        ),
    )


def science(rng: random.Random) -> Drawn:
    """ScienceQA's stand-in: read a thermometer, three lettered choices."""
    image, level = scenes.thermometer(rng)
    return Drawn(image, (_choice(rng, "What does the thermometer show?", level, list(scenes.LEVELS), n=3),))


def star(rng: random.Random) -> Drawn:
    """MMStar's stand-in: three categories of lettered questions, scored as their macro mean."""
    image, things = scenes.scene(rng, 3)
    thing = things[0]
    kind = rng.randrange(3)
    if kind == 0:
        question = _choice(
            rng, f"What shape is in the {PLACES[thing.place]}?", thing.kind, list(SHAPES), "shape"
        )
    elif kind == 1:
        question = _choice(
            rng, f"What color is in the {PLACES[thing.place]}?", thing.color, list(COLORS), "color"
        )
    else:
        question = _choice(rng, f"Where is the {thing.kind}?", PLACES[thing.place], list(PLACES), "position")
    return Drawn(image, (question,))
