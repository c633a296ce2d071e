"""The `probe` group: its prompts' tasks are looked up, and every value is checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmm_forget.config.error_messages import suggest_closest
from lmm_forget.config.task_files import TaskFileFinder
from lmm_forget.errors import ConfigError

MODES, FORCED_ON, ON_ALARM = ("free", "forced"), ("reference", "base"), ("stop", "warn")
TOKEN_SETS = ("number", "letter", "yes_no", "clock", "trained")
ALARM_BOUNDS = (*(f"{name}_mass" for name in TOKEN_SETS), "nll", "kl", "js")


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _build_subset_check(allowed_values: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list)
        and bool(value)
        and all(v in allowed_values for v in value)
        and len({*value}) == len(value)
    )


_FIELD_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "output_shift": (_is_bool, "true or false"),
    "residual_to_logit": (_is_bool, "true or false"),
    "prompts": (lambda v: isinstance(v, list) and bool(v), "a list of tasks"),
    "n": (_is_positive_int, "a whole number of at least 1"),
    "residual_n": (_is_positive_int, "a whole number of at least 1"),
    "modes": (_build_subset_check(MODES), f"a list of {' and '.join(MODES)}"),
    "forced_on": (lambda v: v in FORCED_ON, " or ".join(FORCED_ON)),
    "token_sets": (_build_subset_check(TOKEN_SETS), f"a list of some of {', '.join(TOKEN_SETS)}"),
    "at_steps": (
        lambda v: isinstance(v, list) and all(map(_is_positive_int, v)),
        "a list of optimizer steps, each a whole number of at least 1",
    ),
    "at_tasks": (
        lambda v: v is None or (isinstance(v, list) and bool(v)),
        "a list of skills that are taught, or null",
    ),
    "evaluate_at_steps": (_is_bool, "true or false"),
    "retrain": (_is_bool, "true or false"),
    "stop_when": (lambda v: isinstance(v, dict), f"bounds by name: {', '.join(ALARM_BOUNDS)}"),
    "on_alarm": (lambda v: v in ON_ALARM, " or ".join(ON_ALARM)),
    "alarm_every": (_is_positive_int, "a whole number of at least 1"),
    "alarm_n": (_is_positive_int, "a whole number of at least 1"),
}


def resolve_probe_tasks(run_config: DictConfig, task_files: TaskFileFinder) -> None:
    """Put the YAMLs of `probe.prompts` under `probe.tasks`; `prompts` and `at_tasks` get the names of the record.

    A task that is taught or asked as well keeps the changes made to it under `tasks`. Raises ConfigError for
    names that exist nowhere.
    """
    probe = run_config.get("probe")
    if not OmegaConf.is_dict(probe) or "prompts" not in probe:
        return
    names = probe.prompts
    if not OmegaConf.is_list(names):
        raise ConfigError(f"probe.prompts={names} cannot be used; it must be a list of tasks, e.g. [captions]")
    prompt_tasks = [task_files.load_task_file(name) for name in names]
    probe.prompts = list(dict.fromkeys(task.name for task in prompt_tasks))
    probe.tasks = OmegaConf.create({})
    for task in prompt_tasks:
        probe.tasks[task.name] = run_config.tasks.get(task.name, task.node)
    if OmegaConf.is_list(probe.get("at_tasks")):
        probe.at_tasks = list(dict.fromkeys(task_files.load_task_file(name).name for name in probe.at_tasks))


def check_probe_config(probe_config: Mapping[str, Any], target_tasks: Sequence[str]) -> None:
    """Raise ConfigError for the first field of a resolved `probe` node that does not exist or cannot be used.

    `taught` are the names of the skills of the sequence.
    A node without `output_shift` and `residual_to_logit` (`probe=none`) asks for nothing.
    """
    if "output_shift" not in probe_config and "residual_to_logit" not in probe_config:
        return
    for key in probe_config:
        if key not in (*_FIELD_CHECKS, "name", "tasks"):
            known_fields = sorted(_FIELD_CHECKS)
            raise ConfigError(
                f"there is no probe.{key}; probe has: "
                f"{', '.join(known_fields)}{suggest_closest(str(key), known_fields)}"
            )
    for key, (is_valid, expected) in _FIELD_CHECKS.items():
        if key not in probe_config:
            raise ConfigError(f"the configuration lacks probe.{key}; a probe YAML of your own must set it")
        if not is_valid(probe_config[key]):
            raise ConfigError(f"probe.{key}={probe_config[key]} cannot be used; it must be {expected}")
    if not (probe_config["output_shift"] or probe_config["residual_to_logit"]):
        raise ConfigError("probe: neither output_shift nor residual_to_logit is on; use probe=none")
    if probe_config["at_tasks"] is not None and not {*probe_config["at_tasks"]} & {*target_tasks}:
        raise ConfigError(
            f"probe.at_tasks={probe_config['at_tasks']}: none of them is taught; the sequence has "
            f"{', '.join(target_tasks)}"
        )
    for name, bound in probe_config["stop_when"].items():
        if name not in ALARM_BOUNDS:
            raise ConfigError(
                f"there is no probe.stop_when.{name}; it has: "
                f"{', '.join(ALARM_BOUNDS)}{suggest_closest(str(name), ALARM_BOUNDS)}"
            )
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, (int, float)) or bound <= 0):
            raise ConfigError(f"probe.stop_when.{name}={bound} cannot be used; it must be a number above 0, or null")
        label = str(name).removesuffix("_mass")
        if bound is not None and label in TOKEN_SETS and label not in probe_config["token_sets"]:
            raise ConfigError(f"probe.stop_when.{name} needs {label} in probe.token_sets")
