"""Strategies: chosen by name, and what a new one takes: one class, one YAML."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmm_forget.config.composing import compose_config
from lmm_forget.config.resolving import resolve_config
from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup, RankInfo
from lmm_forget.errors import ConfigError
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.training.strategies.ddp import ReplicatedStage
from lmm_forget.training.strategies.fsdp import ShardedStage
from lmm_forget.training.strategies.single import SingleDeviceStage
from lmm_forget.training.strategies.stage_strategy import build_strategy
from tests.training.lesson import teach

ROOT = Path(__file__).resolve().parents[2]
TWO = ProcessGroup(RankInfo(0, 2, 0, 2))


@pytest.mark.parametrize(
    ("name", "process_group", "expected"),
    [
        (None, SINGLE_PROCESS, SingleDeviceStage),
        ("auto", SINGLE_PROCESS, SingleDeviceStage),
        ("auto", TWO, ReplicatedStage),
        ("single", SINGLE_PROCESS, SingleDeviceStage),
        ("ddp", TWO, ReplicatedStage),
        ("fsdp", TWO, ShardedStage),
    ],
)
def test_a_name_is_a_yaml(name: str | None, process_group: ProcessGroup, expected: type) -> None:
    strategy = build_strategy({"strategy": name}, process_group)
    assert type(strategy) is expected and strategy.process_group is process_group


def test_what_a_strategy_can_do() -> None:
    assert ReplicatedStage.can_recover_from_oom and not ShardedStage.can_recover_from_oom
    assert ShardedStage.needs_image_in_every_batch and not ReplicatedStage.needs_image_in_every_batch


def test_ddp_of_one_process_is_a_single_device() -> None:
    assert hash_parameters(teach(hardware={"strategy": "ddp"})[0].model) == hash_parameters(teach()[0].model)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hardware.strategy=rings"], r"hardware.strategy=rings is not known; choose one of: auto, ddp, fsdp, single"),
        (["hardware.strategy=3"], r"hardware.strategy=3 cannot be used; it must be auto, or the name of a YAML"),
        (["hardware=ddp", "hardware.strategy=single"], r"single is one device, but this job has 2"),
        (["+hardware.strategy_config={_target_: x}"], r"there is no hardware.strategy_config"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_config(compose_config(words))


def test_a_yaml_of_the_users_is_found_and_must_name_a_strategy(tmp_path: Path) -> None:
    folder = tmp_path / "strategy"
    folder.mkdir()
    words = ["hardware.strategy=ring"]
    (folder / "ring.yaml").write_text("# Ring.\n_target_: collections.OrderedDict\n")
    hardware = resolve_config(compose_config(words, tmp_path))["hardware"]
    assert hardware["strategy"] == "ring" and hardware["strategy_config"] == {"_target_": "collections.OrderedDict"}
    with pytest.raises(ConfigError, match=r"^hardware.strategy=ring: _target_ .* is not a StageStrategy$"):
        build_strategy(hardware, SINGLE_PROCESS)
    (folder / "ring.yaml").write_text("# Ring.\nsize: 3\n")
    with pytest.raises(ConfigError, match=r"ring.yaml must name its class"):
        resolve_config(compose_config(words, tmp_path))


USER_MODULE = '''
from pathlib import Path

from lmm_forget.training.strategies.single import SingleDeviceStage


class CountingStage(SingleDeviceStage):
    """One device; leaves a line for every averaging of gradients."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def average_gradients(self, parameters) -> None:
        with self.path.open("a") as file:
            file.write(f"{len(parameters)} gradients\\n")
'''


@pytest.mark.timeout(900)
def test_a_strategy_of_the_users_is_one_file_and_one_yaml(tmp_path: Path) -> None:
    (tmp_path / "my_strategy.py").write_text(USER_MODULE)
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    yaml = "# One device that counts.\n_target_: my_strategy.CountingStage\npath: averaged.txt\n"
    (tmp_path / "conf" / "strategy" / "counting.yaml").write_text(yaml)
    words = ["experiment=smoke", "sequence=single", "sequence.task=cub200", "suite.tasks=[ai2d]", "data.eval_samples=2"]
    done = subprocess.run(
        [sys.executable, "-m", "lmm_forget.run", "--config-dir", "conf", *words, "hardware.strategy=counting"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "averaged.txt").read_text().splitlines()
    assert len(lines) == 2 and len(set(lines)) == 1, "one line for each of the two steps"
    (job,) = (tmp_path / "multirun" / "smoke").glob("*/job.yaml")
    assert "strategy: counting" in job.read_text()
