"""Questions of different lengths about pictures of different sizes, for models that know nothing."""

from __future__ import annotations

from collections.abc import Sequence

from lmm_forget.evaluation.engines.hf import HuggingFaceEngine
from lmm_forget.evaluation.eval_set import EvalSet
from lmm_forget.evaluation.evaluate import evaluate
from lmm_forget.evaluation.scored_answers import Answer
from lmm_forget.models.loading import LMM
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.task import Sample, Task, hash_json_parts
from tests.models.tiny import picture

SIZES = ((56, 56), (112, 56), (56, 112), (80, 60))


def sample(i: int, question: str | None = None) -> Sample:
    width, height = SIZES[i % len(SIZES)]
    return Sample(
        id=f"q{i}",
        image_id=f"i{i // 2}",
        images=(picture(width, height, seed=i),),
        question=question or "What " + "is shown here " * (i * 7 % 5) + f"{i}?",
        answers=("a bird", "bird"),
        meta={"kind": "even" if i % 2 == 0 else "odd"},
    )


class Questions(Task):
    """`n` questions, the same in every split."""

    def __init__(self, n: int, name: str = "questions", max_new_tokens: int = 6, macro: str | None = None) -> None:
        super().__init__(
            name=name,
            role="held_out",
            max_new_tokens=max_new_tokens,
            scorer=ExactMatchScorer(),
            eval_suffix="\nAnswer!",
            macro=macro,
        )
        self.made = [sample(i) for i in range(n)]

    def load_samples(self, split: str) -> Sequence[Sample]:
        return self.made

    def fingerprint_split(self, split: str) -> str:
        return hash_json_parts(self.name, split, len(self.made))


def evaluate_task(
    lmm: LMM, task: Task, samples: Sequence[Sample] | None = None, *, batch_size: int = 64
) -> list[Answer]:
    """A model's answers to a task's samples (None: its test split), by the path that jobs take, without a store."""
    eval_set = EvalSet(task, task.load_samples("test") if samples is None else samples)
    return evaluate(lmm, [eval_set], HuggingFaceEngine(lmm), batch_size=batch_size).answers[task.name]
