"""How many short answers each task's scorer judges per second on one core: strict, tolerant and compat together.

    python benchmarks/scoring_speed.py [--answers 5000]

Every answer belongs to a sample of its own, so that nothing is found ready. A third of the answers is the reference, a
third the reference in a sentence, a third something else.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from lmm_forget.tasks.scoring.choice_or_text import ChoiceOrTextScorer
from lmm_forget.tasks.scoring.clock import ClockTimeScorer
from lmm_forget.tasks.scoring.letters import OptionLetterScorer
from lmm_forget.tasks.scoring.numbers import WholeNumberScorer
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.text_match import ANLSScorer, ContainsTextScorer, RelaxedAccuracyScorer
from lmm_forget.tasks.scoring.vqa import VQAAccuracyScorer
from lmm_forget.tasks.scoring.yes_no_or_open import YesNoOrOpenScorer
from lmm_forget.tasks.task import Sample

SYLLABLES = ("ba", "ren", "to", "mi", "lus", "cor", "vax", "ple", "sen", "dy")
Made = tuple[tuple[str, ...], tuple[str, ...] | None]  # references, choices


def word(chance: random.Random) -> str:
    """A word that is new almost every time."""
    return "".join(chance.choices(SYLLABLES, k=4))


def letter(options: int) -> Callable[[random.Random], Made]:
    """A letter among so many options of two words each."""

    def make(chance: random.Random) -> Made:
        choices = tuple(f"{word(chance)} {word(chance)}" for _ in range(options))
        return (chr(ord("A") + chance.randrange(options)),), choices

    return make


def annotators(chance: random.Random) -> Made:
    """Ten answers, of which some agree."""
    said = [f"{word(chance)} {word(chance)}" for _ in range(4)]
    return tuple(chance.choice(said) for _ in range(10)), None


def texts(chance: random.Random) -> Made:
    """Two references of three words."""
    return tuple(" ".join(word(chance) for _ in range(3)) for _ in range(2)), None


def count(chance: random.Random) -> Made:
    """A count in a sentence."""
    return (f"There are {chance.randrange(60)} {word(chance)} in this image.",), None


def figure(chance: random.Random) -> Made:
    """A figure, or a word."""
    return (chance.choice((f"{chance.uniform(0, 5000):.2f}", f"{chance.randrange(100)}%", word(chance))),), None


def dial(chance: random.Random) -> Made:
    """A time."""
    return (f"{chance.randrange(12):02d}:{chance.randrange(60):02d}",), None


def number(chance: random.Random) -> Made:
    """A bare count."""
    return (str(chance.randrange(20)),), None


CLOCK = ClockTimeScorer(tolerance_minutes=1, compat="paper.clock")
TASKS: dict[str, tuple[AnswerScorer, Callable[[random.Random], Made]]] = {
    "cub200": (OptionLetterScorer(compat="paper.cub200"), letter(26)),
    "pixmocount": (WholeNumberScorer(compat="paper.pixmocount"), count),
    "pathvqa": (YesNoOrOpenScorer(compat="paper.pathvqa_exact_match"), texts),
    "textvqa": (VQAAccuracyScorer(compat="paper.textvqa"), annotators),
    "timeclock": (CLOCK, dial),
    "ai2d": (OptionLetterScorer(compat="paper.ai2d"), letter(4)),
    "chartqa": (RelaxedAccuracyScorer(compat="paper.chartqa"), figure),
    "docvqa": (ANLSScorer(compat="paper.docvqa"), texts),
    "infovqa": (ANLSScorer(compat="paper.infovqa"), texts),
    "realworldqa": (ChoiceOrTextScorer(compat="paper.realworldqa"), letter(4)),
    "seedbench": (OptionLetterScorer(compat="paper.seedbench"), letter(4)),
    "scienceqa": (OptionLetterScorer(compat="paper.scienceqa"), letter(4)),
    "mmstar": (OptionLetterScorer(compat="paper.mmstar"), letter(4)),
    "ocrbench": (ContainsTextScorer(compat="paper.ocrbench"), texts),
    "countbench": (WholeNumberScorer(compat="paper.countbench"), number),
    "cococlock": (CLOCK, dial),
    "openimgclock": (CLOCK, dial),
}


def pairs(make: Callable[[random.Random], Made], answers: int, name: str) -> list[tuple[str, Sample]]:
    """Answers with a sample each."""
    chance = random.Random(name)
    made = []
    for i in range(answers):
        references, choices = make(chance)
        lines = "".join(f"\n{chr(ord('A') + k)}. {text}" for k, text in enumerate(choices or ()))
        sample = Sample(str(i), str(i), (), f"Which one is {word(chance)}?{lines}", references, choices)
        said = chance.choice(references)
        forms = (
            said,
            f"The answer is {said}, I think.",
            f"{word(chance)} {chance.randrange(90)} {word(chance)}",
        )
        made.append((forms[i % 3], sample))
    return made


def main() -> None:
    """Print one line per task and the slowest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=5000, help="answers per task")
    options = parser.parse_args()
    print("| task | scorer | answers per second |")
    print("|---|---|---|")
    speeds = {}
    for name, (scorer, make) in TASKS.items():
        asked = pairs(make, options.answers, name)
        started = time.process_time()
        for answer, sample in asked:
            scorer(answer, sample)
        speeds[name] = options.answers / (time.process_time() - started)
        print(f"| {name} | {type(scorer).__name__} | {speeds[name]:,.0f} |", flush=True)
    slowest = min(speeds, key=speeds.__getitem__)
    print(f"\nslowest: {slowest}, {speeds[slowest]:,.0f} answers per second")


if __name__ == "__main__":
    main()
