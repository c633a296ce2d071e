"""CUB-200-2011 as the paper asks it: which of 26 lettered species a photo shows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.tasks.cells import Cells
from lmm_forget.tasks.choices import LETTERS, letter_of, listed_in
from lmm_forget.tasks.published import HubTask, Reading
from lmm_forget.tasks.rows import FileRows, Row

INSTRUCTION = "Answer with the option's letter from the given choices directly."
TEMPLATES = (
    "What species is the bird in this photo?",
    "Can you identify the bird species in this image?",
    "Which bird species is shown in this picture?",
    "What type of bird is depicted in this photograph?",
    "Identify the species of the bird in this image.",
    "What is the bird species presented in this photo?",
    "Which of the following species does this bird belong to?",
    "What would you classify this bird as?",
    "From the options below, what species is this bird?",
    "Looking at this bird, what species would you say it is?",
)
"""The ten prompts of the public converter: facts of the experiment, which training and test have to share."""


@dataclass(frozen=True)
class Photo:
    """One line of the archive's lists; `train` is its official split."""

    number: int
    file: str
    species: int
    train: bool


class CUB200(HubTask):
    """Test from the published 26-option questions; training from the archive's official train split.

    `train_path` is the extracted folder `CUB_200_2011`. Each training photo gets one of ten prompts, 25 other
    species and a place for the right one, all drawn from `options_seed` and the photo's number: the same at every
    run, whatever else is read.
    """

    reads = ("question", "answer")

    def __init__(self, *, options_seed: int = 0, **given: Any) -> None:
        super().__init__(**given)
        self.options_seed = options_seed

    def read(self, cells: Cells, split: str) -> Reading:
        """See `HubTask.read`; the published question lists its options."""
        question = cells.question()
        choices = listed_in(question)
        if INSTRUCTION not in question:
            question = f"{question}\n{INSTRUCTION}"
        answer = letter_of(cells.text("answer"), len(choices or LETTERS))
        return Reading(question, (answer,), choices, self.kept(cells))

    def taught_rows(self) -> FileRows | None:
        """The photos of the official train split, as lettered questions."""
        if self.train_path is None:
            raise DataError(
                f"task {self.name}: training needs the extracted archive CUB_200_2011 (data.caltech.edu, record "
                f"65de6-vp158, CUB_200_2011.tgz): +tasks.{self.name}.train_path=FOLDER"
            )
        folder = _folder(Path(self.train_path).expanduser(), self.name)
        names, photos = species(folder), read_photos(folder)
        return FileRows(self._row(folder, photo, names) for photo in photos if photo.train)

    def _row(self, folder: Path, photo: Photo, names: dict[int, str]) -> Row:
        draw = random.Random(f"{self.options_seed}/{photo.number}")
        others = draw.sample(
            [number for number in sorted(names) if number != photo.species], len(LETTERS) - 1
        )
        place = draw.randrange(len(LETTERS))
        order = [*others[:place], photo.species, *others[place:]]
        return Row(
            id=f"train-{photo.number}",
            where=f"images.txt:{photo.number}",
            images=(folder / "images" / photo.file,),
            names=(photo.file,),
            image_id=photo.file,
            question=f"{draw.choice(TEMPLATES)}\n{INSTRUCTION}",
            answers=(LETTERS[place],),
            choices=tuple(names[number] for number in order),
            split=None,
            meta={"species": names[photo.species]},
        )


def species(folder: Path) -> dict[int, str]:
    """Names of the species by their number, as people write them: `001.Black_footed_Albatross` without the number."""
    found = {}
    for number, name in _lists(folder, "classes.txt"):
        _, dot, plain = name.partition(".")
        found[int(number)] = (plain if dot else name).replace("_", " ").strip()
    if len(found) < len(LETTERS):
        raise DataError(f"{folder / 'classes.txt'} names {len(found)} species; 26 options need as many")
    return found


def read_photos(folder: Path) -> list[Photo]:
    """All photos of the archive. Raises DataError for a list that lacks a photo."""
    files = dict(_lists(folder, "images.txt"))
    labels = dict(_lists(folder, "image_class_labels.txt"))
    split = dict(_lists(folder, "train_test_split.txt"))
    for name, lines in (("image_class_labels.txt", labels), ("train_test_split.txt", split)):
        missing = [number for number in files if number not in lines]
        if missing:
            raise DataError(f"{folder / name} lacks image {missing[0]}, which images.txt has")
    return [Photo(int(n), file, int(labels[n]), split[n].strip() == "1") for n, file in files.items()]


def _folder(path: Path, task: str) -> Path:
    """The folder with the lists: the given one, or CUB_200_2011 in it."""
    for folder in (path, path / "CUB_200_2011"):
        if (folder / "images.txt").is_file():
            return folder
    raise DataError(f"task {task}: {path} has no images.txt; give the extracted folder CUB_200_2011")


def _lists(folder: Path, name: str) -> list[tuple[str, str]]:
    try:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{folder / name} is missing; the archive was not extracted as a whole") from None
    except UnicodeDecodeError:
        raise DataError(f"{folder / name}: not UTF-8 text") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            key, blank, value = line.strip().partition(" ")
            if not blank:
                raise DataError(f"{folder / name}:{number}: {line[:40]!r} is not a number and a value")
            found.append((key, value))
    return found
