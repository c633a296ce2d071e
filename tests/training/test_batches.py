"""Global batches are fixed by (seed, task, epoch); ranks and micro-batches only cut them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.training.micro_batches import (
    MicroBatch,
    MicroBatchDataset,
    TrainItem,
    count_accumulation_steps,
    make_data_loader,
    make_global_batches,
    make_micro_batch_indices,
    unwrap_micro_batch,
)
from tests.models.tiny import picture, tiny_lmm
from tests.training.lesson import samples


def flat(batches: list[np.ndarray]) -> list[int]:
    return [int(i) for batch in batches for i in batch]


def test_an_epoch_holds_every_sample_once_and_drops_the_rest():
    batches = make_global_batches(22, 4, seed=0, task="a", epoch=0)
    assert [len(b) for b in batches] == [4] * 5
    assert len(set(flat(batches))) == 20
    assert set(flat(batches)) <= set(range(22))


def test_the_order_is_this_one_on_every_machine():
    assert flat(make_global_batches(8, 4, seed=0, task="count", epoch=0)) == [0, 1, 2, 4, 6, 3, 5, 7]


def test_seed_task_and_epoch_each_change_the_order():
    def order(**change):
        return flat(make_global_batches(64, 8, **{"seed": 0, "task": "a", "epoch": 0, **change}))

    assert order() == order()
    assert len({tuple(order(**c)) for c in ({}, {"seed": 1}, {"task": "b"}, {"epoch": 1})}) == 4


def test_too_few_samples_are_refused():
    with pytest.raises(
        ConfigError, match=r"clock: 5 training samples are fewer than one .*global_batch_size=5 or less"
    ):
        make_global_batches(5, 8, seed=0, task="clock", epoch=0)
    with pytest.raises(ConfigError, match="global_batch_size=0"):
        make_global_batches(5, 0, seed=0, task="clock", epoch=0)


def test_accumulation_names_the_nearest_valid_sizes():
    assert count_accumulation_steps(32, 8, 2) == 2
    with pytest.raises(ConfigError, match="micro_batch_size=5 does not divide the 12 samples.*: 4 or 6$"):
        count_accumulation_steps(12, 5, 1)
    with pytest.raises(ConfigError, match="micro_batch_size=16 does not divide the 8 samples.*: 8$"):
        count_accumulation_steps(8, 16, 1)
    with pytest.raises(ConfigError, match="global_batch_size=10 cannot be cut over 4 devices; .*: 8 or 12$"):
        count_accumulation_steps(10, 2, 4)


@given(
    world=st.sampled_from([1, 2, 4]),
    micro=st.sampled_from([1, 2, 4]),
    steps=st.integers(1, 9),
    extra=st.integers(0, 15),
)
@settings(max_examples=30, deadline=None)
def test_ranks_and_micro_batches_only_cut_the_global_batches(world, micro, steps, extra):
    n = 16 + extra
    common = {"num_steps": steps, "global_batch_size": 16, "seed": 3, "task": "a"}
    whole = make_micro_batch_indices(n, micro_batch_size=16, **common)
    assert [s.step for s in whole] == list(range(steps))
    per_rank = [
        make_micro_batch_indices(n, micro_batch_size=micro, rank=r, world_size=world, **common) for r in range(world)
    ]
    for slot in whole:
        parts = [[s for s in rank if s.step == slot.step] for rank in per_rank]
        assert tuple(i for rank in parts for s in rank for i in s.sample_indices) == slot.sample_indices
        assert all([s.is_last_of_step for s in rank] == [False] * (len(rank) - 1) + [True] for rank in parts)


def test_steps_beyond_an_epoch_begin_a_new_one():
    found = make_micro_batch_indices(8, num_steps=3, global_batch_size=4, micro_batch_size=4, seed=0, task="a")
    first, second = (flat(make_global_batches(8, 4, seed=0, task="a", epoch=e)) for e in (0, 1))
    assert [i for s in found for i in s.sample_indices] == first + second[:4]


def test_samples_may_be_tuples_or_objects():
    class Item:
        id, question, images, answer = "x", "What?", (picture(),), "yes"

    lmm = tiny_lmm("llava_onevision")
    order = make_micro_batch_indices(2, num_steps=1, global_batch_size=2, micro_batch_size=2, seed=0, task="a")
    found = MicroBatchDataset(lmm, [Item(), ("y", "What?", [picture()], "yes")], order)[0]
    assert isinstance(found, MicroBatch)
    assert found.labels[0].tolist() == found.labels[1].tolist()


def test_a_sample_beyond_the_context_is_named():
    lmm = tiny_lmm("llava_onevision")
    items = [*samples(3), TrainItem("too-long", "What?", [picture()], "a" * 600)]
    order = make_micro_batch_indices(4, num_steps=1, global_batch_size=4, micro_batch_size=4, seed=0, task="a")
    with pytest.raises(DataError, match=r"^training sample too-long: .* the model's context is 512; [^\n]*$"):
        unwrap_micro_batch(MicroBatchDataset(lmm, items, order)[0])


def test_workers_give_the_same_batches_and_one_line_errors():
    lmm = tiny_lmm("llava_onevision")
    order = make_micro_batch_indices(8, num_steps=2, global_batch_size=4, micro_batch_size=2, seed=0, task="a")
    here, there = (list(make_data_loader(lmm, samples(8), order, num_workers=w, seed=0)) for w in (0, 2))
    assert [m.indices for m in here] == [m.indices for m in there] == order
    for a, b in zip(here, there, strict=True):
        assert a.inputs.keys() == b.inputs.keys()
        assert all(a.inputs[key].equal(b.inputs[key]) for key in a.inputs)
        assert a.labels.equal(b.labels)
    broken = [*samples(7), TrainItem("too-long", "What?", [], "a" * 600)]
    with pytest.raises(DataError, match=r"^training sample too-long: [^\n]*$"):
        [unwrap_micro_batch(found) for found in make_data_loader(lmm, broken, order, num_workers=1, seed=0)]
