"""What is wrong with a job's samples, found before its first step: shared pictures, samples that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmm_forget.errors import shorten_value
from lmm_forget.evaluation.eval_set import EvalSet
from lmm_forget.evaluation.token_lengths import LengthReport, check_lengths
from lmm_forget.models.loading import LMM
from lmm_forget.progress import Progress
from lmm_forget.training.train_set import TrainSet
from lmm_forget.training.train_stage import count_total_steps

SkippedSamples = dict[tuple[str, str], dict[str, int]]
"""(task, "trained" or "evaluated") -> how many samples were left out, and how many answers are too long."""


def warn_of_shared_images(train_sets: Mapping[str, TrainSet], record_warning: Callable[[str], None]) -> None:
    """Say which given splits of a task show the same pictures: its scores may then rest on what was trained on."""
    for name, train_set in train_sets.items():
        for (split, other_split), pairs in train_set.task.find_split_overlap().items():
            examples = ", ".join(f"{shorten_value(a)} = {shorten_value(b)}" for a, b in pairs[:3])
            record_warning(
                f"task {name}: {len(pairs)} picture{'s' * (len(pairs) != 1)} of {split} "
                f"{'is' if len(pairs) == 1 else 'are'} also in {other_split} (first: {examples}); "
                "the data's own splits are kept"
            )


def check_sample_lengths(
    config: Mapping[str, Any],
    lmm: LMM,
    train_sets: Mapping[str, TrainSet],
    eval_sets: Sequence[EvalSet],
    progress: Progress,
    record_warning: Callable[[str], None],
) -> SkippedSamples:
    """Count the tokens of every sample: leave out, or refuse, what the model cannot take; say what was left out.

    Raises DataError for a sample that does not fit, unless bad samples are to be skipped.
    """
    skipped_samples: SkippedSamples = {}
    bad_sample_policy = config["data"]["on_bad_sample"]
    progress.start_phase("measure samples", len(train_sets) + len(eval_sets), "task")
    for name, train_set in train_sets.items():
        length_report = check_lengths(
            lmm, train_set.task, train_set.samples, is_training=True, on_bad_sample=bad_sample_policy
        )
        train_set.samples = length_report.samples
        count_total_steps(len(train_set), config["training"], seed=config["seed"], task=name)
        skipped_samples[name, "trained"] = _describe_skipped_samples(
            config, name, "trained", length_report, record_warning
        )
        progress.advance(1, task=name)
    for eval_set in eval_sets:
        name = eval_set.task.name
        length_report = check_lengths(
            lmm, eval_set.task, eval_set.samples, is_training=False, on_bad_sample=bad_sample_policy
        )
        eval_set.samples = length_report.samples
        skipped_samples[name, "evaluated"] = _describe_skipped_samples(
            config, name, "evaluated", length_report, record_warning
        )
        progress.advance(1, task=name)
    return skipped_samples


def _describe_skipped_samples(
    config: Mapping[str, Any],
    task_name: str,
    usage: str,
    length_report: LengthReport,
    record_warning: Callable[[str], None],
) -> dict[str, int]:
    """Count, for the record, what was left out and which answers are too long; warn of both."""
    skipped = length_report.samples.skipped
    if skipped:
        first = next(iter(skipped.values()))
        record_warning(f"task {task_name}: {len(skipped)} samples are left out and not {usage} (first: {first})")
    if length_report.long_answers:
        node = config["tasks"][task_name]
        record_warning(
            f"task {task_name}: {len(length_report.long_answers)} of {len(length_report.samples)} answers "
            f"{'that are trained on' if usage == 'trained' else 'asked for'} are longer than max_new_tokens="
            f"{node['max_new_tokens']}, so they cannot be said in full (first: {length_report.long_answers[0]})"
        )
    return {"skipped": len(skipped), "long_answers": len(length_report.long_answers)}
