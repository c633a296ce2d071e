"""Ask every question once per model, whoever needs the answer: jobs of a sweep share them through the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.distributed.stop_signals import StopRequested, defer_stop_requests, raise_if_stop_requested
from lmm_forget.distributed.stop_signals import is_stop_requested as stop_asked
from lmm_forget.errors import ConfigError
from lmm_forget.evaluation.question_encoding import encode_question_batches, index_questions
from lmm_forget.evaluation.scored_answers import Answer
from lmm_forget.evaluation.task_evaluation import (
    generate_for_batch,
    get_eval_batch_size,
    limit_samples,
    score_generation,
)
from lmm_forget.progress import Progress
from lmm_forget.store import CachedResponse, ResponseCache, Store
from lmm_forget.store.keys import hash_json
from lmm_forget.tasks.task import Sample, Task

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM

POLL_SECONDS = 0.2


@dataclass
class EvalSet:
    """One task with the samples it is asked, and, once prepared, its batches and the keys of its questions."""

    task: Task
    samples: Sequence[Sample]
    split: str = "test"
    batches: list[list[int]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    samples_without_images: list[Sample] = field(default_factory=list)
    """The samples without their images: all that scoring needs."""

    @classmethod
    def from_task(cls, task: Task, split: str, max_samples: int | None, on_bad_sample: str) -> EvalSet:
        """Read the split (bad samples as `on_bad_sample` says) and keep at most `limit` of it. Raises DataError."""
        return cls(task, limit_samples(task.validate_split(split, on_bad_sample), max_samples, task.name), split)

    def prepare_batches(self, lmm: LMM, batch_size: int, num_workers: int = 0) -> None:
        """Fix the batches and look at every question once; later models are asked the same ones."""
        if not self.batches and len(self.samples):
            self.batches, self.keys, self.samples_without_images = index_questions(
                lmm, self.task, self.samples, batch_size, num_workers
            )

    def count_missing(self, cached_responses: Mapping[str, CachedResponse]) -> int:
        """How many questions nobody has asked yet."""
        return sum(key not in cached_responses for key in self.keys)

    def select_missing_batches(self, cached_responses: Mapping[str, CachedResponse]) -> list[list[int]]:
        """The batches without the questions that are answered, or will be when a batch's turn comes."""
        known_keys, missing_batches = set(cached_responses), []
        for batch in self.batches:
            positions = [i for i in batch if self.keys[i] not in known_keys]
            known_keys.update(self.keys[i] for i in positions)
            if positions:
                missing_batches.append(positions)
        return missing_batches


def require_compat_scores(eval_sets: Sequence[EvalSet]) -> None:
    """Raise ConfigError for tasks whose scorer follows no public code, so that they have no compat score."""
    tasks_without_compat = [exam.task.name for exam in eval_sets if getattr(exam.task.scorer, "compat", None) is None]
    if tasks_without_compat:
        raise ConfigError(
            f"data.scoring=compat: there is no compat score of {', '.join(tasks_without_compat)}; name a rule "
            "in the task's "
            "scorer (compat: paper.mmstar and the like) or use data.scoring=strict"
        )


