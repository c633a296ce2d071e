"""TextVQA: questions about text in an image, with the answers of ten people."""

from __future__ import annotations

from collections import Counter

from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.task import Sample


class TextVQATask(HubTask):
    """All ten answers are references (VQA accuracy counts duplicates); training uses the most common one."""

    required_fields = ("question", "answers")

    def get_target_answer(self, sample: Sample) -> str:
        """The most common answer; the first of several that are equally common."""
        return Counter(sample.answers).most_common(1)[0][0]
