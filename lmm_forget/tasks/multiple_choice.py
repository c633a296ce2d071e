"""Lettered multiple choice: AI2D, SEED-Bench and ScienceQA."""

from __future__ import annotations

from lmm_forget.tasks.cells import Cells
from lmm_forget.tasks.choices import letter_of, listed
from lmm_forget.tasks.published import HubTask, Reading


class MultipleChoice(HubTask):
    """Options listed under the question; the reference is a letter, published as a letter or a position from 0.

    A `hint` that is not blank stands before the question as `Context: …` (ScienceQA).
    """

    reads = ("question", "choices", "answer")
    also_reads = ("hint",)

    def read(self, cells: Cells, split: str) -> Reading:
        """See `HubTask.read`."""
        choices = cells.texts("choices")
        answer = letter_of(cells.text("answer"), len(choices))
        hint = cells.optional("hint")
        question = f"Context: {hint}\n{cells.question()}" if hint else cells.question()
        return Reading(listed(question, choices), (answer,), choices, self.kept(cells))


class ListedChoices(HubTask):
    """Questions that are published with their options listed in them (RealWorldQA); answers may be text too."""

    def read(self, cells: Cells, split: str) -> Reading:
        """See `HubTask.read`."""
        from lmm_forget.tasks.choices import listed_in

        question = cells.question()
        answers = cells.texts("answers" if "answers" in cells else "answer")
        return Reading(question, answers, listed_in(question), self.kept(cells))
