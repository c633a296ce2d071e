"""A task's score entry does not depend on how its answers were batched, or dealt out to ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup, RankInfo, init_process_group
from lmm_forget.errors import DataError
from lmm_forget.evaluation.score_metric import TaskScoreMetric
from lmm_forget.evaluation.scored_answers import Answer
from lmm_forget.metrics import build_score_entry

SCORE = st.floats(0, 1)
ROWS = st.lists(
    st.tuples(SCORE, st.none() | SCORE, st.none() | SCORE, st.sampled_from("abcd"), st.sampled_from("xyz")),
    min_size=1,
    max_size=30,
)
BLANK = Answer("t", "s", "i", "?", ("a",), "a", 1.0, None, None, None, 2, 0.5)


def make_answers(rows: Sequence[Any]) -> list[Answer]:
    return [
        replace(BLANK, value=value, tolerant=tolerant, compat=compat, image_id=image, group=group)
        for value, tolerant, compat, image, group in rows
    ]


def compute_entry(answers: Sequence[Answer], batches: Sequence[Sequence[int]], ranks: ProcessGroup) -> dict[str, Any]:
    metric = TaskScoreMetric([a.image_id for a in answers], [str(a.group) for a in answers], process_group=ranks)
    metric.update([], [])
    for batch in batches:
        metric.update(batch, [answers[i] for i in batch])
    return metric.compute()


@settings(max_examples=50)
@given(rows=ROWS, order=st.randoms(), size=st.integers(1, 7), has_groups=st.booleans())
def test_the_entry_is_that_of_all_answers_at_once(rows: list[Any], order: Any, size: int, has_groups: bool) -> None:
    answers = make_answers(rows)
    images, groups = [a.image_id for a in answers], [str(a.group) for a in answers] if has_groups else None
    positions = list(range(len(answers)))
    order.shuffle(positions)
    metric = TaskScoreMetric(images, groups)
    for start in range(0, len(positions), size):
        batch = positions[start : start + size]
        metric.update(batch, [answers[i] for i in batch])
    expected = build_score_entry(
        [a.value for a in answers],
        images,
        groups,
        tolerant_scores=[a.tolerant for a in answers],
        compat_scores=[a.compat for a in answers],
    )
    assert metric.compute() == {**expected, "near_ties": 0}


def test_near_ties_and_the_mode_count() -> None:
    metric = TaskScoreMetric(["i", "j"], scoring_mode="compat")
    metric.update([1], [replace(BLANK, value=0.0, compat=1.0, logit_margin=1e-4)])
    metric.update([0], [replace(BLANK, value=1.0)])
    entry = metric.compute()
    assert (entry["value"], entry["n"], entry["strict"], entry["near_ties"]) == (100.0, 1, 50.0, 1)
    without = TaskScoreMetric(["i"], scoring_mode="compat")
    without.update([0], [BLANK])
    with pytest.raises(DataError, match="no answer has a compat score"):
        without.compute()
    with pytest.raises(ValueError, match="1 answers, but 2 positions"):
        metric.update([0, 1], [BLANK])


def deal_out(num_batches: int) -> tuple[list[Answer], list[list[int]]]:
    """Thirteen answers in batches of four, of which the last ranks may get none."""
    thirds = [i / 3 for i in range(4)]
    rows = [(thirds[i % 4], None if i % 3 else 1.0, thirds[-i % 4], f"image {i // 2}", "xy"[i % 2]) for i in range(13)]
    return make_answers(rows), [list(range(i, min(i + 4, 13))) for i in range(0, 13, 4)][:num_batches]


def run_rank(rank: int, port: int, folder: str) -> None:
    """Be one of two ranks; see `test_two_ranks_give_the_entry_of_one`."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, 2, rank, 2, "127.0.0.1", port)), strict=True))
    ranks = init_process_group(RankInfo.from_environment(os.environ), "cpu")
    for num_batches in (1, 4):
        answers, batches = deal_out(num_batches)
        entry = compute_entry(answers, batches[rank::2], ranks)
        (Path(folder) / f"{num_batches}-{rank}").write_text(repr(entry))
    if rank == 0:  # what a milestone does: rank 0 computes by itself while the others wait
        answers, batches = deal_out(4)
        (Path(folder) / "itself").write_text(repr(compute_entry(answers, batches, SINGLE_PROCESS)))
    ranks.destroy_process_group()


def test_two_ranks_give_the_entry_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(run_rank, (port, str(tmp_path)), nprocs=2)
    for num_batches in (1, 4):
        alone = repr(compute_entry(*deal_out(num_batches), SINGLE_PROCESS))
        assert [(tmp_path / f"{num_batches}-{rank}").read_text() for rank in (0, 1)] == [alone, alone]
    assert (tmp_path / "itself").read_text() == alone
