"""Small copies of every published data set, with the feature types that its hub repository declares.

`write(name, folder)` lays one out as a downloaded repository: a README with its configurations and parquet files with
image structs, sequences, unused columns and nulls. `TASKS` are all seventeen.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

from lmm_forget.tasks.pixmo_folder import get_image_path, write_prepared_rows

TEXT, WHOLE = Value("string"), Value("int64")
TEXTS = List(TEXT)


def png(number: int, size: tuple[int, int] = (20, 12)) -> bytes:
    """A picture's bytes; every number another color."""
    file = io.BytesIO()
    Pictures.new("RGB", size, ((number * 47) % 256, (number * 91) % 256, (number * 13) % 256)).save(file, "PNG")
    return file.getvalue()


def stored(number: int) -> dict[str, Any]:
    return {"bytes": png(number), "path": f"{number}.png"}


SPECIES = [f"Bird {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
LISTED = "\n".join(f"{name[-1]}. {name}" for name in SPECIES)


def _cub200(i: int) -> dict[str, Any]:
    letter = "Answer with the option's letter from the given choices directly."
    return {"question": f"<image>\nWhich species?\n{letter}\n{LISTED}", "answer": "CAZ"[i % 3]}


_JUST_THE_LETTER = "Please answer directly with only the letter of the correct option and nothing else."


def _realworldqa(i: int) -> dict[str, Any]:
    if i % 2:
        return {
            "question": "How many cars?\nPlease answer directly with a single word or number.",
            "answer": "2",
        }
    return {"question": f"Which way?\nA. Left\nB. Right\nC. Ahead\n{_JUST_THE_LETTER}", "answer": "B"}


def _textvqa(i: int) -> dict[str, Any]:
    return {
        "image_id": f"im{i // 2}",
        "question_id": 34602 + i,
        "question": "what is the Brand?",
        "question_tokens": ["what", "is"],
        "image_width": 20,
        "image_height": 12,
        "flickr_original_url": "x",
        "flickr_300k_url": "x",
        "answers": ["nokia"] * 3 + ["Nokia 3310"] * 4 + ["phone"] * 3,
        "image_classes": ["Phone"],
        "set_name": "val",
        "ocr_tokens": [],
    }


def _docvqa(i: int) -> dict[str, Any]:
    return {
        "questionId": f"{i}",
        "question": "What is the date?",
        "question_types": ["layout"] if i % 2 else ["form", "handwritten"],
        "docId": 100 + i // 2,
        "ucsf_document_id": "abc",
        "ucsf_document_page_no": "1",
        "answers": ["1/8/93", "1/8/1993"],
        "data_split": "val",
    }


def _infovqa(i: int) -> dict[str, Any]:
    return {
        "questionId": f"{i}",
        "question": "Which year?",
        "answers": ["1999"],
        "answer_type": ["single span"],
        "image_url": f"http://x/{i // 3}.jpg",
        "operation/reasoning": [] if i % 2 else ["counting"],
        "ocr": None,
        "data_split": "val",
    }


def _seedbench(i: int) -> dict[str, Any]:
    kind = "video" if i % 4 == 3 else "image"
    return {
        "answer": "ABCD"[i % 4],
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": "Four",
        "data_id": f"1454426_{i // 2}",
        "data_type": kind,
        "question": "How many towels are in the image?",
        "question_id": f"{i}",
        "question_type_id": 1 + i % 2,
        "image": [stored(i)] if kind == "image" else [stored(i), stored(i + 1)],
        "segment": None if kind == "image" else [0, 4],
    }


def _scienceqa(i: int) -> dict[str, Any]:
    return {
        "question": "Which is a mammal?",
        "choices": ["cat", "trout", "frog"][: 2 + i % 2],
        "answer": i % 2,
        "hint": "Mammals have fur." if i % 2 else "",
        "task": "closed choice",
        "grade": "grade3",
        "subject": "natural science" if i % 2 else "social science",
        "topic": "biology",
        "category": "x",
        "skill": "x",
        "lecture": None,
        "solution": "",
    }


_L2 = ("object counting", "recognition", "localization")


def _mmstar(i: int) -> dict[str, Any]:
    return {
        "index": i,
        "question": "Which option is right?\nOptions: A: one, B: two, C: three, D: four",
        "answer": "ABCD"[i % 4],
        "category": "fine-grained perception",
        "l2_category": _L2[i % 3],
        "meta_info": {"source": "MMBench", "split": "val", "image_path": f"{i}.jpg"},
    }


def _ocrbench(i: int) -> dict[str, Any]:
    if i % 3 == 2:
        return {
            "dataset": "HME100k",
            "question": "Write it in LaTeX.",
            "question_type": "Handwritten Mathematical Expression Recognition",
            "answer": ["x ^ { 2 }"],
        }
    return {
        "dataset": "IIIT5K",
        "question": "what is written in the image?",
        "question_type": "Regular Text Recognition",
        "answer": ["CENTRE"],
    }


_QA = {"question": TEXT, "answer": TEXT, "image": Image()}
_CLOCK = "What time does the clock show in this image?\n<image>"
Maker = Callable[[int], dict[str, Any]]

SCHEMAS: dict[str, tuple[dict[str, Any], Maker]] = {
    "cub200": (_QA, _cub200),
    "pixmocount": (
        _QA,
        lambda i: {
            "question": "How many dogs are in this image?\n<image>",
            "answer": f"There {'is' if i == 1 else 'are'} {i} dogs in this image.",
        },
    ),
    "pathvqa": (
        {"image": Image(), "question": TEXT, "answer": TEXT},
        lambda i: (
            {"question": "is it red?", "answer": "yes"}
            if i % 2
            else {"question": "what is present?", "answer": "cardiovascular"}
        ),
    ),
    "textvqa": (
        {
            "image_id": TEXT,
            "question_id": Value("int32"),
            "question": TEXT,
            "question_tokens": TEXTS,
            "image": Image(),
            "image_width": Value("int32"),
            "image_height": Value("int32"),
            "flickr_original_url": TEXT,
            "flickr_300k_url": TEXT,
            "answers": TEXTS,
            "image_classes": TEXTS,
            "set_name": TEXT,
            "ocr_tokens": TEXTS,
        },
        _textvqa,
    ),
    "timeclock": (_QA, lambda i: {"question": _CLOCK, "answer": f"{i % 12:02d}:{(i * 7) % 60:02d}"}),
    "coco_clock": (_QA, lambda i: {"question": _CLOCK, "answer": f"{i % 12:02d}:05"}),
    "openimg_clock": (_QA, lambda i: {"question": _CLOCK, "answer": f"{i % 12:02d}:59"}),
    "ai2d": (
        {"question": TEXT, "options": TEXTS, "answer": TEXT, "image": Image()},
        lambda i: {
            "question": "What is B?",
            "options": ["root", "leaf", "stem", "bud"],
            "answer": str(i % 4),
        },
    ),
    "chartqa": (
        {"type": TEXT, "question": TEXT, "answer": TEXT, "image": Image()},
        lambda i: {
            "type": "human_test" if i % 2 else "augmented_test",
            "question": "How much?",
            "answer": "14",
        },
    ),
    "docvqa": (
        {
            "questionId": TEXT,
            "question": TEXT,
            "question_types": TEXTS,
            "image": Image(),
            "docId": WHOLE,
            "ucsf_document_id": TEXT,
            "ucsf_document_page_no": TEXT,
            "answers": TEXTS,
            "data_split": TEXT,
        },
        _docvqa,
    ),
    "infovqa": (
        {
            "questionId": TEXT,
            "question": TEXT,
            "answers": TEXTS,
            "answer_type": TEXTS,
            "image": Image(),
            "image_url": TEXT,
            "operation/reasoning": TEXTS,
            "ocr": TEXT,
            "data_split": TEXT,
        },
        _infovqa,
    ),
    "realworldqa": ({"image": Image(), "image_path": TEXT, "question": TEXT, "answer": TEXT}, _realworldqa),
    "seedbench": (
        {
            **{key: TEXT for key in ("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_id")},
            "data_type": TEXT,
            "question": TEXT,
            "question_id": TEXT,
            "question_type_id": Value("int16"),
            "image": List(Image()),
            "segment": List(WHOLE),
        },
        _seedbench,
    ),
    "scienceqa": (
        {
            "image": Image(),
            "question": TEXT,
            "choices": TEXTS,
            "answer": Value("int8"),
            **{
                key: TEXT
                for key in (
                    "hint",
                    "task",
                    "grade",
                    "subject",
                    "topic",
                    "category",
                    "skill",
                    "lecture",
                    "solution",
                )
            },
        },
        _scienceqa,
    ),
    "mmstar": (
        {
            "index": WHOLE,
            "question": TEXT,
            "image": Image(),
            "answer": TEXT,
            "category": TEXT,
            "l2_category": TEXT,
            "meta_info": {"source": TEXT, "split": TEXT, "image_path": TEXT},
        },
        _mmstar,
    ),
    "ocrbench": (
        {"dataset": TEXT, "question": TEXT, "question_type": TEXT, "answer": TEXTS, "image": Image()},
        _ocrbench,
    ),
    "countbench": (
        {"image": Image(), "text": TEXT, "image_url": TEXT, "number": WHOLE, "question": TEXT},
        lambda i: {
            "question": "How many cups are there?",
            "number": 2 + i % 9,
            "text": "cups",
            "image_url": None,
        },
    ),
}
TASKS = tuple(SCHEMAS)
LAYOUT = {  # configuration, and the published splits (the first one is asked)
    "docvqa": ("DocVQA", ("validation",)),
    "infovqa": ("InfographicVQA", ("validation",)),
    "scienceqa": ("ScienceQA-IMG", ("test",)),
    "mmstar": ("val", ("val",)),
    "pathvqa": ("default", ("test", "train", "validation")),
    "textvqa": ("default", ("validation", "train")),
    **{name: ("default", ("train",)) for name in ("cub200", "pixmocount", "timeclock", "coco_clock", "openimg_clock")},
}


def rows(name: str, n: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of a data set, from number `first` on."""
    features, make = SCHEMAS[name]
    blank = {key: None for key in features}
    return [{**blank, "image": stored(i), **make(i)} for i in range(first, first + n)]


def table(name: str, n: int, first: int = 0) -> Dataset:
    """The same as a data set with the published features."""
    return Dataset.from_list(rows(name, n, first), features=Features(SCHEMAS[name][0]))


def write(name: str, folder: Path, n: int = 8) -> Path:
    """Lay a repository out below `folder`; every split has `n` rows of its own."""
    config, splits = LAYOUT.get(name, ("default", ("test",)))
    where = "data" if config == "default" else config
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for number, split in enumerate(splits):
        file = folder / where / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table(name, n, number * n).to_parquet(str(file), batch_size=3)
        lines += [f"  - split: {split}", f"    path: {where}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def cub(folder: Path, species: int = 30, each: int = 4) -> Path:
    """A small CUB_200_2011: the real lists, tiny photos; odd photos are the official train split."""
    images = folder / "images"
    lists: dict[str, list[str]] = {name: [] for name in ("classes", "images", "image_class_labels", "train_test_split")}
    number = 0
    for kind in range(1, species + 1):
        name = f"{kind:03d}.Red_billed_Bird{kind}"
        lists["classes"].append(f"{kind} {name}")
        (images / name).mkdir(parents=True)
        for _ in range(each):
            number += 1
            (images / name / f"{number}.jpg").write_bytes(png(number))
            lists["images"].append(f"{number} {name}/{number}.jpg")
            lists["image_class_labels"].append(f"{number} {kind}")
            lists["train_test_split"].append(f"{number} {number % 2}")
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def pixmo(folder: Path, n: int = 8) -> Path:
    """A folder as `data prepare task=pixmocount` leaves it, nothing gone."""
    rows = []
    for i in range(n):
        sha = hashlib.sha256(png(i)).hexdigest()
        get_image_path(folder, sha).parent.mkdir(parents=True, exist_ok=True)
        get_image_path(folder, sha).write_bytes(png(i))
        rows.append({"split": "train", "number": i, "label": "cats", "count": 1 + i, "image_sha256": sha})
    write_prepared_rows(folder, rows)
    (folder / "report.json").write_text(json.dumps({"complete": True, "images": n, "gone": []}))
    return folder


def clocks(folder: Path, n: int = 8) -> Path:
    """A LLaVA-style file of clocks, as the public code trains on."""
    items = []
    for i in range(n):
        (folder / f"{i}.png").write_bytes(png(i))
        human = "What time does the clock show in this image?\n<image>"
        turns = [{"from": "human", "value": human}, {"from": "gpt", "value": f"{i % 12:02d}:30"}]
        items.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    (folder / "time_train.json").write_text(json.dumps(items))
    return folder / "time_train.json"


def everything(folder: Path, n: int = 8) -> dict[str, dict[str, Any]]:
    """All seventeen on disk, ready to be taught and asked: task -> what its YAML is told."""
    found: dict[str, dict[str, Any]] = {
        name: {"path": str(write(name, folder / name, n)), "validation_fraction": 0} for name in TASKS
    }
    found["cub200"]["train_path"] = str(cub(folder / "CUB_200_2011"))
    found["pixmocount"]["train_path"] = str(pixmo(folder / "pixmo", n))
    (folder / "clocks").mkdir()
    found["timeclock"]["train_path"] = str(clocks(folder / "clocks", n))
    return found
