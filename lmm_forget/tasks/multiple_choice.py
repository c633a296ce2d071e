"""Lettered multiple choice: AI2D, SEED-Bench and ScienceQA."""

from __future__ import annotations

from lmm_forget.tasks.hub import HubTask, ParsedRow
from lmm_forget.tasks.lettered_choices import append_choices, parse_choice_letter
from lmm_forget.tasks.row_reader import RowReader


class MultipleChoiceTask(HubTask):
    """Options listed under the question; the reference is a letter, published as a letter or a position from 0.

    A `hint` that is not blank stands before the question as `Context: …` (ScienceQA).
    """

    required_fields = ("question", "choices", "answer")
    optional_fields = ("hint",)

    def parse_row(self, reader: RowReader, split: str) -> ParsedRow:
        """See `HubTask.read`."""
        choices = reader.read_texts("choices")
        answer = parse_choice_letter(reader.read_text("answer"), len(choices))
        hint = reader.read_optional_text("hint")
        question = f"Context: {hint}\n{reader.read_question()}" if hint else reader.read_question()
        return ParsedRow(append_choices(question, choices), (answer,), choices, self.read_meta(reader))


class ListedChoicesTask(HubTask):
    """Questions that are published with their options listed in them (RealWorldQA); answers may be text too."""

    def parse_row(self, reader: RowReader, split: str) -> ParsedRow:
        """See `HubTask.read`."""
        from lmm_forget.tasks.lettered_choices import parse_listed_choices

        question = reader.read_question()
        answers = reader.read_texts("answers" if "answers" in reader else "answer")
        return ParsedRow(question, answers, parse_listed_choices(question), self.read_meta(reader))
