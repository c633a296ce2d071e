"""A suite's fixed part of every benchmark: which questions, and what they can tell apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.errors import ConfigError, DataError
from lmm_forget.metrics.interval_width import (
    compute_interval_half_width,
    compute_mean_half_width,
    describe_interval_widths,
)
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.subset import SubsetTask
from lmm_forget.tasks.task import Sample, Task
from lmm_forget.tasks.task_loading import build_task
from tests.tasks import published

Made = Callable[..., Task]


class Listed(Task):
    """A task of given groups."""

    def __init__(self, groups: list[str]) -> None:
        super().__init__(name="listed", role="held_out", max_new_tokens=1, scorer=ExactMatchScorer())
        self.groups = groups

    def load_samples(self, split: str) -> list[Sample]:
        return [Sample(f"{i}", f"{i}", (), "?", ("x",), None, {"kind": kind}) for i, kind in enumerate(self.groups)]

    def fingerprint_split(self, split: str) -> str:
        return "same"


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=120), st.integers(1, 130), st.integers(0, 3))
def test_every_group_keeps_its_share_and_larger_parts_hold_smaller_ones(groups: list[str], n: int, seed: int) -> None:
    part = SubsetTask(Listed(groups), samples=n, seed=seed, by="kind").load_samples("test")
    assert len(part) == min(n, len(groups))
    whole, chosen = Counter(groups), Counter(sample.meta["kind"] for sample in part)
    for kind, count in whole.items():
        assert abs(chosen[kind] - len(part) * count / len(groups)) < 2
    assert [int(s.id) for s in part] == sorted(int(s.id) for s in part), "in the data set's order"
    more = SubsetTask(Listed(groups), samples=n + 7, seed=seed, by="kind").load_samples("test")
    assert {s.id for s in part} <= {s.id for s in more}


def test_the_part_depends_on_ids_and_seed_only(tmp_path: Path, made: Made) -> None:
    path = str(published.write("mmstar", tmp_path, 40))
    one, other = (
        made("mmstar", path=path, subset={"samples": 9, "seed": seed, "by": "l2_category"}) for seed in (0, 1)
    )
    chosen = one.validate_split("test")
    assert Counter(s.meta["l2_category"] for s in chosen) == {kind: 3 for kind in published._L2}
    assert (
        [s.id for s in chosen]
        == [s.id for s in one.load_samples("test")]
        != [s.id for s in other.validate_split("test")]
    )
    streamed = made("mmstar", path=path, streaming=True, subset={"samples": 9, "seed": 0, "by": "l2_category"})
    assert [s.id for s in streamed.validate_split("test")] == [s.id for s in chosen]
    assert len({task.fingerprint_split("test") for task in (one, other, made("mmstar", path=path))}) == 3
    assert one.format_question(chosen[0], for_training=False).startswith("Which option is right?")
    assert one.score_answer("A", chosen[0])["compat"] is not None
    with pytest.raises(DataError, match="subset.by=kind is not in meta, which has category, l2_category"):
        made("mmstar", path=path, subset={"samples": 9, "by": "kind"}).validate_split("test")
    with pytest.raises(DataError, match="it takes samples, seed and by"):
        made("mmstar", path=path, subset={"size": 9})
    with pytest.raises(ConfigError, match="subset.samples=0 must be a whole number of at least 1"):
        made("mmstar", path=path, subset={"samples": 0})


def test_only_the_chosen_pictures_are_opened(tmp_path: Path, made: Made) -> None:
    from datasets import Dataset, Features

    rows = published.rows("chartqa", 30)
    part = made("chartqa", path=str(published.write("chartqa", tmp_path / "whole", 30)), subset={"samples": 10})
    kept = {sample.id for sample in part.load_samples("test")}
    for number, row in enumerate(rows):
        if f"test-{number}" not in kept:
            row["image"] = {"bytes": b"broken", "path": None}
    path = str(tmp_path / "rows.parquet")
    Dataset.from_list(rows, features=Features(published.SCHEMAS["chartqa"][0])).to_parquet(path)
    again = made("chartqa", path={"test": path}, subset={"samples": 10})
    assert {sample.id for sample in again.validate_split("test")} == kept


def config(*overrides: str) -> dict[str, Any]:
    return resolve_config(compose_config(list(overrides)))


def test_paper_quick_is_the_papers_eight_in_parts() -> None:
    real = config("model=llava_onevision_0_5b", "suite=paper_quick")
    suite = real["suite"]["tasks"]
    assert suite == [
        "ai2d",
        "chartqa",
        "docvqa",
        "infovqa",
        "realworldqa",
        "seedbench",
        "scienceqa",
        "mmstar",
    ]
    assert real["tasks"]["mmstar"]["subset"] == {"samples": 250, "seed": 0, "by": "l2_category"}
    assert real["tasks"]["ai2d"]["subset"]["by"] is None
    assert "subset" not in real["tasks"]["cub200"], "targets are asked whole"
    for name in suite:
        by = real["tasks"][name]["subset"]["by"]
        assert by is None or by in real["tasks"][name]["meta"]
    line = describe_interval_widths(real)
    assert line is not None and line.startswith(
        "suite paper_quick: 8 benchmarks, 2,000 questions; a benchmark's change is known to ±5.5 points, "
        "their mean to ±2.0 (95 %"
    )
    assert describe_interval_widths(config("suite=paper")) is None
    small = config("suite=paper_quick", "suite.subset.samples=30")
    assert small["tasks"]["tiny_ai2d"]["subset"] == {"samples": 30, "seed": 0, "by": None}
    assert len(build_task(small["tasks"]["tiny_mmstar"]).validate_split("test")) == 30
    assert [name.removeprefix("tiny_") for name in config("suite=tiny")["suite"]["tasks"]] == suite
    with pytest.raises(ConfigError, match="there is no suite.subset.share; suite.subset has: by, samples, seed"):
        config("suite=paper_quick", "+suite.subset.share=0.1")


def test_extras_are_the_eight_and_four_more() -> None:
    names = config("model=llava_onevision_0_5b", "suite=extras")["suite"]["tasks"]
    assert names[8:] == ["ocrbench", "countbench", "coco_clock", "openimg_clock"]


def test_the_interval_is_that_of_a_paired_change() -> None:
    # 100 questions, every one of which changes with probability 0.2: sd of the mean 0.0447.
    assert compute_interval_half_width(100) == pytest.approx(8.77, abs=0.01)
    assert compute_mean_half_width([100] * 4) == pytest.approx(compute_interval_half_width(100) / 2)
    assert compute_mean_half_width([100, 400]) == pytest.approx(
        (compute_interval_half_width(100) ** 2 + compute_interval_half_width(400) ** 2) ** 0.5 / 2
    )
