"""TextVQA: ten people's answers to a question about text in a picture."""

from __future__ import annotations

from collections import Counter

from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.task import Sample


class TextVQATask(HubTask):
    """All ten answers are references (duplicates count in VQA accuracy); training teaches the most common one."""

    required_fields = ("question", "answers")

    def get_target_answer(self, sample: Sample) -> str:
        """The answer most people gave; of equally common ones the first."""
        return Counter(sample.answers).most_common(1)[0][0]
