"""Read the time from an image of a clock: TimeClock, and the COCO and OpenImages clocks of "It's About Time"."""

from __future__ import annotations

from pathlib import Path

from lmm_forget.errors import DataError
from lmm_forget.tasks.file_rows import FileRows, read_jsonl_rows
from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.llava import read_llava_rows


class ClockTask(HubTask):
    """An image of a clock; the reference is its time as HH:MM.

    The paper's training set is not published. `train_path` is a file of your own: LLaVA-style JSON (such as
    `time_train.json` of the public code) or JSONL, with images below `images_root` or the file's folder.
    """

    required_fields = ("question", "answer")

    def load_training_rows(self) -> FileRows | None:
        """The rows of the training file. Raises DataError without `train_path`."""
        if self.train_path is None:
            raise DataError(
                f"task {self.name}: its training set is not published; give your own as "
                f"+tasks.{self.name}.train_path=FILE (LLaVA-style .json, or .jsonl)"
            )
        path = Path(self.train_path).expanduser()
        if path.suffix == ".json":
            return read_llava_rows(path, self.images_root)
        return read_jsonl_rows(path, self.images_root)
