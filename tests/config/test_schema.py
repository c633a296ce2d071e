"""The configuration's classes: they cover every YAML, and what counts for what is read from them alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lmm_forget.config import (
    JobConfig,
    compose_config,
    find_conf_dir,
    list_config_differences,
    list_group_choices,
    resolve_config,
)
from lmm_forget.config.schema.effects import find_effect, select_fields
from lmm_forget.config.schema.hardware_settings import IsolatedLauncherSettings, SlurmLauncherSettings
from lmm_forget.config.schema.job_config import REQUIRED_GROUPS
from lmm_forget.config.schema.reference import (
    DOCUMENTED_CHOICES,
    format_markdown_reference,
    format_settings_help,
    list_reference_sections,
)
from lmm_forget.config.schema.setting import Effect, OpenGroup, list_settings, setting
from lmm_forget.config.schema.training_settings import TaskSettings
from lmm_forget.config.schema.value_rules import ANYTHING
from lmm_forget.errors import ConfigError
from lmm_forget.store.keys import select_early_stop_config, select_recorded_config, select_training_config

ROOT = Path(__file__).parents[2]
LAUNCHERS = {"isolated": IsolatedLauncherSettings, "slurm": SlurmLauncherSettings}
# Folders of conf whose YAMLs hold whole configurations or arguments of a class.
OPEN_FOLDERS = {"experiment", "task", "hydra", "callbacks", "strategy"}

# The four lists that were kept by hand before every setting said what it changes.
NO_WEIGHTS = {
    "": {"name", "store", "logger", "checkpoint_every", "snapshot", "sweep", "objective", "suite", "probe"},
    "hardware": {
        *(
            "devices",
            "nodes",
            "strategy",
            "strategy_config",
            "micro_batch_size",
            "num_workers",
            "threads",
            "max_parallel_jobs",
        ),
        "eval_batch_size",
    },
    "data": {"eval_samples", "validation", "scoring"},
    "training": {"learning_rate_source"},
    "model": {"path"},
}
TASK_PATHS = {"path", "images_root", "train_path", "streaming"}
NOT_COMPARED = {
    *(f"hardware.{name}" for name in NO_WEIGHTS["hardware"] - {"eval_batch_size"}),
    *("checkpoint_every", "logger", "name", "objective", "snapshot", "store", "sweep"),
}


@cache
def resolve_once(overrides: tuple[str, ...]) -> dict[str, Any]:
    return resolve_config(compose_config(overrides))


def resolve(*overrides: str) -> dict[str, Any]:
    return copy.deepcopy(resolve_once(overrides))


ALARM = ("probe=output_shift", "probe.stop_when.kl=0.5", "probe.stop_when.letter_mass=0.1")
SHIPPED = {
    **{f"model={name}": [f"model={name}", "model.path=x"] for name in list_group_choices("model") if name != "other"},
    **{f"recipe={name}": [f"recipe={name}"] for name in list_group_choices("recipe")},
    **{f"suite={name}": [f"suite={name}", "data.source=real"] for name in ("extras", "paper_quick")},
    **{f"sequence={name}": [f"sequence={name}"] for name in ("alt", "order", "reverse")},
    "sequence=single": ["sequence=single", "sequence.task=timeclock"],
    **{f"probe={name}": [f"probe={name}"] for name in list_group_choices("probe")},
    **{f"hardware={name}": [f"hardware={name}"] for name in list_group_choices("hardware")},
    **{f"logger={name}": [f"logger={name}"] for name in list_group_choices("logger")},
    **{f"experiment={name}": [f"experiment={name}"] for name in list_group_choices("experiment")},
    "alarm": [*ALARM],
    "warning": [*ALARM, "probe.on_alarm=warn"],
}


def iterate_keys(node: Mapping[str, Any], schema: type, path: str) -> Iterator[tuple[str, bool]]:
    """(dotted key, whether it has a field) of a YAML's node."""
    for key, value in node.items():
        known = list_settings(schema).get(str(key))
        yield f"{path}.{key}", known is not None
        if known is not None and known.schema is not None and isinstance(value, Mapping):
            yield from iterate_keys(value, known.schema, f"{path}.{key}")


def read_yaml(path: Path) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items() if key not in ("defaults", "hydra", "_target_")}


