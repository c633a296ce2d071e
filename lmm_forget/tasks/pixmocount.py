"""PixMo-Count: how many of a named thing a web picture shows."""

from __future__ import annotations

import re
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.cells import Cells
from lmm_forget.tasks.pixmo_images import read_prepared
from lmm_forget.tasks.published import HubTask, Reading
from lmm_forget.tasks.rows import FileRows, Row
from lmm_forget.tasks.source import Source

_COUNT = re.compile(r"(?:there (?:is|are)\s+)?(\d+)\b", re.IGNORECASE)


def question_about(label: str) -> str:
    """The paper's question (its public converter's wording)."""
    return f"How many {label} are in this image?"


def sentence(label: str, count: int) -> str:
    """The paper's answer: a whole sentence."""
    return f"There {'is' if count == 1 else 'are'} {count} {label} in this image."


class PixmoCount(HubTask):
    """Test from the published test set; training from `train_path`, a folder that `data prepare` filled.

    The reference is the count; what is taught is the sentence `There are 7 dogs in this image.` `train_hub` and
    `train_revision` say what the folder is filled from.
    """

    reads = ("question", "answer")

    def __init__(
        self, *, train_hub: str = "allenai/pixmo-count", train_revision: str | None = None, **given: Any
    ) -> None:
        super().__init__(**given)
        self.train_hub = train_hub
        self.train_revision = train_revision

    def training_source(self, split: str, path: str | None = None) -> Source:
        """Where the published rows of train or validation lie (`path`: a local copy instead of the hub)."""
        return Source(
            task=self.name,
            hub=self.train_hub,
            split=split,
            columns=("image_url", "image_sha256", "count", "label"),
            revision=self.train_revision,
            path=path,
        )

    def read(self, cells: Cells, split: str) -> Reading:
        """See `HubTask.read`; the published answer is the sentence."""
        answer = cells.text("answer")
        match = _COUNT.match(answer.strip())
        if match is None:
            raise DataError(f"'answer' is {answer[:40]!r}, which does not begin with a count")
        return Reading(cells.question(), (match.group(1),), None, {**self.kept(cells), "sentence": answer})

    def target(self, sample: Sample) -> str:
        """The sentence."""
        return str(sample.meta["sentence"])

    def taught_rows(self) -> FileRows | None:
        """Every row of the data set whose image is in the prepared folder, with its published split."""
        if self.train_path is None:
            raise DataError(
                f"task {self.name}: training needs the data set's images; "
                f"`lmm-forget data prepare task={self.name} out=DIR` downloads them, "
                f"then +tasks.{self.name}.train_path=DIR"
            )
        rows = []
        for found in read_prepared(self.name, self.train_path):
            rows.append(
                Row(
                    id=f"{found.split}-{found.number}",
                    where=f"{self.train_path}:{found.number}",
                    images=(found.image,),
                    names=(found.sha256,),
                    image_id=found.sha256,
                    question=question_about(found.label),
                    answers=(str(found.count),),
                    choices=None,
                    split=found.split,
                    meta={"label": found.label, "sentence": sentence(found.label, found.count)},
                )
            )
        return FileRows(rows)
