"""PixMo-Count: count the objects of a given name in a web image."""

from __future__ import annotations

import re
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.tasks.dataset_source import DatasetSource
from lmm_forget.tasks.file_rows import FileRow, FileRows
from lmm_forget.tasks.hub import HubTask, ParsedRow
from lmm_forget.tasks.pixmo_folder import read_prepared_rows
from lmm_forget.tasks.row_reader import RowReader
from lmm_forget.tasks.task import Sample

_COUNT = re.compile(r"(?:there (?:is|are)\s+)?(\d+)\b", re.IGNORECASE)


def format_count_question(label: str) -> str:
    """The question, worded as in the paper's public converter."""
    return f"How many {label} are in this image?"


def format_count_sentence(label: str, count: int) -> str:
    """The answer for training, a whole sentence as in the paper."""
    return f"There {'is' if count == 1 else 'are'} {count} {label} in this image."


class PixmoCountTask(HubTask):
    """Test from the published test set; training from `train_path`, a folder that `data prepare` filled.

    The reference is the count; training uses a sentence such as `There are 7 dogs in this image.` `train_hub` and
    `train_revision` identify the data set from which `data prepare` fills the folder.
    """

    required_fields = ("question", "answer")

    def __init__(
        self,
        *,
        train_hub: str = "allenai/pixmo-count",
        train_revision: str | None = None,
        **task_options: Any,
    ) -> None:
        super().__init__(**task_options)
        self.train_hub = train_hub
        self.train_revision = train_revision

    def build_training_source(self, split: str, path: str | None = None) -> DatasetSource:
        """The source of the published rows of train or validation (`path`: a local copy instead of the hub)."""
        return DatasetSource(
            task_name=self.name,
            hub=self.train_hub,
            split=split,
            columns=("image_url", "image_sha256", "count", "label"),
            revision=self.train_revision,
            path=path,
        )

    def parse_row(self, reader: RowReader, split: str) -> ParsedRow:
        """See `HubTask.parse_row`; the published answer is the sentence, the reference its count."""
        answer = reader.read_text("answer")
        match = _COUNT.match(answer.strip())
        if match is None:
            raise DataError(f"'answer' is {answer[:40]!r}, which does not begin with a count")
        return ParsedRow(
            reader.read_question(), (match.group(1),), None, {**self.read_meta(reader), "sentence": answer}
        )

    def get_target_answer(self, sample: Sample) -> str:
        """The whole sentence; see the class docstring."""
        return str(sample.meta["sentence"])

    def load_training_rows(self) -> FileRows | None:
        """The rows whose image is in the prepared folder, with their published split. Raises DataError without one."""
        if self.train_path is None:
            raise DataError(
                f"task {self.name}: training needs the data set's images; "
                f"`lmm-forget data prepare task={self.name} out=DIR` downloads them, "
                f"then +tasks.{self.name}.train_path=DIR"
            )
        rows = []
        for prepared in read_prepared_rows(self.name, self.train_path):
            rows.append(
                FileRow(
                    id=f"{prepared.split}-{prepared.row_number}",
                    location=f"{self.train_path}:{prepared.row_number}",
                    images=(prepared.image,),
                    image_names=(prepared.sha256,),
                    image_id=prepared.sha256,
                    question=format_count_question(prepared.label),
                    answers=(str(prepared.count),),
                    choices=None,
                    split=prepared.split,
                    meta={
                        "label": prepared.label,
                        "sentence": format_count_sentence(prepared.label, prepared.count),
                    },
                )
            )
        return FileRows(rows)
