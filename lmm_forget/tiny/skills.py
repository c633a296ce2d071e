"""The five synthetic target skills, in the paper's answer formats (lettered, sentence, yes/no, word, HH:MM)."""

from __future__ import annotations

import random

from lmm_forget.tiny import scenes
from lmm_forget.tiny.canvas import SHAPES, format_lettered_question, get_choice_letter
from lmm_forget.tiny.rendered_image import Question, RenderedImage

SPECIES = ("wren", "finch", "plover", "dunlin", "siskin", "linnet", "martin", "heron")
FINDINGS = ("normal", "atypia", "hyperplasia", "carcinoma")


def render_bird_question(rng: random.Random) -> RenderedImage:
    """Synthetic CUB-200: the species of a bird as lettered multiple choice."""
    species = rng.randrange(8)
    image = scenes.draw_bird(rng, species)
    question = format_lettered_question("What species is this bird?", SPECIES)
    return RenderedImage(image, (Question(question, (get_choice_letter(SPECIES[species], SPECIES),), SPECIES),))


def render_counting_question(rng: random.Random) -> RenderedImage:
    """Synthetic PixMo-Count, worded as in the paper: one to six objects, and up to three of another shape."""
    shape, count = rng.choice(SHAPES), rng.randint(1, 6)
    image, _ = scenes.draw_grid(rng, shape, count, rng.randint(0, 3))
    plural = shape + "es" if shape == "cross" else shape + "s"
    answer = f"There {'are' if count > 1 else 'is'} {count} {plural if count > 1 else shape} in this image."
    return RenderedImage(
        image, (Question(f"How many {plural} are in this image?", (answer, str(count)), meta={"count": count}),)
    )


def render_pathology_questions(rng: random.Random) -> RenderedImage:
    """Synthetic PathVQA: a yes/no question and an open question about the same tissue section."""
    large, dense = rng.random() < 0.5, rng.random() < 0.5
    image = scenes.draw_tissue(rng, large, dense)
    is_about_size = rng.random() < 0.5
    yes_no = (
        Question("Are the nuclei enlarged?", ("yes" if large else "no",), meta={"kind": "yes_no"})
        if is_about_size
        else Question("Is the tissue crowded?", ("yes" if dense else "no",), meta={"kind": "yes_no"})
    )
    finding = FINDINGS[large + 2 * dense]
    return RenderedImage(image, (yes_no, Question("What does this tissue show?", (finding,), meta={"kind": "open"})))


def render_reading_question(rng: random.Random) -> RenderedImage:
    """Synthetic TextVQA: read a word of three letters."""
    image, text = scenes.draw_word(rng)
    return RenderedImage(image, (Question("What word is written on the sign?", (text,)),))


def render_clock_question(rng: random.Random) -> RenderedImage:
    """Synthetic TimeClock: read an analogue clock as HH:MM in steps of five minutes."""
    hour, five_minutes = rng.randrange(12), rng.randrange(12)
    image = scenes.draw_clock(rng, hour, five_minutes)
    return RenderedImage(
        image,
        (Question("What time does the clock show in this image?", (f"{hour or 12:02d}:{five_minutes * 5:02d}",)),),
    )
