"""The five target skills of the tiny world, in the paper's answer formats (lettered, sentence, yes/no, word, HH:MM)."""

from __future__ import annotations

import random

from lmm_forget.tiny import scenes
from lmm_forget.tiny.canvas import SHAPES, letter_of, lettered
from lmm_forget.tiny.drawn import Drawn, Question

SPECIES = ("wren", "finch", "plover", "dunlin", "siskin", "linnet", "martin", "heron")
FINDINGS = ("normal", "atypia", "hyperplasia", "carcinoma")


def birds(rng: random.Random) -> Drawn:
    """CUB-200's stand-in: fine-grained species as lettered multiple choice."""
    species = rng.randrange(8)
    image = scenes.bird(rng, species)
    question = lettered("What species is this bird?", SPECIES)
    return Drawn(image, (Question(question, (letter_of(SPECIES[species], SPECIES),), SPECIES),))


def counting(rng: random.Random) -> Drawn:
    """PixMo-Count's stand-in: the paper's wording, one to six things beside up to three distractors."""
    kind, n = rng.choice(SHAPES), rng.randint(1, 6)
    image, _ = scenes.grid(rng, kind, n, rng.randint(0, 3))
    label = (kind + "es" if kind == "cross" else kind + "s") if n > 1 else kind
    plural = kind + "es" if kind == "cross" else kind + "s"
    answer = f"There {'are' if n > 1 else 'is'} {n} {label} in this image."
    return Drawn(
        image, (Question(f"How many {plural} are in this image?", (answer, str(n)), meta={"count": n}),)
    )


def pathology(rng: random.Random) -> Drawn:
    """PathVQA's stand-in: a yes/no question and a short answer about the same section."""
    large, dense = rng.random() < 0.5, rng.random() < 0.5
    image = scenes.tissue(rng, large, dense)
    ask_size = rng.random() < 0.5
    yes_no = (
        Question("Are the nuclei enlarged?", ("yes" if large else "no",), meta={"kind": "yes_no"})
        if ask_size
        else Question("Is the tissue crowded?", ("yes" if dense else "no",), meta={"kind": "yes_no"})
    )
    finding = FINDINGS[large + 2 * dense]
    return Drawn(image, (yes_no, Question("What does this tissue show?", (finding,), meta={"kind": "open"})))


def reading(rng: random.Random) -> Drawn:
    """TextVQA's stand-in: read a word of three letters."""
    image, text = scenes.word(rng)
    return Drawn(image, (Question("What word is written on the sign?", (text,)),))


def clocks(rng: random.Random) -> Drawn:
    """TimeClock's stand-in: an analogue clock as HH:MM in steps of five minutes."""
    hour, five = rng.randrange(12), rng.randrange(12)
    image = scenes.clock(rng, hour, five)
    return Drawn(
        image,
        (Question("What time does the clock show in this image?", (f"{hour or 12:02d}:{five * 5:02d}",)),),
    )