def evaluate(
    lmm: LMM,
    model_key: str,
    eval_sets: Sequence[EvalSet],
    store: Store,
    *,
    load_weights: Callable[[], None] | None = None,
    hardware_config: Mapping[str, Any],
    progress: Progress,
    phase_name: str,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[dict[str, list[Answer]], int]:
    """Answers to all exams by task name, and how many questions had to be asked for them now.

    `model` is the answering key of `lmm` as it stands. What the store has is taken from there; every batch is filed
    as soon as it is answered. While another job asks one task, this one asks the next. `ready` is called before the
    first question, so that a model of which everything is known need not be put together.

    Several `ranks` deal out the batches, which are those of one process; the first rank alone reads and writes the
    store, and afterwards every rank has all answers.
    """
    response_cache = ResponseCache(store, model_key)
    eval_batch_size, num_workers = (
        get_eval_batch_size(hardware_config),
        int(hardware_config.get("num_workers") or 0),
    )
    for exam in eval_sets:
        exam.prepare_batches(lmm, eval_batch_size, num_workers)
    cached_responses = _read_cached_responses(response_cache, eval_sets, process_group)
    pending_sets = [exam for exam in eval_sets if exam.count_missing(cached_responses)]
    num_generated = 0
    progress.start_phase(phase_name, sum(exam.count_missing(cached_responses) for exam in pending_sets), "question")
    while pending_sets:
        busy_sets: list[EvalSet] = []
        for exam in pending_sets:
            num_missing_before = exam.count_missing(cached_responses)
            with _try_claim(store, f"answers-{hash_json([model_key, exam.keys])}", process_group) as has_claim:
                cached_responses = _read_cached_responses(response_cache, [exam], process_group, cached_responses)
                progress.advance(
                    num_missing_before - exam.count_missing(cached_responses), task=exam.task.name
                )  # asked by another job meanwhile
                if not has_claim and exam.count_missing(cached_responses):
                    busy_sets.append(exam)
                    continue
                if load_weights is not None and exam.count_missing(cached_responses):
                    load_weights()
                with defer_stop_requests():
                    num_generated += _generate_missing(
                        lmm, exam, response_cache, cached_responses, progress, process_group, num_workers
                    )
        if len(busy_sets) == len(pending_sets):
            time.sleep(POLL_SECONDS)
        pending_sets = busy_sets
    return {
        exam.task.name: [
            score_generation(exam.task, sample, cached_responses[key])
            for sample, key in zip(exam.samples_without_images, exam.keys, strict=True)
        ]
        for exam in eval_sets
    }, num_generated


def _generate_missing(
    lmm: LMM,
    eval_set: EvalSet,
    response_cache: ResponseCache,
    cached_responses: dict[str, CachedResponse],
    progress: Progress,
    process_group: ProcessGroup,
    num_workers: int,
) -> int:
    """Ask what is missing, a batch per rank at a time; adds to `found`, returns how many questions that were.

    Neighbouring batches are alike in length, so that ranks that ask one each wait little for one another.
    """
    num_generated = 0
    raise_if_stop_requested()
    batches = eval_set.select_missing_batches(cached_responses)
    with closing(
        encode_question_batches(
            lmm,
            eval_set.task,
            eval_set.samples,
            batches[process_group.rank :: process_group.size],
            num_workers,
        )
    ) as encoded_batches:
        for _ in range(0, len(batches), process_group.size):
            new_responses: dict[str, CachedResponse] = {}
            for positions, batch in islice(encoded_batches, 1):  # none where only the others have one more
                generations = generate_for_batch(lmm, eval_set.task, batch)
                for i, generation in zip(positions, generations, strict=True):
                    new_responses[eval_set.keys[i]] = CachedResponse(
                        generation.text, generation.tokens, generation.logit_margin
                    )
            for rank_responses in process_group.gather_values(new_responses):
                if rank_responses and process_group.is_rank_zero:
                    response_cache.append_batch(rank_responses)
                cached_responses.update(rank_responses)
                num_generated += len(rank_responses)
                progress.advance(len(rank_responses), task=eval_set.task.name)
            if process_group.is_true_on_any_rank(stop_asked()):
                raise StopRequested
    return num_generated


def _read_cached_responses(
    response_cache: ResponseCache,
    eval_sets: Sequence[EvalSet],
    process_group: ProcessGroup,
    known_responses: dict[str, CachedResponse] | None = None,
) -> dict[str, CachedResponse]:
    """What the store has of these exams, beside what was known `before`; the same on all ranks."""
    requested_keys = {key for exam in eval_sets for key in exam.keys}

    def read_cache() -> dict[str, CachedResponse]:
        stored_responses = response_cache.refresh()
        return {key: stored_responses[key] for key in requested_keys if key in stored_responses}

    return {**(known_responses or {}), **process_group.broadcast_from_rank_zero(read_cache)}


@contextmanager
def _try_claim(store: Store, claim_name: str, process_group: ProcessGroup) -> Iterator[bool]:
    """Try to be the one who does this; the first rank claims for all of them."""
    with store.acquire_lease(claim_name, wait=False) if process_group.is_rank_zero else nullcontext(False) as has_claim:
        yield process_group.broadcast_from_rank_zero(lambda: has_claim)
