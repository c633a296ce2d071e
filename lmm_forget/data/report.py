"""Read all of a task's data and say what is in it: counts, answers, bad samples, duplicates, contexts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from PIL import Image

from lmm_forget.errors import DataError, brief
from lmm_forget.tasks.base import SPLITS, Sample, Task
from lmm_forget.tasks.clusters import image_ids, shared
from lmm_forget.tasks.images import image_hash
from lmm_forget.tasks.scoring.folding import fold

FIRST = 10
"""How many ids a list of findings names."""
CHUNK = 32
FORMATS: tuple[tuple[str, str], ...] = (
    ("letter", r"[A-Z]\.?"),
    ("yes/no", r"(?i:yes|no)\.?"),
    ("whole number", r"-?\d+"),
    ("time", r"\d{1,2}:\d{2}"),
    ("number", r"[-+]?[$€£]?\d[\d,]*\.?\d*\s?%?"),
    ("one word", r"\S+"),
    ("phrase", r".*[^.!?]"),
    ("sentence", r"(?s:.*)"),
)
"""Names of answer formats, the first one that matches the whole answer counts."""
Measure = Callable[[str, Sequence[Image.Image], str, str | None], int]


@dataclass
class Seen:
    """What reading one split gave; `shown` are the first samples, for the contact sheet."""

    split: str
    total: int
    samples: int = 0
    unusable: list[str] = field(default_factory=list)
    skipped: int = 0
    questions: list[int] = field(default_factory=list)
    taught: Counter[str] = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    choices: Counter[int] = field(default_factory=Counter)
    images: list[str] = field(default_factory=list)
    shown_pixels: list[list[str]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    pixels: dict[str, str] = field(default_factory=dict)
    looks: dict[int, str] = field(default_factory=dict)
    unscored: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    shown: list[Sample] = field(default_factory=list)


def read_all(
    task: Task,
    *,
    limit: int | None = None,
    measure: Measure | None = None,
    context: int = 0,
    shown: int = 12,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[list[Seen], dict[str, str]]:
    """Read every split of `task` (at most `limit` samples of each); also why a split could not be read at all.

    `measure` counts the tokens of (question, images, answer, system prompt), which must fit `context`.
    """
    found, absent = [], {}
    for split in SPLITS:
        try:
            part = task.readable(split)
        except DataError as error:
            absent[split] = str(error)
            continue
        unread = getattr(part, "skipped", {})
        seen = Seen(split, len(part) + len(unread), unusable=list(unread.values()))
        ids: set[str] = set()
        for index, sample in _read(part, limit):
            advance(1)
            if isinstance(sample, DataError):
                seen.unusable.append(str(sample).removeprefix("sample ") or f"number {index}")
                continue
            if sample.id in ids:
                seen.unusable.append(f"{sample.id}: the id of an earlier sample again")
                continue
            ids.add(sample.id)
            _note(task, seen, sample, measure, context)
            if len(seen.shown) < shown:
                seen.shown.append(sample)
        found.append(seen)
    return found, absent


def summarise(task: Task, parts: Sequence[Seen], absent: Mapping[str, str]) -> dict[str, Any]:
    """The report, as JSON data; `problems` counts what should be looked at before the task is used."""
    duplicates = {f"{a.split}/{b.split}": _shared(a, b) for i, a in enumerate(parts) for b in parts[i + 1 :]}
    report: dict[str, Any] = {
        "task": task.name,
        "role": task.role,
        "source": task.provenance(),
        "splits": {seen.split: _split(seen) for seen in parts},
        "absent": dict(absent),
        "duplicates": duplicates,
    }
    problems = sum(len(seen.unusable) + len(seen.unscored) + len(seen.too_long) for seen in parts)
    # A training set that was pointed at and cannot be read is no mere absence.
    report["untaught"] = "train" in absent and getattr(task, "train_path", None) is not None
    report["problems"] = problems + report["untaught"]
    report["problems"] += sum(pair["same_pixels"] for pair in duplicates.values())
    return report


def answer_format(answer: str) -> str:
    """The name of an answer's format; see `FORMATS`."""
    return next(name for name, pattern in FORMATS if re.fullmatch(pattern, fold(answer).strip()))


