"""What a set of samples can do when a task returned a plain list, and what a part of a set keeps of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from PIL import Image

from lmm_forget.errors import DataError
from lmm_forget.tasks.sample_set import ListSamples, SampleSet, SampleSubset, as_sample_set, limit_samples
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.subset import SubsetTask
from lmm_forget.tasks.task import Sample, Task, hash_json_parts


def make_sample(i: int) -> Sample:
    return Sample(f"s{i}", f"i{i}", (Image.new("RGB", (8 + i, 4)),), f"Question {i}?", (str(i),), meta={"kind": i % 2})


class Stream(SampleSet):
    """Samples that can only be read one after the other; two were left out."""

    skipped: Mapping[str, str] = {"7": "s7: torn", "9": "s9: blank"}

    def __len__(self) -> int:
        return 6

    @property
    def is_sequential(self) -> bool:
        return True

    def read_sample(self, index: int) -> Sample:
        return self.decode_sample(self.read_stored_row(index))

    def read_stored_row(self, index: int) -> Any:
        return {"row": index}

    def decode_sample(self, stored_row: Any) -> Sample:
        return make_sample(stored_row["row"])


class OwnTask(Task):
    """A user's task: its samples are a list."""

    def load_samples(self, split: str) -> Sequence[Sample]:
        return [make_sample(i) for i in range(10)]

    def fingerprint_split(self, split: str) -> str:
        return hash_json_parts(split)


def test_a_plain_list_is_wrapped_once() -> None:
    plain = [make_sample(i) for i in range(5)]
    samples = as_sample_set(plain)
    assert as_sample_set(samples) is samples and list(samples) == plain and samples[-1] is plain[-1]
    assert (len(samples), samples.is_sequential, dict(samples.skipped)) == (5, False, {})
    assert samples.peek_sample(3) == (plain[3], [(11, 4)])
    assert samples.decode_sample(samples.read_stored_row(2)) is plain[2]
    light = list(samples.iterate_without_images())
    assert [one.id for one in light if isinstance(one, Sample)] == ["s0", "s1", "s2", "s3", "s4"]
    assert not any(one.images for one in light if isinstance(one, Sample))
    assert [one.id for one in samples[1:4:2]] == ["s1", "s3"]


def test_a_part_reads_and_skips_as_the_whole_does() -> None:
    part = SampleSubset(Stream(), [1, 3, 4], {"5": "s5: too long"})
    assert part.is_sequential and [one.id for one in part] == ["s1", "s3", "s4"]
    assert part.read_stored_row(2) == {"row": 4} and part.decode_sample({"row": 4}).id == "s4"
    assert part.peek_sample(1)[1] == [(11, 4)]
    assert [one.id for one in part.iterate_without_images() if isinstance(one, Sample)] == ["s1", "s3", "s4"]
    assert part.skipped == {"7": "s7: torn", "9": "s9: blank", "5": "s5: too long"}
    smaller = part.select_samples([0, 2], {1: "s3: unreadable"})
    assert [one.id for one in smaller] == ["s1", "s4"] and smaller.is_sequential
    assert smaller.skipped == {**part.skipped, "1": "s3: unreadable"}


def test_limits_nest_and_keep_order() -> None:
    samples = ListSamples([make_sample(i) for i in range(30)])
    chosen = {n: [one.id for one in limit_samples(samples, n, "name")] for n in (5, 12)}
    assert len(chosen[5]) == 5 and set(chosen[5]) < set(chosen[12])
    assert chosen[12] == [one.id for one in samples if one.id in chosen[12]]
    assert chosen[12] != [one.id for one in limit_samples(samples, 12, "other name")]
    assert limit_samples(samples, None, "name") is samples and limit_samples(samples, 30, "name") is samples
    assert [one.id for one in limit_samples(samples, 12, "name")[2:4]] == chosen[12][2:4]
    with pytest.raises(DataError, match="task name: a limit of 0 samples"):
        limit_samples(samples, 0, "name")


def test_a_part_of_a_task_whose_samples_are_a_list() -> None:
    task = OwnTask(name="own", role="held_out", max_new_tokens=4, scorer=ExactMatchScorer())
    part = SubsetTask(task, samples=4, by="kind")
    samples = part.validate_split("test")
    assert isinstance(samples, SampleSet) and len(samples) == 4
    assert sorted(one.meta["kind"] for one in samples) == [0, 0, 1, 1]
    assert [one.id for one in samples] == [one.id for one in part.load_samples("test")]
    assert isinstance(part.load_samples("train"), SampleSet) and len(part.load_samples("train")) == 10
