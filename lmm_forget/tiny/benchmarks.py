"""The eight synthetic held-out benchmarks; each has the answer format of the real benchmark of its name."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lmm_forget.tiny import scenes
from lmm_forget.tiny.canvas import COLORS, QUADRANTS, SHAPES, format_lettered_question, get_choice_letter
from lmm_forget.tiny.rendered_image import Question, RenderedImage

ORDINALS = ("first", "second", "third", "last")


def _make_choice_question(
    question: str, correct_choice: str, choices: Sequence[str], category: str | None = None
) -> Question:
    """A lettered question. Options keep their order, because models this small cannot learn to search a list."""
    meta = {"category": category} if category else {}
    return Question(
        format_lettered_question(question, choices),
        (get_choice_letter(correct_choice, choices),),
        tuple(choices),
        meta,
    )


def render_diagram_questions(rng: random.Random) -> RenderedImage:
    """Synthetic AI2D: which label the arrow points to or starts from; the answer is the label's letter."""
    image, start, end = scenes.draw_labelled_arrow(rng)
    return RenderedImage(
        image,
        (
            Question("Which label does the arrow point to?", (end,)),
            Question("Which label does the arrow start from?", (start,)),
        ),
    )


def render_chart_questions(rng: random.Random) -> RenderedImage:
    """Synthetic ChartQA: the values of two bars."""
    image, _, values = scenes.draw_bar_chart(rng)
    bars = rng.sample(range(4), 2)
    return RenderedImage(
        image,
        tuple(Question(f"What is the value of the {ORDINALS[i]} bar?", (str(values[i]),)) for i in bars),
    )


def render_document_questions(rng: random.Random) -> RenderedImage:
    """Synthetic DocVQA: the two fields of a form."""
    image, first, second = scenes.draw_form(rng)
    return RenderedImage(image, (Question("What is the id?", (first,)), Question("What is the no?", (second,))))


def render_infographic_questions(rng: random.Random) -> RenderedImage:
    """Synthetic InfographicVQA: the number beside an icon and the number in a row."""
    image, icons, numbers = scenes.draw_icon_rows(rng)
    i, j = rng.sample(range(3), 2)
    return RenderedImage(
        image,
        (
            Question(f"What number is next to the {icons[i]}?", (str(numbers[i]),)),
            Question(f"What number is in the {('first', 'second', 'third')[j]} row?", (str(numbers[j]),)),
        ),
    )


def render_realworld_questions(rng: random.Random) -> RenderedImage:
    """Synthetic RealWorldQA: short answers about a street."""
    image, light, car, left = scenes.draw_street(rng)
    about_car = (
        Question("What color is the car?", (car,))
        if rng.random() < 0.5
        else Question("On which side is the car?", ("left" if left else "right",))
    )
    return RenderedImage(image, (Question("What color is the traffic light?", (light,)), about_car))


def render_seedbench_questions(rng: random.Random) -> RenderedImage:
    """Synthetic SEED-Bench: lettered questions about the shapes and colours of two objects."""
    image, objects = scenes.draw_object_pair(rng)
    a, b = rng.sample(objects, 2)
    side = ("left", "right")
    return RenderedImage(
        image,
        (
            _make_choice_question(f"What shape is on the {side[a.quadrant]}?", a.shape, SHAPES),
            _make_choice_question(f"What color is on the {side[b.quadrant]}?", b.color, tuple(COLORS)),
        ),
    )


def render_science_question(rng: random.Random) -> RenderedImage:
    """Synthetic ScienceQA: read a thermometer, three lettered choices."""
    image, level = scenes.draw_thermometer(rng)
    return RenderedImage(
        image, (_make_choice_question("What does the thermometer show?", level, scenes.TEMPERATURE_LEVELS),)
    )


def render_mmstar_question(rng: random.Random) -> RenderedImage:
    """Synthetic MMStar: lettered questions of three categories; the score is the mean over the categories."""
    image, (target, *_) = scenes.draw_scene(rng, 3)
    quadrant = QUADRANTS[target.quadrant]
    question = rng.choice(
        (
            _make_choice_question(f"What shape is in the {quadrant}?", target.shape, SHAPES, "shape"),
            _make_choice_question(f"What color is in the {quadrant}?", target.color, tuple(COLORS), "color"),
            _make_choice_question(f"Where is the {target.shape}?", quadrant, QUADRANTS, "position"),
        )
    )
    return RenderedImage(image, (question,))
