"""The synthetic toy benchmarks and captions as tasks."""

from __future__ import annotations

from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.tasks.sample_set import SampleSet
from lmm_forget.tasks.task import SPLITS, Sample, Scorer, Task, hash_json_parts
from lmm_forget.tiny import renderers


class TinySamples(SampleSet):
    """Samples of one renderer and split, drawn when asked for: the same index is always the same picture."""

    def __init__(self, renderer: str, split: str, size: int) -> None:
        self.renderer, self.split, self.n = renderer, split, size
        self._questions_per_image = len(renderers.render_image(renderer, split, 0).questions)

    def __len__(self) -> int:
        return self.n

    def read_sample(self, index: int) -> Sample:
        """See `SampleSet.read_sample`."""
        if not 0 <= index < self.n:
            raise IndexError(index)
        image_number, question_index = divmod(index, self._questions_per_image)
        rendered = renderers.render_image(self.renderer, self.split, image_number)
        question = rendered.questions[question_index]
        return Sample(
            id=f"{self.split}-{index}",
            image_id=f"{self.split}-{image_number}",
            images=(rendered.image,),
            question=question.text,
            answers=question.answers,
            choices=question.choices,
            meta=question.meta,
        )


class TinyTask(Task):
    """A synthetic task: `renderer` names the function that draws images and questions, `n_*` are the split sizes.

    Training, validation and test images come from separate random streams. `prompt_options` are the prefixes, suffixes
    and `macro` of every `Task`. Raises DataError for an unknown renderer or a size that is not a whole number.
    """

    def __init__(
        self,
        *,
        name: str,
        role: str,
        renderer: str,
        max_new_tokens: int,
        scorer: Scorer,
        n_train: int = 0,
        n_validation: int = 0,
        n_test: int = 200,
        **prompt_options: Any,
    ) -> None:
        super().__init__(
            name=name,
            role=role,
            max_new_tokens=max_new_tokens,
            scorer=scorer,
            **prompt_options,
        )
        if renderer not in renderers.RENDERERS:
            raise DataError(f"task {name}: no renderer '{renderer}'; there are {', '.join(renderers.RENDERERS)}")
        self.renderer = renderer
        for key, size in (("n_train", n_train), ("n_validation", n_validation), ("n_test", n_test)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise DataError(f"task {name}: {key}={size} must be a whole number of at least 0")
        self.sizes = {"train": n_train, "validation": n_validation, "test": n_test}

    def load_samples(self, split: str) -> SampleSet:
        """The split's samples; DataError when it does not exist or is empty."""
        if not self.sizes.get(split):
            available = [s for s in SPLITS if self.sizes[s]]
            raise DataError(f"task {self.name}: no samples in split '{split}'; it has {', '.join(available)}")
        return TinySamples(self.renderer, split, self.sizes[split])

    def fingerprint_split(self, split: str) -> str:
        """Digest of renderer, renderer version, split and size, which determine every image."""
        return hash_json_parts("tiny", renderers.RENDERER_VERSION, self.renderer, split, self.sizes.get(split, 0))
