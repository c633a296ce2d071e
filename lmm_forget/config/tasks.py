"""Task YAMLs: found by name in a world, checked, and embedded in the configuration."""

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

from lmm_forget.config.messages import closest, listing, one_line, yaml_fault
from lmm_forget.errors import ConfigError

ROLES = ("target", "held_out", "captions")


@dataclass(frozen=True)
class TaskFile:
    """One task YAML: the name it is recorded under, its role, its file and its content."""

    name: str
    role: str
    path: Path
    node: DictConfig


class TaskFiles:
    """The task YAMLs of some folders, as one world names them.

    In the world `tiny` a name N means `tiny_N` where there is such a file (a stand-in, and recorded as one), else N;
    in the world `real` it means N. The first folder that has the file wins.
    """

    def __init__(self, folders: Sequence[Path], world: str) -> None:
        self.folders = list(folders)
        self.world = world

    def load(self, name: Any) -> TaskFile:
        """The task called `name`. Raises ConfigError listing what exists, or saying what its YAML lacks."""
        path = self._find(str(name))
        try:
            node = deepcopy(_read(path, path.stat().st_mtime_ns))
        except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(yaml_fault(path) or f"{path}: {one_line(error)}") from error
        if not isinstance(node, DictConfig):
            raise ConfigError(f"{path} must hold keys and values (name, role, _target_, …)")
        _check_fields(node, str(path))
        node.name = str(node.get("name") or path.stem)
        return TaskFile(str(node.name), str(node.role), path, node)

    def known(self) -> list[str]:
        """Names that `load` accepts, without a stand-in's prefix."""
        stems = {path.stem for folder in self.folders for path in (folder / "task").glob("*.yaml")}
        if self.world == "tiny":
            stems = {stem.removeprefix("tiny_") for stem in stems}
        return sorted(stems)

    def merge_into(self, run: DictConfig, tasks: Sequence[TaskFile]) -> None:
        """Replace `run.tasks` by the tasks' YAMLs, with the changes that stood there merged over them.

        Raises ConfigError if a change names a task that is neither taught nor asked, or if two files claim one name.
        """
        changes = run.get("tasks") or OmegaConf.create({})
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
                known = sorted(nodes)
                raise ConfigError(
                    f"tasks.{name}: no such task in this run; it has: {listing(known)}{closest(name, known)}"
                )
            if not isinstance(change, DictConfig):
                raise ConfigError(
                    f"tasks.{name}={change} must be keys and values, as in +tasks.{name}.max_new_tokens=4"
                )
            before = nodes[name]
            nodes[name] = OmegaConf.merge(before, change)  # type: ignore[assignment]
            _check_fields(nodes[name], f"tasks.{name}")
            if (nodes[name].role, nodes[name].get("name")) != (before.role, before.get("name")):
                raise ConfigError(f"tasks.{name}: a task's role and name stand in its YAML ({paths[name]})")
        run.tasks = OmegaConf.create({})
        for name, node in nodes.items():
            run.tasks[name] = node

    def _find(self, name: str) -> Path:
        wanted = [f"tiny_{name}", name] if self.world == "tiny" else [name]
        for stem in wanted:
            for folder in self.folders:
                path = folder / "task" / f"{stem}.yaml"
                if path.is_file():
                    return path
        known = self.known()
        hint = (
            closest(name, known)
            or "; a task of your own goes to task/NAME.yaml in the folder given by --config-dir"
        )
        raise ConfigError(
            f"there is no task {name!r} in the {self.world} world; choose one of: {listing(known)}{hint}"
        )


def _check_fields(node: DictConfig, where: str) -> None:
    """Raise ConfigError, beginning with `where`, for a task's node that lacks a field or has a wrong one."""
    for key in ("_target_", "role", "max_new_tokens"):
        if OmegaConf.is_missing(node, key) or node.get(key) is None:
            raise ConfigError(f"{where} lacks {key}; a task needs _target_, role, max_new_tokens and scorer")
    if node.role not in ROLES:
        raise ConfigError(f"{where}: role={node.role} is not known; choose one of: {', '.join(ROLES)}")
    tokens = node.max_new_tokens
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise ConfigError(f"{where}: max_new_tokens={tokens} must be a whole number of at least 1")


@lru_cache(maxsize=256)
def _read(path: Path, modified: int) -> Any:
    """The content of a YAML file; a sweep reads the same ones at every grid point."""
    return OmegaConf.load(path)


def check_roles(taught: Sequence[TaskFile], asked: Sequence[TaskFile]) -> None:
    """A sequence teaches targets, a suite asks what is never taught. Raises ConfigError."""
    for task in taught:
        if task.role != "target":
            raise ConfigError(
                f"sequence: {task.name} is {task.role}, it has nothing to teach; a sequence holds targets ({task.path})"
            )
    names = {task.name for task in taught}
    for task in asked:
        if task.role != "held_out" or task.name in names:
            role = "taught in the sequence" if task.name in names else task.role
            raise ConfigError(
                f"suite: {task.name} is {role}; a suite holds held-out benchmarks only ({task.path})"
            )
