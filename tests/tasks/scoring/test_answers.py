"""Answers as models print them, from the table `answers.txt`: what each scorer makes of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lmm_forget.tasks.scoring.choice_or_text import ChoiceOrTextScorer
from lmm_forget.tasks.scoring.clock import ClockTimeScorer
from lmm_forget.tasks.scoring.exact import ExactMatchScorer, YesNoScorer
from lmm_forget.tasks.scoring.letters import OptionLetterScorer
from lmm_forget.tasks.scoring.numbers import WholeNumberScorer
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.text_match import ANLSScorer, ContainsTextScorer, RelaxedAccuracyScorer
from lmm_forget.tasks.scoring.vqa import VQAAccuracyScorer
from lmm_forget.tasks.scoring.yes_no_or_open import YesNoOrOpenScorer
from lmm_forget.tasks.task import Sample

SCORERS = {
    kind.__name__: kind
    for kind in (
        *(
            OptionLetterScorer,
            YesNoScorer,
            ExactMatchScorer,
            WholeNumberScorer,
            RelaxedAccuracyScorer,
            ANLSScorer,
            VQAAccuracyScorer,
            ClockTimeScorer,
        ),
        *(YesNoOrOpenScorer, ContainsTextScorer, ChoiceOrTextScorer),
    )
}
Case = tuple[AnswerScorer, Sample, str, float, float]


def plain(text: str) -> str:
    """The text with the table's signs for line breaks and characters resolved."""
    return re.sub("‹([0-9A-F]+)›", lambda m: chr(int(m[1], 16)), text.replace("⏎", "\n"))


def read_table(path: Path) -> list[tuple[str, Case]]:
    """Every row with its line number and scorer as its name."""
    cases: list[tuple[str, Case]] = []
    scorer: AnswerScorer | None = None
    choices: tuple[str, ...] | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            head, _, options = line.strip("[]").partition(" | ")
            name, *settings = head.split()
            scorer = SCORERS[name](**dict(setting.split("=") for setting in settings))  # type: ignore[arg-type]
            choices = tuple(options.split("; ")) if options else None
            continue
        assert scorer is not None
        strict, tolerant, references, answer = re.split(r" \| ?", line, maxsplit=3)
        asked = Sample("s", "i", (), "?", tuple(map(plain, references.split("; "))), choices)
        case = (scorer, asked, plain(answer), float(strict), float(tolerant))
        cases.append((f"{number}-{type(scorer).__name__}", case))
    return cases


CASES = read_table(Path(__file__).with_name("answers.txt"))


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_an_answer_as_models_print_it(case: Case) -> None:
    scorer, asked, answer, strict, tolerant = case
    scores = scorer(answer, asked)
    assert (scores["value"], scores["tolerant"]) == (strict, tolerant), (asked.answers, answer)


def test_the_table_has_every_scorer_right_and_wrong() -> None:
    assert len(CASES) >= 200
    for name in SCORERS:
        outcomes = {case[4] > 0 for label, case in CASES if label.endswith(name)}
        assert outcomes == {True, False}, name
