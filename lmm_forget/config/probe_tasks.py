"""The tasks whose questions are the prompts of the `probe` group, looked up."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from lmm_forget.config.task_files import TaskFileFinder
from lmm_forget.errors import ConfigError


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
