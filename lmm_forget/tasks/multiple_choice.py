"""Multiple-choice data sets: AI2D, SEED-Bench, ScienceQA, and RealWorldQA."""

from __future__ import annotations

from lmm_forget.tasks.hub import HubTask, ParsedRow
from lmm_forget.tasks.lettered_choices import append_choices, parse_choice_letter, parse_listed_choices
from lmm_forget.tasks.row_reader import RowReader


class MultipleChoiceTask(HubTask):
    """Lists the options below the question; the reference is a letter, published as a letter or a position from 0.

    The field `hint`, unless blank, becomes a line `Context: …` before the question (ScienceQA).
    """

    required_fields = ("question", "choices", "answer")
    optional_fields = ("hint",)

    def parse_row(self, reader: RowReader, split: str) -> ParsedRow:
        """See `HubTask.parse_row`."""
        choices = reader.read_texts("choices")
        answer = parse_choice_letter(reader.read_text("answer"), len(choices))
        hint = reader.read_optional_text("hint")
        question = f"Context: {hint}\n{reader.read_question()}" if hint else reader.read_question()
        return ParsedRow(append_choices(question, choices), (answer,), choices, self.read_meta(reader))


class ListedChoicesTask(HubTask):
    """Questions whose published text lists the options already (RealWorldQA); the reference may be any text."""

    def parse_row(self, reader: RowReader, split: str) -> ParsedRow:
        """See `HubTask.parse_row`."""
        question = reader.read_question()
        answers = reader.read_texts("answers" if "answers" in reader else "answer")
        return ParsedRow(question, answers, parse_listed_choices(question), self.read_meta(reader))
