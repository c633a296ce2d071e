"""Read all data of a task and report counts, answer formats, bad samples, duplicates and token lengths."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from PIL import Image

from lmm_forget.errors import DataError, shorten_value
from lmm_forget.tasks.image_clusters import find_shared_images, merge_image_ids
from lmm_forget.tasks.images import hash_pixels
from lmm_forget.tasks.sample_set import SampleSet, as_sample_set
from lmm_forget.tasks.scoring.unicode_folding import fold_unicode
from lmm_forget.tasks.task import SPLITS, Sample, Task

MAX_LISTED = 10
"""Length of the lists of ids in the report."""
READ_CHUNK_SIZE = 32
ANSWER_FORMATS: tuple[tuple[str, str], ...] = (
    ("letter", r"[A-Z]\.?"),
    ("yes/no", r"(?i:yes|no)\.?"),
    ("whole number", r"-?\d+"),
    ("time", r"\d{1,2}:\d{2}"),
    ("number", r"[-+]?[$€£]?\d[\d,]*\.?\d*\s?%?"),
    ("one word", r"\S+"),
    ("phrase", r".*[^.!?]"),
    ("sentence", r"(?s:.*)"),
)
"""(name, pattern) of the answer formats; the first pattern that matches the whole answer counts."""
CountTokensFunction = Callable[[str, Sequence[Image.Image], str, str | None], int]


@dataclass
class SplitSummary:
    """What `inspect_splits` collects of one split; `preview_samples` are the first ones, for the contact sheet."""

    split: str
    total_samples: int
    read_samples: int = 0
    unusable: list[str] = field(default_factory=list)
    question_lengths: list[int] = field(default_factory=list)
    answer_counts: Counter[str] = field(default_factory=Counter)
    answer_lengths: list[int] = field(default_factory=list)
    format_counts: Counter[str] = field(default_factory=Counter)
    choice_counts: Counter[int] = field(default_factory=Counter)
    sample_image_ids: list[str] = field(default_factory=list)
    sample_pixel_hashes: list[list[str]] = field(default_factory=list)
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    pixel_index: dict[str, str] = field(default_factory=dict)
    perceptual_index: dict[int, str] = field(default_factory=dict)
    unscorable: list[str] = field(default_factory=list)
    token_counts: list[int] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    preview_samples: list[Sample] = field(default_factory=list)


def inspect_splits(
    task: Task,
    *,
    limit: int | None = None,
    count_tokens: CountTokensFunction | None = None,
    context_length: int = 0,
    num_previews: int = 12,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[list[SplitSummary], dict[str, str]]:
    """Read every split of `task`, at most `limit` samples of each.

    Returns the summaries of the splits, and the reasons (split -> text) why others could not be read at all.
    `count_tokens` counts the tokens of (question, images, answer, system prompt); samples with more than
    `context_length` tokens are listed as too long. `on_progress` is called with 1 for every sample.
    """
    summaries, missing_splits = [], {}
    for split in SPLITS:
        try:
            samples = as_sample_set(task.load_readable_samples(split))
        except DataError as error:
            missing_splits[split] = str(error)
            continue
        unreadable = samples.skipped
        summary = SplitSummary(split, len(samples) + len(unreadable), unusable=list(unreadable.values()))
        ids: set[str] = set()
        for index, sample in _iterate_samples(samples, limit):
            on_progress(1)
            if isinstance(sample, DataError):
                summary.unusable.append(str(sample).removeprefix("sample ") or f"number {index}")
                continue
            if sample.id in ids:
                summary.unusable.append(f"{sample.id}: the id of an earlier sample again")
                continue
            ids.add(sample.id)
            _record_sample(task, summary, sample, count_tokens, context_length)
            if len(summary.preview_samples) < num_previews:
                summary.preview_samples.append(sample)
        summaries.append(summary)
    return summaries, missing_splits


def build_data_report(
    task: Task, summaries: Sequence[SplitSummary], missing_splits: Mapping[str, str]
) -> dict[str, Any]:
    """The report as JSON data; its key `problems` counts what to fix before the task is used."""
    duplicates = {
        f"{a.split}/{b.split}": _find_duplicate_images(a, b)
        for i, a in enumerate(summaries)
        for b in summaries[i + 1 :]
    }
    report: dict[str, Any] = {
        "task": task.name,
        "role": task.role,
        "source": task.get_provenance(),
        "splits": {summary.split: _summarize_split(summary) for summary in summaries},
        "absent": dict(missing_splits),
        "duplicates": duplicates,
    }
    problems = sum(len(each.unusable) + len(each.unscorable) + len(each.too_long) for each in summaries)
    # A training set that is configured but cannot be read is a problem; one that is not configured is not.
    report["unreadable_train_path"] = "train" in missing_splits and getattr(task, "train_path", None) is not None
    report["problems"] = problems + report["unreadable_train_path"]
    report["problems"] += sum(pair["same_pixels"] for pair in duplicates.values())
    return report


def detect_answer_format(answer: str) -> str:
    """The name of an answer's format; see `ANSWER_FORMATS`."""
    return next(name for name, pattern in ANSWER_FORMATS if re.fullmatch(pattern, fold_unicode(answer).strip()))


