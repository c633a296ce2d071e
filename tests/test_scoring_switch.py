"""data.scoring decides which score results call value, and no question is asked again for it."""

from __future__ import annotations

import copy
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.errors import ConfigError
from lmm_forget.experiment import pipeline
from lmm_forget.progress import NullProgress

SMALL = [
    "experiment=smoke",
    "sequence=single",
    "sequence.task=cub200",
    "suite.tasks=[mmstar]",
    "data.train_samples=8",
    "data.eval_samples=6",
    "training.max_steps=1",
    "+tasks.tiny_cub200.scorer.compat=paper.cub200",
]


class Counting(NullProgress):
    """Adds up what a run did."""

    def __init__(self) -> None:
        self.done = {"train": 0, "evaluate": 0}

    def start_phase(self, name: str, total: int, unit: str) -> None:
        for word in self.done:
            if word in name:
                self.done[word] += total


def test_the_switch_reads_other_scores_of_the_same_answers(tmp_path: Path) -> None:
    overrides = [*SMALL, "+tasks.tiny_mmstar.scorer.compat=paper.mmstar", f"store={tmp_path / 'store'}"]
    found, work = {}, {}
    for scoring in ("strict", "compat"):
        config = resolve_config(compose_config([*overrides, f"data.scoring={scoring}"]))
        job = tmp_path / scoring
        job.mkdir()
        counting = Counting()
        found[scoring] = pipeline.run_experiment(copy.deepcopy(config), job, counting)
        work[scoring] = counting.done
    assert work["strict"]["evaluate"] == 24 and work["strict"]["train"] > 0
    assert work["compat"]["evaluate"] == 0
    assert found["strict"]["config"]["data"]["scoring"] == "strict"
    assert found["strict"]["job"]["hash"] != found["compat"]["job"]["hash"]
    for entry, other in zip(
        (found["strict"]["base"], *found["strict"]["stages"]),
        (found["compat"]["base"], *found["compat"]["stages"]),
        strict=True,
    ):
        for task, scores in entry["scores"].items():
            public = other["scores"][task]
            same = ("strict", "tolerant", "compat", "n", "near_ties")
            assert {k: scores[k] for k in same} == {k: public[k] for k in same}
            assert scores["value"] == scores["strict"]
            assert public["value"] == public["compat"] is not None
    learned = found["compat"]["figures"]["target_learning"]["value"]
    base, final = (entry["scores"]["tiny_cub200"]["compat"] for entry in _ends(found["compat"]))
    assert learned == pytest.approx(final - base)
    rows = pq.read_table(tmp_path / "compat" / "answers.parquet").to_pylist()
    assert rows == pq.read_table(tmp_path / "strict" / "answers.parquet").to_pylist()
    assert all(row["compat"] is not None for row in rows)


def _ends(results: dict) -> tuple[dict, dict]:  # type: ignore[type-arg]
    return results["base"], results["stages"][-1]


def test_a_task_without_a_public_score_is_refused_before_any_work(tmp_path: Path) -> None:
    config = resolve_config(compose_config([*SMALL, "data.scoring=compat", f"store={tmp_path / 'store'}"]))
    with pytest.raises(ConfigError, match="data.scoring=compat: there is no compat score of tiny_mmstar; name a rule"):
        pipeline.run_experiment(config, tmp_path, NullProgress())


def test_the_switch_has_two_positions() -> None:
    with pytest.raises(ConfigError, match="data.scoring=lenient is not known; choose one of: strict, compat"):
        resolve_config(compose_config([*SMALL, "data.scoring=lenient"]))
