"""Task YAMLs: found by name for a data source, checked, and embedded in the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmm_forget.config.error_messages import find_yaml_error, format_config_error
from lmm_forget.config.schema.node_reading import check_value
from lmm_forget.config.schema.setting import list_settings
from lmm_forget.config.schema.training_settings import TaskSettings
from lmm_forget.config.suggestions import join_names, suggest_closest
from lmm_forget.errors import ConfigError


@dataclass(frozen=True)
class TaskFile:
    """One task YAML: the name it is recorded under, its role, its file and its content."""

    name: str
    role: str
    path: Path
    node: DictConfig


class TaskFileFinder:
    """The task YAMLs of some folders, as one data source names them.

    With `tiny` a name N means `tiny_N` where there is such a file (a stand-in, and recorded as one), else N;
    with `real` it means N. The first folder that has the file wins.
    """

    def __init__(self, config_dirs: Sequence[Path], data_source: str) -> None:
        self.folders = list(config_dirs)
        self.data_source = data_source

    def load_task_file(self, name: Any) -> TaskFile:
        """The task called `name`. Raises ConfigError listing what exists, or saying what its YAML lacks."""
        path = self._find_path(str(name))
        try:
            node = deepcopy(_read_yaml(path, path.stat().st_mtime_ns))
        except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(find_yaml_error(path) or f"{path}: {format_config_error(error)}") from error
        if not isinstance(node, DictConfig):
            raise ConfigError(f"{path} must hold keys and values (name, role, _target_, …)")
        _check_task_fields(node, str(path))
        node.name = str(node.get("name") or path.stem)
        return TaskFile(str(node.name), str(node.role), path, node)

    def list_task_names(self) -> list[str]:
        """Names that `load_task_file` accepts, without a stand-in's prefix."""
        stems = {path.stem for folder in self.folders for path in (folder / "task").glob("*.yaml")}
        if self.data_source == "tiny":
            stems = {stem.removeprefix("tiny_") for stem in stems}
        return sorted(stems)

    def merge_into_config(self, run_config: DictConfig, tasks: Sequence[TaskFile]) -> None:
        """Replace `run_config.tasks` by the tasks' YAMLs, with the changes that stood there merged over them.

        Raises ConfigError if a change names a task that is neither taught nor asked, or if two files claim one name.
        """
        changes = run_config.get("tasks") or OmegaConf.create({})
        if not isinstance(changes, DictConfig):
            raise ConfigError(f"tasks={changes} must be keys and values, as in +tasks.ai2d.max_new_tokens=4")
        nodes: dict[str, DictConfig] = {}
        paths: dict[str, Path] = {}
        for task in tasks:
            if paths.setdefault(task.name, task.path) != task.path:
                raise ConfigError(
                    f"{task.path} and {paths[task.name]} are both named {task.name}; give each task its own name"
                )
            nodes[task.name] = task.node
        for key, change in changes.items():
            name = str(key)
            if name not in nodes:
                task_names = sorted(nodes)
                raise ConfigError(
                    f"tasks.{name}: no such task in this run; it has: "
                    f"{join_names(task_names)}{suggest_closest(name, task_names)}"
                )
            if not isinstance(change, DictConfig):
                raise ConfigError(
                    f"tasks.{name}={change} must be keys and values, as in +tasks.{name}.max_new_tokens=4"
                )
            before = nodes[name]
            nodes[name] = OmegaConf.merge(before, change)  # type: ignore[assignment]
            _check_task_fields(nodes[name], f"tasks.{name}")
            if (nodes[name].role, nodes[name].get("name")) != (before.role, before.get("name")):
                raise ConfigError(f"tasks.{name}: a task's role and name stand in its YAML ({paths[name]})")
        run_config.tasks = OmegaConf.create({})
        for name, node in nodes.items():
            run_config.tasks[name] = node

    def _find_path(self, name: str) -> Path:
        candidate_stems = [f"tiny_{name}", name] if self.data_source == "tiny" else [name]
        for stem in candidate_stems:
            for folder in self.folders:
                path = folder / "task" / f"{stem}.yaml"
                if path.is_file():
                    return path
        task_names = self.list_task_names()
        hint = (
            suggest_closest(name, task_names)
            or "; a task of your own goes to task/NAME.yaml in the folder given by --config-dir"
        )
        raise ConfigError(
            f"there is no task {name!r} where data.source={self.data_source}; choose one of: "
            f"{join_names(task_names)}{hint}"
        )


def _check_task_fields(node: DictConfig, location: str) -> None:
    """Raise ConfigError, beginning with `location`, for a task's node that lacks a field or has a wrong one."""
    for key in ("_target_", "role", "max_new_tokens"):
        if OmegaConf.is_missing(node, key) or node.get(key) is None:
            raise ConfigError(f"{location} lacks {key}; a task needs _target_, role, max_new_tokens and scorer")
    for key in ("role", "max_new_tokens"):
        check_value(f"{location}: {key}", node.get(key), list_settings(TaskSettings)[key])


@lru_cache(maxsize=256)
def _read_yaml(path: Path, modified_ns: int) -> Any:
    """The content of a YAML file; a sweep reads the same ones at every grid point."""
    return OmegaConf.load(path)


def check_task_roles(targets: Sequence[TaskFile], benchmarks: Sequence[TaskFile]) -> None:
    """A sequence teaches targets, a suite asks what is never taught. Raises ConfigError."""
    for task in targets:
        if task.role != "target":
            raise ConfigError(
                f"sequence: {task.name} is {task.role}, it has nothing to teach; a sequence holds targets ({task.path})"
            )
    names = {task.name for task in targets}
    for task in benchmarks:
        if task.role != "held_out" or task.name in names:
            role = "taught in the sequence" if task.name in names else task.role
            raise ConfigError(f"suite: {task.name} is {role}; a suite holds held-out benchmarks only ({task.path})")