def compute_difference_hash(image: Image.Image) -> int:
    """A 64-bit difference hash, which is usually equal for an image and its re-encoded or resized copies."""
    small = image.convert("L").resize((9, 8), Image.Resampling.BILINEAR)
    levels = small.tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            # Differences of up to 3 levels are compression noise.
            bits = bits << 1 | (levels[row * 9 + column] > levels[row * 9 + column + 1] + 3)
    return bits


def _iterate_samples(samples: SampleSet, limit: int | None) -> Iterator[tuple[int, Sample | DataError]]:
    """(index, sample or the error of reading it); threads decode the samples unless the split is streamed."""

    def read_sample(index: int) -> Sample | DataError:
        try:
            return samples[index]
        except DataError as error:
            return error

    indices = range(len(samples) if limit is None else min(limit, len(samples)))
    if samples.is_sequential:
        yield from ((index, read_sample(index)) for index in indices)
        return
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(indices), READ_CHUNK_SIZE):
            chunk = indices[start : start + READ_CHUNK_SIZE]
            yield from zip(chunk, pool.map(read_sample, chunk), strict=True)


def _record_sample(
    task: Task,
    summary: SplitSummary,
    sample: Sample,
    count_tokens: CountTokensFunction | None,
    context_length: int,
) -> None:
    answer = task.get_target_answer(sample)
    summary.read_samples += 1
    summary.question_lengths.append(len(sample.question))
    summary.answer_counts[answer] += 1
    summary.answer_lengths.append(len(answer.split()))
    summary.format_counts[detect_answer_format(answer)] += 1
    if sample.choices:
        summary.choice_counts[len(sample.choices)] += 1
    summary.sample_image_ids.append(sample.image_id)
    summary.sample_pixel_hashes.append([hash_pixels(image) for image in sample.images])
    for image, content in zip(sample.images, summary.sample_pixel_hashes[-1], strict=True):
        summary.image_sizes.append(image.size)
        summary.pixel_index.setdefault(content, sample.id)
        summary.perceptual_index.setdefault(compute_difference_hash(image), sample.id)
    if task.role != "captions":
        try:
            value = task.score_answer(answer, sample)["value"]
        except DataError as error:
            summary.unscorable.append(str(error))
        else:
            if not value:
                summary.unscorable.append(f"{sample.id}: its own answer {answer[:60]!r} scores {value}")
    if count_tokens is not None:
        try:
            question = task.format_question(sample, for_training=summary.split == "train")
            tokens = count_tokens(question, sample.images, answer, sample.system)
        except DataError as error:
            summary.too_long.append(f"{sample.id}: {str(error).removeprefix('sample 0 of the batch: ')}")
            return
        summary.token_counts.append(tokens)
        if tokens > context_length:
            summary.too_long.append(f"{sample.id}: {tokens} tokens")


def _summarize_split(summary: SplitSummary) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "samples": summary.total_samples,
        "read": summary.read_samples + len(summary.unusable),
        "images": len(set(merge_image_ids(summary.sample_image_ids, summary.sample_pixel_hashes))),
        "unusable": {"count": len(summary.unusable), "first": _shorten_lines(summary.unusable)},
        "unscored": {"count": len(summary.unscorable), "first": _shorten_lines(summary.unscorable)},
    }
    if summary.read_samples:
        entry["question_characters"] = compute_min_median_max(summary.question_lengths)
        entry["answers"] = {
            "words": compute_min_median_max(summary.answer_lengths),
            "formats": dict(summary.format_counts.most_common()),
            "different": len(summary.answer_counts),
            "most_common": [[text[:80], n] for text, n in summary.answer_counts.most_common(5)],
        }
        entry["choices"] = {str(n): count for n, count in sorted(summary.choice_counts.items())}
    if summary.image_sizes:
        widths, heights = zip(*summary.image_sizes, strict=True)
        entry["pixels"] = {"width": compute_min_median_max(widths), "height": compute_min_median_max(heights)}
    if summary.token_counts or summary.too_long:
        entry["tokens"] = compute_min_median_max(summary.token_counts) if summary.token_counts else None
        entry["too_long"] = {"count": len(summary.too_long), "first": _shorten_lines(summary.too_long)}
    return entry


def _shorten_lines(lines: Sequence[str]) -> list[str]:
    return [shorten_value(line, 400) for line in lines[:MAX_LISTED]]


def compute_min_median_max(values: Sequence[float]) -> dict[str, float]:
    """The smallest value, the median and the largest value."""
    return {"min": min(values), "median": median(values), "max": max(values)}


def _find_duplicate_images(first: SplitSummary, second: SplitSummary) -> dict[str, Any]:
    """Images that are in both splits: with equal pixels, and with equal difference hashes only."""
    identical_pairs = find_shared_images({first.split: first.pixel_index, second.split: second.pixel_index}).get(
        (first.split, second.split), []
    )
    has_identical_pixels: defaultdict[str, bool] = defaultdict(bool, {pair[0]: True for pair in identical_pairs})
    similar_pairs = [
        (first.perceptual_index[key], second.perceptual_index[key])
        for key in first.perceptual_index
        if key in second.perceptual_index
    ]
    near_pairs = [pair for pair in similar_pairs if not has_identical_pixels[pair[0]]]
    return {
        "same_pixels": len(identical_pairs),
        "look_alike": len(near_pairs),
        "first": [list(pair) for pair in [*identical_pairs, *near_pairs][:MAX_LISTED]],
    }