def look(image: Image.Image) -> int:
    """A 64-bit difference hash: equal for a picture and its re-encoded or resized copies, mostly."""
    small = image.convert("L").resize((9, 8), Image.Resampling.BILINEAR)
    levels = small.tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            # A few levels of a compressor's noise in a flat part are no difference.
            bits = bits << 1 | (levels[row * 9 + column] > levels[row * 9 + column + 1] + 3)
    return bits


def _read(part: Sequence[Sample], limit: int | None) -> Iterator[tuple[int, Sample | DataError]]:
    """Samples by index, or why they cannot be read; decoded side by side where any can be read at any time."""

    def one(index: int) -> Sample | DataError:
        try:
            return part[index]
        except DataError as error:
            return error

    indices = range(len(part) if limit is None else min(limit, len(part)))
    if getattr(getattr(part, "table", None), "streamed", False):
        yield from ((index, one(index)) for index in indices)
        return
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(indices), CHUNK):
            chunk = indices[start : start + CHUNK]
            yield from zip(chunk, pool.map(one, chunk), strict=True)


def _note(task: Task, seen: Seen, sample: Sample, measure: Measure | None, context: int) -> None:
    answer = task.target(sample)
    seen.samples += 1
    seen.questions.append(len(sample.question))
    seen.taught[answer] += 1
    seen.words.append(len(answer.split()))
    seen.formats[answer_format(answer)] += 1
    if sample.choices:
        seen.choices[len(sample.choices)] += 1
    seen.images.append(sample.image_id)
    seen.shown_pixels.append([image_hash(image) for image in sample.images])
    for image, content in zip(sample.images, seen.shown_pixels[-1], strict=True):
        seen.sizes.append(image.size)
        seen.pixels.setdefault(content, sample.id)
        seen.looks.setdefault(look(image), sample.id)
    if task.role != "captions":
        try:
            value = task.score(answer, sample)["value"]
        except DataError as error:
            seen.unscored.append(str(error))
        else:
            if not value:
                seen.unscored.append(f"{sample.id}: its own answer {answer[:60]!r} scores {value}")
    if measure is not None:
        try:
            question = task.question(sample, training=seen.split == "train")
            tokens = measure(question, sample.images, answer, sample.system)
        except DataError as error:
            seen.too_long.append(f"{sample.id}: {str(error).removeprefix('sample 0 of the batch: ')}")
            return
        seen.tokens.append(tokens)
        if tokens > context:
            seen.too_long.append(f"{sample.id}: {tokens} tokens")


def _split(seen: Seen) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "samples": seen.total,
        "read": seen.samples + len(seen.unusable),
        "images": len(set(image_ids(seen.images, seen.shown_pixels))),
        "unusable": {"count": len(seen.unusable), "first": _first(seen.unusable)},
        "unscored": {"count": len(seen.unscored), "first": _first(seen.unscored)},
    }
    if seen.samples:
        entry["question_characters"] = spread(seen.questions)
        entry["answers"] = {
            "words": spread(seen.words),
            "formats": dict(seen.formats.most_common()),
            "different": len(seen.taught),
            "most_common": [[text[:80], n] for text, n in seen.taught.most_common(5)],
        }
        entry["choices"] = {str(n): count for n, count in sorted(seen.choices.items())}
    if seen.sizes:
        widths, heights = zip(*seen.sizes, strict=True)
        entry["pixels"] = {"width": spread(widths), "height": spread(heights)}
    if seen.tokens or seen.too_long:
        entry["tokens"] = spread(seen.tokens) if seen.tokens else None
        entry["too_long"] = {"count": len(seen.too_long), "first": _first(seen.too_long)}
    return entry


def _first(lines: Sequence[str]) -> list[str]:
    return [brief(line, 400) for line in lines[:FIRST]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest."""
    return {"min": min(values), "median": median(values), "max": max(values)}


def _shared(one: Seen, other: Seen) -> dict[str, Any]:
    """Pictures that stand in both splits: the very same pixels, and those that only look alike."""
    same = shared({one.split: one.pixels, other.split: other.pixels}).get((one.split, other.split), [])
    exact: defaultdict[str, bool] = defaultdict(bool, {pair[0]: True for pair in same})
    alike = [(one.looks[key], other.looks[key]) for key in one.looks if key in other.looks]
    near = [pair for pair in alike if not exact[pair[0]]]
    return {
        "same_pixels": len(same),
        "look_alike": len(near),
        "first": [list(pair) for pair in [*same, *near][:FIRST]],
    }
