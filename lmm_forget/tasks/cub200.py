"""CUB-200-2011 in the paper's form: which of 26 lettered species a photo shows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.tasks.file_rows import FileRow, FileRows
from lmm_forget.tasks.hub import HubTask, ParsedRow
from lmm_forget.tasks.lettered_choices import LETTERS, parse_choice_letter, parse_listed_choices
from lmm_forget.tasks.row_reader import RowReader

INSTRUCTION = "Answer with the option's letter from the given choices directly."
QUESTION_TEMPLATES = (
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
"""The ten prompts of the paper's public converter; training and test must use the same ones."""


@dataclass(frozen=True)
class BirdPhoto:
    """One photo of the archive; `is_train` is its official split."""

    photo_id: int
    file: str
    species_number: int
    is_train: bool


class CUB200Task(HubTask):
    """Test from the published 26-option questions; training from the archive's official train split.

    `train_path` is the extracted folder CUB_200_2011. Each training photo gets one of ten prompts, 25 other species and
    a position for the right one. All three are drawn from `options_seed` and the photo's number, so every run gets the
    same, whatever other photos are read.
    """

    required_fields = ("question", "answer")

    def __init__(self, *, options_seed: int = 0, **task_options: Any) -> None:
        super().__init__(**task_options)
        self.options_seed = options_seed

    def parse_row(self, reader: RowReader, split: str) -> ParsedRow:
        """See `HubTask.parse_row`; the published question lists its options."""
        question = reader.read_question()
        choices = parse_listed_choices(question)
        if INSTRUCTION not in question:
            question = f"{question}\n{INSTRUCTION}"
        answer = parse_choice_letter(reader.read_text("answer"), len(choices or LETTERS))
        return ParsedRow(question, (answer,), choices, self.read_meta(reader))

    def load_training_rows(self) -> FileRows | None:
        """The photos of the official train split, as lettered questions."""
        if self.train_path is None:
            raise DataError(
                f"task {self.name}: training needs the extracted archive CUB_200_2011 (data.caltech.edu, record "
                f"65de6-vp158, CUB_200_2011.tgz): +tasks.{self.name}.train_path=FOLDER"
            )
        folder = _find_archive_folder(Path(self.train_path).expanduser(), self.name)
        names, photos = read_species_names(folder), read_photos(folder)
        return FileRows(self._build_row(folder, photo, names) for photo in photos if photo.is_train)

    def _build_row(self, folder: Path, photo: BirdPhoto, species_names: dict[int, str]) -> FileRow:
        rng = random.Random(f"{self.options_seed}/{photo.photo_id}")
        wrong_species = rng.sample(
            [number for number in sorted(species_names) if number != photo.species_number], len(LETTERS) - 1
        )
        answer_index = rng.randrange(len(LETTERS))
        order = [*wrong_species[:answer_index], photo.species_number, *wrong_species[answer_index:]]
        return FileRow(
            id=f"train-{photo.photo_id}",
            location=f"images.txt:{photo.photo_id}",
            images=(folder / "images" / photo.file,),
            image_names=(photo.file,),
            image_id=photo.file,
            question=f"{rng.choice(QUESTION_TEMPLATES)}\n{INSTRUCTION}",
            answers=(LETTERS[answer_index],),
            choices=tuple(species_names[number] for number in order),
            split=None,
            meta={"species": species_names[photo.species_number]},
        )


def read_species_names(folder: Path) -> dict[int, str]:
    """Number -> name of every species, such as 1 -> "Black footed Albatross" for `001.Black_footed_Albatross`."""
    names = {}
    for number, name in _read_list_file(folder, "classes.txt"):
        _, dot, bare_name = name.partition(".")
        names[int(number)] = (bare_name if dot else name).replace("_", " ").strip()
    if len(names) < len(LETTERS):
        raise DataError(f"{folder / 'classes.txt'} names {len(names)} species; 26 options need as many")
    return names


def read_photos(folder: Path) -> list[BirdPhoto]:
    """All photos of the archive. Raises DataError if one of its lists lacks a photo."""
    files = dict(_read_list_file(folder, "images.txt"))
    labels = dict(_read_list_file(folder, "image_class_labels.txt"))
    split = dict(_read_list_file(folder, "train_test_split.txt"))
    for name, lines in (("image_class_labels.txt", labels), ("train_test_split.txt", split)):
        missing = [number for number in files if number not in lines]
        if missing:
            raise DataError(f"{folder / name} lacks image {missing[0]}, which images.txt has")
    return [BirdPhoto(int(n), file, int(labels[n]), split[n].strip() == "1") for n, file in files.items()]


def _find_archive_folder(path: Path, task_name: str) -> Path:
    """The folder that holds images.txt: `path` or the folder CUB_200_2011 in it."""
    for folder in (path, path / "CUB_200_2011"):
        if (folder / "images.txt").is_file():
            return folder
    raise DataError(f"task {task_name}: {path} has no images.txt; give the extracted folder CUB_200_2011")


def _read_list_file(folder: Path, name: str) -> list[tuple[str, str]]:
    try:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{folder / name} is missing; the archive was not extracted as a whole") from None
    except UnicodeDecodeError:
        raise DataError(f"{folder / name}: not UTF-8 text") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            key, blank, value = line.strip().partition(" ")
            if not blank:
                raise DataError(f"{folder / name}:{number}: {line[:40]!r} is not a number and a value")
            entries.append((key, value))
    return entries
