"""Fingerprints of what a job reads: its model's folder, its local data, the code of its scorers and of user classes.

A finished job's record holds them, so that the same command later recognises whether it is still the same job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from lmm_forget.errors import LmmForgetError
from lmm_forget.models.model_source import fingerprint_folder, resolve_model_source
from lmm_forget.store.code_hashes import hash_scorer_code, hash_user_code
from lmm_forget.store.keys import hash_json, select_user_callbacks
from lmm_forget.tasks.task import Task
from lmm_forget.tasks.task_loading import build_task

InputSource = tuple[str, str, Callable[[], str | None]]
"""(name of the input, key under which its fingerprint is cached, function that computes it)."""


class InputFingerprinter:
    """Computes the fingerprints of jobs' inputs; an input that several jobs share is read once per instance."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._results: dict[str, str | None | LmmForgetError] = {}

    def compute_fingerprints(
        self, config: Mapping[str, Any], tasks: Mapping[str, Task] | None = None
    ) -> tuple[dict[str, str], dict[str, str]]:
        """(fingerprints, errors of inputs that could not be read) of a resolved configuration, both by input name.

        The names are model, data.<task>, code.<task>, scorer.<task>, code.recipe and code.callbacks. `tasks` are
        tasks of the job that are already loaded. A model or data set on a hub has no fingerprint: its revision is in
        the record, and checking for a newer one would need the network.
        """
        fingerprints: dict[str, str] = {}
        unreadable: dict[str, str] = {}
        for name, key, compute in self._iterate_inputs(config, tasks or {}):
            if key not in self._results:
                try:
                    self._results[key] = compute()
                except LmmForgetError as error:
                    self._results[key] = error
                except OSError as error:
                    self._results[key] = LmmForgetError(f"{error.filename}: {error.strerror}")
            result = self._results[key]
            if isinstance(result, LmmForgetError):
                unreadable[name] = " ".join(str(result).split())
            elif result is not None:
                fingerprints[name] = result
        return fingerprints, unreadable

    def _iterate_inputs(self, config: Mapping[str, Any], tasks: Mapping[str, Task]) -> Iterator[InputSource]:
        spec = config["model"]
        if spec.get("path"):
            yield (
                "model",
                f"model {spec['path']}",
                lambda: fingerprint_folder(Path(resolve_model_source(spec)[0])),
            )
        recipe = config["recipe"]
        method = str((recipe.get("method") or {}).get("_target_") or "")
        if method and not method.startswith("lmm_forget."):
            yield "code.recipe", f"method {method}", lambda: hash_user_code(_import_target(method))
        callbacks = [str(node.get("_target_")) for node in select_user_callbacks(config.get("callbacks")).values()]
        if callbacks:
            yield "code.callbacks", f"callbacks {callbacks}", lambda: hash_user_code(*map(_import_target, callbacks))
        trained_tasks = set(config["sequence"]["tasks"])
        nodes = {name: (node, name in trained_tasks, True) for name, node in config["tasks"].items()}
        probe_nodes = (config.get("probe") or {}).get("tasks") or {}
        nodes |= {name: (node, False, False) for name, node in probe_nodes.items() if name not in nodes}
        for name, (node, train, evaluated) in nodes.items():
            yield from self._iterate_task_inputs(name, node, tasks.get(name), train, evaluated, config)

    def _iterate_task_inputs(
        self,
        name: str,
        node: Mapping[str, Any],
        open_task: Task | None,
        is_trained: bool,
        is_evaluated: bool,
        config: Mapping[str, Any],
    ) -> Iterator[InputSource]:
        key = hash_json(node)

        def get_task() -> Task:
            if key not in self._tasks:
                self._tasks[key] = open_task or build_task(node)
            return self._tasks[key]

        test_split = "validation" if is_trained and config["data"]["validation"] else "test"
        splits = ["train", test_split] if is_trained else ["test"]
        yield f"data.{name}", f"{key} {splits}", lambda: get_task().hash_data(splits)
        yield f"code.{name}", f"{key} code", lambda: hash_user_code(get_task())
        if is_evaluated:
            yield f"scorer.{name}", f"{key} scorer", lambda: hash_scorer_code(get_task().scorer)


def _import_target(target: str) -> Any:
    """The class or function that a `_target_` names. Raises LmmForgetError if it cannot be imported."""
    try:
        return get_object(target)
    except Exception as error:  # whatever importing a user's module raises
        raise LmmForgetError(f"_target_={target} cannot be imported ({error})") from None


def describe_input_changes(
    old_fingerprints: Mapping[str, str], new_fingerprints: Mapping[str, str], unreadable: Mapping[str, str]
) -> list[str]:
    """Descriptions of the inputs whose fingerprints differ; an input that is `unreadable` now does not count."""
    names = sorted({*old_fingerprints, *new_fingerprints} - unreadable.keys())
    return [_describe_input(name) for name in names if old_fingerprints.get(name) != new_fingerprints.get(name)]


def select_training_inputs(fingerprints: Mapping[str, str], tasks: Iterable[str]) -> dict[str, str]:
    """The fingerprints of those inputs that decide the weights after training on `tasks`."""
    names = {"model", "code.recipe", "code.callbacks"}
    for task in tasks:
        names |= {f"data.{task}", f"code.{task}"}
    return {name: fingerprints[name] for name in sorted(names & fingerprints.keys())}


def _describe_input(name: str) -> str:
    kind, _, task = name.partition(".")
    if kind == "model":
        return "the model's folder"
    if kind == "data":
        return f"the data of task {task}"
    if kind == "scorer":
        return f"the scorer of task {task}"
    if task in ("recipe", "callbacks"):
        return "the code of the recipe's method" if task == "recipe" else "the code of the callbacks"
    return f"the code of task {task}"
