"""The eight held-out benchmarks of the tiny world; each keeps the answer format of the one it stands in for."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lmm_forget.tiny import scenes
from lmm_forget.tiny.canvas import COLORS, PLACES, SHAPES, letter_of, lettered
from lmm_forget.tiny.drawn import Drawn, Question

ORDINALS = ("first", "second", "third", "last")


def _choice(question: str, right: str, choices: Sequence[str], group: str | None = None) -> Question:
    """A lettered question. Options keep their order: a model this small learns letters, not how to search a list."""
    meta = {"category": group} if group else {}
    return Question(lettered(question, choices), (letter_of(right, choices),), tuple(choices), meta)


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
            _choice(f"What shape is on the {side[a.place]}?", a.kind, SHAPES),
            _choice(f"What color is on the {side[b.place]}?", b.color, tuple(COLORS)),
        ),
    )


def science(rng: random.Random) -> Drawn:
    """ScienceQA's stand-in: read a thermometer, three lettered choices."""
    image, level = scenes.thermometer(rng)
    return Drawn(image, (_choice("What does the thermometer show?", level, scenes.LEVELS),))


def star(rng: random.Random) -> Drawn:
    """MMStar's stand-in: three categories of lettered questions, scored as their macro mean."""
    image, (thing, *_) = scenes.scene(rng, 3)
    where = PLACES[thing.place]
    question = rng.choice(
        (
            _choice(f"What shape is in the {where}?", thing.kind, SHAPES, "shape"),
            _choice(f"What color is in the {where}?", thing.color, tuple(COLORS), "color"),
            _choice(f"Where is the {thing.kind}?", where, PLACES, "position"),
        )
    )
    return Drawn(image, (question,))
