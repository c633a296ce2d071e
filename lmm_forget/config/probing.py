"""The `probe` group: its prompts' tasks are looked up, and every value is checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmm_forget.config.messages import closest
from lmm_forget.config.tasks import TaskFiles
from lmm_forget.errors import ConfigError

MODES, FORCED_ON, ON_ALARM = ("free", "forced"), ("reference", "base"), ("stop", "warn")
TOKEN_SETS = ("number", "letter", "yes_no", "clock", "taught")
BOUNDS = (*(f"{name}_mass" for name in TOKEN_SETS), "nll", "kl", "js")


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _some_of(known: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list)
        and bool(value)
        and all(v in known for v in value)
        and len({*value}) == len(value)
    )


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "output_shift": (_flag, "true or false"),
    "residual_to_logit": (_flag, "true or false"),
    "prompts": (lambda v: isinstance(v, list) and bool(v), "a list of tasks"),
    "n": (_count, "a whole number of at least 1"),
    "residual_n": (_count, "a whole number of at least 1"),
    "modes": (_some_of(MODES), f"a list of {' and '.join(MODES)}"),
    "forced_on": (lambda v: v in FORCED_ON, " or ".join(FORCED_ON)),
    "token_sets": (_some_of(TOKEN_SETS), f"a list of some of {', '.join(TOKEN_SETS)}"),
    "at_steps": (
        lambda v: isinstance(v, list) and all(map(_count, v)),
        "a list of optimizer steps, each a whole number of at least 1",
    ),
    "at_tasks": (
        lambda v: v is None or (isinstance(v, list) and bool(v)),
        "a list of skills that are taught, or null",
    ),
    "ask_at_steps": (_flag, "true or false"),
    "retrain": (_flag, "true or false"),
    "stop_when": (lambda v: isinstance(v, dict), f"bounds by name: {', '.join(BOUNDS)}"),
    "on_alarm": (lambda v: v in ON_ALARM, " or ".join(ON_ALARM)),
    "alarm_every": (_count, "a whole number of at least 1"),
    "alarm_n": (_count, "a whole number of at least 1"),
}


def find_prompts(run: DictConfig, files: TaskFiles) -> None:
    """Put the YAMLs of `probe.prompts` under `probe.tasks`; `prompts` and `at_tasks` get the names of the record.

    A task that is taught or asked as well keeps the changes made to it under `tasks`. Raises ConfigError for
    names that exist nowhere.
    """
    probe = run.get("probe")
    if not OmegaConf.is_dict(probe) or "prompts" not in probe:
        return
    names = probe.prompts
    if not OmegaConf.is_list(names):
        raise ConfigError(
            f"probe.prompts={names} cannot be used; it must be a list of tasks, e.g. [captions]"
        )
    found = [files.load(name) for name in names]
    probe.prompts = list(dict.fromkeys(task.name for task in found))
    probe.tasks = OmegaConf.create({})
    for task in found:
        probe.tasks[task.name] = run.tasks.get(task.name, task.node)
    if OmegaConf.is_list(probe.get("at_tasks")):
        probe.at_tasks = list(dict.fromkeys(files.load(name).name for name in probe.at_tasks))


def check_probe(probe: Mapping[str, Any], taught: Sequence[str]) -> None:
    """Raise ConfigError for the first field of a resolved `probe` node that does not exist or cannot be used.

    `taught` are the names of the skills of the sequence.
    A node without `output_shift` and `residual_to_logit` (`probe=none`) asks for nothing.
    """
    if "output_shift" not in probe and "residual_to_logit" not in probe:
        return
    for key in probe:
        if key not in (*_FIELDS, "name", "tasks"):
            known = sorted(_FIELDS)
            raise ConfigError(
                f"there is no probe.{key}; probe has: {', '.join(known)}{closest(str(key), known)}"
            )
    for key, (test, right) in _FIELDS.items():
        if key not in probe:
            raise ConfigError(f"the configuration lacks probe.{key}; a probe YAML of your own must set it")
        if not test(probe[key]):
            raise ConfigError(f"probe.{key}={probe[key]} cannot be used; it must be {right}")
    if not (probe["output_shift"] or probe["residual_to_logit"]):
        raise ConfigError("probe: neither output_shift nor residual_to_logit is on; use probe=none")
    if probe["at_tasks"] is not None and not {*probe["at_tasks"]} & {*taught}:
        raise ConfigError(
            f"probe.at_tasks={probe['at_tasks']}: none of them is taught; the sequence has {', '.join(taught)}"
        )
    for name, bound in probe["stop_when"].items():
        if name not in BOUNDS:
            raise ConfigError(
                f"there is no probe.stop_when.{name}; it has: {', '.join(BOUNDS)}{closest(str(name), BOUNDS)}"
            )
        if bound is not None and (
            isinstance(bound, bool) or not isinstance(bound, (int, float)) or bound <= 0
        ):
            raise ConfigError(
                f"probe.stop_when.{name}={bound} cannot be used; it must be a number above 0, or null"
            )
        label = str(name).removesuffix("_mass")
        if bound is not None and label in TOKEN_SETS and label not in probe["token_sets"]:
            raise ConfigError(f"probe.stop_when.{name} needs {label} in probe.token_sets")