def test_every_key_of_a_yaml_has_a_field() -> None:
    conf = find_conf_dir()
    keys = list(iterate_keys(read_yaml(conf / "run.yaml"), JobConfig, "run"))
    folders = {path.name for path in conf.iterdir() if path.is_dir()}
    assert folders - OPEN_FOLDERS == set(REQUIRED_GROUPS) - OPEN_FOLDERS
    assert set(REQUIRED_GROUPS) == set(DOCUMENTED_CHOICES)
    for name in sorted(folders - OPEN_FOLDERS):
        schema = list_settings(JobConfig)[name].schema
        assert schema is not None
        for path in (conf / name).glob("*.yaml"):
            keys += iterate_keys(read_yaml(path), schema, name)
    for name, launcher in LAUNCHERS.items():
        keys += iterate_keys(read_yaml(conf / f"hydra/launcher/{name}.yaml"), launcher, "hydra.launcher")
    assert {path.stem for path in (conf / "hydra/launcher").glob("*.yaml")} == set(LAUNCHERS)
    for path in (conf / "experiment").glob("*.yaml"):
        keys += iterate_keys(read_yaml(path), JobConfig, "experiment")
    assert len(keys) > 200
    assert not [key for key, is_known in keys if not is_known]


def test_every_field_of_a_class_is_a_setting_with_help() -> None:
    pending: list[type] = [JobConfig, TaskSettings, *LAUNCHERS.values()]
    count = 0
    while pending:
        schema = pending.pop()
        settings = list_settings(schema)
        names = {each.name for each in dataclasses.fields(schema)}
        assert names - settings.keys() == ({"extra"} if issubclass(schema, OpenGroup) else set()), schema
        for name, each in settings.items():
            count += 1
            assert len(each.help) > 5 and "\n" not in each.help and not each.help.endswith("."), (schema, name)
            assert each.rule.expected, (schema, name)
            pending += [each.schema] if each.schema is not None else []
    assert count > 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Untagged:
    value: int = setting("a field without an effect", ANYTHING)


def test_a_field_counts_as_weights_until_its_effect_is_given() -> None:
    assert list_settings(Untagged)["value"].effect == Effect.WEIGHTS
    assert select_fields({"value": 1, "unknown": 2}, Effect.WEIGHTS, Untagged) == {"value": 1, "unknown": 2}
    assert select_fields({"value": 1, "unknown": 2}, Effect.ANSWERS, Untagged) == {}
    for key in ("a_new_field", "training.a_new_field", "recipe.method.rank", "tasks.x.a_new_field", "model.extra.x"):
        assert find_effect(key) & Effect.WEIGHTS, key
    assert find_effect("tasks.x.path") == Effect.LOCATION == find_effect("model.path")
    assert find_effect("logger.anything") == find_effect("hardware.threads") == Effect.NEITHER
    assert Effect.WEIGHTS & ~Effect.ANSWERS & find_effect("suite.tasks") == Effect.NEITHER


def old_training_view(config: dict[str, Any], task: str) -> dict[str, Any]:
    def strip(node: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in node.items() if key not in TASK_PATHS}

    view = {k: v for k, v in config.items() if k not in (*NO_WEIGHTS[""], "sequence", "tasks", "callbacks")}
    for group, fields in NO_WEIGHTS.items():
        if group:
            view[group] = {k: v for k, v in view[group].items() if k not in fields}
    view["task"] = strip(config["tasks"][task])
    probe = config["probe"]
    bounds = {name: bound for name, bound in probe.get("stop_when", {}).items() if bound is not None}
    if bounds and probe["on_alarm"] == "stop":
        kept = ("token_sets", "forced_on", "n", "alarm_n", "alarm_every")
        prompts = [strip(node) for node in probe["tasks"].values()]
        view["stop"] = {"bounds": bounds, "prompts": prompts, **{name: probe[name] for name in kept}}
    return view


def old_recorded_view(config: dict[str, Any]) -> dict[str, Any]:
    view = {k: v for k, v in config.items() if k not in NO_WEIGHTS[""] or k in ("suite", "probe")}
    for group in ("hardware", "model"):
        view[group] = {k: v for k, v in config[group].items() if k not in NO_WEIGHTS[group]}
    view["tasks"] = {
        name: {k: v for k, v in node.items() if k not in TASK_PATHS} for name, node in config["tasks"].items()
    }
    return view


def iterate_leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from iterate_leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


@pytest.mark.parametrize("overrides", SHIPPED.values(), ids=SHIPPED)
def test_what_counts_for_a_stage_a_record_and_a_job_is_what_counted_before(overrides: list[str]) -> None:
    config = resolve(*overrides)
    before = copy.deepcopy(config)
    for task in config["sequence"]["tasks"]:
        assert select_training_config(config, task) == old_training_view(config, task)
    assert select_recorded_config(config) == old_recorded_view(config)
    for key, _ in iterate_leaves(config):
        was_compared = not any(key == name or key.startswith(f"{name}.") for name in NOT_COMPARED)
        assert (find_effect(key) != Effect.NEITHER) == was_compared, key
    assert config == before
    assert list_config_differences(config, before) == []


