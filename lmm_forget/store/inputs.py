"""What a job reads, by content: its model's folder, its local data, the code of its scorers and of the user's classes.

A finished job's record holds these fingerprints, so that the same command can tell whether it still is the same job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmm_forget.errors import LmmForgetError
from lmm_forget.models.folders import folder_fingerprint, model_source
from lmm_forget.store.code import scorer_code, user_code
from lmm_forget.store.keys import digest
from lmm_forget.tasks.base import Task
from lmm_forget.tasks.loading import build_task

Piece = tuple[str, str, Callable[[], str | None]]
"""(name, what its fingerprint is remembered under, how it is computed)."""


class InputReader:
    """Reads the inputs of jobs; what several jobs share is read once for as long as the reader lives."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._known: dict[str, str | None | LmmForgetError] = {}

    def read(
        self, config: Mapping[str, Any], tasks: Mapping[str, Task] | None = None
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Fingerprints of a resolved configuration's inputs, and what could not be read: both by the input's name.

        The names are `model`, `data.<task>`, `code.<task>`, `scorer.<task>` and `code.recipe`. `tasks` are
        those of the job where they are open already. A model or data set on a hub is no input in this sense: its
        revision is in the record, and asking whether it moved would take a network.
        """
        found: dict[str, str] = {}
        unreadable: dict[str, str] = {}
        for name, key, compute in self._pieces(config, tasks or {}):
            if key not in self._known:
                try:
                    self._known[key] = compute()
                except LmmForgetError as error:
                    self._known[key] = error
                except OSError as error:
                    self._known[key] = LmmForgetError(f"{error.filename}: {error.strerror}")
            known = self._known[key]
            if isinstance(known, LmmForgetError):
                unreadable[name] = " ".join(str(known).split())
            elif known is not None:
                found[name] = known
        return found, unreadable

    def _pieces(self, config: Mapping[str, Any], tasks: Mapping[str, Task]) -> Iterator[Piece]:
        spec = config["model"]
        if spec.get("path"):
            yield "model", f"model {spec['path']}", lambda: folder_fingerprint(Path(model_source(spec)[0]))
        recipe = config["recipe"]
        method = str((recipe.get("method") or {}).get("_target_") or "")
        if method and not method.startswith("lmm_forget."):
            yield "code.recipe", f"method {method}", lambda: user_code(_located(method))
        trained = set(config["sequence"]["tasks"])
        nodes = {name: (node, name in trained, True) for name, node in config["tasks"].items()}
        probed = (config.get("probe") or {}).get("tasks") or {}
        nodes |= {name: (node, False, False) for name, node in probed.items() if name not in nodes}
        for name, (node, train, evaluated) in nodes.items():
            yield from self._task(name, node, tasks.get(name), train, evaluated, config)

    def _task(
        self,
        name: str,
        node: Mapping[str, Any],
        ready: Task | None,
        train: bool,
        evaluated: bool,
        config: Mapping[str, Any],
    ) -> Iterator[Piece]:
        key = digest(node)

        def task() -> Task:
            if key not in self._tasks:
                self._tasks[key] = ready or build_task(node)
            return self._tasks[key]

        test = "validation" if train and config["data"]["validation"] else "test"
        splits = ["train", test] if train else ["test"]
        yield f"data.{name}", f"{key} {splits}", lambda: task().content(splits)
        yield f"code.{name}", f"{key} code", lambda: user_code(task())
        if evaluated:
            yield f"scorer.{name}", f"{key} scorer", lambda: scorer_code(task().scorer)


def _located(target: str) -> Any:
    """The class or function that a `_target_` names. Raises LmmForgetError if there is none."""
    from hydra.utils import get_object

    try:
        return get_object(target)
    except Exception as error:  # whatever importing a user's module raises
        raise LmmForgetError(f"recipe.method._target_={target} cannot be imported ({error})") from None


def changed(before: Mapping[str, str], now: Mapping[str, str], unreadable: Mapping[str, str]) -> list[str]:
    """What changed between two readings of a job's inputs, in words; what cannot be read now is no change."""
    names = sorted({*before, *now} - unreadable.keys())
    return [_in_words(name) for name in names if before.get(name) != now.get(name)]


def training_inputs(inputs: Mapping[str, str], tasks: Iterable[str]) -> dict[str, str]:
    """Those of a job's inputs that decide the weights after it was trained on `tasks`."""
    names = {"model", "code.recipe"}
    for task in tasks:
        names |= {f"data.{task}", f"code.{task}"}
    return {name: inputs[name] for name in sorted(names & inputs.keys())}


def _in_words(name: str) -> str:
    kind, _, rest = name.partition(".")
    if kind == "model":
        return "the model's folder"
    if kind == "data":
        return f"the data of task {rest}"
    if kind == "scorer":
        return f"the scorer of task {rest}"
    return "the code of the recipe's method" if rest == "recipe" else f"the code of task {rest}"