def test_only_an_alarm_that_ends_stages_moves_weights() -> None:
    assert select_early_stop_config(resolve(*ALARM, "probe.on_alarm=warn")["probe"]) is None
    assert select_early_stop_config(resolve("probe=both")["probe"]) is None
    stop = select_early_stop_config(resolve(*ALARM)["probe"])
    assert stop is not None and stop["bounds"] == {"kl": 0.5, "letter_mass": 0.1} and stop["alarm_n"] == 32


@pytest.mark.parametrize("overrides", SHIPPED.values(), ids=SHIPPED)
def test_a_resolved_configuration_becomes_one_typed_object(overrides: list[str]) -> None:
    config = resolve(*overrides)
    job = JobConfig.from_resolved(config)
    assert (job.name, job.seed, job.store) == (config["name"], config["seed"], config["store"])
    for group in REQUIRED_GROUPS:
        if group == "probe" and config["probe"]["name"] == "none":
            assert job.probe is None
            continue
        typed = getattr(job, group)
        for key in list_settings(type(typed)).keys() & config[group].keys():
            value = getattr(typed, key)
            assert not isinstance(config[group][key], int | float | str) or value == config[group][key], key
    assert job.training.betas == (0.9, 0.999)
    assert job.sequence.tasks == tuple(config["sequence"]["tasks"])
    assert job.tasks.keys() == config["tasks"].keys()
    name, task = next(iter(job.tasks.items()))
    assert (task.name, task.role) == (name, config["tasks"][name]["role"])
    assert task.extra.keys() == config["tasks"][name].keys() - list_settings(TaskSettings).keys()
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probe=both", "probe.n=0"], r"probe.n=0 cannot be used; it must be a whole number of at least 1"),
        (["probe=both", "probe.forced_on=me"], r"probe.forced_on=me is not known; choose one of: reference, base"),
        (["probe=both", "probe.modes=[]"], r"probe.modes=\[\] cannot be used; it must be a list of free and forced"),
        (["probe=both", "+probe.stop_when.k=1"], r"there is no probe.stop_when.k; .* did you mean kl\?"),
        (["probe=both", "+probe.at_step=[1]"], r"there is no probe.at_step; .* did you mean at_steps\?"),
        (["probe=both", "probe.stop_when.kl=0"], r"probe.stop_when.kl=0 cannot be used; .* above 0, or null"),
        (["probe=both", "~probe.n"], r"the configuration lacks probe.n; a probe YAML of your own must set it"),
        (["logger=wandb", "logger.answers=-1"], r"logger.answers=-1 cannot be used"),
        (["logger=wandb", "logger.mode=sometimes"], r"logger.mode=sometimes is not known; choose one of: online"),
        (["+logger.answer=3"], r"there is no logger.answer; .*did you mean answers\?"),
        (["suite=paper_quick", "suite.subset.samples=0"], r"suite.subset.samples=0 cannot be used; .* at least 1"),
        (
            ["suite=paper_quick", "+suite.subset.size=9"],
            r"there is no suite.subset.size; suite.subset has: by, ",
        ),
        (["+suite.subset=9"], r"suite.subset=9 cannot be used; it must be keys and values"),
        (["seed=9223372036854775808"], r"seed=9223372036854775808 cannot be used; .* \(and below 2\^63\)"),
        (["recipe.rules=[language]"], r"recipe.rules=\['language'\] cannot be used; it must be a list of rules"),
        (["model.image.max_tiles=none", "model=llava_next_8b"], r"model.image.max_tiles=none cannot be used; .* null"),
        (["+tasks.tiny_ai2d.max_new_tokens=0"], r"tasks.tiny_ai2d: max_new_tokens=0 cannot be used; .* at least 1"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_would_be_right(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        resolve(*overrides)
    assert "\n" not in str(caught.value)


def test_the_page_of_all_settings_is_up_to_date() -> None:
    page = ROOT / "docs/configuration.md"
    assert page.read_text() == format_markdown_reference(), "write it again: make docs/configuration.md"


def test_help_shows_a_group_or_a_single_setting() -> None:
    for section in list_reference_sections():
        text = format_settings_help(section.name)
        assert all(f"{row.key}: " in text for row in section.rows) and (section.rows or section.name == "callbacks")
        assert max(map(len, text.splitlines())) <= 110
    text = format_settings_help("training.max_steps")
    assert "training.max_steps: a whole number of at least 1, or null [${model.training.max_steps}]" in text
    assert "(changes weights)" in text and "warmup" not in text
    assert "choices: cpu, ddp, fsdp, gpu," in format_settings_help("hardware")
    with pytest.raises(ConfigError, match=r"there is no group or setting 'trainig'; .*did you mean training\?$"):
        format_settings_help("trainig")
